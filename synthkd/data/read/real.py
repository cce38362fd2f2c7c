"""Real, labelled images: from settings to three disjoint, checked parts, or to the images that are tested on.

The readers are `named`, `npz` and `folder` (also for archives); `splits` divides what they read.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from synthkd.data.read.folder import read_files
from synthkd.data.read.named import read_digits, read_named
from synthkd.data.read.npz import read_npz
from synthkd.data.read.on_disk import part_of
from synthkd.data.read.splits import RealData, Source, Splits, channel_statistics, split, test_rows
from synthkd.errors import DataError
from synthkd.settings import (
    DataSettings,
    DigitsData,
    FolderData,
    FolderTest,
    NamedData,
    NpzData,
    NpzTest,
    TestSettings,
    UnlabelledData,
)
from synthkd.types import ImageSpec, check_labels, in_channels

__all__ = ["RealData", "Splits", "channel_statistics", "load_splits", "load_test", "reading_once"]

LOG = logging.getLogger(__name__)

_DIGITS_TEST = 0.2  # fraction of the test part


_READ: ContextVar[dict[DataSettings, Splits] | None] = ContextVar("_READ", default=None)
"""What was read inside `reading_once`."""


@contextmanager
def reading_once() -> Iterator[dict[DataSettings, Splits]]:
    """Context manager inside which each dataset is read once: the same settings give the same images again.

    Yields:
        What was read so far, which stays in memory until it is removed from here, or until the end.
    """
    outer = _READ.get()
    read: dict[DataSettings, Splits] = {} if outer is None else outer
    token = _READ.set(read)
    try:
        yield read
    finally:
        _READ.reset(token)


def load_splits(settings: DataSettings) -> Splits:
    """Read a dataset and split it, or return what was read before inside `reading_once`.

    Warnings tell of conversions and of files that were ignored or left out.

    Raises:
        DataError: files that are missing, truncated, corrupt or of the wrong kind; labels out of range; a class without
            a training image; a failed download. The message names the file and the remedy.
    """
    read = _READ.get()
    if read is None:
        return _load_splits(settings)
    if settings not in read:
        read[settings] = _load_splits(settings)
    return read[settings]


def _load_splits(settings: DataSettings) -> Splits:
    source, name = _read(settings)
    test = _test_share(settings)
    return split(source, name, test, settings.holdout, settings.split_seed, settings.per_class, settings.half)


def load_test(settings: TestSettings, training: Iterable[DataSettings | UnlabelledData] = ()) -> RealData:
    """Read the images of a dataset to test on.

    They are its own test part if it has one, as the datasets by name have. Else they are the share that the settings
    ask for. If they ask for none: of a dataset that is trained on, the images that are in the test split of each such
    training; of the digits a fifth; of another one all images. A class may have no image.

    Args:
        settings: of the dataset.
        training: of the datasets that are trained on, with their labels or without.

    Raises:
        DataError: as `load_splits`; all images would be tested on, and they are learned from without their labels.
    """
    if isinstance(settings, NamedData):
        return load_splits(settings).test
    place, learned = _place(settings), [*training]
    own_share = None if isinstance(settings, DigitsData) else settings.test
    trainings = [one for one in learned if not isinstance(one, UnlabelledData) and _place(one) == place]
    splitting = trainings if own_share is None and trainings else [settings]
    if isinstance(settings, DigitsData) and len(seeds := {one.split_seed for one in splitting}) == 1:
        return load_splits(settings.model_copy(update={"split_seed": seeds.pop()})).test  # often read before
    shares = [_test_share(one) for one in splitting]
    source, name = _read(settings, lacks_classes=shares == [1.0])
    unlabelled = [_place(one) for one in learned if isinstance(one, UnlabelledData)]
    if source.train is None and place is not None and any(one is not None and one[1] == place[1] for one in unlabelled):
        raise DataError(
            f"test: the student learns from {name}, without its labels, so it tests nothing; name another set"
        )
    check_labels(source.labels, len(source.class_names), name)
    parts = [test_rows(source, share, one.split_seed) for share, one in zip(shares, splitting, strict=True)]
    rows = torch.from_numpy(np.flatnonzero(np.logical_and.reduce(parts)))
    channels, height, width = source.images.shape[1:]
    spec = ImageSpec(channels, height, width, len(source.class_names))
    images = source.images if len(rows) == len(source.labels) else part_of(source.images, rows)
    return RealData(images, source.labels[rows], spec, source.class_names, name, source.notes)


def _test_share(settings: DataSettings | TestSettings) -> float:
    """The share of a dataset without a test part that its test split takes; 1 where settings of a test ask for none."""
    match settings:
        case DigitsData():
            return _DIGITS_TEST
        case NamedData():
            return 0.0  # these have a test part
    return 1.0 if settings.test is None else settings.test


def _read(settings: DataSettings | TestSettings, lacks_classes: bool = False) -> tuple[Source, str]:
    """A dataset and its name; the notes about its files are logged."""
    match settings:
        case DigitsData():
            source, name = read_digits(), "digits"
        case NamedData():
            source, name = read_named(settings), str(settings.kind)
        case NpzData() | NpzTest():
            source, name = read_npz(settings.path, lacks_classes), Path(settings.path).name
        case FolderData() | FolderTest():
            source = read_files(settings.root, settings, lacks_classes)
            name = Path(settings.root).expanduser().resolve().name
    for note in source.notes:
        LOG.warning("%s: %s", name, note)
    if settings.channels is not None and isinstance(source.images, Tensor):  # others are decoded as wanted
        source = replace(source, images=in_channels(source.images, settings.channels))
    return source, name


def _place(settings: DataSettings | TestSettings | UnlabelledData) -> tuple[str, Path] | None:
    """What two settings of one dataset have in common; None for datasets that have a test part of their own."""
    match settings:
        case DigitsData():
            return settings.kind, Path()
        case NpzData() | NpzTest() | UnlabelledData():
            return settings.kind, Path(settings.path).expanduser().resolve()
        case FolderData() | FolderTest():
            return settings.kind, Path(settings.root).expanduser().resolve()
    return None
