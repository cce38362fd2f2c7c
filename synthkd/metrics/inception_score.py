"""Inception score (Salimans et al. 2016): sure about each image, spread over the classes of all."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

import torch
from torch import Tensor

from synthkd.errors import ConfigError, DataError
from synthkd.metrics.arrays import Array, rows

_TOLERANCE = 1e-3  # of a row's sum; a softmax in half precision is about this far from 1


@dataclass(frozen=True)
class InceptionScore:
    """Inception score over splits; from 1 (nothing said) to the number of classes.

    Attributes:
        mean: of the splits.
        std: over the splits, divided by their number (ddof 0, as numpy and torch-fidelity do); 0 for one split.
        splits: how many.
    """

    mean: float
    std: float
    splits: int


def inception_score(probabilities: Array, splits: int = 10) -> InceptionScore:
    """exp of the mean KL(p(y|x) || p(y)), in each of `splits` consecutive parts of the rows.

    Part i holds rows `i * N // splits` up to `(i + 1) * N // splits`, so no row is left out and sizes differ by one at
    most. Rows in order of class must be shuffled first, or every part sees few classes.

    Args:
        probabilities: `[N, K]`, each row non-negative with sum 1: a softmax, not logits.
        splits: how many parts, 1 to N.

    Raises:
        ConfigError: `splits` not in 1..N.
        DataError: rows that are not probabilities.
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
    """The mean KL is the entropy of the mean less the mean of the entropies; a probability of 0 adds 0 to each."""
    entropies = torch.special.entr(part).sum(dim=1)
    return math.exp(float(torch.special.entr(part.mean(dim=0)).sum() - entropies.mean()))
