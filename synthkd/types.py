"""The conventions every module keeps, and the values that cross module borders.

Images are uint8 `[N, C, H, W]` at rest (bank, files) and float32 `[N, C, H, W]` in `[0, 1]` in flight; every model
normalises its own input, so nothing outside a model does. Labels are int64 `[N]`, logits float32 `[N, K]`, features
float32 `[N, D]` or `[N, C, H, W]`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from synthkd.errors import DataError


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
        slots: int64 `[N]` places in the memory bank (-1: not from the bank), or None.
    """

    images: Tensor
    labels: Tensor
    teacher_logits: Tensor | None = None
    weights: Tensor | None = None
    slots: Tensor | None = None

    def __len__(self) -> int:
        return int(self.images.shape[0])


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


class BatchSource(Protocol):
    """Where training batches come from; a function of the step alone."""

    def batch(self, step: int) -> Batch: ...


@runtime_checkable
class Stateful(Protocol):
    """A part whose state goes into checkpoints. `state_dict` holds tensors, numbers, strings, lists and dicts only."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


FeatureExtractor = Callable[[Tensor], Tensor]
"""`images [N, C, H, W] -> features [N, D]`."""


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
