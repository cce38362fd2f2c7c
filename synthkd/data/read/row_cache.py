"""A file of decoded images, each with a checksum: it may be damaged, cut off or deleted at any time."""

from __future__ import annotations

import os
import shutil
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from synthkd.errors import DataError
from synthkd.system.resources import reason, size

_MARK = struct.Struct("<II")  # number of the image, from 1 on, and the crc32 of its pixels; zeros: not decoded yet


class RowCache:
    """Decoded images by number in one file, which grows as they are decoded.

    Several processes may read and write it at once without a lock: an image is the same whoever decodes it, and one
    whose checksum does not fit counts as absent. Only the bytes of images that were written take room on the disk.

    Args:
        path: the file; its folder is made if it does not exist.
        count: number of images.
        shape: `(C, H, W)` of each.

    Raises:
        DataError: the file cannot be written, or the disk has no room for all images.
    """

    def __init__(self, path: Path, count: int, shape: tuple[int, int, int]) -> None:
        self._path, self._count, self._shape = path, count, shape
        self._record = _MARK.size + shape[0] * shape[1] * shape[2]
        total = count * self._record
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            used, free = os.fstat(self._file).st_blocks * 512, shutil.disk_usage(path.parent).free
            if used + free < total:
                raise DataError(
                    f"{path.parent} has {size(free)} free, and the decoded images need {size(total)}; set cache to a "
                    "folder with more room, or size to a smaller number of pixels"
                )
            os.ftruncate(self._file, total)
        except OSError as error:
            raise DataError(
                f"the cache of decoded images {path.parent} cannot be written ({reason(error)}); set cache to another "
                "folder"
            ) from error

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    def read(self, number: int, into: Tensor) -> bool:
        """Copy an image into a contiguous tensor uint8 `[C, H, W]`; False if it is not there or damaged."""
        mark, pixels = bytearray(_MARK.size), _bytes(into)
        if os.preadv(self._file, [mark, pixels], number * self._record) != self._record:
            return False  # somebody has cut the file off
        place, checksum = _MARK.unpack(mark)
        return bool(place == number + 1 and checksum == zlib.crc32(pixels))

    def write(self, number: int, image: Tensor) -> None:
        """Keep an image uint8 `[C, H, W]`; a full disk keeps it not, which costs decoding it again."""
        pixels = _bytes(image.contiguous())
        try:
            os.pwritev(self._file, [_MARK.pack(number + 1, zlib.crc32(pixels)), pixels], number * self._record)
        except OSError:
            return

    def has(self, numbers: Tensor) -> Tensor:
        """Which of the images were written, bool `[n]`; their checksums are not computed."""
        marks = (os.pread(self._file, _MARK.size, number * self._record) for number in numbers.tolist())
        written = [len(mark) == _MARK.size and _MARK.unpack(mark)[0] > 0 for mark in marks]
        return torch.tensor(written, dtype=torch.bool)


def _bytes(image: Tensor) -> memoryview:
    """The memory of a contiguous image."""
    return image.numpy().reshape(-1).data
