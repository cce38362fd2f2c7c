"""The three disjoint parts of a dataset: training, holdout and test.

The test part is the dataset's own, else a stratified fraction. The holdout is a stratified fraction of the training
part. Both depend on the split seed and never on the seed of a run, so that runs with other seeds are comparable.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from synthkd.data.read.decode import some
from synthkd.data.read.on_disk import CHUNK, Pixels, joined, part_of, where_kept
from synthkd.errors import DataError
from synthkd.rng import numpy_stream
from synthkd.types import ImageSpec, check_labels

Half = Literal["first", "second"]


@dataclass(frozen=True)
class Source:
    """A dataset before it is split.

    Attributes:
        images: uint8 `[N, C, H, W]`, training images first, in memory or on disk.
        labels: int64 `[N]`, index into `class_names`; not yet checked.
        class_names: one per class.
        train: number of training images; the rest are the dataset's own test part. None: it has no test part.
        notes: conversions and files that were ignored or left out, one line per kind.
    """

    images: Pixels
    labels: Tensor
    class_names: tuple[str, ...]
    train: int | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class RealData:
    """Labelled images.

    Attributes:
        images: uint8 `[N, C, H, W]`, in memory or on disk; N may be 0 in a holdout or test part.
        labels: int64 `[N]` in `[0, spec.classes)`.
        spec: sizes of the images, and number of classes.
        class_names: one per class.
        name: of the dataset, or of the file or folder.
        notes: as of `Source`; those of a part of `Splits` are in the latter.
    """

    images: Pixels
    labels: Tensor
    spec: ImageSpec
    class_names: tuple[str, ...]
    name: str
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def kept(self) -> str:
        """Where images that are not in memory are, as the end of a line; empty for images in memory."""
        return where_kept(self.images)

    @property
    def counted(self) -> str:
        """The number of images and of the classes that have any, in words."""
        present, every = len(self.labels.unique()), self.spec.classes
        classes = f"{present}{'' if present == every else f' of the {every}'} classes"
        return f"{len(self):,} of {classes}, {self.name}{self.kept}"


@dataclass(frozen=True)
class Splits:
    """Three disjoint parts of one dataset.

    Attributes:
        train: images to train on, at least one of every class.
        holdout: taken from the training part; nothing trains on it.
        test: for reports alone; it selects nothing.
        notes: conversions and files that were ignored or left out, one line per kind.
    """

    train: RealData
    holdout: RealData
    test: RealData
    notes: tuple[str, ...] = ()

    @property
    def unseen(self) -> RealData:
        """The images that nothing trains on: the holdout, then the test part; may be empty."""
        parts = (self.holdout, self.test)
        images = joined([part.images for part in parts])
        return replace(self.holdout, images=images, labels=torch.cat([part.labels for part in parts]))


def split(
    source: Source,
    name: str,
    test_fraction: float,
    holdout_fraction: float,
    seed: int,
    per_class: int | None = None,
    half: Half | None = None,
) -> Splits:
    """Divide a dataset into its three parts, as a function of the labels and the seed.

    Args:
        source: the dataset.
        name: of the dataset in errors and reports.
        test_fraction: share of all rows in the test part, if the source has none of its own.
        holdout_fraction: share of the rest that is held out.
        seed: of the random draws.
        per_class: most training images of a class; None keeps all.
        half: of the images outside of the test part; None keeps all.

    Raises:
        DataError: fewer than two classes, labels out of range, or a class without a training image.
    """
    labels, names = source.labels, source.class_names
    if len(names) < 2:
        raise DataError(f"{name}: a classifier needs at least two classes, got {len(names)}: {list(names)}")
    check_labels(labels, len(names), name)
    test = test_rows(source, test_fraction, seed)
    rest = np.flatnonzero(~test)
    if half is not None:
        # By neither `seed` nor `test_fraction`: the halves of two splits of one dataset must not overlap.
        in_first = _stratified(labels.numpy()[: source.train], 0.5, numpy_stream(0, "halves"))
        rest = rest[in_first[rest] == (half == "first")]
    # Before the holdout is taken: `_stratified` leaves every class at least one row, but cannot give it one.
    present = np.bincount(labels.numpy()[rest], minlength=len(names)) > 0
    if not present.all():
        absent = some([names[index] for index in np.flatnonzero(~present)])
        raise DataError(f"{name}: every class needs a training image, none is of {absent}; add some or drop the class")
    holdout = _stratified(labels.numpy()[rest], holdout_fraction, numpy_stream(seed, "holdout split"))

    channels, height, width = source.images.shape[1:]
    spec = ImageSpec(channels, height, width, len(names))

    def part(rows: NDArray[np.intp]) -> RealData:
        index = torch.from_numpy(rows)
        return RealData(part_of(source.images, index), labels[index], spec, names, name)

    # Last, so that test and holdout are the same for every number of training images.
    train = rest[~holdout]
    if per_class is not None:
        train = train[_few_of_each(labels.numpy()[train], per_class, numpy_stream(seed, "per class"))]
    return Splits(part(train), part(rest[holdout]), part(np.flatnonzero(test)), source.notes)


def test_rows(source: Source, fraction: float, seed: int) -> NDArray[np.bool_]:
    """Mark the rows `[N]` of the test part: the dataset's own, else a stratified fraction; a fraction of 1 is all."""
    if source.train is not None:
        return np.arange(len(source.labels)) >= source.train
    if fraction == 1.0:
        return np.ones(len(source.labels), dtype=np.bool_)
    return _stratified(source.labels.numpy(), fraction, numpy_stream(seed, "test split"))


