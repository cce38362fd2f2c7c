"""The arrays of a memory bank in memory, and the rows of any bank in a checkpoint."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synthkd.data.bank_disk import age_ordered, bytes_per_image
from synthkd.errors import CheckpointError
from synthkd.settings import BankSettings
from synthkd.system.resources import errno_of, out_of_memory, reason, size
from synthkd.training.shared_rows import BLOCK_BYTES, Block, Rows
from synthkd.types import ImageSpec


class BankRows:
    """The preallocated columns of a bank, one row for each slot.

    Args:
        spec: size, channels and classes of the images.
        capacity: number of slots.

    Attributes:
        images: uint8 `[capacity, C, H, W]`.
        labels: int64 `[capacity]`.
        logits: float32 `[capacity, K]`, the teacher's.
        births: int64 `[capacity]`, the number of the image in each slot.
    """

    def __init__(self, spec: ImageSpec, capacity: int) -> None:
        self.capacity = capacity
        self.images = torch.zeros(capacity, *spec.shape, dtype=torch.uint8)
        self.labels = torch.zeros(capacity, dtype=torch.int64)
        self.logits = torch.zeros(capacity, spec.classes)
        self.births = torch.zeros(capacity, dtype=torch.int64)

    @property
    def nbytes(self) -> int:
        """Bytes of all columns."""
        return sum(column.nbytes for column in (self.images, self.labels, self.logits, self.births))

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

    def read(self, slots: Tensor) -> dict[str, Tensor]:
        """`images`, `labels` and `logits` of slots, a row for each."""
        return {"images": self.images[slots], "labels": self.labels[slots], "logits": self.logits[slots]}

    def change(self, slots: Tensor) -> None:
        """Note that what the policy keeps of these slots has changed: a checkpoint has all of it anyway."""

    def saved(self, first: int, stop: int, slots: Tensor | None) -> Rows:
        """Images for a checkpoint, as they are until the next write; nothing is copied.

        Births are not saved; the bank knows them by the numbers of the rows, or saves them itself.

        Args:
            first: number of the first row.
            stop: number after that of the last one.
            slots: of the rows, int64 `[stop - first]`; None: they are images of a ring, and numbered as these.
        """
        count = max(1, BLOCK_BYTES * self.capacity // self.nbytes)

        def blocks(start: int) -> Iterator[Block]:
            for begin in range(start, stop, count):
                end = min(begin + count, stop)
                some = torch.arange(begin, end) % self.capacity if slots is None else slots[begin - first : end - first]
                yield Block(begin, self.read(some))

        return Rows(first, stop, blocks)


def saved_rows(state: Mapping[str, Any]) -> Rows:
    """The images in the state dict of a bank, with their labels and logits, oldest first."""
    if "slots" in state:
        state = age_ordered(state)
    if "rows" in state:
        rows: Rows = state["rows"]
        return rows
    # Checkpoints of an older version have copies of whole columns, in the order of the slots.
    order = state["births"].argsort()
    columns = {name: state[name][order] for name in ("images", "labels", "logits")}
    first = int(state["added"]) - len(order)
    return Rows(first, int(state["added"]), lambda _: iter([Block(first, columns)] if len(order) else []))


@contextmanager
def shortage_explained(spec: ImageSpec, settings: BankSettings, directory: Path | None, key: str) -> Iterator[None]:
    """Context manager for an allocation: a lack of memory or disk becomes an error that says what to change.

    Args:
        spec: of the images.
        settings: of the bank.
        directory: of its files, or None.
        key: of the settings in the configuration.

    Raises:
        CheckpointError: the bank does not fit.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if out_of_memory(error):
            place, remedy = (
                "the memory",
                f"set {key}.storage=disk" if settings.storage == "ram" else "free some",
            )
        elif errno_of(error) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            place, remedy = f"{directory} ({reason(error)})", "choose another out="
        else:
            raise
        needed = size(settings.capacity * bytes_per_image(spec))
        raise CheckpointError(
            f"{key}.capacity: {settings.capacity:,} images with their logits take {needed}, which do not fit {place}; "
            f"make it smaller, or {remedy}"
        ) from None  # the error of the allocation says less
