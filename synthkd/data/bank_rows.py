"""The arrays of a memory bank, in memory or in memory-mapped files, and their rows in a checkpoint."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synthkd.errors import CheckpointError, DataError
from synthkd.settings import BankSettings
from synthkd.system.resources import errno_of, out_of_memory, reason, size
from synthkd.training.shared_rows import Block, Rows
from synthkd.types import ImageSpec

_COLUMNS = ("images", "labels", "logits", "births")
_BLOCK_BYTES = 1 << 25  # of rows that a checkpoint writes at a time: a bank may be larger than the memory


class BankRows:
    """The preallocated columns of a bank, one row for each slot.

    Args:
        spec: size, channels and classes of the images.
        settings: capacity and storage.
        directory: where `storage: disk` keeps its files, one for each column.

    Attributes:
        images: uint8 `[capacity, C, H, W]`.
        labels: int64 `[capacity]`.
        logits: float32 `[capacity, K]`, the teacher's.
        births: int64 `[capacity]`, the number of the image in each slot.

    Raises:
        DataError: `storage: disk` without a directory.
    """

    def __init__(self, spec: ImageSpec, settings: BankSettings, directory: Path | None) -> None:
        if settings.storage == "disk" and directory is None:
            raise DataError("bank.storage: disk needs a directory for its files")
        self.capacity = settings.capacity
        place = directory if settings.storage == "disk" else None
        self.images = _allocate(place, "images", (self.capacity, *spec.shape), torch.uint8)
        self.labels = _allocate(place, "labels", (self.capacity,), torch.int64)
        self.logits = _allocate(place, "logits", (self.capacity, spec.classes), torch.float32)
        self.births = _allocate(place, "births", (self.capacity,), torch.int64)

    @property
    def nbytes(self) -> int:
        """Bytes of all columns."""
        return sum(column.nbytes for column in (self.images, self.labels, self.logits, self.births))

    def ring(self, first: int, stop: int) -> Tensor:
        """Slots int64 `[stop - first]` of the images `first` to `stop - 1` of a ring: image i lies in slot
        `i % capacity`."""
        return torch.arange(first, stop) % self.capacity

    def write(self, slots: Tensor, births: Tensor, images: Tensor, labels: Tensor, logits: Tensor) -> None:
        """Write images into slots.

        Args:
            slots: int64 `[N]`.
            births: int64 `[N]`, the numbers of the images.
            images: uint8 `[N, C, H, W]`; these and the others may be on any device.
            labels: int64 `[N]`.
            logits: float32 `[N, K]`.
        """
        self.images[slots] = images.cpu()
        self.labels[slots] = labels.cpu()
        self.logits[slots] = logits.cpu()
        self.births[slots] = births

    def saved(self, slots: Tensor, first: int) -> Rows:
        """The images of the slots for a checkpoint, numbered from `first` on, as they are until the next write.

        Nothing is copied. Births are not saved; the bank knows them by the numbers of the rows, or saves them itself.
        """
        count, stop = max(1, _BLOCK_BYTES * self.capacity // self.nbytes), first + len(slots)

        def blocks(start: int) -> Iterator[Block]:
            for begin in range(start, stop, count):
                some = slots[begin - first : begin - first + count]
                columns = {"images": self.images[some], "labels": self.labels[some], "logits": self.logits[some]}
                yield Block(begin, columns)

        return Rows(first, stop, blocks)


def saved_rows(state: Mapping[str, Any]) -> Rows:
    """The images in the state dict of a bank, with their labels and logits, oldest first."""
    if "rows" in state:
        rows: Rows = state["rows"]
        return rows
    # Checkpoints of an older version have copies of whole columns, in the order of the slots.
    order = state["births"].argsort()
    columns = {name: state[name][order] for name in ("images", "labels", "logits")}
    first = int(state["added"]) - len(order)
    return Rows(first, int(state["added"]), lambda _: iter([Block(first, columns)] if len(order) else []))


@contextmanager
def shortage_explained(spec: ImageSpec, settings: BankSettings, directory: Path | None) -> Iterator[None]:
    """Context manager for an allocation: a lack of memory or disk becomes an error that says what to change.

    The files written so far are removed, which frees their space for the next attempt.

    Raises:
        CheckpointError: the bank does not fit.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if out_of_memory(error):
            place, remedy = (
                "the memory",
                "set transfer_set.bank.storage=disk" if settings.storage == "ram" else "free some",
            )
        elif errno_of(error) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            place, remedy = f"{directory} ({reason(error)})", "choose another out="
        else:
            raise
        if directory is not None:
            for name in _COLUMNS:
                (directory / f"{name}.bin").unlink(missing_ok=True)
        # Of each image: a byte a pixel, float32 logits, and 8 bytes each for label and birth.
        needed = size(settings.capacity * (spec.channels * spec.height * spec.width + 4 * spec.classes + 16))
        raise CheckpointError(
            f"transfer_set.bank.capacity: {settings.capacity:,} images with their logits take {needed}, which do not "
            f"fit {place}; make it smaller, or {remedy}"
        ) from None  # the error of the allocation says less


def _allocate(directory: Path | None, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros in memory, or a memory-mapped file of the directory with its present content."""
    if directory is None:
        return torch.zeros(shape, dtype=dtype)
    path, count = directory / f"{name}.bin", math.prod(shape)
    _reserve(path, count * dtype.itemsize)
    return torch.from_file(str(path), shared=True, size=count, dtype=dtype).reshape(shape)


def _reserve(path: Path, size: int) -> None:
    """Make a file of `size` bytes for which the disk has room."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the reservation the file would be sparse, and a write to its map on a full disk kills the process
    # (SIGBUS).
    with path.open("ab") as file:  # "ab" keeps the content of an existing file
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except AttributeError:  # a system without it
            pass
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # a file system without it
                raise
