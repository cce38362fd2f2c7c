"""The floor of every transfer set: Gaussian noise, labelled by the teacher. Also the smallest generator there is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from synthkd.models import Classifier
from synthkd.rng import Rows
from synthkd.types import Round


class Noise:
    """Pixels from a normal distribution with the mean and deviation that the teacher normalises by."""

    def __init__(self, teacher: Classifier, seed: int, batch_size: int = 64) -> None:
        self._teacher = teacher
        self._seed = seed
        self._batch_size = batch_size

    def round(self, index: int, difficulty: float, student: nn.Module | None = None) -> Round:
        """Images of noise with the teacher's logits; the label is what the teacher sees."""
        images = self._draw(self._batch_size, Rows(self._seed, "noise", index * self._batch_size))
        with torch.no_grad():
            logits = self._teacher(images)
        return Round(images, logits.argmax(1), logits, {})

    def sample(self, labels: Tensor, difficulty: float, rng: Rows) -> Tensor:
        """Images float32 `[len(labels), C, H, W]` in 0 to 1; labels and difficulty make no difference."""
        return self._draw(len(labels), rng)

    def _draw(self, count: int, rng: Rows) -> Tensor:
        spec, normalize = self._teacher.spec, self._teacher.normalize
        noise = rng.normal(count, spec.channels * spec.height * spec.width).reshape(count, *spec.shape)
        return (noise.to(normalize.mean.device) * normalize.std + normalize.mean).clamp(0, 1)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: every image follows from the seed."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""


def make(teacher: Classifier, seed: int, **options: Any) -> Noise:
    """The generator, as `transfer_set.generator: {kind: python, target: benchmarks.noise:make}` calls it."""
    return Noise(teacher, seed, **options)
