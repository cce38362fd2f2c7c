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
        images = self._draw(self._batch_size, Rows(self._seed, "noise", index * self._batch_size))
        with torch.no_grad():
            logits = self._teacher(images)
        return Round(images, logits.argmax(1), logits, {})

    def sample(self, labels: Tensor, difficulty: float, rng: Rows) -> Tensor:
        return self._draw(len(labels), rng)

    def _draw(self, count: int, rng: Rows) -> Tensor:
        spec, normalize = self._teacher.spec, self._teacher.normalize
        noise = rng.normal(count, spec.channels * spec.height * spec.width).reshape(count, *spec.shape)
        return (noise.to(normalize.mean.device) * normalize.std + normalize.mean).clamp(0, 1)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


def make(teacher: Classifier, seed: int, **options: Any) -> Noise:
    return Noise(teacher, seed, **options)
