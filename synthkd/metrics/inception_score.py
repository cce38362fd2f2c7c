"""Inception score (Salimans et al. 2016): high if a classifier is sure of each image and predicts all classes."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

import torch
from torch import Tensor

from synthkd.errors import ConfigError, DataError
from synthkd.metrics.arrays import Array, rows

_TOLERANCE = 1e-3  # of a row's sum: about the rounding error of a softmax in half precision


@dataclass(frozen=True)
class InceptionScore:
    """Inception score over splits, from 1 (all images alike to the classifier) to the number of classes.

    Attributes:
        mean: mean of the splits' scores.
        std: their standard deviation with ddof 0, as in numpy and torch-fidelity; 0 for one split.
        splits: number of splits.
    """

    mean: float
    std: float
    splits: int


def inception_score(probabilities: Array, splits: int = 10) -> InceptionScore:
    """exp(mean KL(p(y|x) || p(y))) of each of `splits` consecutive parts of the rows.

    Part i holds the rows from `i * N // splits` to `(i + 1) * N // splits`, so every row is used and the sizes differ
    by one at most. Rows that are sorted by class must be shuffled first, or every part holds few classes.

    Args:
        probabilities: `[N, K]`, each row non-negative with sum 1: a softmax, not logits.
        splits: number of parts, 1 to N.

    Raises:
        ConfigError: `splits` is not in 1..N.
        DataError: a row is no distribution.
    """
    values = rows(probabilities, "probabilities")
    if bool((values < 0).any()) or float((values.sum(dim=1) - 1.0).abs().max()) > _TOLERANCE:
        raise DataError(
            "probabilities: each row must be non-negative with sum 1; give the classifier's softmax, not its logits"
        )
    n = len(values)
    if not 1 <= splits <= n:
        raise ConfigError(f"inception score: splits must be in 1..{n}, the number of rows, got {splits}")
    parts = [values[i * n // splits : (i + 1) * n // splits] for i in range(splits)]
    scores = [_score(part) for part in parts]
    return InceptionScore(statistics.fmean(scores), statistics.pstdev(scores), splits)


def _score(part: Tensor) -> float:
    # mean KL = entropy of the mean - mean of the entropies. `entr` is 0 at probability 0, where p log p would be NaN.
    entropies = torch.special.entr(part).sum(dim=1)
    return math.exp(float(torch.special.entr(part.mean(dim=0)).sum() - entropies.mean()))
