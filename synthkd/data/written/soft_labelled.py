"""A dataset of images with soft labels: what `synthkd generate` wrote, or a .npz of images and logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from synthkd.data.read.npz import as_images, as_labels, as_names, is_arrays, read_keys
from synthkd.data.read.splits import channel_statistics
from synthkd.data.written.stored import StoredDataset, read_stored
from synthkd.errors import DataError
from synthkd.types import ImageSpec, check_labels

_SUM = 1e-3
"""Largest distance from 1 of the sum of probabilities, which may be stored in float16."""


def read_soft_labelled(path: str | Path) -> StoredDataset:
    """Read and check a dataset with soft labels.

    Args:
        path: that of `read_stored`, or a .npz with `images` and `logits`, and `labels` and `class_names` if it has
            them. Without labels the largest logit says the class. It is not known whether its images are real ones.

    Raises:
        DataError: as `read_stored`; arrays that do not fit together, logits that are not finite, or probabilities.
    """
    file = Path(path).expanduser()
    if not is_arrays(file):
        return read_stored(path)
    arrays = read_keys(file, {"images", "logits"}, {"labels", "class_names"})
    images = torch.from_numpy(as_images(arrays["images"], f"{file}: images"))
    logits = torch.from_numpy(_as_logits(arrays["logits"], len(images), f"{file}: logits"))
    classes = logits.shape[1]
    labels = logits.argmax(1)
    if "labels" in arrays:
        labels = torch.from_numpy(as_labels(arrays["labels"], len(images), f"{file}: labels"))
        check_labels(labels, classes, str(file))
    names: tuple[str, ...] = tuple(map(str, range(classes)))
    if "class_names" in arrays:
        names = as_names(arrays["class_names"], f"{file}: class_names")
        if len(names) != classes:
            raise DataError(f"{file}: {len(names)} class_names for logits of {classes} classes; give one for each")
    mean, std = channel_statistics(images)
    channels, height, width = images.shape[1:]
    spec = ImageSpec(channels, height, width, classes)
    return StoredDataset(images, labels, logits, names, mean, std, spec, {"real_images_used": None})


def _as_logits(array: NDArray[Any], count: int, where: str) -> NDArray[np.float32]:
    """Logits as float32 `[count, K]`, K at least 2; `DataError` for anything else."""
    if array.dtype.kind != "f":
        raise DataError(f"{where} must be floats, got {array.dtype}; use .astype(np.float32)")
    if array.ndim != 2 or len(array) != count or array.shape[1] < 2:
        raise DataError(
            f"{where} must be a row per image and a column per class, [{count}, K], got {list(array.shape)}"
        )
    with np.errstate(over="ignore"):
        logits = array.astype(np.float32)
    if not np.isfinite(logits).all():
        rows = np.flatnonzero(~np.isfinite(logits).all(axis=1))
        raise DataError(f"{where} must be finite, and {len(rows)} rows are not (first: {rows[0]}); leave them out")
    if (logits >= 0.0).all() and (abs(logits.sum(axis=1) - 1.0) < _SUM).all():
        raise DataError(f"{where} are probabilities, of which a softmax would be taken again; give np.log of them")
    return np.ascontiguousarray(logits)
