"""What generated images are scored by, in the features of a teacher: a part of `benchmarks.generators`."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from benchmarks.common import Row
from synthkd.metrics import (
    accuracy,
    cluster_modes,
    frechet_distance_from_features,
    frechet_standard_error,
    mode_collapse,
    precision_recall_density_coverage,
)
from synthkd.metrics.arrays import Array
from synthkd.metrics.features import FeatureExtractor, Features, extract

CLUSTERS, NEIGHBOUR = 100, 5
FEW = 1000
"""Samples of the second, smaller distance."""


@dataclass(frozen=True)
class Judge:
    """What samples are held against.

    Attributes:
        extractor: the teacher's features and answers.
        test: of the 10,000 test images.
        labels: theirs, int64 `[10000]`.
        others: features `[N, D]` of training images, in which the clusters are found.
    """

    extractor: FeatureExtractor
    test: Features
    labels: Tensor
    others: Tensor

    def scores(self, images: Tensor, labels: Tensor) -> Row:
        """Every score of images uint8 `[N, C, H, W]` that were made for labels int64 `[N]`."""
        features = extract([images], self.extractor)
        assert features.logits is not None
        predicted = features.logits.argmax(1)
        ours, theirs = features.values, self.test.values
        agreement = accuracy(predicted, labels)
        near = precision_recall_density_coverage(theirs, ours, NEIGHBOUR)
        classes = mode_collapse(self.labels, predicted)
        modes = cluster_modes(self.others, theirs, ours, CLUSTERS)
        clusters = mode_collapse(modes.holdout, modes.generated)
        intervals = {name: [share.low, share.high] for name, share in near.intervals.items()}
        return {
            "n": len(images),
            "agreement": agreement.value,
            "agreement_interval": [agreement.low, agreement.high],
            "fd": frechet_distance_from_features(ours, theirs),
            "fd_error": frechet_standard_error(ours, theirs),
            "fd_few": few_distance(ours, theirs),
            "precision": near.precision,
            "recall": near.recall,
            "density": near.density,
            "coverage": near.coverage,
            "density_error": near.density_error,
            "intervals": intervals,
            "classes_judged": len(classes.judged),
            "classes_missed": list(classes.missed),
            "clusters_judged": len(clusters.judged),
            "clusters_missed": len(clusters.missed),
        }


def few_distance(ours: Array, theirs: Array) -> float:
    """Median distance of disjoint random sets of `FEW` rows."""
    sets = np.array_split(np.random.default_rng(0).permutation(len(ours)), max(1, len(ours) // FEW))
    return statistics.median(frechet_distance_from_features(ours[rows], theirs, warn=False) for rows in sets)
