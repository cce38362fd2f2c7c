"""A class-conditional diffusion model in pixel space as a diffusers pipeline: network, noise schedule, samplers.

The network predicts velocity, `v = sqrt(a) e - sqrt(1 - a) x` (Salimans and Ho 2022), of images in [-1, 1] whose blocks
of `unshuffle x unshuffle` pixels were folded into channels. The last row of its class embedding is the null class.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    ImagePipelineOutput,
    UNet2DModel,
    UniPCMultistepScheduler,
)
from diffusers.utils import logging
from torch import Tensor

from synthkd.errors import ModelError
from synthkd.generators.guidance import guided
from synthkd.generators.settings import DiffusionSettings, Sampler
from synthkd.rng import Rows
from synthkd.system.text import parse_json
from synthkd.types import ImageSpec, check_labels

NOISE_STEPS = 1000
GROUP = 4
"""Least channels of a normalisation group: with one, the norm would take out what time and class add to a channel."""

Steer = Callable[[Tensor, float], Tensor]
"""(predicted images `[N, C, H, W]` about in [-1, 1], standard deviation of the noise still in them) -> changed ones."""


def build_unet(settings: DiffusionSettings, spec: ImageSpec) -> UNet2DModel:
    """The network for images of a spec, with one class embedding more than classes."""
    levels, fold = len(settings.channels), settings.unshuffle
    down, up = ["DownBlock2D"] * levels, ["UpBlock2D"] * levels
    if settings.attention:
        down[-1], up[0] = "AttnDownBlock2D", "AttnUpBlock2D"
    return UNet2DModel(
        sample_size=tuple(side // fold for side in _padded(spec.height, spec.width, fold, levels)),
        in_channels=spec.channels * fold**2,
        out_channels=spec.channels * fold**2,
        block_out_channels=tuple(settings.channels),
        layers_per_block=settings.layers,
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        norm_num_groups=max(1, math.gcd(32, *settings.channels) // GROUP),
        attention_head_dim=math.gcd(16, *settings.channels),
        add_attention=settings.attention,
        resnet_time_scale_shift="scale_shift",
        num_class_embeds=spec.classes + 1,
    )


def noise_schedule() -> DDPMScheduler:
    """The cosine schedule (Nichol and Dhariwal 2021, equation 17) in 1000 steps, for velocities."""
    return DDPMScheduler(
        NOISE_STEPS, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", timestep_spacing="trailing"
    )


def fold(images: Tensor, unet: UNet2DModel, unshuffle: int) -> Tensor:
    """Images float32 `[N, C, H, W]` in [0, 1] as the network has them: [-1, 1], padded at the edges, folded."""
    height, width = (side * unshuffle for side in unet.config.sample_size)
    over = (0, width - images.shape[3], 0, height - images.shape[2])
    padded = F.pad(images, over, mode="replicate") if any(over) else images
    return F.pixel_unshuffle(padded * 2.0 - 1.0, unshuffle)


def unfold(folded: Tensor, height: int, width: int, unshuffle: int) -> Tensor:
    """The inverse of `fold` but for the range: images `[N, C, H, W]` in [-1, 1]."""
    return F.pixel_shuffle(folded, unshuffle)[..., :height, :width]


class ClassConditionalPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Labels to images; saved and loaded as a diffusers folder.

    `ClassConditionalPipeline.from_pretrained(folder)` loads what `save_pretrained` wrote; the generic
    `DiffusionPipeline.from_pretrained` does not know the class.

    Args:
        unet: takes folded images, timestep and class; predicts velocity.
        scheduler: the noise schedule; a sampler is made of its configuration for each call.
        height: of the images.
        width: of the images.
        unshuffle: side of the blocks that are folded into channels.
        class_names: one per class, or None.
    """

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: DDPMScheduler,
        height: int = 32,  # diffusers takes an argument without a default for a module
        width: int = 32,
        unshuffle: int = 1,
        class_names: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(height=height, width=width, unshuffle=unshuffle, class_names=class_names)
        self.set_progress_bar_config(disable=True)

    @property
    def spec(self) -> ImageSpec:
        """Images and classes of the pipeline."""
        c = self.config
        channels = self.unet.config.in_channels // c.unshuffle**2
        return ImageSpec(channels, c.height, c.width, self.unet.config.num_class_embeds - 1)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Sequence[int],
        guidance_scale: float = 1.5,
        num_inference_steps: int = 10,
        generator: torch.Generator | None = None,
        sampler: Sampler = "unipc",
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[object]:
        """Images of the classes, in the manner of diffusers' own pipelines.

        Args:
            class_labels: one class for each image.
            guidance_scale: w of classifier-free guidance; 1 leaves it out and halves the cost.
            num_inference_steps: of the sampler.
            generator: CPU generator the images' seed is drawn from; None draws from torch's global one.
            sampler: see `generator.sampler`.
            output_type: `pil`, `np` (`[N, H, W, C]`) or `pt` (`[N, C, H, W]`), the latter two in [0, 1].
            return_dict: False gives a tuple of one.
        """
        seed = int(torch.randint(2**31, (), generator=generator))
        labels = torch.as_tensor(class_labels, dtype=torch.int64)
        images = self.draw(labels, Rows(seed, "pipeline"), guidance_scale, num_inference_steps, sampler).cpu()
        result: object = images
        if output_type != "pt":
            result = images.permute(0, 2, 3, 1).numpy()
        if output_type == "pil":
            result = self.numpy_to_pil(result)
        return ImagePipelineOutput(images=result) if return_dict else (result,)

    @torch.no_grad()
    def draw(
        self,
        labels: Tensor,
        rng: Rows,
        scale: float,
        steps: int,
        sampler: Sampler,
        steer: Steer | None = None,
    ) -> Tensor:
        """Images of the labels; image i is a function of its label and of row `rng.start + i`.

        Each step the network's velocity becomes a prediction of the image, which may be steered, and is handed to the
        sampler as such. It is not clipped on the way: that made Frechet distances a quarter larger.

        Args:
            labels: int64 `[N]`.
            rng: rows of the starting noise; that of a later step comes from the same rows of a stream of its own.
            scale: w of classifier-free guidance.
            steps: of the sampler, at most 1000.
            sampler: `ddpm`, `ddim`, `dpm++` or `unipc`.
            steer: changes predicted images.

        Returns:
            float32 `[N, C, H, W]` in [0, 1] on the network's device.
        """
        check_labels(labels, self.spec.classes, "sampling")
        unet, device, c = self.unet, self.unet.device, self.config
        shape = (unet.config.in_channels, *unet.config.sample_size)
        labels = labels.to(device)
        null = torch.full_like(labels, self.spec.classes)
        sigmas = (1.0 - self.scheduler.alphas_cumprod).sqrt().tolist()

        def noise(rows: Rows) -> Tensor:
            drawn: Tensor = rows.normal(len(labels), math.prod(shape)).unflatten(1, shape)
            return drawn.to(device)

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            if scale in (0.0, 1.0):
                only: Tensor = unet(x, t, class_labels=labels if scale else null).sample.float()
                return only
            both: Tensor = unet(torch.cat([x, x]), t, class_labels=torch.cat([labels, null])).sample
            conditional, unconditional = both.float().chunk(2)
            return guided(conditional, unconditional, scale)

        schedule = make_sampler(sampler, self.scheduler, steps)
        x = noise(rng)
        for number, t in enumerate(schedule.timesteps):
            sigma = sigmas[int(t)]
            clean = math.sqrt(1.0 - sigma**2) * x - sigma * velocity(x, t.to(device))
            if steer is not None:
                images = steer(unfold(clean, c.height, c.width, c.unshuffle), sigma)
                clean = fold((images + 1.0) / 2.0, unet, c.unshuffle)
            if sampler == "ddpm":
                fresh = noise(replace(rng, purpose=f"{rng.purpose}/step {number}"))
                x = schedule.step(clean, t, x, eta=1.0, variance_noise=fresh).prev_sample
            else:
                x = schedule.step(clean, t, x).prev_sample
        return ((unfold(x, c.height, c.width, c.unshuffle) + 1.0) / 2.0).clamp(0.0, 1.0).contiguous()


