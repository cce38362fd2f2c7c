"""A generator that samples a trained class-conditional diffusers pipeline in a local folder: DiT, a consistency model,
or one that `synthkd.generators.diffusion` saved.
"""

from __future__ import annotations

import inspect

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import DDIMScheduler, DDPMScheduler, DiTPipeline
from torch import Tensor, nn
from torchvision.transforms.v2.functional import rgb_to_grayscale

from synthkd.errors import ConfigError, ModelError
from synthkd.generators.denoising import ClassConditionalPipeline, ExactDDIM, load_pipeline
from synthkd.generators.guidance import guidance_scale
from synthkd.generators.local import local_accelerator
from synthkd.generators.settings import PipelineSettings
from synthkd.passes import sample_in_chunks
from synthkd.rng import Rows, derive
from synthkd.taps import evaluating
from synthkd.types import ImageSpec, check_labels

DIT_NULL = 1000
"""The null class in DiTPipeline's guidance, whatever the number of classes of its network."""


class Pipeline:
    """Samples of a trained pipeline, converted to the size and channels of a spec.

    Args:
        settings: the folder, the sampler's steps and guidance, and the class ids.
        spec: size, channels and classes of the samples.
        accelerator: device and precision; None: full precision.

    Raises:
        ConfigError: there is not one class id for each class, the pipeline lacks a class, or it cannot do the guidance.
        ModelError: the folder has no pipeline, or one that takes no class labels.
    """

    def __init__(self, settings: PipelineSettings, spec: ImageSpec, accelerator: Accelerator | None = None) -> None:
        accelerator = local_accelerator(accelerator, None)
        self.settings = settings
        self.spec = spec
        self._device = accelerator.device
        self._autocast = accelerator.autocast
        self._pipeline = load_pipeline(settings.path)
        self._parameters = set(inspect.signature(self._pipeline.__call__).parameters)
        if "class_labels" not in self._parameters:
            raise ModelError(
                f"{settings.path} holds a {type(self._pipeline).__name__}, which takes no class labels; give a "
                "class-conditional pipeline (DiT, consistency model)"
            )
        ids = tuple(range(spec.classes)) if settings.class_ids is None else settings.class_ids
        self._check(ids)
        self._ids = torch.tensor(ids)
        if isinstance(self._pipeline, DiTPipeline):
            # DiTPipeline gives its scheduler no random generator. DDPM adds noise in each step, so an image would not
            # be a function of its row; DDIM adds none. The default spacing of the times would skip the noisiest one.
            scheduler = self._pipeline.scheduler
            kind = ExactDDIM if isinstance(scheduler, DDPMScheduler | DDIMScheduler) else type(scheduler)
            self._pipeline.scheduler = kind.from_config(scheduler.config, timestep_spacing="trailing")
        self._pipeline.to(self._device)

    def sample(self, labels: Tensor, difficulty: float, rng: Rows) -> Tensor:
        """Images of the labels, each a function of its label and row alone.

        Args:
            labels: int64 `[N]` in the teacher's numbering.
            difficulty: in [0, 1], sets the guidance scale (see `synthkd.generators.guidance`); a pipeline without
                guidance ignores it.
            rng: random rows; image i is a function of row `rng.start + i`.

        Returns:
            float32 `[N, C, H, W]` in [0, 1], resized (antialiased) and converted to the spec's channels.

        Raises:
            DataError: a label is not in the spec.
            ModelError: the pipeline's channels cannot be converted to the spec's.
        """
        check_labels(labels, self.spec.classes, "sampling")
        ids = self._ids[labels.cpu()]
        return sample_in_chunks(
            lambda part, rows: self._sample(part, difficulty, rows), self.settings.batch_size, ids, rng
        )

    def _sample(self, ids: Tensor, difficulty: float, rng: Rows) -> Tensor:
        """As `sample`, in one pass, of the pipeline's own classes."""
        s = self.settings
        scale = guidance_scale(difficulty, s.guidance, s.hard_guidance)
        modules = [m for m in self._pipeline.components.values() if isinstance(m, nn.Module)]
        with torch.no_grad(), evaluating(*modules), self._autocast():
            if isinstance(self._pipeline, ClassConditionalPipeline):
                images = self._pipeline.draw(ids, rng, scale, s.sample_steps, "unipc")
            else:
                # A list of generators, one for each image: one for the batch would tie an image to its place in it.
                rows = range(rng.start, rng.start + len(ids))
                arguments = {
                    "class_labels": ids.tolist(),
                    "batch_size": len(ids),
                    "num_inference_steps": s.sample_steps,
                    "guidance_scale": scale,
                    "generator": [torch.Generator().manual_seed(derive(rng.seed, rng.purpose, row)) for row in rows],
                    "output_type": "pt",
                }
                # Pipelines differ: a consistency model takes a batch size and no guidance, DiT the reverse.
                images = self._pipeline(**{k: v for k, v in arguments.items() if k in self._parameters}).images
        return _fitted(images.to(self._device).float(), self.spec)

    def _check(self, ids: tuple[int, ...]) -> None:
        s = self.settings
        if len(ids) != self.spec.classes:
            raise ConfigError(
                f"the generator's class_ids: got {len(ids)} for {self.spec.classes} classes; give one for each"
            )
        classes = self._classes()
        if classes is not None and max(ids) >= classes:
            raise ConfigError(
                f"the generator's class_ids: {s.path} has the classes 0..{classes - 1}, got {max(ids)}; give the "
                "pipeline's class for each label"
            )
        if isinstance(self._pipeline, DiTPipeline) and classes != DIT_NULL and max(s.guidance, s.hard_guidance) > 1.0:
            raise ConfigError(
                f"the generator's guidance: DiTPipeline guides away from class {DIT_NULL}, which this network of "
                f"{classes} classes does not have; set guidance and hard_guidance to 1"
            )

    def _classes(self) -> int | None:
        """Number of the pipeline's classes; None if the configuration of its network does not have it."""
        if isinstance(self._pipeline, ClassConditionalPipeline):
            return self._pipeline.spec.classes
        for part, key in (("transformer", "num_embeds_ada_norm"), ("unet", "num_class_embeds")):
            config = getattr(getattr(self._pipeline, part, None), "config", {})
            if config.get(key) is not None:
                return int(config[key])
        return None


def _fitted(images: Tensor, spec: ImageSpec) -> Tensor:
    """Images `[N, 1 or 3, H, W]` converted to the channels and size of a spec and clamped to [0, 1]."""
    if images.shape[1] != spec.channels:
        if {images.shape[1], spec.channels} != {1, 3}:
            raise ModelError(
                f"the pipeline makes images of {images.shape[1]} channels, the teacher takes {spec.channels}; only "
                "grey and RGB are converted into each other"
            )
        images = rgb_to_grayscale(images) if spec.channels == 1 else images.expand(-1, 3, -1, -1)
    # Antialiased, since a plain bilinear reduction skips pixels and leaves jagged edges that real images do not have.
    if images.shape[2:] != (spec.height, spec.width):
        images = F.interpolate(images, (spec.height, spec.width), mode="bilinear", antialias=True)
    return images.clamp(0.0, 1.0).contiguous()
