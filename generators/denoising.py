"""A class-conditional diffusion model in pixel space as a diffusers pipeline: network, noise schedule, samplers.

Images x in [-1, 1] are folded: a block of `unshuffle x unshuffle` pixels becomes the channels of one position. With
noise e and `a = alpha_bar_t`, the network predicts the velocity `v = sqrt(a) e - sqrt(1 - a) x` (Salimans and Ho 2022)
of `x_t = sqrt(a) x + sqrt(1 - a) e`. The last row of its class embedding is the null class.
"""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path

import diffusers
import torch
import torch.nn.functional as F
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.utils import logging
from torch import Tensor

from synthkd.errors import ModelError
from synthkd.generators.guidance import guided
from synthkd.generators.settings import DiffusionSettings, Sampler
from synthkd.models.weights import finite_state
from synthkd.rng import Rows
from synthkd.system.files import naming, write_atomically
from synthkd.system.text import parse_json
from synthkd.types import ImageSpec, check_labels

NOISE_STEPS = 1000
GROUP = 4
"""Least channels of a normalisation group: alone in its group, a channel would lose what time and class add to it."""

Steer = Callable[[Tensor, float], Tensor]
"""(predicted images `[N, C, H, W]`, roughly in [-1, 1]; standard deviation of the remaining noise) -> new images."""


