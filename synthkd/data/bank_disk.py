"""The images of a memory bank in files that only grow, which its checkpoints share."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from synthkd.data.journal import Journal, Values, replay, replayed
from synthkd.errors import CheckpointError
from synthkd.settings import BankSettings
from synthkd.training.row_log import REMEDY, RowLog
from synthkd.training.shared_rows import BLOCK_BYTES, Rows, file_blocks
from synthkd.types import ImageSpec

Ints = NDArray[np.int64]
_FILES = 32  # of a full bank; disk is freed a file at a time
_BLOCK = 1 << 20
_OLD_FILES = tuple(f"{name}.bin" for name in ("images", "labels", "logits", "births"))  # of an earlier version


class DiskRows:
    """The columns of a bank on disk: a record for each image in files, and only numbers by slot in memory.

    A new image is appended to a file and is never written again, so checkpoints refer to the files and copy nothing. A
    ring drops a file once all its images have left. With an eviction by priority, the images that stay of the file that
    most have left are appended again as soon as the files hold more than twice the bank.

    Args:
        spec: size, channels and classes of the images.
        settings: capacity and eviction.
        directory: of the files.

    Attributes:
        labels: `[capacity]`, uint8 where all fit.
        births: int64 `[capacity]`, the number of the image in each slot; empty for a ring.

    Raises:
        OSError: the disk has no room for the whole bank.
    """

    def __init__(self, spec: ImageSpec, settings: BankSettings, directory: Path) -> None:
        self.capacity, self._is_ring = settings.capacity, settings.evict == "oldest"
        columns = {"images": ("|u1", spec.shape), "labels": ("<i4", ()), "logits": ("<f4", (spec.classes,))}
        _make_room(directory, self.capacity * bytes_per_image(spec))
        self._log = RowLog(directory, columns, -(-self.capacity // _FILES))
        self.labels = torch.zeros(self.capacity, dtype=torch.uint8 if spec.classes <= 256 else torch.int32)
        own = 0 if self._is_ring else self.capacity
        self.births = torch.zeros(own, dtype=torch.int64)
        self._places = np.full(own, -1, dtype=np.int64)  # slot -> number of its row; -1: unused. A ring computes them
        self._journal = Journal(self.capacity)

    def begin_at(self, number: int) -> None:
        """Forget all images; the next one has this number."""
        self._log.begin_at(number)
        self._places[:] = -1

    def write(self, slots: Tensor, births: Tensor, images: Tensor, labels: Tensor, logits: Tensor) -> None:
        """As of `BankRows`.

        Raises:
            CheckpointError: an earlier write of a ring failed.
        """
        if self._is_ring and len(births) and self._log.stop != int(births[0]):
            raise CheckpointError(f"memory bank: images could not be written before; {REMEDY}")
        places = self._log.append({"images": images.cpu(), "labels": labels.cpu(), "logits": logits.cpu()})
        self.labels[slots] = labels.cpu().to(self.labels.dtype)
        self._journal.change(slots.numpy())
        if self._is_ring:
            for one in [one for one in self._log.files if one.first + one.rows <= self._log.stop - self.capacity]:
                self._log.drop(one.path)
        else:
            self.births[slots] = births
            self._places[slots.numpy()] = places
            while sum(one.rows for one in self._log.files) > 2 * self.capacity:
                self._empty_a_file()

    def read(self, slots: Tensor) -> dict[str, Tensor]:
        """As of `BankRows`.

        Raises:
            CheckpointError: an image is damaged.
        """
        return self._log.read(self._numbers(slots.numpy()))

    def change(self, slots: Tensor) -> None:
        """Note that what the policy keeps of these slots has changed."""
        self._journal.change(slots.numpy())

    def saved(self, first: int, stop: int, slots: Tensor | None) -> Rows:
        """As of `BankRows`; the files have more rows than these, in another order."""
        numbers = range(first, stop) if slots is None else self._places[slots.numpy()]
        return Rows(first, stop, lambda start: file_blocks(self._log, numbers, first, start), self._log)

    def state_dict(self, used: int, columns: Values) -> dict[str, Any]:
        """What is kept of the first `used` slots, with columns of the policy, as rows that checkpoints share."""
        # Of a bank that is no ring `age_ordered` makes the rows; here they only name the files.
        first = self._log.stop - used if self._is_ring else 0
        rows = self.saved(first, first + used, None)
        return {"rows": rows, "slots": self._journal.rows(used, self._values(columns)), "used": used}

    def _values(self, columns: Values) -> Values:
        own: Values = {"labels": self.labels.numpy()}
        if not self._is_ring:
            own = {**own, "births": self.births.numpy(), "places": self._places}
        return {**own, **columns}

    def load_state_dict(self, state: Mapping[str, Any], columns: Values) -> None:
        """Go on with the files of a state, and set the columns of a policy to its values; no image is read."""
        replay(state["slots"], self._values(columns))
        self._log.continue_from(state["rows"].files)
        self._journal.begin_after(state["slots"])

    def _numbers(self, slots: Ints) -> Ints:
        if not self._is_ring:
            return self._places[slots]
        newest = self._log.stop - 1
        return np.asarray(newest - (newest - slots) % self.capacity, dtype=np.int64)

    def _empty_a_file(self) -> None:
        """Append the images again that stay of the file that most have left, and drop it."""
        files = self._log.files
        firsts = np.array([one.first for one in files], dtype=np.int64)
        staying = np.zeros(len(files), dtype=np.int64)
        for places in _split(self._places):
            index = np.searchsorted(firsts, places[places >= 0], "right") - 1
            staying += np.bincount(index, minlength=len(files))
        left = [
            one.rows - count for one, count in zip(files[:-1], staying.tolist(), strict=False)
        ]  # the last one grows
        emptiest = files[left.index(max(left))]
        last = emptiest.first + emptiest.rows
        slots = np.concatenate(
            [
                block * _BLOCK + np.flatnonzero((places >= emptiest.first) & (places < last))
                for block, places in enumerate(_split(self._places))
            ]
        )
        count = max(1, BLOCK_BYTES // self._log.record.itemsize)
        for begin in range(0, len(slots), count):
            some = slots[begin : begin + count]
            self._places[some] = self._log.append(self._log.read(self._places[some]))
        self._journal.change(slots)
        self._log.drop(emptiest.path)


def _split(values: Ints) -> Iterator[Ints]:
    """Parts of an array, so that what is computed from one needs little memory."""
    return (values[first : first + _BLOCK] for first in range(0, len(values), _BLOCK))


def age_ordered(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state of a bank on disk in the form of one in memory: rows by age, and `births` and a policy as tensors."""
    values = replayed(state["slots"], int(state["used"]))
    rows: Rows = state["rows"]
    index = state["index"] | {name: torch.from_numpy(column) for name, column in values.items()}
    if "births" not in values:
        return {"rows": rows, "index": index}
    files, numbers = rows.files, values["places"][np.argsort(values["births"])]
    assert files is not None
    ordered = Rows(0, len(numbers), lambda start: file_blocks(files, numbers, 0, start))
    return {"rows": ordered, "index": index, "births": torch.from_numpy(values["births"])}


def bytes_per_image(spec: ImageSpec) -> int:
    """Of a bank: a byte for each value of the image, float32 logits, and 16 bytes for label, number and checksum."""
    return spec.channels * spec.height * spec.width + 4 * spec.classes + 16


def _make_room(directory: Path, needed: int) -> None:
    """Remove what an earlier version left in the folder, and refuse a disk that has no room beside what it has."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in _OLD_FILES:
        (directory / name).unlink(missing_ok=True)
    there = sum(path.stat().st_size for path in directory.glob("*.rows"))
    if needed - there > shutil.disk_usage(directory).free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory))
