"""Pictures of the task without labels: every image of a set, in a fixed order, whatever its form."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor

from synthkd.data.read.folder import read_files
from synthkd.data.read.listing import list_unlabelled
from synthkd.data.read.npz import is_arrays, read_images
from synthkd.data.read.on_disk import Pixels, part_of
from synthkd.data.read.splits import RealData, Splits
from synthkd.errors import DataError
from synthkd.rng import Rows
from synthkd.settings import UnlabelledData
from synthkd.types import ImageSpec, alike_in_channels, in_channels

LOG = logging.getLogger(__name__)


def read_unlabelled(settings: UnlabelledData, spec: ImageSpec, class_names: tuple[str, ...]) -> Splits:
    """Read a set for a student; labels that it has are left aside. Warnings tell of conversions and left-out files.

    Args:
        settings: of the set.
        spec: images and classes of the teacher.
        class_names: of the teacher; may be empty.

    Returns:
        Images to train on and held-out ones with the label -1, and an empty test part.

    Raises:
        DataError: no images, unreadable files, or images of other sizes than the teacher's.
    """
    path = Path(settings.path).expanduser()
    name = path.resolve().name
    images: Pixels
    if is_arrays(path):
        images = _of_npz(path, settings)
    else:
        source = read_files(path, settings, listed=list_unlabelled)
        images = source.images
        for note in source.notes:
            LOG.warning("%s: %s", name, note)
    if isinstance(images, Tensor):  # others are decoded as wanted
        images = alike_in_channels(images, spec.channels)
    if images.shape[1:] != spec.shape:
        wanted, got = ("x".join(map(str, shape)) for shape in (spec.shape, images.shape[1:]))
        remedy = _remedy(images.shape[1], spec, is_arrays(path))
        raise DataError(f"{path}: images are {got}, the teacher takes {wanted}; {remedy}")
    held = _held_out(len(images), settings.holdout)
    if bool(held.all()):
        raise DataError(f"{path} holds {len(images)} images, too few to hold any out; add some, or set holdout to 0")

    def part(rows: Tensor) -> RealData:
        return RealData(part_of(images, rows), torch.full((int(rows.sum()),), -1), spec, class_names, name)

    return Splits(part(~held), part(held), part(torch.zeros_like(held)))


def _remedy(channels: int, spec: ImageSpec, arrays: bool) -> str:
    """What to do about images of another shape than the teacher's, in words."""
    if spec.channels not in (1, 3):
        return "images as data have 1 or 3 channels, so take another teacher"
    if channels != spec.channels:
        return f"set channels to {spec.channels}, or convert them"
    if arrays:
        return "resize the array"
    size = spec.height if spec.height == spec.width else [spec.height, spec.width]
    return f"set size to {size}, or convert them"


def _of_npz(path: Path, settings: UnlabelledData) -> Tensor:
    if settings.size is not None or settings.resize is not None:
        raise DataError(f"{path}: size and resize are for image files; leave them out, and resize the array itself")
    return in_channels(torch.from_numpy(read_images(path)), settings.channels)


def _held_out(count: int, share: float) -> Tensor:
    """bool `[count]`, True for `round(share * count)` rows at random, the same ones at every call."""
    held = torch.zeros(count, dtype=torch.bool)
    order = Rows(0, "holdout of unlabelled images").uniform(count, 1)[:, 0].argsort(stable=True)
    held[order[: round(share * count)]] = True
    return held