def build_unet(settings: DiffusionSettings, spec: ImageSpec) -> diffusers.UNet2DModel:
    """The network for images of a spec, with one class embedding more than classes."""
    levels, block = len(settings.channels), settings.unshuffle
    down, up = ["DownBlock2D"] * levels, ["UpBlock2D"] * levels
    if settings.attention:
        # At the smallest maps only: its cost grows with the square of the number of positions.
        down[-1], up[0] = "AttnDownBlock2D", "AttnUpBlock2D"
    # Sides must divide into blocks, and the folded sides must halve from level to level.
    unit = block * 2 ** (levels - 1)
    return diffusers.UNet2DModel(
        sample_size=tuple(-(-side // unit) * unit // block for side in (spec.height, spec.width)),
        in_channels=spec.channels * block**2,
        out_channels=spec.channels * block**2,
        block_out_channels=tuple(settings.channels),
        layers_per_block=settings.layers,
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        # Common divisors, since groups and heads must divide the channels of every level.
        norm_num_groups=max(1, math.gcd(32, *settings.channels) // GROUP),
        attention_head_dim=math.gcd(16, *settings.channels),
        add_attention=settings.attention,
        resnet_time_scale_shift="scale_shift",
        num_class_embeds=spec.classes + 1,
    )


def noise_schedule() -> diffusers.DDPMScheduler:
    """The cosine schedule (Nichol and Dhariwal 2021, equation 17) in 1000 steps, for velocities."""
    return diffusers.DDPMScheduler(
        NOISE_STEPS, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", timestep_spacing="trailing"
    )


def fold(images: Tensor, unet: diffusers.UNet2DModel, unshuffle: int) -> Tensor:
    """Images float32 `[N, C, H, W]` in [0, 1] as input of the network: scaled to [-1, 1], padded at the edges, folded.

    Returns:
        float32 `[N, C * unshuffle^2, height, width]`, height and width of `unet.config.sample_size`.
    """
    height, width = (side * unshuffle for side in unet.config.sample_size)
    border = (0, width - images.shape[3], 0, height - images.shape[2])
    # Repeated edges continue the image; a constant would teach the network to paint a frame.
    if any(border):
        images = F.pad(images, border, mode="replicate")
    return F.pixel_unshuffle(images * 2.0 - 1.0, unshuffle)


def unfold(folded: Tensor, height: int, width: int, unshuffle: int) -> Tensor:
    """The inverse of `fold` except for the range: images `[N, C, height, width]` in [-1, 1]."""
    return F.pixel_shuffle(folded, unshuffle)[..., :height, :width]


def to_unit_range(images: Tensor) -> Tensor:
    """Images in [-1, 1] scaled to [0, 1] and clamped."""
    return ((images + 1.0) / 2.0).clamp(0.0, 1.0)


class ClassConditionalPipeline(diffusers.DiffusionPipeline):  # type: ignore[misc]
    """Labels to images; saved and loaded as a diffusers folder.

    Load what `save_pretrained` wrote with `ClassConditionalPipeline.from_pretrained(folder)`: the generic
    `DiffusionPipeline.from_pretrained` does not know this class.

    Args:
        unet: predicts velocities of folded images from timestep and class.
        scheduler: the noise schedule; each call builds a sampler from its configuration.
        height: of the images, in pixels.
        width: likewise.
        unshuffle: side of the pixel blocks that are folded into channels.
        class_names: one per class, or None.
    """

    def __init__(
        self,
        unet: diffusers.UNet2DModel,
        scheduler: diffusers.DDPMScheduler,
        height: int = 32,  # diffusers takes every argument without a default for a module
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
        """Spec of the images and classes; the null class is not counted."""
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
    ) -> diffusers.ImagePipelineOutput | tuple[object]:
        """Images of the classes, with the arguments of diffusers' own pipelines.

        Args:
            class_labels: one class for each image.
            guidance_scale: w of classifier-free guidance; 1 omits guidance and halves the cost.
            num_inference_steps: of the sampler.
            generator: CPU generator from which the images' seed is drawn; None uses torch's global one.
            sampler: see `DiffusionSettings.sampler`.
            output_type: `pil`, `np` (`[N, H, W, C]`) or `pt` (`[N, C, H, W]`), the latter two in [0, 1].
            return_dict: False returns a tuple of one element.
        """
        seed = int(torch.randint(2**31, (), generator=generator))
        labels = torch.as_tensor(class_labels, dtype=torch.int64)
        images = self.draw(labels, Rows(seed, "pipeline"), guidance_scale, num_inference_steps, sampler).cpu()
        result: object = images
        if output_type != "pt":
            result = images.permute(0, 2, 3, 1).numpy()
        if output_type == "pil":
            result = self.numpy_to_pil(result)
        return diffusers.ImagePipelineOutput(images=result) if return_dict else (result,)

    @torch.no_grad()
    def draw(
        self, labels: Tensor, rng: Rows, scale: float, steps: int, sampler: Sampler, steer: Steer | None = None
    ) -> Tensor:
        """Images of the labels; image i is a function of its label and of row `rng.start + i`.

        In each step the network's velocity gives a predicted image, `steer` may change it, and the sampler goes on from
        it. Predicted images are not clipped: with clipping, Frechet distances were a quarter larger.

        Args:
            labels: int64 `[N]`.
            rng: rows of the initial noise; the noise of step n uses the same rows of the stream `<purpose>/step n`.
            scale: w of classifier-free guidance.
            steps: of the sampler, at most 1000.
            sampler: `ddpm`, `ddim`, `dpm++` or `unipc`.
            steer: changes predicted images, or None.

        Returns:
            float32 `[N, C, H, W]` in [0, 1] on the network's device.
        """
        check_labels(labels, self.spec.classes, "sampling")
        unet, device, c = self.unet, self.unet.device, self.config
        shape = (unet.config.in_channels, *unet.config.sample_size)
        labels = labels.to(device)
        # Standard deviation of the noise in x_t.
        sigmas = (1.0 - self.scheduler.alphas_cumprod).sqrt().tolist()

        def noise(rows: Rows) -> Tensor:
            values: Tensor = rows.normal(len(labels), math.prod(shape)).unflatten(1, shape)
            return values.to(device)

        schedule = make_sampler(sampler, self.scheduler, steps)
        x = noise(rng)
        for number, t in enumerate(schedule.timesteps):
            sigma = sigmas[int(t)]
            # The image that a velocity implies: x = sqrt(a) x_t - sqrt(1 - a) v, with sigma^2 = 1 - a.
            clean = math.sqrt(1.0 - sigma**2) * x - sigma * self._velocity(x, t.to(device), labels, scale)
            if steer is not None:
                images = steer(unfold(clean, c.height, c.width, c.unshuffle), sigma)
                clean = fold((images + 1.0) / 2.0, unet, c.unshuffle)
            # Only DDPM adds noise in a step. It is drawn here by row, since the sampler would draw it by batch.
            extra = {}
            if sampler == "ddpm":
                step_noise = noise(replace(rng, purpose=f"{rng.purpose}/step {number}"))
                extra = {"eta": 1.0, "variance_noise": step_noise}
            x = schedule.step(clean, t, x, **extra).prev_sample
        return to_unit_range(unfold(x, c.height, c.width, c.unshuffle)).contiguous()

    def _velocity(self, x: Tensor, t: Tensor, labels: Tensor, scale: float) -> Tensor:
        """The velocity with classifier-free guidance of scale `scale`, float32 like x."""
        null = torch.full_like(labels, self.spec.classes)
        if scale in (0.0, 1.0):  # one of the two predictions has weight 0 and is not computed
            single: Tensor = self.unet(x, t, class_labels=labels if scale else null).sample.float()
            return single
        # One pass of twice the batch, which costs less than two.
        both: Tensor = self.unet(torch.cat([x, x]), t, class_labels=torch.cat([labels, null])).sample
        conditional, unconditional = both.float().chunk(2)
        return guided(conditional, unconditional, scale)


def save_pipeline(pipeline: ClassConditionalPipeline, directory: Path) -> None:
    """Write a pipeline as a diffusers folder, its weights on the CPU, each file atomically.

    Raises:
        TrainingError: a weight is not finite.
    """
    # diffusers writes file by file in place, so it writes to a scratch folder first.
    with tempfile.TemporaryDirectory() as scratch, naming(Path(scratch)):
        unet = copy.deepcopy(pipeline.unet).to("cpu", memory_format=torch.contiguous_format)
        finite_state(unet, str(directory))
        c = pipeline.config
        portable = ClassConditionalPipeline(unet, pipeline.scheduler, c.height, c.width, c.unshuffle, c.class_names)
        portable.save_pretrained(scratch)
        files = sorted(path for path in Path(scratch).rglob("*") if path.is_file())
        # The index comes last: an interrupted save has none, so it is not taken for a pipeline.
        for file in sorted(files, key=lambda path: path.name == ClassConditionalPipeline.config_name):
            write_atomically(directory / file.relative_to(scratch), file.read_bytes())


def load_pipeline(directory: Path | str) -> diffusers.DiffusionPipeline:
    """The diffusers pipeline in a local folder, on the CPU: a `ClassConditionalPipeline`, or one that diffusers knows.

    Nothing is downloaded, no code in the folder is run, and weights must be safetensors.

    Raises:
        ModelError: the folder has no pipeline, one of a class that diffusers does not know, or damaged files.
    """
    directory = Path(directory).expanduser()
    index = directory / diffusers.DiffusionPipeline.config_name
    if not index.is_file():
        raise ModelError(f"{directory} has no {index.name}; give a folder that a diffusers pipeline was saved to")
    # The switch is global, so it is put back as it was.
    progress_bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        # diffusers finds classes by name in its own package alone, where this one is not.
        ours = parse_json(index.read_bytes()).get("_class_name") == ClassConditionalPipeline.__name__
        loader = ClassConditionalPipeline if ours else diffusers.DiffusionPipeline
        pipeline: diffusers.DiffusionPipeline = loader.from_pretrained(
            directory, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False
        )
    except Exception as error:  # damaged files raise different errors in each of many loaders
        reason = str(error).strip().split("\n")[0]
        raise ModelError(f"{directory} cannot be loaded: {reason}; save the pipeline again as safetensors") from error
    finally:
        if progress_bars:
            logging.enable_progress_bar()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


class ExactDDIM(diffusers.DDIMScheduler):  # type: ignore[misc]
    """DDIM whose steps go from each of its times to the next, as the rule of trailing times has them.

    A step of diffusers' own goes back by `1000 // steps`, which leaves the times if steps does not divide 1000.
    """

    timesteps: Tensor

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """As that of diffusers, without the time below 0 that rounding adds to some numbers of steps."""
        super().set_timesteps(num_inference_steps, device)
        self.timesteps = self.timesteps[:num_inference_steps]

    def step(
        self, model_output: Tensor, timestep: int | Tensor, sample: Tensor, **options: object
    ) -> DDIMSchedulerOutput:
        """As that of diffusers, to the next time."""
        place = self.timesteps.tolist().index(int(timestep))
        following = [*self.timesteps.tolist(), -1][place + 1]
        # diffusers has no argument for the length of a step; it divides by this number.
        self.num_inference_steps = Fraction(self.config.num_train_timesteps, int(timestep) - following)
        output: DDIMSchedulerOutput = super().step(model_output, timestep, sample, **options)
        return output


def make_sampler(name: Sampler, schedule: diffusers.DDPMScheduler, steps: int) -> diffusers.DDIMScheduler:
    """A new sampler, since samplers count their steps; it takes predicted images and starts at the noisiest time.

    `ddpm` uses DDIM's scheduler, because it takes the noise as an argument; with eta = 1 its step is DDPM's (Song et
    al. 2021, section 4.1).
    """
    unclipped = partial(ExactDDIM, clip_sample=False)
    samplers = {
        "ddpm": unclipped,
        "ddim": unclipped,
        "dpm++": diffusers.DPMSolverMultistepScheduler,
        "unipc": diffusers.UniPCMultistepScheduler,
    }
    # Trailing: however few the steps, the first is at the noisiest time, whose images are pure noise (Lin et al. 2023).
    config = {key: schedule.config[key] for key in ("num_train_timesteps", "beta_schedule", "trained_betas")}
    sampler = samplers[name](**config, prediction_type="sample", timestep_spacing="trailing")
    sampler.set_timesteps(steps)
    # Rounding adds a time below 0 to some numbers of steps.
    sampler.timesteps = sampler.timesteps[:steps]
    if name in ("dpm++", "unipc"):
        sampler.sigmas = torch.cat([sampler.sigmas[:steps], sampler.sigmas[-1:]])
    return sampler
