"""The conventions every module keeps, and the values that cross module borders.

Images are uint8 `[N, C, H, W]` at rest (bank, files) and float32 `[N, C, H, W]` in `[0, 1]` in flight; every model
normalises its own input, so nothing outside a model does. Labels are int64 `[N]`, logits float32 `[N, K]`, features
float32 `[N, D]` or `[N, C, H, W]`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from synthkd.errors import DataError
from synthkd.rng import Rows


@dataclass(frozen=True)
class ImageSpec:
    """What a classifier takes and gives: images `[N, channels, height, width]` to logits `[N, classes]`."""

    channels: int
    height: int
    width: int
    classes: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(channels, height, width)` of one image."""
        return (self.channels, self.height, self.width)

    def __str__(self) -> str:
        return f"{self.channels}x{self.height}x{self.width} images, {self.classes} classes"


@dataclass(frozen=True)
class Batch:
    """One training batch.

    Attributes:
        images: float32 `[N, C, H, W]` in `[0, 1]`.
        labels: int64 `[N]`, the class each image was made or annotated for.
        teacher_logits: float32 `[N, K]`, or None where the teacher has not seen these images.
        weights: float32 `[N]` importance weights with mean near 1, or None for equal weights.
        slots: int64 `[N]` places in the memory bank (-1: not from the bank, or changed since), or None.
        rows: int64 `[N]` numbers of real images (-1: none, or changed since), or None.
        annotated: bool `[N]`, True where the label was annotated on this very real image, so that the hard-label term
            may trust it; None where the run mixes in no real image.
        teacher_features: module path -> the teacher's features of these very images; empty unless asked for.
    """

    images: Tensor
    labels: Tensor
    teacher_logits: Tensor | None = None
    weights: Tensor | None = None
    slots: Tensor | None = None
    rows: Tensor | None = None
    annotated: Tensor | None = None
    teacher_features: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return int(self.images.shape[0])

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with `change` applied to every tensor it has (a row selection, a move to a device)."""
        optional = {
            name: None if (value := getattr(self, name)) is None else change(value)
            for name in ("teacher_logits", "weights", "slots", "rows", "annotated")
        }
        features = {path: change(value) for path, value in self.teacher_features.items()}
        return Batch(change(self.images), change(self.labels), **optional, teacher_features=features)

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        return self.map(lambda value: value.to(device))


@dataclass(frozen=True)
class BatchNormStatistics:
    """First two moments of the input of one BatchNorm layer, per channel.

    Attributes:
        mean: float32 `[C]` of the observed batch.
        var: float32 `[C]`, biased (divided by the count), of the observed batch.
        running_mean: float32 `[C]` stored in the layer.
        running_var: float32 `[C]` stored in the layer.
    """

    mean: Tensor
    var: Tensor
    running_mean: Tensor
    running_var: Tensor


@dataclass(frozen=True)
class Outputs:
    """What one forward pass showed.

    Attributes:
        logits: float32 `[N, K]`.
        features: module path -> that module's output, `[N, D]`, `[N, C, H, W]` or `[N, L, D]`.
        statistics: module path of a BatchNorm layer -> moments of its input.
    """

    logits: Tensor
    features: Mapping[str, Tensor] = field(default_factory=dict)
    statistics: Mapping[str, BatchNormStatistics] = field(default_factory=dict)


@dataclass(frozen=True)
class Round:
    """What one round of a trainable generator made, all of it on the teacher's device.

    Attributes:
        images: float32 `[N, C, H, W]` in `[0, 1]`, without gradient.
        labels: int64 `[N]`, the labels asked for.
        teacher_logits: float32 `[N, K]` of those images.
        terms: name -> value of the generator's loss terms, for the log.
    """

    images: Tensor
    labels: Tensor
    teacher_logits: Tensor
    terms: Mapping[str, float]


class BatchSource(Protocol):
    """Where training batches come from; a function of the step alone."""

    def batch(self, step: int) -> Batch: ...


@runtime_checkable
class Stateful(Protocol):
    """A part whose state goes into checkpoints. `state_dict` holds tensors, numbers, strings, lists and dicts only."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


@runtime_checkable
class Saveable(Protocol):
    """A generator that can leave a run: what it learned goes into a directory and comes back from there."""

    def save(self, directory: Path) -> None:
        """Write what sampling needs, each file atomically; the directory exists."""

    def restore(self, directory: Path) -> None:
        """Read it back into a generator that was built with the same settings and spec."""


class SampleGenerator(Protocol):
    """Makes labelled images at a difficulty in `[0, 1]`; image i depends on its label and on row `rng.start + i`."""

    def sample(self, labels: Tensor, difficulty: float, rng: Rows) -> Tensor: ...


class TrainableGenerator(SampleGenerator, Stateful, Protocol):
    """A generator that is trained in rounds against a frozen teacher, each giving a batch for the memory bank."""

    def round(self, index: int, difficulty: float, student: nn.Module | None = None) -> Round: ...


def balanced_labels(count: int, first: int, classes: int) -> Tensor:
    """Labels int64 `[count]` that count up and start again, from the `first` on: consecutive calls share out evenly."""
    return (torch.arange(count) + first) % classes


def to_uint8(images: Tensor) -> Tensor:
    """Quantise float images in `[0, 1]` to uint8, rounding to nearest; values outside are clamped."""
    return images.detach().mul(255.0).round_().clamp_(0, 255).to(torch.uint8)


def to_float(images: Tensor) -> Tensor:
    """uint8 images to float32 in `[0, 1]`."""
    return images.to(torch.float32).mul_(1.0 / 255.0)


def check_labels(labels: Tensor, classes: int, where: str) -> None:
    """Raise `DataError` unless every label is in `[0, classes)`."""
    if labels.numel() == 0:
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise DataError(
            f"{where}: labels must be in 0..{classes - 1}, got {low}..{high}; "
            "check the class count or renumber the labels from 0"
        )
