"""Checks of attack scores, exact intervals of rates, and the area under the ROC curve with its interval."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from synthkd.errors import ConfigError, DataError
from synthkd.metrics.arrays import Array
from synthkd.metrics.utility import Proportion

Scores = NDArray[np.float64]
"""float64 `[N]`, one score per point."""


@dataclass(frozen=True)
class Area:
    """Area under the ROC curve: the probability that a member scores above a non-member, a tie counting one half.

    Attributes:
        value: in [0, 1]; 0.5 for a random guess.
        standard_error: of DeLong et al. (1988), at least 0.
        low, high: ends of the interval `value` ± normal quantile * standard error, within [0, 1]. Where the standard
            error is 0 (the two sides do not overlap, or all scores are equal) the ends are those of Clopper and
            Pearson for as many independent pairs as the smaller side has points.
    """

    value: float
    standard_error: float
    low: float
    high: float

    @property
    def excludes_chance(self) -> bool:
        """True where 0.5 is outside the interval."""
        return not self.low <= 0.5 <= self.high

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def auc(scores_in: Array, scores_out: Array, confidence: float = 0.95) -> Area:
    """Area under the ROC curve with DeLong's interval (DeLong et al. 1988; mid-ranks as in Sun and Xu 2014).

    Args:
        scores_in: `[N]` of members, N at least 2.
        scores_out: `[M]` of non-members, M at least 2.
        confidence: of the interval, in (0, 1).

    Raises:
        DataError: too few scores, or a score that is not finite.
    """
    from scipy.stats import rankdata

    inside, outside = numbers(scores_in, "scores of members", 2), numbers(scores_out, "scores of non-members", 2)
    m, n = len(inside), len(outside)
    ranks = rankdata(np.concatenate([inside, outside]))
    # The rank among all less the rank among its own side counts the points of the other side below it.
    above = (ranks[:m] - rankdata(inside)) / n  # for each member: share of non-members below it
    below = 1 - (ranks[m:] - rankdata(outside)) / m  # for each non-member: share of members above it
    value = float(above.mean())
    error = math.sqrt(float(above.var(ddof=1)) / m + float(below.var(ddof=1)) / n)
    # Without overlap, or with all scores equal, DeLong's error is 0, which would claim certainty. Clopper and Pearson's
    # ends are those of as many independent pairs as the smaller side allows.
    if error < 1e-12:
        pairs = min(m, n)
        low = clopper_pearson(math.floor(value * pairs), pairs, confidence).low
        return Area(value, 0.0, low, clopper_pearson(math.ceil(value * pairs), pairs, confidence).high)
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * error
    return Area(value, error, max(0.0, value - half), min(1.0, value + half))


def clopper_pearson(k: int, n: int, confidence: float = 0.95) -> Proportion:
    """The proportion `k / n` with the exact interval of Clopper and Pearson (1934).

    Each end is wrong with probability (1 - confidence) / 2 at most.

    Raises:
        ValueError: n is not positive, or k is not in 0..n.
    """
    if n <= 0 or not 0 <= k <= n:
        raise ValueError(f"need 0 <= k <= n and n > 0, got {k} of {n}")
    tail = (1 - confidence) / 2
    return Proportion(k / n, n, lower_limit(k, n, tail), upper_limit(k, n, tail))


def lower_limit(k: int, n: int, tail: float) -> float:
    """Lower limit (Clopper and Pearson) of the rate of `k` in `n`; above the rate with probability `tail` at most."""
    from scipy.stats import beta

    return float(beta.ppf(tail, k, n - k + 1)) if k > 0 else 0.0


def upper_limit(k: int, n: int, tail: float) -> float:
    """Upper limit (Clopper and Pearson) of the rate of `k` in `n`; below the rate with probability `tail` at most."""
    from scipy.stats import beta

    return float(beta.isf(tail, k + 1, n - k)) if k < n else 1.0


def numbers(values: Array, name: str, least: int = 1) -> Scores:
    """Scores as float64 `[N]`.

    Args:
        values: `[N]`, any real dtype.
        name: of the scores in messages ("scores of members").
        least: smallest N.

    Raises:
        DataError: not one dimension, fewer than `least`, or a value that is not finite.
    """
    if np.ndim(values) != 1 or len(values) < least:
        raise DataError(f"{name}: at least {least} are needed, one a point, got shape {list(np.shape(values))}")
    return finite(values, name)


def finite(values: Array, name: str) -> NDArray[np.float64]:
    """The values as a float64 array of the same shape.

    Raises:
        DataError: a value is not finite; the message calls the values `name`.
    """
    if isinstance(values, Tensor):
        values = values.detach().to("cpu", torch.float64).numpy()
    given = np.asarray(values, dtype=np.float64)
    if bad := int((~np.isfinite(given)).sum()):
        raise DataError(f"{name}: {bad} of {given.size} are NaN or infinite; look for what made them")
    return given


def check_level(delta: float, confidence: float) -> None:
    """Raise `ConfigError` unless `delta` is in [0, 1) and `confidence` in (0, 1)."""
    if not 0 <= delta < 1 or not 0 < confidence < 1:
        raise ConfigError(f"need 0 <= delta < 1 and 0 < confidence < 1, got {delta} and {confidence}")
