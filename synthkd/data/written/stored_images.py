"""A stored dataset in place of a generator: its images go into the memory bank once, with their logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from synthkd.data.bank import MemoryBank
from synthkd.data.written.stored import StoredDataset
from synthkd.errors import DataError
from synthkd.rng import Rows
from synthkd.types import Batch, to_float

HELD_OUT, MOST_HELD_OUT = 0.05, 500
"""Share of the images that the student is not trained on, and the most images of it."""


class StoredImages:
    """The images of a dataset in a fixed random order; the last few are held out for the evaluation.

    Args:
        dataset: the dataset.

    Attributes:
        spec: size, channels and classes of the images.
        kept: number of images that the student is trained on.

    Raises:
        DataError: a dataset too small to hold anything out.
    """

    def __init__(self, dataset: StoredDataset) -> None:
        self.spec = dataset.spec
        count = len(dataset.labels)
        self.kept = count - min(round(HELD_OUT * count), MOST_HELD_OUT)
        if self.kept == count:
            raise DataError(f"a dataset of {count} images is too small to learn from; generate more")
        # Neighbours may be of one class or of one shard, so the held-out images are drawn from all.
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
        self._images, self._labels, self._logits = (
            part[order] for part in (dataset.images, dataset.labels, dataset.logits)
        )

    def fill(self, bank: MemoryBank) -> None:
        """Add all images but the held-out ones to an empty bank."""
        bank.add(self._images[: self.kept], self._labels[: self.kept], self._logits[: self.kept])

    @property
    def held_out(self) -> Batch:
        """The held-out images float32 in [0, 1], their labels and logits."""
        rows = slice(self.kept, None)
        return Batch(to_float(self._images[rows]), self._labels[rows], self._logits[rows])

    def sample(self, labels: Tensor, difficulty: float, rng: Rows) -> Tensor:
        """A stored image of each label, float32 `[N, C, H, W]` in [0, 1]; of any class where a class has none.

        The difficulty changes nothing, since the images are fixed.
        """
        pick = rng.uniform(len(labels), 1)[:, 0]
        rows = []
        for label, share in zip(labels.tolist(), pick.tolist(), strict=True):
            members = (self._labels == label).nonzero().flatten()
            members = members if len(members) else torch.arange(len(self._labels))
            rows.append(int(members[int(share * len(members))]))
        return to_float(self._images[rows])

    def state_dict(self) -> dict[str, Any]:
        """An empty state: the bank holds the images."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing is restored, since the state is empty."""
