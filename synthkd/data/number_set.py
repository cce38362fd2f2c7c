"""A set of row numbers that takes a bit for each row, not a Python object."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class NumberSet:
    """Numbers from 0 on.

    Args:
        state: that `state` returned, or a list of numbers, as an older version saved it.
    """

    def __init__(self, state: Tensor | Sequence[int] = ()) -> None:
        self._bits: NDArray[np.uint8] = np.zeros(0, dtype=np.uint8)
        if isinstance(state, Tensor):
            self._bits = state.numpy().copy()
        else:
            self.update(torch.tensor(state, dtype=torch.int64))

    def update(self, numbers: Tensor) -> None:
        """Add numbers int64 `[n]`."""
        if not len(numbers):
            return
        values = numbers.numpy()
        missing = int(values.max()) // 8 + 1 - len(self._bits)
        if missing > 0:  # twice as many, so that a growing set is copied a few times only
            self._bits = np.concatenate([self._bits, np.zeros(max(missing, len(self._bits)), dtype=np.uint8)])
        np.bitwise_or.at(self._bits, values // 8, np.uint8(1) << (values % 8).astype(np.uint8))

    def __len__(self) -> int:
        return int(np.unpackbits(self._bits).sum())

    def __iter__(self) -> Iterator[int]:
        return iter(np.flatnonzero(np.unpackbits(self._bits, bitorder="little")).tolist())

    def state(self) -> Tensor:
        """The set as bits, uint8; the lowest bit of byte i is number 8 i."""
        return torch.from_numpy(np.trim_zeros(self._bits, "b").copy())
