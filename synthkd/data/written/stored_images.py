"""A written dataset in the place of a generator: its images go into the bank once, with their soft labels."""

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

HELD_OUT = 0.05
MOST_HELD_OUT = 500


class StoredImages:
    """The images of a dataset; the last few are kept from the student, to ask it about afterwards.

    Args:
        dataset: as it was read.

    Raises:
        DataError: a dataset too small to hold anything out.
    """

    def __init__(self, dataset: StoredDataset) -> None:
        self.spec = dataset.spec
        count = len(dataset.labels)
        self.kept = count - min(round(HELD_OUT * count), MOST_HELD_OUT)
        if self.kept == count:
            raise DataError(f"a dataset of {count} images is too small to learn from; generate more")
        # neighbours may be of one class or of one shard
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
        self._images, self._labels, self._logits = (
            part[order] for part in (dataset.images, dataset.labels, dataset.logits)
        )

    def fill(self, bank: MemoryBank) -> None:
        """Put all images but the held-out ones into a bank that is still empty."""
        bank.add(self._images[: self.kept], self._labels[: self.kept], self._logits[: self.kept])

    @property
    def held_out(self) -> Batch:
        """The images that no bank was given."""
        rows = slice(self.kept, None)
        return Batch(to_float(self._images[rows]), self._labels[rows], self._logits[rows])

    def sample(self, labels: Tensor, difficulty: float, rng: Rows) -> Tensor:
        """A stored image of each label, float32 `[N, C, H, W]` in [0, 1]; a class without any gives another's.

        The difficulty changes nothing: the images are what they are.
        """
        pick = rng.uniform(len(labels), 1)[:, 0]
        rows = []
        for label, share in zip(labels.tolist(), pick.tolist(), strict=True):
            members = (self._labels == label).nonzero().flatten()
            members = members if len(members) else torch.arange(len(self._labels))
            rows.append(int(members[int(share * len(members))]))
        return to_float(self._images[rows])

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the bank holds the images."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing, likewise."""
