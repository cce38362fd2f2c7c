"""Statistics of a generated dataset: agreement with the teacher, variety and repeated images; and a grid of images."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from synthkd.data.written.writers import Records
from synthkd.errors import ModelError
from synthkd.metrics.diversity import vendi_score
from synthkd.metrics.features import build_extractor
from synthkd.metrics.utility import proportion
from synthkd.models import Classifier
from synthkd.reports.grids import chosen
from synthkd.reports.results import DatasetScores
from synthkd.settings import TeacherExtractor

COMPARED = 2000
"""Most images whose variety is measured; they are those with the lowest numbers."""


def teacher_features(teacher: Classifier, device: torch.device, images: Tensor) -> Tensor | None:
    """The teacher's penultimate features float32 `[N, D]`; None without a last layer that is found and runs.

    Args:
        teacher, device: the network, and where it runs.
        images: uint8 `[N, C, H, W]`.
    """
    try:
        extract = build_extractor(TeacherExtractor(kind="teacher"), device, teacher)
        return torch.cat([extract(block).features for block in images.split(128)])
    except ModelError:
        return None


class DatasetStatistics:
    """Statistics that are gathered block by block, in the order of the images' numbers.

    Args:
        teacher: gives the features in which variety is measured.
        device: of the teacher.
        counts: number of images that each class will have.
    """

    def __init__(self, teacher: Classifier, device: torch.device, counts: Sequence[int]) -> None:
        spec, classes = teacher.spec, teacher.spec.classes
        self._teacher, self._device = teacher, device
        self._images = torch.zeros(classes, dtype=torch.int64)
        self._agreeing = torch.zeros(classes, dtype=torch.int64)
        self._confidence = 0.0
        self._digests: set[bytes] = set()
        self._repeated = 0
        self._first: list[Tensor] = []
        self._room = COMPARED
        pictured, self._rows = chosen([label for label, count in enumerate(counts) if count], spec.height, spec.width)
        self._grid: dict[int, list[Tensor]] = {label: [] for label in pictured}

    def add(self, block: Records) -> None:
        """Take in the next images."""
        labels, classes = block.labels, len(self._images)
        self._images += labels.bincount(minlength=classes)
        self._agreeing += labels[block.logits.argmax(1) == labels].bincount(minlength=classes)
        self._confidence += float(block.logits.double().softmax(1)[torch.arange(len(block)), labels].sum())
        if self._room:
            self._first.append(block.images[: self._room])
            self._room -= len(self._first[-1])
        for image, label in zip(block.images, labels.tolist(), strict=True):
            digest = hashlib.sha256(image.numpy().tobytes()).digest()
            self._repeated += digest in self._digests
            self._digests.add(digest)
            if label in self._grid and len(self._grid[label]) < self._rows:
                self._grid[label].append(image)

    def scores(self, tried: int, rejected: Mapping[str, int]) -> DatasetScores:
        """The statistics of all images so far, rounded to their significant digits.

        Args:
            tried: images that were sampled.
            rejected: filter -> images that it rejected.
        """
        total = int(self._images.sum())
        share = proportion(int(self._agreeing.sum()), total)
        per_class = zip(self._agreeing.tolist(), self._images.tolist(), strict=True)
        compared = torch.cat(self._first)
        features = teacher_features(self._teacher, self._device, compared)
        # The Vendi score compares directions, which a feature vector of zeros has not.
        if features is not None and (len(features) < 2 or not bool((features.square().sum(1) > 0).all())):
            features = None
        return DatasetScores(
            agreement=round(share.value, 4),
            agreement_interval=(round(share.low, 4), round(share.high, 4)),
            agreement_per_class=tuple(round(hits / count, 4) if count else None for hits, count in per_class),
            confidence=round(self._confidence / total, 4),
            vendi=None if features is None else round(vendi_score(features), 2),
            vendi_n=len(compared),
            exact_duplicates=self._repeated,
            tried=tried,
            rejected=rejected,
        )

    def grid(self) -> tuple[list[int], Tensor]:
        """A grid of images: the class of each column, and uint8 images `[N, C, H, W]` row after row."""
        columns = [label for label, images in self._grid.items() if images]
        rows = min(len(self._grid[label]) for label in columns)
        return columns, torch.stack([self._grid[label][row] for row in range(rows) for label in columns])
