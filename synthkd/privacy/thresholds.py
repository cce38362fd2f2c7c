"""Thresholds on attack scores that are fixed by how many errors they allow.

The threshold that allows k errors is the (k + 1)-th highest score of the other side. A tie never helps the attack: only
a point above the threshold counts.
"""

from __future__ import annotations

import math

import numpy as np

from synthkd.privacy.intervals import Scores


def allowed_errors(share: float, n: int) -> int:
    """Errors that a share of `n` points allows: the product rounded down."""
    # 0.29 * 100 is 28.999..., which must not lose an error to rounding
    return math.floor(share * n + 1e-9)


def hits(scores: Scores, other: Scores, allowed: int) -> int:
    """How many of `scores` [N] are above all of `other` [M] but its `allowed` highest; `allowed` is in 0..M-1."""
    place = len(other) - 1 - allowed
    return int((scores > np.partition(other, place)[place]).sum())


def too_few(n: int, error: float, what: str) -> str:
    """Why `n` points (called `what`) cannot show an error rate; empty where they can."""
    least = math.ceil(1 / error - 1e-9)
    return "" if n >= least else f"an error rate of {error:.1%} needs {least:,} {what} or more, got {n:,}"
