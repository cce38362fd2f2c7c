"""True-positive rate of an attack on the student over that on the teacher, with an interval."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from synthkd.errors import ConfigError, DataError
from synthkd.metrics.arrays import Array
from synthkd.privacy.intervals import Scores, check_level, clopper_pearson, numbers
from synthkd.privacy.thresholds import allowed_errors, hits, too_few
from synthkd.rng import numpy_stream

_FEW_HITS = 10  # with fewer true positives than this a bootstrap underestimates the spread of a rate


@dataclass(frozen=True)
class RateRatio:
    """True-positive rate of an attack on the student over that on the teacher, on the same points.

    Attributes:
        value: the ratio; None where the attack has no true positive on the teacher.
        low, high: ends of the interval; `high` is infinite where nothing bounds the ratio.
        error: the false-positive rate of both.
        method: how the interval was computed: by a paired bootstrap or, with fewer than 10 true positives on either
            model, by dividing the exact intervals of the two rates.
    """

    value: float | None
    low: float
    high: float
    error: float
    method: str


def tpr_ratio(
    student_in: Array,
    student_out: Array,
    teacher_in: Array,
    teacher_out: Array,
    error: float = 0.01,
    confidence: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> RateRatio:
    """The ratio of true-positive rates, student over teacher, at one false-positive rate.

    Args:
        student_in: `[N]` scores of members by the attack on the student.
        student_out: `[M]` scores of non-members by the attack on the student.
        teacher_in: `[N]` by the attack on the teacher, of the same members in the same order.
        teacher_out: `[M]` by the attack on the teacher, of the same non-members.
        error: false-positive rate of both, in (0, 1); it needs at least `1 / error` non-members.
        confidence: of the interval, in (0, 1).
        draws: of the bootstrap, at least 1.
        seed: of the draws.

    Raises:
        ConfigError: `confidence`, `error` or `draws` out of range.
        DataError: student and teacher have different points, too few non-members, or a score that is not finite.
    """
    check_level(0.0, confidence)
    if not 0 < error < 1 or draws < 1:
        raise ConfigError(f"need a false-positive rate in (0, 1) and 1 draw or more, got {error} and {draws}")
    inside = _paired(student_in, teacher_in, "members")
    outside = _paired(student_out, teacher_out, "non-members")
    if reason := too_few(len(outside[0]), error, "non-members"):
        raise DataError(reason)
    n, allowed = len(inside[0]), allowed_errors(error, len(outside[0]))
    student, teacher = (hits(*sides, allowed) for sides in zip(inside, outside, strict=True))
    value = student / teacher if teacher else None
    if min(student, teacher) < _FEW_HITS:
        low, high = _exact_interval(student, teacher, n, confidence)
        return RateRatio(value, low, high, error, "exact intervals of both rates")
    low, high = _bootstrap_interval(inside, outside, allowed, confidence, draws, seed)
    return RateRatio(value, low, high, error, f"paired bootstrap of {draws:,} draws")


def student_over_teacher(student: Tensor, teacher: Tensor, members: Tensor, seed: int) -> RateRatio | None:
    """The ratio at 1 % false positives; None for fewer than 100 non-members, which cannot show that rate.

    Args:
        student: `[N]` scores by the attack on the student.
        teacher: `[N]` scores of the same points by the attack on the teacher.
        members: bool `[N]`, True for members.
        seed: of the bootstrap.

    Raises:
        DataError: a score that is not finite.
    """
    if int((~members).sum()) < 100:  # 1 / error
        return None
    return tpr_ratio(student[members], student[~members], teacher[members], teacher[~members], seed=seed)


def _paired(student: Array, teacher: Array, what: str) -> tuple[Scores, Scores]:
    """Both models' scores of the same points, checked."""
    sides = numbers(student, f"student's scores of {what}"), numbers(teacher, f"teacher's scores of {what}")
    if len(sides[0]) != len(sides[1]):
        raise DataError(
            f"student and teacher must be attacked on the same {what}, got {len(sides[0])} and {len(sides[1])}"
        )
    return sides


def _exact_interval(student: int, teacher: int, n: int, confidence: float) -> tuple[float, float]:
    """Bounds of the ratio of two rates of `n` that hold together, from the exact interval of each."""
    # Bonferroni over both intervals: if neither is wrong, the quotients of their opposite ends are bounds of the ratio.
    level = 1 - (1 - confidence) / 2
    numerator, denominator = clopper_pearson(student, n, level), clopper_pearson(teacher, n, level)
    high = numerator.high / denominator.low if denominator.low > 0 else math.inf
    return numerator.low / denominator.high, high


def _bootstrap_interval(
    inside: tuple[Scores, Scores],
    outside: tuple[Scores, Scores],
    allowed: int,
    confidence: float,
    draws: int,
    seed: int,
) -> tuple[float, float]:
    """Quantiles of the ratio over points that are drawn with replacement, the same points for both models."""
    rng = numpy_stream(seed, "ratio of rates")
    n_in, n_out = len(inside[0]), len(outside[0])
    ratios = np.empty(draws)
    for draw in range(draws):
        # A point is drawn with both of its scores, and both thresholds are set anew: an image that is easy for both
        # models moves both rates, and such moves cancel in the ratio.
        rows_in, rows_out = rng.integers(n_in, size=n_in), rng.integers(n_out, size=n_out)
        student, teacher = (hits(a[rows_in], b[rows_out], allowed) for a, b in zip(inside, outside, strict=True))
        ratios[draw] = student / teacher if teacher else math.inf
    # The nearest draw, since interpolation between infinite ratios gives NaN.
    low, high = np.quantile(ratios, [(1 - confidence) / 2, (1 + confidence) / 2], method="nearest")
    return float(low), float(high)
