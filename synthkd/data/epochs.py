"""Batches of real, labelled images: shuffled epochs, a function of (seed, step)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial

import torch
from torch import Tensor

from synthkd.data.ahead import Ahead
from synthkd.data.augment import augment_real
from synthkd.data.read.on_disk import Pixels, read_rows
from synthkd.processes import ONE_PROCESS, Processes
from synthkd.rng import stream
from synthkd.settings import AugmentSettings
from synthkd.types import WHOLE, Batch, Part, to_float


@dataclass(frozen=True, eq=False)
class EpochSource:
    """Every image once an epoch, in a new random order each; a batch may reach into the next epoch.

    Attributes:
        images: uint8 `[N, C, H, W]`, in memory or on disk; the latter are decoded ahead of the steps.
        labels: int64 `[N]`.
        batch_size: images of a batch over all processes.
        augment: augmentation of each image.
        seed: the run's seed.
        device: of the batches.
        among: who gets the rows of a batch. Of a `Part` this process gets its places of each batch, and no others.
            `Processes` all get the same rows, and each of them decodes its share of those on disk.
    """

    images: Pixels
    labels: Tensor
    batch_size: int
    augment: AugmentSettings
    seed: int
    device: torch.device
    among: Part | Processes = WHOLE

    @cached_property
    def _order(self) -> Callable[[int], Tensor]:
        """Epoch -> its order of rows, a function of seed and epoch alone, so that a resumed run continues in it."""
        # Two are remembered, since a batch may reach into the next epoch, so that no step shuffles anew.
        n, seed = len(self.labels), self.seed
        return lru_cache(maxsize=2)(lambda epoch: torch.randperm(n, generator=stream(seed, "epoch", epoch)))

    @cached_property
    def _ahead(self) -> Ahead:
        rows, own = partial(_rows, self._order, len(self.labels), self.batch_size), self._part.places
        share = self._processes.share(len(range(self.batch_size)[own]))
        return Ahead(self.images, lambda step: rows(step)[own][share])

    @property
    def _part(self) -> Part:
        return self.among if isinstance(self.among, Part) else WHOLE

    @property
    def _processes(self) -> Processes:
        return self.among if isinstance(self.among, Processes) else ONE_PROCESS

    def rows(self, step: int) -> Tensor:
        """Rows of the images of a step over all processes, int64 `[batch_size]`."""
        return _rows(self._order, len(self.labels), self.batch_size, step)

    def batch(self, step: int) -> Batch:
        """This process's part of the batch of a step: augmented images float32 in [0, 1] and labels."""
        self._ahead.wait(step)
        rows = self.rows(step)[self._part.places]
        images = to_float(read_rows(self.images, rows, self._processes)).to(self.device)
        # Rows differ between processes, so each process draws its own augmentation.
        images = augment_real(images, self.augment, stream(self.seed, f"augment/{self._part.first}", step))
        return Batch(images, self.labels[rows].to(self.device))


def _rows(order: Callable[[int], Tensor], n: int, batch_size: int, step: int) -> Tensor:
    first, stop = step * batch_size, (step + 1) * batch_size
    parts: list[Tensor] = []
    while first < stop:
        epoch, place = divmod(first, n)
        count = min(stop - first, n - place)
        parts.append(order(epoch)[place : place + count])
        first += count
    return torch.cat(parts)
