"""Pictures of any sizes that have nothing to do with a task, for crops: those of a folder, or two of scikit-learn."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from synthkd.data.read.decode import with_reasons
from synthkd.data.read.decoding import Decoding
from synthkd.data.read.listing import list_unlabelled
from synthkd.data.read.npz import is_arrays, read_images
from synthkd.errors import ConfigError, DataError
from synthkd.types import in_channels, to_float, to_uint8

LOG = logging.getLogger(__name__)

MOST = 1000
"""Pictures that are read; of more, so many evenly spaced ones."""
LARGEST_BYTES = 400 * 2**20
"""Of all pictures together; larger ones are made smaller."""


@dataclass(frozen=True)
class Pictures:
    """Pictures in memory.

    Attributes:
        images: uint8 `[C, H, W]` each, of any sizes.
        name: of the set, as plan and report show it.
    """

    images: tuple[Tensor, ...]
    name: str


def read_pictures(root: str | None, channels: int) -> Pictures:
    """Read pictures; files that cannot be read are left out with a warning.

    Args:
        root: a set in any form that the other readers know; its labels are left aside. None: the two photographs that
            scikit-learn has in its package.
        channels: of the result, 1 (grey) or 3 (RGB).

    Raises:
        ConfigError: other channels.
        DataError: no image that can be read.
    """
    if channels not in (1, 3):
        raise ConfigError(
            f"pictures are grey or RGB, the teacher takes {channels} channels; take kind=procedural for this source"
        )
    if root is None:
        # Slow to import, and needed here alone.
        from sklearn.datasets import load_sample_images

        photographs = [torch.from_numpy(image.copy()).permute(2, 0, 1) for image in load_sample_images().images]
        return _within(photographs, len(photographs), channels, "scikit-learn")
    path = Path(root).expanduser()
    if is_arrays(path):
        images = torch.from_numpy(read_images(path))
        rows = _evenly(len(images))
        return _within((images[row] for row in rows), len(rows), channels, path.resolve().name)
    listing = list_unlabelled(path)
    listing = replace(listing, entries=[listing.entries[row] for row in _evenly(len(listing.entries))])
    decoding = Decoding(listing)
    pictures = _within((image for _, image in decoding.images(channels)), len(listing.entries), channels, path.name)
    for note in decoding.notes("files ignored, not images"):
        LOG.warning("%s: %s", path.name, note)
    if not pictures.images:
        raise DataError(f"{path}: none of the files is a readable image: {with_reasons(decoding.bad)}")
    return pictures


def _evenly(count: int) -> list[int]:
    most = min(count, MOST)
    return [number * count // most for number in range(most)]


def _within(images: Iterable[Tensor], count: int, channels: int, name: str) -> Pictures:
    """So many pictures with their channels, each within its part of LARGEST_BYTES."""
    most = max(1, LARGEST_BYTES // (channels * max(1, count)))  # pixels
    return Pictures(tuple(_smaller(in_channels(image[None], channels), most)[0] for image in images), name)


def _smaller(image: Tensor, most: int) -> Tensor:
    """An image uint8 `[1, C, H, W]` with at most about so many pixels."""
    height, width = image.shape[2:]
    if height * width <= most:
        return image
    ratio = (most / (height * width)) ** 0.5
    size = (max(1, round(height * ratio)), max(1, round(width * ratio)))
    return to_uint8(F.interpolate(to_float(image), size=size, mode="bilinear", antialias=True))
