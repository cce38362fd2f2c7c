"""The images of a path one after another, each in the size and channels that a model takes, with its path and label."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from synthkd.data.read.decoding import Decoding
from synthkd.data.read.entries import Listing
from synthkd.data.read.fit import Fit
from synthkd.data.read.npz import is_arrays
from synthkd.data.read.sample_set import Samples
from synthkd.data.read.samples import is_run, open_samples
from synthkd.errors import DataError, ModelError
from synthkd.types import ImageSpec, alike_in_channels


@dataclass(frozen=True)
class FittedImage:
    """An image as a model takes it.

    Attributes:
        file: its path; in an archive the path goes on inside, and an image of an array has its number.
        pixels: uint8 `[C, H, W]`.
        label: index into the class names of its set; None without a class.
    """

    file: Path
    pixels: Tensor
    label: int | None


class FittedFiles:
    """The image files of a listing: of each the largest centred window of the model's shape, resized.

    Args:
        top: path of the listing.
        listing: the files.
        spec: what the model takes.
        channels: 1: also a model of three channels gets grey images.

    Attributes:
        top: as given.
        count: number of files.
        class_names: one per class; empty without labels.

    Raises:
        ModelError: a model of other than 1 or 3 channels.
    """

    def __init__(self, top: Path, listing: Listing, spec: ImageSpec, channels: int | None = None) -> None:
        if spec.channels not in (1, 3):
            raise ModelError(
                f"image files and arrays have 1 or 3 channels, and the model takes {spec.channels}; call it on tensors"
            )
        self.top, self._listing, self._spec = top, listing, spec
        self._channels = 1 if channels == 1 else spec.channels
        self.count, self.class_names = len(listing.entries), listing.class_names
        self._decoding = Decoding(listing)

    @property
    def bad(self) -> list[tuple[str, str]]:
        """`(file, reason)` of each file that the last pass has left out so far."""
        return self._decoding.bad

    @property
    def notes(self) -> tuple[str, ...]:
        """Conversions of the last pass, and files that were ignored or left out, one line per kind."""
        return tuple(self._decoding.notes("files ignored, no images"))

    @property
    def labels(self) -> set[int]:
        """The labels that occur."""
        return {entry.label for entry in self._listing.entries if entry.label is not None}

    def images(self) -> Iterator[FittedImage]:
        """Each readable image, in order."""
        spec, self._decoding = self._spec, Decoding(self._listing)
        fit = Fit(None, (spec.height, spec.width))
        for entry, pixels in self._decoding.images(self._channels, fit):
            alone = self.top.is_file() and self.top.name == entry.name
            file = self.top if alone else self.top / entry.name
            yield FittedImage(file, pixels.expand(spec.channels, -1, -1), entry.label)


class FittedArrays:
    """The images of a set that is no listing of files: a .npz, a dataset, a run; attributes as of `FittedFiles`.

    Args:
        top: path or name of the set.
        samples: the set.
        spec: what the model takes.
    """

    def __init__(self, top: Path, samples: Samples, spec: ImageSpec) -> None:
        self.top, self._samples, self._spec = top, samples, spec
        self.count, self.class_names = samples.count, samples.class_names
        self.bad, self.notes = [*samples.bad], samples.notes

    @property
    def labels(self) -> set[int]:
        """The labels that occur."""
        return set() if self._samples.labels is None else set(self._samples.labels.unique().tolist())

    def images(self) -> Iterator[FittedImage]:
        """Each image, in order.

        Raises:
            DataError: an image of another shape than the model takes.
        """
        labels, number = self._samples.labels, 0
        for read in self._samples.batches(BATCH):
            block = alike_in_channels(read, self._spec.channels)
            if tuple(block.shape[1:]) != self._spec.shape:
                shape, needed = ("x".join(map(str, each)) for each in (block.shape[1:], self._spec.shape))
                raise DataError(
                    f"{self.top} has images of {shape} (channels x height x width), the model takes {needed}; give "
                    "them in that size, or as image files, which are resized"
                )
            for pixels in block:
                yield FittedImage(self.top / str(number), pixels, None if labels is None else int(labels[number]))
                number += 1


def fitted(
    path: Path,
    spec: ImageSpec,
    listed: Callable[[Path], Listing],
    split: str | None = None,
    channels: int | None = None,
) -> FittedFiles | FittedArrays:
    """The images at a path, whatever its form.

    Args:
        path: as `open_samples` takes it.
        spec: what the model takes.
        listed: lists the files of a path that is neither arrays nor a run.
        split: of arrays and runs, as `open_samples` takes it.
        channels: 1 (grey) or 3 (RGB), as `open_samples` and `FittedFiles` take it.

    Raises:
        DataError: no such path, or no images.
        ModelError: see `FittedFiles`.
    """
    if is_arrays(path) or is_run(path):
        return FittedArrays(path, open_samples(path, split=split, channels=channels), spec)
    return FittedFiles(path, listed(path), spec, channels)


BATCH = 64
"""Images that are read and passed through a network at a time."""


def batches(images: Iterator[FittedImage]) -> Iterator[tuple[Sequence[FittedImage], Tensor]]:
    """The images by `BATCH`, each time also as one tensor uint8 `[n, C, H, W]`."""
    while window := list(islice(images, BATCH)):
        yield window, torch.stack([image.pixels for image in window])
