"""A stored dataset in place of a generator: its images and their logits go into the memory bank once."""

from __future__ import annotations

import torch

from synthkd.data.bank import MemoryBank
from synthkd.data.written.stored import StoredDataset
from synthkd.errors import DataError
from synthkd.types import Batch, to_float

HELD_OUT, MOST_HELD_OUT = 0.05, 500
"""Share of the images that are held out for the evaluation, and the largest number of such images."""


class StoredImages:
    """The images of a dataset in a fixed random order; the last few are held out for the evaluation.

    Args:
        dataset: the dataset.

    Raises:
        DataError: a dataset too small to hold anything out.
    """

    def __init__(self, dataset: StoredDataset) -> None:
        count = len(dataset)
        self._train = count - min(round(HELD_OUT * count), MOST_HELD_OUT)
        if self._train == count:
            raise DataError(f"a dataset of {count} images is too small to learn from; generate more")
        # Neighbours may be of one class or of one shard, so the held-out images are drawn from all. The seed is fixed,
        # so that runs with different seeds are evaluated on the same images.
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
        self._images, self._labels, self._logits = (
            part[order] for part in (dataset.images, dataset.labels, dataset.logits)
        )

    def fill(self, bank: MemoryBank) -> None:
        """Add all images but the held-out ones to an empty bank."""
        bank.add(self._images[: self._train], self._labels[: self._train], self._logits[: self._train])

    @property
    def held_out(self) -> Batch:
        """The held-out images float32 in [0, 1], their labels and logits."""
        rows = slice(self._train, None)
        return Batch(to_float(self._images[rows]), self._labels[rows], self._logits[rows])
