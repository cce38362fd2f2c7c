"""Conventions of all modules, and the values that cross module borders.

Images are uint8 `[N, C, H, W]` in memory banks and files, and float32 `[N, C, H, W]` in `[0, 1]` everywhere else.
Every model normalises its own input; nothing outside a model does. Labels are int64 `[N]`, logits float32 `[N, K]`,
features float32 `[N, D]` or `[N, C, H, W]`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from synthkd.errors import DataError
from synthkd.rng import Rows
from synthkd.system.shares import consecutive


@dataclass(frozen=True)
class ImageSpec:
    """Sizes of a classifier: images `[N, channels, height, width]` to logits `[N, classes]`."""

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
        labels: int64 `[N]`, the class that each image was generated for or annotated with.
        teacher_logits: float32 `[N, K]`, or None if they have not been computed.
        weights: float32 `[N]`, importance weights with mean near 1, or None for equal weights.
        slots: int64 `[N]`, places in the memory bank (-1: not from the bank, or augmented since), or None.
        rows: int64 `[N]`, numbers of real images (-1: not real, or augmented since), or None.
        annotated: bool `[N]`, True if a person annotated this real image, so that the hard-label term may trust the
            label; None if the run has no real images.
        teacher_features: module path -> the teacher's features of these images; empty unless a loss term needs them.
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
        """The batch with `change` (such as a selection of rows) applied to each of its tensors."""
        # Fields that are None stay None.
        optional = {
            name: None if (value := getattr(self, name)) is None else change(value)
            for name in ("teacher_logits", "weights", "slots", "rows", "annotated")
        }
        features = {path: change(value) for path, value in self.teacher_features.items()}
        return Batch(change(self.images), change(self.labels), **optional, teacher_features=features)

    def to(self, device: torch.device) -> Batch:
        """The batch with all tensors on a device."""
        return self.map(lambda value: value.to(device))


@dataclass(frozen=True)
class Part:
    """The rows of one of several processes, of rows that all of them choose alike.

    Places of a batch go to the processes in turn. Of the rows of a source a process takes as many as it has places
    there, but neighbouring ones: classes often go from row to row in turn, so that every second row would show half of
    them.

    Attributes:
        first: the process's first place among these rows, from 0 to `every - 1`, another one for each process.
        every: number of processes.
    """

    first: int = 0
    every: int = 1

    def of(self, count: int) -> slice:
        """The rows of this process among `count`; those of all processes are all rows, each once."""
        return consecutive(count, self.first, self.every)

    @property
    def places(self) -> slice:
        """The places of this process in a batch, which go to the processes in turn, unlike the rows of a source."""
        return slice(self.first, None, self.every)

    def size(self, count: int) -> int:
        """Number of the rows of this process among `count`."""
        own = self.of(count)
        return int(own.stop - own.start)

    def after(self, count: int) -> Part:
        """The part of the rows that follow `count` others."""
        return Part((self.first - count) % self.every, self.every)


WHOLE = Part()
"""All rows: there is one process, or each makes the whole batch."""


@dataclass(frozen=True)
class BatchNormStatistics:
    """Moments of the input of one BatchNorm layer over batch and positions, per channel.

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
    """Results of one forward pass.

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
    """Images from one round of a trainable generator; all tensors on the teacher's device.

    Attributes:
        images: float32 `[N, C, H, W]` in `[0, 1]`, without gradient.
        labels: int64 `[N]`, the classes that the images were generated for.
        teacher_logits: float32 `[N, K]` of those images.
        terms: name -> value of each of the generator's loss terms, for the log.
    """

    images: Tensor
    labels: Tensor
    teacher_logits: Tensor
    terms: Mapping[str, float]


@runtime_checkable
class Stateful(Protocol):
    """A part of a run whose state goes into checkpoints."""

    def state_dict(self) -> dict[str, Any]:
        """The state in tensors, numbers, strings, lists and dicts only."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""


@runtime_checkable
class Saveable(Protocol):
    """A generator that can be saved to a directory and used by a later run."""

    def save(self, directory: Path) -> None:
        """Write everything that `sample` needs into an existing directory, each file atomically."""

    def restore(self, directory: Path) -> None:
        """Load the files of `save` into a generator that was built with the same settings and spec."""


class InBlocks(Protocol):
    """Images `[N, C, H, W]` that are gone through in blocks: a tensor, or images that lie on disk."""

    def __len__(self) -> int:
        """Number of images."""

    def split(self, count: int, /) -> Iterable[Tensor]:
        """All images in order, in blocks of at most `count`."""


