"""Randomness as a function of (seed, purpose, step), so that a resumed run draws what an unbroken run draws."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def derive(seed: int, purpose: str, step: int = 0) -> int:
    """A 63-bit seed, a hash (BLAKE2b) of the three arguments; neighbouring steps and seeds give unrelated results."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{step}".encode(), digest_size=8).digest()
    # 63 bits, since torch takes seeds as signed 64-bit integers.
    return int.from_bytes(digest, "little") >> 1


def stream(seed: int, purpose: str, step: int = 0) -> torch.Generator:
    """A torch generator on the CPU for one purpose at one step.

    Draw on the CPU and move the result, so that all devices get the same numbers.
    """
    return torch.Generator().manual_seed(derive(seed, purpose, step))


def unpredictable() -> torch.Generator:
    """A torch generator on the CPU that nobody can draw again: the operating system gives its whole state.

    On a CPU `manual_seed` uses 32 bits of a seed, all of which somebody could try in a day. The generator's
    `initial_seed()` has 63 random bits, for a device that uses all of them.

    Raises:
        RuntimeError: this version of torch keeps the state of a generator in another form.
    """
    rng = torch.Generator().manual_seed(int.from_bytes(os.urandom(8), "little") >> 1)
    state = rng.get_state()
    words = state[_WORDS].view(torch.int64)  # of the Mersenne Twister, 32 bits each
    of_seed = np.random.RandomState(rng.initial_seed() & 0xFFFFFFFF).get_state(legacy=False)["state"]["key"]
    if not np.array_equal(words.numpy(), np.asarray(of_seed, dtype=np.int64)):
        raise RuntimeError("this version of torch keeps the state of a generator in another form; take another version")
    words.copy_(torch.from_numpy(np.frombuffer(os.urandom(4 * len(words)), dtype=np.uint32).astype(np.int64)))
    return rng.set_state(state)


_WORDS = slice(24, 24 + 8 * 624)


def numpy_stream(seed: int, purpose: str, step: int = 0) -> np.random.Generator:
    """A numpy generator for one purpose at one step; unrelated to that of `stream`."""
    # PCG64 by name, since the default of numpy may change.
    return np.random.Generator(np.random.PCG64(derive(seed, purpose, step)))


@dataclass(frozen=True)
class Rows:
    """Random rows by index: row `i` is a function of (seed, purpose, i), however many rows are drawn at once.

    A counter-based generator (Philox) starts at the counter of the row. Normal values come from the Box-Muller
    transform: unlike rejection methods it uses a fixed number of raw words per value.

    Attributes:
        seed: the run's seed.
        purpose: name of the stream.
        start: index of the first row.
    """

    seed: int
    purpose: str
    start: int = 0

    def _uniform(self, count: int, width: int) -> NDArray[np.float64]:
        blocks = -(-width // 4)  # Philox makes four 64-bit words per counter step; each row starts at a whole step
        bits = np.random.Philox(key=derive(self.seed, self.purpose)).advance(self.start * blocks)
        raw = bits.random_raw(count * blocks * 4).reshape(count, blocks * 4)[:, :width]
        # The upper 53 bits fill the mantissa of a double. The added half excludes 0, whose logarithm is infinite.
        return np.asarray(((raw >> np.uint64(11)) + 0.5) * 2.0**-53, dtype=np.float64)

    def uniform(self, count: int, width: int) -> Tensor:
        """Rows `start` to `start + count`: float32 `[count, width]`, uniform in (0, 1)."""
        return torch.from_numpy(self._uniform(count, width).astype(np.float32))

    def normal(self, count: int, width: int) -> Tensor:
        """Rows `start` to `start + count`: float32 `[count, width]`, standard normal."""
        # Of two uniform numbers u and v, sqrt(-2 ln u) cos(2 pi v) and sqrt(-2 ln u) sin(2 pi v) are independent
        # normals.
        half = -(-width // 2)
        pairs = self._uniform(count, 2 * half)
        radius = np.sqrt(-2.0 * np.log(pairs[:, :half]))
        angle = 2.0 * np.pi * pairs[:, half:]
        values = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)[:, :width]
        return torch.from_numpy(values.astype(np.float32))
