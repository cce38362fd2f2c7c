"""A dataset's three disjoint parts: what is trained on, what is held out from that, and what is only reported on.

The test part is the one a dataset ships with, else a stratified fraction; the holdout is a stratified fraction of the
training part. Both are functions of the split seed alone, never of a run's seed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from synthkd.errors import DataError
from synthkd.rng import numpy_stream
from synthkd.types import ImageSpec, check_labels


@dataclass(frozen=True)
class Source:
    """A dataset as it was read, before splitting.

    Attributes:
        images: uint8 `[N, C, H, W]`, training images first.
        labels: int64 `[N]`, index into `class_names`; not yet checked.
        class_names: one per class.
        train: how many of the rows are training images; the rest are the dataset's own test part. None: it has none.
        notes: what was converted, ignored or left out, one line per kind.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    train: int | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class RealData:
    """Labelled images.

    Attributes:
        images: uint8 `[N, C, H, W]`; N may be 0 in a holdout or test part.
        labels: int64 `[N]` in `[0, spec.classes)`.
        spec: what a classifier of these images takes and gives.
        class_names: one per class.
        name: where they come from: the dataset's name, or that of the file or folder.
    """

    images: Tensor
    labels: Tensor
    spec: ImageSpec
    class_names: tuple[str, ...]
    name: str

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Splits:
    """Three disjoint parts of one dataset.

    Attributes:
        train: what may be trained on; holds every class.
        holdout: cut from the training part; nothing trains on it.
        test: reported on, and selects nothing.
        notes: what was converted, ignored or left out on the way, one line per kind.
    """

    train: RealData
    holdout: RealData
    test: RealData
    notes: tuple[str, ...] = ()

    @property
    def unseen(self) -> RealData:
        """What nothing trains on: the holdout, then the test part; may be empty."""
        parts = (self.holdout, self.test)
        images, labels = (torch.cat([getattr(part, name) for part in parts]) for name in ("images", "labels"))
        return replace(self.holdout, images=images, labels=labels)


def split(
    source: Source, name: str, test_fraction: float, holdout_fraction: float, seed: int, per_class: int | None = None
) -> Splits:
    """Cut a dataset into its three parts, a function of the labels and the seed.

    Args:
        source: the dataset.
        name: what it is called in errors and reports.
        test_fraction: share of all rows that is the test part, where the source has none of its own.
        holdout_fraction: share of the remaining training part that is held out.
        seed: of the draw.
        per_class: most training images of a class; None keeps all.

    Raises:
        DataError: fewer than two classes, labels out of range, or a class without a training image.
    """
    labels, names = source.labels, source.class_names
    if len(names) < 2:
        raise DataError(f"{name}: a classifier needs at least two classes, got {len(names)}: {list(names)}")
    check_labels(labels, len(names), name)
    if source.train is None:
        test = _stratified(labels.numpy(), test_fraction, numpy_stream(seed, "test split"))
    else:
        test = np.arange(len(labels)) >= source.train
    rest = np.flatnonzero(~test)
    present = np.bincount(labels.numpy()[rest], minlength=len(names)) > 0
    if not present.all():
        absent = [names[index] for index in np.flatnonzero(~present)]
        shown = ", ".join(absent[:10]) + (f" and {len(absent) - 10} more" if len(absent) > 10 else "")
        raise DataError(f"{name}: every class needs a training image, none is of {shown}; add some or drop the class")
    held = _stratified(labels.numpy()[rest], holdout_fraction, numpy_stream(seed, "holdout split"))

    channels, height, width = source.images.shape[1:]
    spec = ImageSpec(channels, height, width, len(names))

    def part(rows: NDArray[np.intp]) -> RealData:
        index = torch.from_numpy(rows)
        return RealData(source.images[index], labels[index], spec, names, name)

    kept = rest[~held]
    if per_class is not None:
        kept = kept[_few_of_each(labels.numpy()[kept], per_class, numpy_stream(seed, "per class"))]
    return Splits(part(kept), part(rest[held]), part(np.flatnonzero(test)), source.notes)


def _stratified(labels: NDArray[np.int64], fraction: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Mark `round(fraction * N)` rows, each class with its share to within one; a class never loses its last row.

    The rounding is cumulative over classes, so that many small classes lose as much as one big one.
    """
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    counts = np.bincount(labels)
    quota = np.diff(np.rint(fraction * np.cumsum(counts)), prepend=0)
    taken = np.minimum(quota, np.maximum(counts - 1, 0))
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    marked = np.zeros(len(labels), dtype=bool)
    marked[order[rank < np.repeat(taken, counts)]] = True
    return marked


def _few_of_each(labels: NDArray[np.int64], count: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Rows, ascending, of at most `count` of each class; a larger count keeps those of a smaller one."""
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    counts = np.bincount(labels)
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(order[rank < count])


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, on the scale `[0, 1]`, from exact integer counts.

    Args:
        images: uint8 `[N, C, H, W]`, N at least 1.

    Returns:
        C means and C standard deviations, as a model's normalisation takes them. The standard deviation of a constant
        channel is given as 1, so that one can divide by it.

    Raises:
        DataError: there are no images, or they are not uint8.
    """
    if images.dtype != torch.uint8 or images.numel() == 0:
        raise DataError(f"channel statistics need at least one uint8 image, got {images.dtype} {list(images.shape)}")
    counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)]).double()
    share = counts / counts.sum(dim=1, keepdim=True)
    levels = torch.arange(256, dtype=torch.float64) / 255.0
    mean = share @ levels
    std = (share * (levels - mean[:, None]).square()).sum(dim=1).sqrt()
    std = torch.where((counts > 0).sum(dim=1) > 1, std, 1.0)
    return tuple(mean.tolist()), tuple(std.tolist())
