"""Batches of real, labelled images: shuffled epochs, a function of (seed, step)."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from synthkd.data.augment import augment_real
from synthkd.rng import stream
from synthkd.settings import AugmentSettings
from synthkd.types import Batch, to_float


class EpochSource:
    """Every image once an epoch, newly shuffled in each; a batch may reach into the next epoch.

    Args:
        images: uint8 `[N, C, H, W]`.
        labels: int64 `[N]`.
        batch_size: images of a batch over all processes.
        augment: augmentation of each image.
        seed: the run's seed.
        device: of the batches.
        rank: number of this process; it gets rows `rank::world` of each batch.
        world: number of processes.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        augment: AugmentSettings,
        seed: int,
        device: torch.device,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._images = images
        self._labels = labels
        self._batch_size = batch_size
        self._augment = augment
        self._seed = seed
        self._device = device
        self._rank = rank
        self._world = world
        self._order = lru_cache(maxsize=2)(self._shuffle)  # a batch reaches into one more epoch

    def _shuffle(self, epoch: int) -> Tensor:
        return torch.randperm(len(self._labels), generator=stream(self._seed, "epoch", epoch))

    def rows(self, step: int) -> Tensor:
        """Rows of the images of a step over all processes, int64 `[batch_size]`."""
        n, first, stop = len(self._labels), step * self._batch_size, (step + 1) * self._batch_size
        parts: list[Tensor] = []
        while first < stop:
            epoch, place = divmod(first, n)
            count = min(stop - first, n - place)
            parts.append(self._order(epoch)[place : place + count])
            first += count
        return torch.cat(parts)

    def batch(self, step: int) -> Batch:
        """This process's part of the batch of a step: augmented images float32 in [0, 1] and labels."""
        rows = self.rows(step)[self._rank :: self._world]
        images = to_float(self._images[rows]).to(self._device)
        images = augment_real(images, self._augment, stream(self._seed, f"augment/{self._rank}", step))
        return Batch(images, self._labels[rows].to(self._device))