def _stratified(labels: NDArray[np.int64], fraction: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Mark `round(fraction * N)` rows, in each class its share to within one; never the last row of a class."""
    order, rank = _shuffled_within_classes(labels, rng)
    counts = np.bincount(labels)
    # The rounding is cumulative over the classes, so that many small classes together give as many rows as a large one.
    quota = np.diff(np.rint(fraction * np.cumsum(counts)), prepend=0)
    quota = np.minimum(quota, np.maximum(counts - 1, 0))
    marked = np.zeros(len(labels), dtype=bool)
    marked[order[rank < np.repeat(quota, counts)]] = True
    return marked


def _few_of_each(labels: NDArray[np.int64], count: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Rows in ascending order, at most `count` of each class; a smaller count gives a subset of a larger one."""
    order, rank = _shuffled_within_classes(labels, rng)
    return np.sort(order[rank < count])


def _shuffled_within_classes(
    labels: NDArray[np.int64], rng: np.random.Generator
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """All rows class by class, in a random order within each class, and the rank of each in its class from 0 on."""
    # A stable sort of a random order by label keeps the order random within each class.
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    counts = np.bincount(labels)
    return order, np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)


def channel_statistics(images: Pixels) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, on the scale `[0, 1]`, from exact integer counts.

    Args:
        images: uint8 `[N, C, H, W]`, N at least 1.

    Returns:
        C means and C standard deviations, for a model's normalisation. The standard deviation of a constant channel is
        1, so that one can divide by it.

    Raises:
        DataError: there are no images, or they are not uint8.
    """
    if images.dtype != torch.uint8 or images.shape.numel() == 0:
        raise DataError(f"channel statistics need at least one uint8 image, got {images.dtype} {list(images.shape)}")
    # Counts of the 256 levels are exact, independent of the order of the images, and need no float copy of them.
    totals = torch.zeros(images.shape[1], 256, dtype=torch.int64)
    for block in images.split(CHUNK):
        totals += torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in block.unbind(1)])
    counts = totals.double()
    share = counts / counts.sum(dim=1, keepdim=True)
    levels = torch.arange(256, dtype=torch.float64) / 255.0
    mean = share @ levels
    std = (share * (levels - mean[:, None]).square()).sum(dim=1).sqrt()
    std = torch.where((counts > 0).sum(dim=1) > 1, std, 1.0)
    return tuple(mean.tolist()), tuple(std.tolist())
