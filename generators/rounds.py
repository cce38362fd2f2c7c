"""Rounds that are samples: of a generator after its training steps, or of one that is finished."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from synthkd.data.read.splits import RealData
from synthkd.errors import ConfigError
from synthkd.models.classifier import Classifier
from synthkd.models.contract import finite_logits
from synthkd.rng import Rows
from synthkd.taps import evaluating
from synthkd.types import ImageSpec, Round, SampleGenerator, balanced_labels


def agreed_spec(kind: str, spec: ImageSpec | None, teacher: Classifier | None, train: RealData | None) -> ImageSpec:
    """The one description of the images that all who have one share.

    Raises:
        ConfigError: they differ, or nobody has one.
    """
    said = {"the generator": spec}
    if teacher is not None:
        said["the teacher"] = teacher.spec
    if train is not None:
        said["the real data"] = train.spec
    known = {who: found for who, found in said.items() if found is not None}
    if len(set(known.values())) != 1:
        got = "; ".join(f"{who}: {found}" for who, found in known.items()) or "neither teacher nor real data"
        raise ConfigError(f"{kind}: teacher and real data must have the same images and classes, got {got}")
    return next(iter(known.values()))


def sampled_round(
    sample: Callable[[Tensor, float, Rows], Tensor],
    difficulty: float,
    teacher: Classifier | None,
    seed: int,
    index: int,
    count: int,
    accelerator: Accelerator,
    terms: Mapping[str, float],
) -> Round:
    """Samples of balanced labels as a round; images of round i have the rows `i * count ...` of the run.

    Args:
        sample: that of a `SampleGenerator`; its labels are on the device.
        difficulty: of the images, in [0, 1].
        teacher: labels them.
        seed: the run's seed.
        index: number of the round.
        count: images of a round.
        accelerator: device and precision.
        terms: of the training before, for the log.

    Raises:
        ConfigError: there is no teacher.
        ModelError: its answers are not finite.
    """
    if teacher is None:
        raise ConfigError("a round gives the teacher's logits of its images, and this generator has no teacher")
    labels = balanced_labels(count, index * count, teacher.spec.classes).to(accelerator.device)
    images = sample(labels, difficulty, Rows(seed, "round", index * count))
    with torch.no_grad(), evaluating(teacher), accelerator.autocast():
        logits = finite_logits(teacher(images).float())
    return Round(images, labels, logits, terms)


class Fixed:
    """Rounds of samples, with the teacher's logits, from a generator that stays as it is.

    Args:
        generator: what is sampled.
        batch_size: images of a round.
        teacher: labels them.
        seed: the run's seed.
        accelerator: device and precision.
    """

    def __init__(
        self, generator: SampleGenerator, batch_size: int, teacher: Classifier, seed: int, accelerator: Accelerator
    ) -> None:
        self._generator = generator
        self._batch_size = batch_size
        self._teacher = teacher
        self._seed = seed
        self._accelerator = accelerator

    def fit(self, index: int, difficulty: float, student: nn.Module | None = None) -> dict[str, float]:
        """Nothing: it is finished."""
        return {}

    def round(self, index: int, difficulty: float, student: nn.Module | None = None) -> Round:
        """`batch_size` images with balanced labels; the student is not asked."""
        count = self._batch_size
        return sampled_round(self.sample, difficulty, self._teacher, self._seed, index, count, self._accelerator, {})

    def sample(self, labels: Tensor, difficulty: float, rng: Rows) -> Tensor:
        """What the generator makes of the labels."""
        return self._generator.sample(labels, difficulty, rng)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: no part of it moves."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing, likewise."""
