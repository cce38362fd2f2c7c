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
_MOST_PARTS = 64
_BLOCK = 1 << 20  # entries that are in memory at a time
_SLOT = "slot"


class Journal:
    """Entries of a slot and its values; the last entry of a slot counts.

    A checkpoint adds the slots that changed since the one before. After `_MOST_PARTS` checkpoints, or once there are
    more such entries than slots, it begins anew with all slots, so that the entries are never more than twice as many
    as the slots.
    """

    def __init__(self) -> None:
        self._changed: list[NDArray[np.int32]] = []
        self._parts: list[tuple[int, NDArray[np.int32]]] = []  # number of the first entry, and the slots
        self._first = self._stop = 0

    def change(self, slots: NDArray[np.int64]) -> None:
        """Note slots `[n]` whose values have changed."""
        self._changed.append(slots.astype(np.int32))
        if len(self._changed) > 1000:  # nobody may ever ask, as in a process that writes no checkpoints
            self._changed = [np.unique(np.concatenate(self._changed))]

    def begin_after(self, rows: Rows) -> None:
        """Number the next entries after those of a restored state; the first checkpoint then has all slots."""
        self._changed, self._parts, self._first, self._stop = [], [], rows.stop, rows.stop

    def rows(self, used: int, values: Values) -> Rows:
        """The entries for a checkpoint, which hold the values as they are until they change.

        Args:
            used: slots in use, which are the first ones.
            values: of all slots.
        """
        changed = np.unique(np.concatenate([*self._changed, np.empty(0, np.int32)]))
        self._changed = []
        all_entries = self._stop - self._first + len(changed)
        if not self._parts or len(self._parts) >= _MOST_PARTS or all_entries > 2 * used:
            changed, self._parts, self._first = np.arange(used, dtype=np.int32), [], self._stop
        if len(changed):
            self._parts.append((self._stop, changed))
            self._stop += len(changed)
        parts = tuple(self._parts)
        return Rows(self._first, self._stop, lambda start: _blocks(parts, values, start))


def replayed(rows: Rows, used: int) -> dict[str, NDArray[Any]]:
    """The values `[used]` by slot that the entries of a journal leave, of each column."""
    values: dict[str, NDArray[Any]] = {}
    for block in rows.blocks(rows.first):
        columns = {name: column.numpy() for name, column in block.columns.items()}
        slots = columns.pop(_SLOT)
        for name, column in columns.items():
            values.setdefault(name, np.zeros(used, column.dtype))[slots] = column
    return values


def _blocks(parts: tuple[tuple[int, NDArray[np.int32]], ...], values: Values, start: int) -> Iterator[Block]:
    for first, slots in parts:
        for begin in range(max(start - first, 0), len(slots), _BLOCK):
            some = slots[begin : begin + _BLOCK]
            columns = {name: torch.from_numpy(column[some]) for name, column in values.items()}
            yield Block(first + begin, {_SLOT: torch.from_numpy(some), **columns})
