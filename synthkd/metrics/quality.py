"""How good a classifier is on labelled images: accuracy, calibration and confusions, counted batch by batch."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from synthkd.metrics.utility import Proportion, proportion

BINS = 15
"""Bins of equal width of the expected calibration error (Guo et al. 2017, section 2)."""
TOP = 5


@dataclass(frozen=True)
class Bin:
    """The images whose highest probability lies in a bin.

    Attributes:
        low, high: ends of the bin, in [0, 1].
        n: number of images.
        confidence: mean of their highest probability; 0 without images.
        accuracy: share of them that is right; 0 without images.
    """

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Confusion:
    """Images of a class that are taken for another.

    Attributes:
        label, predicted: indices of the two classes.
        count: number of these images.
        of: number of all images of the class.
    """

    label: int
    predicted: int
    count: int
    of: int


@dataclass(frozen=True)
class Quality:
    """How good a classifier is.

    Attributes:
        top1, top5: share of the images whose class is the most probable, or among the five most probable; top5 is None
            for five classes or fewer.
        nll: mean negative log-likelihood of the labels, in nats.
        nll_interval: its 95 % interval, by the normal approximation; None for a single image.
        ece: expected calibration error: mean distance of confidence and accuracy over the bins, weighted by n.
        confidence: mean of the highest probabilities; above `top1` the classifier is too sure.
        bins: that `ece` is computed of.
        per_class: accuracy on the images of each class; None for a class without images.
        confusions: pairs of classes by the number of images, the most frequent first.
    """

    top1: Proportion
    top5: Proportion | None
    nll: float
    nll_interval: tuple[float, float] | None
    ece: float
    confidence: float
    bins: tuple[Bin, ...]
    per_class: tuple[Proportion | None, ...]
    confusions: tuple[Confusion, ...]


class QualityCounter:
    """Counts what `Quality` is computed of; its memory grows with the classes, not with the images.

    Args:
        classes: of the classifier.
    """

    def __init__(self, classes: int) -> None:
        self._classes = classes
        self._top5 = 0
        self._seen, self._right = (torch.zeros(classes, dtype=torch.int64) for _ in range(2))
        self._wrong: Counter[tuple[int, int]] = Counter()
        self._losses, self._squares = 0.0, 0.0
        self._bins = torch.zeros(3, BINS, dtype=torch.float64)  # images, their confidence, right ones

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch.

        Args:
            logits: `[N, K]` on the CPU.
            labels: int64 `[N]`, in 0 to K - 1.
        """
        log_p = logits.double().log_softmax(dim=1)
        confidence, predicted = log_p.exp().max(dim=1)
        right = predicted == labels
        self._seen += labels.bincount(minlength=self._classes)
        self._right += labels[right].bincount(minlength=self._classes)
        pairs = zip(labels[~right].tolist(), predicted[~right].tolist(), strict=True)
        self._wrong.update(pairs)
        losses = -log_p.gather(1, labels[:, None])[:, 0]
        self._losses, self._squares = self._losses + float(losses.sum()), self._squares + float((losses**2).sum())
        if self._classes > TOP:
            self._top5 += int((log_p.topk(TOP, dim=1).indices == labels[:, None]).sum())
        # Bin m holds ((m - 1) / BINS, m / BINS], as in the paper.
        places = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
        for row, values in enumerate((torch.ones_like(confidence), confidence, right.double())):
            self._bins[row].index_add_(0, places, values)

    def result(self) -> Quality:
        """What was counted; at least one image."""
        n = int(self._seen.sum())
        images, right = self._seen.tolist(), self._right.tolist()
        per_class = tuple(proportion(r, s) if s else None for r, s in zip(right, images, strict=True))
        counts, sure, hits = (row.tolist() for row in self._bins)
        bins = tuple(
            Bin(m / BINS, (m + 1) / BINS, int(c), s / c if c else 0.0, h / c if c else 0.0)
            for m, (c, s, h) in enumerate(zip(counts, sure, hits, strict=True))
        )
        confusions = sorted(self._wrong.items(), key=lambda one: (-one[1], one[0]))
        mean = self._losses / n
        interval = None
        if n > 1:
            variance = max(0.0, (self._squares - n * mean**2) / (n - 1))
            half = NormalDist().inv_cdf(0.975) * math.sqrt(variance / n)
            interval = (mean - half, mean + half)
        return Quality(
            top1=proportion(sum(right), n),
            top5=proportion(self._top5, n) if self._classes > TOP else None,
            nll=mean,
            nll_interval=interval,
            ece=sum(one.n * abs(one.confidence - one.accuracy) for one in bins) / n,
            confidence=sum(sure) / n,
            bins=bins,
            per_class=per_class,
            confusions=tuple(Confusion(label, other, count, images[label]) for (label, other), count in confusions),
        )
