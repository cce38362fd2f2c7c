"""Randomness as a function of (seed, purpose, step), so that a resumed run repeats what an unbroken one would do."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def derive(seed: int, purpose: str, step: int = 0) -> int:
    """A 63-bit seed that differs in every one of its arguments (a keyed hash, so neighbours are unrelated)."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def stream(seed: int, purpose: str, step: int = 0) -> torch.Generator:
    """A CPU generator for one purpose at one step; draw on the CPU and move, so that devices agree."""
    return torch.Generator().manual_seed(derive(seed, purpose, step))


def numpy_stream(seed: int, purpose: str, step: int = 0) -> np.random.Generator:
    """The same for numpy."""
    return np.random.Generator(np.random.PCG64(derive(seed, purpose, step)))


@dataclass(frozen=True)
class Rows:
    """Random rows by index: row `i` is a function of (seed, purpose, i), never of how many are drawn at once.

    A counter-based generator (Philox) is positioned at the row, and normals come from Box-Muller, which uses a fixed
    number of raw words for each value.

    Attributes:
        seed: the run's seed.
        purpose: name of the stream.
        start: index of the first row.
    """

    seed: int
    purpose: str
    start: int = 0

    def _uniform(self, count: int, width: int) -> NDArray[np.float64]:
        blocks = -(-width // 4)  # Philox gives four 64-bit words a counter step; a row begins at a whole step
        bits = np.random.Philox(key=derive(self.seed, self.purpose)).advance(self.start * blocks)
        raw = bits.random_raw(count * blocks * 4).reshape(count, blocks * 4)[:, :width]
        return np.asarray(((raw >> np.uint64(11)) + 0.5) * 2.0**-53, dtype=np.float64)

    def uniform(self, count: int, width: int) -> Tensor:
        """float32 `[count, width]`, uniform in (0, 1)."""
        return torch.from_numpy(self._uniform(count, width).astype(np.float32))

    def normal(self, count: int, width: int) -> Tensor:
        """float32 `[count, width]`, standard normal."""
        half = -(-width // 2)
        pairs = self._uniform(count, 2 * half)
        radius = np.sqrt(-2.0 * np.log(pairs[:, :half]))
        angle = 2.0 * np.pi * pairs[:, half:]
        values = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)[:, :width]
        return torch.from_numpy(values.astype(np.float32))
