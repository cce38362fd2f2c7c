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
    """The image files of a listing, cropped to squares and resized as those of a folder that a model is trained on.

    Args:
        top: path of the listing.
        listing: the files.
        spec: what the model takes.

    Attributes:
        top: as given.
        count: number of files.
        class_names: one per class; empty without labels.
        bad: `(file, reason)` of each file that was left out so far.

    Raises:
        ModelError: a model of other than 1 or 3 channels.
    """

    def __init__(self, top: Path, listing: Listing, spec: ImageSpec) -> None:
        if spec.channels not in (1, 3):
            raise ModelError(
                f"image files have 1 or 3 channels, and the model takes {spec.channels}; call it on tensors, or give "
                "a .npz"
            )
        self.top, self._listing, self._spec = top, listing, spec
        self.count, self.class_names = len(listing.entries), listing.class_names
        self.bad: list[tuple[str, str]] = []

    @property
    def labels(self) -> set[int]:
        """The labels that occur."""
        return {entry.label for entry in self._listing.entries if entry.label is not None}

    def images(self) -> Iterator[FittedImage]:
        """Each readable image, in order."""
        spec, decoding = self._spec, Decoding(self._listing)
        self.bad = decoding.bad
        # A model of other than squares was trained on images that were not cropped.
        fit = Fit(None, (spec.height, spec.width)) if spec.height == spec.width else None
        for entry, pixels in decoding.images(spec.channels, fit):
            if pixels.shape[1:] != (spec.height, spec.width):
                shape = "x".join(map(str, pixels.shape[1:]))
                self.bad.append((entry.name, f"{shape} pixels, the model takes {spec.height}x{spec.width}"))
                continue
            alone = self.top.is_file() and self.top.name == entry.name
            yield FittedImage(self.top if alone else self.top / entry.name, pixels, entry.label)


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
        self.bad = [*samples.bad]

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
        split, channels: of arrays and runs, as `open_samples` takes them.

    Raises:
        DataError: no such path, or no images.
        ModelError: see `FittedFiles`.
    """
    if is_arrays(path) or is_run(path):
        return FittedArrays(path, open_samples(path, split=split, channels=channels), spec)
    return FittedFiles(path, listed(path), spec)


BATCH = 64
"""Images that are read and passed through a network at a time."""


def batches(images: Iterator[FittedImage]) -> Iterator[tuple[Sequence[FittedImage], Tensor]]:
    """The images by `BATCH`, each time also as one tensor uint8 `[n, C, H, W]`."""
    while window := list(islice(images, BATCH)):
        yield window, torch.stack([image.pixels for image in window])
