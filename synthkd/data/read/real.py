"""Real, labelled images: from settings to three disjoint, checked parts.

The readers are `named`, `npz` and `folder` (also for archives); `splits` divides what they read.
"""

from __future__ import annotations

import logging
from pathlib import Path

from synthkd.data.read.folder import read_folder
from synthkd.data.read.named import read_digits, read_named
from synthkd.data.read.npz import read_npz
from synthkd.data.read.splits import RealData, Splits, channel_statistics, split
from synthkd.settings import DataSettings, DigitsData, FolderData, NamedData, NpzData

__all__ = ["RealData", "Splits", "channel_statistics", "load_splits"]

LOG = logging.getLogger(__name__)

_DIGITS_TEST = 0.2  # fraction of the test part


def load_splits(settings: DataSettings) -> Splits:
    """Read a dataset and split it. Warnings tell of conversions and of files that were ignored or left out.

    Raises:
        DataError: files that are missing, truncated, corrupt or of the wrong kind; labels out of range; a class without
        a
            training image; a failed download. The message names the file and the remedy.
    """
    test = 0.0
    match settings:
        case DigitsData():
            source, name, test = read_digits(), "digits", _DIGITS_TEST
        case NamedData():
            source, name = read_named(settings), str(settings.kind)
        case NpzData():
            source, name, test = read_npz(settings.path), Path(settings.path).name, settings.test
        case FolderData():
            source = read_folder(settings.root, settings.channels, settings.size, settings.skip_bad)
            name, test = Path(settings.root).expanduser().resolve().name, settings.test
    for note in source.notes:
        LOG.warning("%s: %s", name, note)
    return split(source, name, test, settings.holdout, settings.split_seed, settings.per_class, settings.half)
