"""Scores at the door, exact intervals of rates, and the area under the ROC curve with its interval."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import beta, norm, rankdata
from torch import Tensor

from synthkd.errors import ConfigError, DataError
from synthkd.metrics.arrays import Array
from synthkd.metrics.utility import Proportion

Scores = NDArray[np.float64]
"""float64 `[N]`, one a point."""


@dataclass(frozen=True)
class Area:
    """Area under the ROC curve: how often a member scores above a non-member, a tie as one half.

    Attributes:
        value: in [0, 1]; 0.5 for an attack that knows nothing.
        standard_error: of DeLong et al. (1988).
        low, high: ends of the interval `value` ± normal quantile * standard error, within [0, 1]. Where the sides do
            not overlap (or all scores are equal) the standard error is 0 and says nothing; there the ends are those of
            Clopper and Pearson for as many independent pairs as the smaller side has.
    """

    value: float
    standard_error: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def auc(scores_in: Array, scores_out: Array, confidence: float = 0.95) -> Area:
    """Area under the ROC curve with DeLong's interval (DeLong et al. 1988; mid-ranks as Sun and Xu 2014).

    Args:
        scores_in: `[N]` of members, at least 2.
        scores_out: `[M]` of non-members, at least 2.
        confidence: of the interval.

    Raises:
        DataError: too few scores, or a score that is not finite.
    """
    inside, outside = numbers(scores_in, "scores of members", 2), numbers(scores_out, "scores of non-members", 2)
    m, n = len(inside), len(outside)
    ranks = rankdata(np.concatenate([inside, outside]))
    above = (ranks[:m] - rankdata(inside)) / n  # of each member: share of non-members below it
    below = 1 - (ranks[m:] - rankdata(outside)) / m
    value = float(above.mean())
    error = math.sqrt(float(above.var(ddof=1)) / m + float(below.var(ddof=1)) / n)
    if error < 1e-12:
        pairs = min(m, n)
        low = clopper_pearson(math.floor(value * pairs), pairs, confidence).low
        return Area(value, 0.0, low, clopper_pearson(math.ceil(value * pairs), pairs, confidence).high)
    half = float(norm.ppf(0.5 + confidence / 2)) * error
    return Area(value, error, max(0.0, value - half), min(1.0, value + half))


def clopper_pearson(k: int, n: int, confidence: float = 0.95) -> Proportion:
    """`k` of `n` with the exact interval of Clopper and Pearson (1934), each end wrong at most half of the time left.

    Raises:
        ValueError: when n is not positive or k is not in 0..n.
    """
    if n <= 0 or not 0 <= k <= n:
        raise ValueError(f"need 0 <= k <= n and n > 0, got {k} of {n}")
    tail = (1 - confidence) / 2
    return Proportion(k / n, n, lower_limit(k, n, tail), upper_limit(k, n, tail))


def lower_limit(k: int, n: int, tail: float) -> float:
    """Below which the rate behind `k` of `n` lies with probability `tail` at most."""
    return float(beta.ppf(tail, k, n - k + 1)) if k > 0 else 0.0


def upper_limit(k: int, n: int, tail: float) -> float:
    return float(beta.isf(tail, k + 1, n - k)) if k < n else 1.0


def numbers(values: Array, name: str, least: int = 1) -> Scores:
    """Scores as float64 `[N]`.

    Args:
        values: `[N]`, any real dtype.
        name: what they are, for messages ("scores of members").
        least: fewest that make sense.

    Raises:
        DataError: not one dimension, too few, or a value that is not finite.
    """
    if isinstance(values, Tensor):
        values = values.detach().to("cpu", torch.float64).numpy()
    given = np.asarray(values, dtype=np.float64)
    if given.ndim != 1 or len(given) < least:
        raise DataError(f"{name}: at least {least} are needed, one a point, got shape {list(given.shape)}")
    if not np.isfinite(given).all():
        bad = int((~np.isfinite(given)).sum())
        raise DataError(f"{name}: {bad} of {len(given)} are NaN or infinite; look for what made them")
    return given


def check_level(delta: float, confidence: float) -> None:
    """Raise `ConfigError` unless `delta` is in [0, 1) and `confidence` in (0, 1)."""
    if not 0 <= delta < 1 or not 0 < confidence < 1:
        raise ConfigError(f"need 0 <= delta < 1 and 0 < confidence < 1, got {delta} and {confidence}")