def load_pipeline(directory: Path | str) -> DiffusionPipeline:
    """The diffusers pipeline saved in a local folder, on the CPU: ours, or any that diffusers itself knows.

    Nothing is downloaded, no code in the folder is run, and weights must be safetensors.

    Raises:
        ModelError: no pipeline there, one of a class that diffusers does not know, or damaged files.
    """
    directory = Path(directory).expanduser()
    index = directory / DiffusionPipeline.config_name
    if not index.is_file():
        raise ModelError(f"{directory} has no {index.name}; give a folder that a diffusers pipeline was saved to")
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        ours = parse_json(index.read_bytes()).get("_class_name") == ClassConditionalPipeline.__name__
        loader = ClassConditionalPipeline if ours else DiffusionPipeline
        pipeline: DiffusionPipeline = loader.from_pretrained(
            directory, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False
        )
    except Exception as error:  # what damaged files raise depends on which of many loaders meets them
        reason = str(error).strip().split("\n")[0]
        raise ModelError(f"{directory} cannot be loaded: {reason}; save the pipeline again as safetensors") from error
    finally:
        if shown:
            logging.enable_progress_bar()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make_sampler(name: Sampler, schedule: DDPMScheduler, steps: int) -> DDIMScheduler:
    """A fresh sampler (they count steps inside) that takes image predictions and starts at the last noise level.

    DDPM's ancestral step is DDIM's with eta = 1 (Song et al. 2021, section 4.1), which lets the noise be given.
    """
    unclipped = partial(DDIMScheduler, clip_sample=False)
    kinds = {
        "ddpm": unclipped,
        "ddim": unclipped,
        "dpm++": DPMSolverMultistepScheduler,
        "unipc": UniPCMultistepScheduler,
    }
    config = {
        "num_train_timesteps": schedule.config.num_train_timesteps,
        "beta_schedule": schedule.config.beta_schedule,
        "trained_betas": schedule.config.trained_betas,
        "prediction_type": "sample",
        "timestep_spacing": "trailing",
    }
    sampler = kinds[name](**config)
    sampler.set_timesteps(steps)
    return sampler


def _padded(height: int, width: int, fold: int, levels: int) -> tuple[int, int]:
    """The sides rounded up to what can be folded and then halved between levels."""
    unit = fold * 2 ** (levels - 1)
    return -(-height // unit) * unit, -(-width // unit) * unit
