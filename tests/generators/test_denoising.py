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
from synthkd.generators.settings import DiffusionSettings, Sampler
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


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++", "unipc"])
def test_each_step_has_a_time_of_its_own_and_none_is_below_0(sampler: Sampler) -> None:
    for steps in (1, 3, 10, 61, 103, 499, 998, 1000):
        times = make_sampler(sampler, noise_schedule(), steps).timesteps.tolist()
        assert len(set(times)) == steps
        assert times == sorted(times, reverse=True)
        assert times[0] == 999
        assert times[-1] >= 0


@pytest.mark.parametrize("steps", [103, 600])
@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++", "unipc"])
def test_an_exact_denoiser_gives_its_distribution_also_if_the_steps_do_not_divide_1000(
    sampler: Sampler, steps: int
) -> None:
    schedule = make_sampler(sampler, noise_schedule(), steps)
    std, rng = 0.5, torch.Generator().manual_seed(0)
    x = torch.randn(1, 1, 50, 50, generator=rng)
    x /= x.std()
    for t in schedule.timesteps:
        a = float(schedule.alphas_cumprod[t])
        # the mean of x_0 ~ N(0, std^2), given x_t = sqrt(a) x_0 + sqrt(1 - a) e
        clean = a**0.5 * std**2 / (a * std**2 + 1 - a) * x
        extra = {"eta": 1.0, "variance_noise": torch.randn(x.shape, generator=rng)} if sampler == "ddpm" else {}
        x = schedule.step(clean, t, x, **extra).prev_sample
    assert float(x.std()) == pytest.approx(std, rel=0.05)
