"""Fingerprints of the images of a set: their shapes and what they hold, known to every process that shares them."""

from __future__ import annotations

import hashlib
from bisect import bisect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby

import numpy as np
import torch
from torch import Tensor

from synthkd.system.shares import Shares

Shape = tuple[int, ...]
"""`(C, H, W)` of an image."""
_DIGEST = 32


@dataclass(frozen=True)
class Prints:
    """Fingerprints of images in their order.

    Attributes:
        runs: shape and number of consecutive images that have it.
        digests: sha256 of the pixels of each image, uint8 `[N, 32]`.
    """

    runs: tuple[tuple[Shape, int], ...]
    digests: Tensor

    @classmethod
    def of(cls, images: Iterable[Tensor]) -> Prints:
        """Those of uint8 images `[C, H, W]`, each of which is looked at once."""
        digests = bytearray()
        shapes = (_added(image, digests) for image in images)
        runs = tuple((shape, sum(1 for _ in same)) for shape, same in groupby(shapes))
        return cls(runs, torch.from_numpy(np.frombuffer(digests, dtype=np.uint8).reshape(-1, _DIGEST)))

    def joined(self, shares: Shares) -> Prints:
        """Those of all processes, one after the other."""
        every = [one for runs in shares.values(self.runs) for one in runs]
        runs = tuple((shape, sum(n for _, n in same)) for shape, same in groupby(every, key=lambda one: one[0]))
        return Prints(runs, shares.rows(self.digests))

    def __len__(self) -> int:
        return len(self.digests)

    def fits(self, row: int, image: Tensor) -> bool:
        """Whether an image is the one of this row."""
        return Prints.of([image]).digests.equal(self.digests[row : row + 1]) and self.shape(row) == tuple(image.shape)

    def ranges(self, size: int) -> Iterator[range]:
        """The rows of each batch of at most `size` images; a batch never mixes shapes, it ends where they change."""
        start = 0
        for _, count in self.runs:
            for first in range(start, start + count, size):
                yield range(first, min(first + size, start + count))
            start += count

    def shape(self, row: int) -> Shape:
        """The shape of one image."""
        return self.runs[bisect(self._ends, row)][0]

    @cached_property
    def _ends(self) -> list[int]:
        """The row after the last one of each run."""
        return [*accumulate(count for _, count in self.runs)]


def _added(image: Tensor, digests: bytearray) -> Shape:
    """The shape of an image, whose digest is put at the end."""
    digests += hashlib.sha256(image.numpy().reshape(-1).data).digest()
    return tuple(image.shape)
