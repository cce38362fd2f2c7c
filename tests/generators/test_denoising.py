"""The pipeline of the diffusion model: image sizes, and its samplers against diffusers' own."""

import pytest
import torch
from diffusers import DDPMScheduler

from synthkd.generators.denoising import (
    ClassConditionalPipeline,
    build_unet,
    fold,
    make_sampler,
    noise_schedule,
    unfold,
)
from synthkd.generators.settings import DiffusionSettings
from synthkd.rng import Rows
from synthkd.types import ImageSpec


@pytest.mark.parametrize(("height", "width", "channels", "unshuffle"), [(28, 28, 1, 2), (7, 10, 3, 2), (5, 5, 1, 1)])
def test_any_image_size_is_folded_and_back(height: int, width: int, channels: int, unshuffle: int) -> None:
    spec = ImageSpec(channels, height, width, 4)
    settings = DiffusionSettings(kind="diffusion", channels=(8, 8), unshuffle=unshuffle)
    unet = build_unet(settings, spec)
    images = torch.rand(2, *spec.shape, generator=torch.Generator().manual_seed(0))
    folded = fold(images, unet, unshuffle)
    assert torch.allclose((unfold(folded, height, width, unshuffle) + 1) / 2, images, atol=1e-6)
    pipeline = ClassConditionalPipeline(unet.eval(), noise_schedule(), height, width, unshuffle)
    assert pipeline.spec == spec
    assert pipeline.draw(torch.tensor([0, 3]), Rows(0, "x"), 1.5, 2, "unipc").shape == (2, *spec.shape)


def test_the_ancestral_sampler_is_that_of_ddpm() -> None:
    ours = make_sampler("ddpm", noise_schedule(), 10)
    theirs = DDPMScheduler.from_config(noise_schedule().config, prediction_type="sample", clip_sample=False)
    theirs.set_timesteps(10)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    assert int(ours.timesteps[0]) == 999, "sampling starts at pure noise"
    # predictions outside [-1, 1] among them, which are not clipped
    clean, noisy = torch.rand(2, 1, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 4 - 2
    for t in ours.timesteps[:-1]:
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
        mine = ours.step(clean, t, noisy, eta=1.0, variance_noise=noise).prev_sample
        reference = theirs.step(clean, t, noisy, generator=torch.Generator().manual_seed(1)).prev_sample
        assert torch.allclose(mine, reference, atol=1e-4)
