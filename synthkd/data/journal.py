"""What a checkpoint of a bank on disk writes of values by slot, such as priorities: those that changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from synthkd.training.shared_rows import Block, Rows

Values = Mapping[str, NDArray[Any]]
"""Name of a column -> its values by slot."""
Slots = NDArray[np.int32] | range
_MOST_PARTS = 64
_BLOCK = 1 << 18  # entries that are in memory at a time
_SLOT = "slot"


class Journal:
    """Entries of a slot and its values; the last entry of a slot counts.

    A checkpoint adds the slots that changed since the one before. After `_MOST_PARTS` checkpoints, or once there would
    be more such entries than slots, it begins anew with all slots.

    Args:
        capacity: number of slots.
    """

    def __init__(self, capacity: int) -> None:
        self._changed = np.zeros(capacity, dtype=np.bool_)
        self._parts: list[tuple[int, Slots]] = []  # number of the first entry, and the slots
        self._first = self._stop = 0

    def change(self, slots: NDArray[np.int64]) -> None:
        """Note slots `[n]` whose values have changed."""
        self._changed[slots] = True

    def begin_after(self, rows: Rows) -> None:
        """Number the next entries after those of a restored state; the first checkpoint then has all slots."""
        self._changed[:] = False
        self._parts, self._first, self._stop = [], rows.stop, rows.stop

    def rows(self, used: int, values: Values) -> Rows:
        """The entries for a checkpoint, which hold the values as they are until they change.

        Args:
            used: slots in use, which are the first ones.
            values: of all slots.
        """
        count = int(np.count_nonzero(self._changed))
        slots: Slots
        if not self._parts or len(self._parts) >= _MOST_PARTS or self._stop - self._first + count > 2 * used:
            slots, self._parts, self._first = range(used), [], self._stop
        else:
            slots = np.flatnonzero(self._changed).astype(np.int32)
        self._changed[:] = False
        if len(slots):
            self._parts.append((self._stop, slots))
            self._stop += len(slots)
        parts = tuple(self._parts)
        return Rows(self._first, self._stop, lambda start: _blocks(parts, values, start))


def replay(rows: Rows, into: Values) -> None:
    """Set the values by slot of each column to what the entries of a journal leave."""
    for block in rows.blocks(rows.first):
        slots = block.columns[_SLOT].numpy()
        for name, values in into.items():
            values[slots] = block.columns[name].numpy()


def replayed(rows: Rows, used: int) -> dict[str, NDArray[Any]]:
    """The values `[used]` by slot that the entries of a journal leave, of each column."""
    first = next(rows.blocks(rows.first), None)
    columns = {} if first is None else {**first.columns}
    values = {name: np.zeros(used, one.numpy().dtype) for name, one in columns.items() if name != _SLOT}
    replay(rows, values)
    return values


def _blocks(parts: tuple[tuple[int, Slots], ...], values: Values, start: int) -> Iterator[Block]:
    for first, slots in parts:
        for begin in range(max(start - first, 0), len(slots), _BLOCK):
            some = np.asarray(slots[begin : begin + _BLOCK], dtype=np.int32)
            columns = {name: torch.from_numpy(column[some]) for name, column in values.items()}
            yield Block(first + begin, {_SLOT: torch.from_numpy(some), **columns})
