"""A data-free generator whose images are optimised themselves, from noise.

DeepInversion (Yin et al. 2020): BatchNorm statistics, image priors, and, in its adaptive form, competition with the
student. SRe2L (Yin et al. 2023): the same statistics under random crops, as many images of a class as are wanted.
"""

from __future__ import annotations

import math

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from synthkd.generators.batchwise import Attempt, Canvas, Pooled
from synthkd.generators.inversion_network import image_moments
from synthkd.generators.method_settings import PixelInversionSettings
from synthkd.generators.teacher_student import MORE_STUDENT_TERMS
from synthkd.generators.views import cropped, rolled
from synthkd.losses import inversion as losses
from synthkd.rng import Rows
from synthkd.types import ImageSpec


class PixelInversion(Pooled):
    """The inversion of one teacher in pixel space.

    Args:
        settings: steps, weights and views.
        teacher: the frozen teacher, only read.
        seed: the run's seed.
        accelerator: device and precision; None: the teacher's device, full precision.
        spec: images and classes of a teacher that is no `Classifier`.

    Raises:
        ModelError: BatchNorm matching has a weight and the teacher has no BatchNorm statistics, or its images and
            classes are unknown.
    """

    def __init__(
        self,
        settings: PixelInversionSettings,
        teacher: nn.Module,
        seed: int = 0,
        accelerator: Accelerator | None = None,
        spec: ImageSpec | None = None,
    ) -> None:
        priors = {
            "total_variation": lambda attempt: losses.total_variation(self._normalised(attempt.images)),
            "magnitude": lambda attempt: losses.magnitude(self._normalised(attempt.images)),
        }
        competition = {"competition": MORE_STUDENT_TERMS["competition"]}
        super().__init__(settings, teacher, seed, accelerator, spec, competition, priors)
        self.settings = settings
        # In pixels of 0 to 255, noise of deviation 1 would be black, and a step of Adam nothing.
        self._mean, self._std = (value.to(self._device) for value in image_moments(self._teacher.normalize))

    def _normalised(self, images: Tensor) -> Tensor:
        return (images - self._mean) / self._std

    def _begin(self, index: int, labels: Tensor) -> Canvas:
        count, spec = len(labels), self.spec
        rows = Rows(self._seed, "noise", index * count)
        noise = rows.normal(count, math.prod(spec.shape)).reshape(-1, *spec.shape)
        pixels = noise.to(self._device).requires_grad_()
        low, high = -self._mean / self._std, (1.0 - self._mean) / self._std

        def settle() -> None:
            # Back to what is an image: noise of unit deviation is not, and the methods' own code does the same.
            with torch.no_grad():
                pixels.copy_(torch.minimum(torch.maximum(pixels, low), high))

        settle()

        def paint() -> Tensor:
            images = pixels * self._std + self._mean
            # What rounding adds is taken off without a gradient of 0, which would keep such a pixel black for good.
            return images + (images.clamp(0.0, 1.0) - images).detach()

        return Canvas([pixels], paint, settle)

    def _view(self, images: Tensor, rng: torch.Generator) -> Tensor:
        s = self.settings
        images = cropped(images, s.crop, rng) if s.crop < 1.0 else images
        return rolled(images, s.shift, s.flip, rng)

    def _batch_norm(self, attempt: Attempt) -> Tensor:
        statistics = attempt.joint.teacher.statistics
        total, extra = losses.batch_norm(statistics), self.settings.first_layer - 1.0
        if not extra:
            return total
        path = next(iter(statistics))
        return total + extra * losses.batch_norm({path: statistics[path]})

    def _rate(self, step: int) -> float:
        s = self.settings
        return s.lr * (0.5 * (1.0 + math.cos(math.pi * step / s.steps)) if s.decay else 1.0)

    @property
    def _keeps_last(self) -> bool:
        # Losses of unlike crops do not tell which images are better. With a falling rate the last are those of SRe2L.
        return self.settings.crop < 1.0 or self.settings.decay