class SampleGenerator(Protocol):
    """A generator of labelled images."""

    def sample(self, labels: Tensor, difficulty: float, rng: Rows) -> Tensor:
        """Images float32 `[N, C, H, W]` in `[0, 1]`; image i is a function of its label and of row `rng.start + i`.

        Args:
            labels: int64 `[N]`.
            difficulty: 0 (easy for the student) to 1 (hard).
            rng: random rows, one per image.
        """


def takes_labels(generator: SampleGenerator) -> bool:
    """Whether samples are images of the labels that are asked for; an attribute `for_labels = False` says otherwise."""
    return bool(getattr(generator, "for_labels", True))


def repeats(generator: SampleGenerator) -> bool:
    """Whether samples are images of earlier rounds; an attribute `repeats = True` says so."""
    return bool(getattr(generator, "repeats", False))


def earlier_bytes(generator: object) -> int:
    """Most bytes of images of earlier rounds that a generator stores; an attribute `earlier_bytes` tells them."""
    return int(getattr(generator, "earlier_bytes", 0))


class Rounds(Protocol):
    """Rounds of a generator; each gives images for the memory bank."""

    def round(self, index: int, difficulty: float, student: nn.Module | None = None) -> Round:
        """Train for one round.

        Args:
            index: number of the round from 0; decides the round's randomness.
            difficulty: 0 (easy for the student) to 1 (hard).
            student: for objectives that compare teacher and student; None before a student exists.
        """
        ...


class TrainableGenerator(SampleGenerator, Rounds, Stateful, Protocol):
    """A generator that is trained in rounds against a frozen teacher."""


IN_ORDER = 100
"""Largest number of classes whose balanced labels come by number."""


def balanced_labels(count: int, first: int, classes: int) -> Tensor:
    """Labels int64 `[count]`: the classes take turns, and the first label has place `first`.

    If each call begins where the last one ended, all classes appear equally often, up to one. Up to `IN_ORDER` classes
    come by number. Of more, a batch has only some; these are spread over all, since neighbouring numbers often are
    similar classes (150 of ImageNet's are dogs one after the other).
    """
    step = 1
    if classes > IN_ORDER:
        step = round(0.618 * classes)  # the golden ratio: every stretch of labels is spread evenly
        while math.gcd(step, classes) > 1:
            step += 1
    return (torch.arange(count) + first) * step % classes


def in_channels(images: Tensor, channels: int) -> Tensor:
    """uint8 images with 1 (grey) or 3 channels (RGB): grey ones repeated, or colours weighted as Pillow does.

    Args:
        images: uint8 `[N, C, H, W]`, C 1 or 3.
        channels: of the result; the images themselves are returned if they have as many.
    """
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1).contiguous()
    # Weights of ITU-R 601 in 1/65536; they sum to 1, so that grey stays as it is. In parts: int32 takes four times the
    # memory.
    parts = [
        (19595 * red.int() + 38470 * green.int() + 7471 * blue.int() + 32768 >> 16).to(torch.uint8)
        for red, green, blue in (part.unbind(1) for part in images.split(1024))
    ]
    return torch.cat(parts)[:, None]


def alike_in_channels(images: Tensor, channels: int) -> Tensor:
    """As `in_channels` where nothing is lost: grey images, saved as grey or as RGB. Others are returned as they are."""
    colourful = images.shape[1] == 3 and channels == 1 and not bool((images[:, :1] == images[:, 1:]).all())
    return images if colourful or {images.shape[1], channels} - {1, 3} else in_channels(images, channels)


def to_uint8(images: Tensor) -> Tensor:
    """Float images in `[0, 1]`, any shape, as uint8: rounded to the nearest level, values outside clamped."""
    # Rounded, since truncation would darken every image by half a level. `mul` copies, so the caller's images stay.
    return images.detach().mul(255.0).round_().clamp_(0, 255).to(torch.uint8)


def to_float(images: Tensor) -> Tensor:
    """uint8 images, any shape, as float32 in `[0, 1]`."""
    return images.to(torch.float32).mul_(1.0 / 255.0)


def check_labels(labels: Tensor, classes: int, where: str) -> None:
    """Check that labels, integers of any shape, are class numbers.

    Args:
        labels: may be empty.
        classes: number of classes.
        where: start of the message.

    Raises:
        DataError: a label that is not in `[0, classes)`.
    """
    if labels.numel() == 0:
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise DataError(
            f"{where}: labels must be in 0..{classes - 1}, got {low}..{high}; "
            "check the class count or renumber the labels from 0"
        )
