"""Progress of a distillation: capacity gap over time, transferred information, stability of the evaluations."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from synthkd.errors import DataError

Estimator = Literal["soft", "hard", "miller_madow"]
POINTS = 4
"""Smallest number of evaluations that the curve, which has three parameters, is fitted to."""


@dataclass(frozen=True)
class GapCurve:
    """Capacity gap over time, `alpha e^(-beta (t - start)) + gamma`, fitted to points.

    Attributes:
        alpha: part of the gap that closes, in the unit of the capacity; negative if the gap widens.
        beta: rate of closing, per unit of time; 0 for a constant gap.
        gamma: part of the gap that stays.
        start: the first time.
        errors: standard errors of alpha, beta and gamma; infinite if the points do not determine them.
        n: number of points.
    """

    alpha: float
    beta: float
    gamma: float
    start: float
    errors: tuple[float, float, float]
    n: int

    def at(self, time: float) -> float:
        """The gap at a time, in the unit of the capacity."""
        return self.alpha * math.exp(-self.beta * (time - self.start)) + self.gamma

    def below(self, threshold: float) -> float:
        """First time from `start` on at which the gap is at most `threshold`; infinite if it always stays above."""
        if self.at(self.start) <= threshold:
            return self.start
        if self.gamma >= threshold or self.alpha <= 0.0:
            return math.inf
        return self.start + math.log(self.alpha / (threshold - self.gamma)) / self.beta


def fit_capacity_gap(times: Sequence[float], gaps: Sequence[float]) -> GapCurve:
    """Least-squares fit of `alpha e^(-beta (t - start)) + gamma` by scipy's `curve_fit`.

    With the times scaled to [0, 1], beta is in [0.01, 100]. Points on a straight line have a beta at its lower bound,
    and large standard errors.

    Args:
        times: at least 4, at least 3 of them different.
        gaps: C_T - C_S(t), or one minus their ratio, at those times.

    Raises:
        DataError: too few points, or values that are not finite.
    """
    from scipy.optimize import OptimizeWarning, curve_fit

    t, y = np.asarray(times, dtype=np.float64), np.asarray(gaps, dtype=np.float64)
    sound = t.ndim == 1 and t.shape == y.shape and bool(np.isfinite([t, y]).all())
    if not sound or len(t) < POINTS or len(np.unique(t)) < 3:
        raise DataError(
            f"a capacity gap is fitted to at least {POINTS} finite points, at 3 times or more, got {t.size} times and "
            f"{y.size} gaps; evaluate more often"
        )
    start, span, size = float(t.min()), float(np.ptp(t)), float(np.ptp(y))
    # A constant gap determines gamma only, and the scaling below would divide by 0.
    if size <= 1e-12 * float(np.abs(y).max()):
        return GapCurve(0.0, 0.0, float(y.mean()), start, (math.inf, math.inf, 0.0), len(t))
    # Times and gaps are scaled to a range of 1, so that one initial guess serves every run. beta needs bounds: on a
    # straight line the best curve has beta -> 0 and alpha -> infinity.
    first, last = float(y[t.argmin()]), float(y[t.argmax()])
    bounds = ([-np.inf, 0.01, -np.inf], [np.inf, 100.0, np.inf])
    guess = ((first - last) / size, 3.0, 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OptimizeWarning)  # about infinite errors, which the result reports itself
        fit, covariance = curve_fit(_decay, (t - start) / span, (y - last) / size, guess, bounds=bounds, maxfev=5000)
    alpha, beta, gamma = (float(value) for value in fit)
    # back to the units of the times and the gaps
    a, b, c = (float(e) for e in np.sqrt(np.diag(covariance)) * (size, 1.0 / span, size))
    return GapCurve(alpha * size, beta / span, gamma * size + last, start, (a, b, c), len(t))


def _decay(t: NDArray[np.float64], alpha: float, beta: float, gamma: float) -> NDArray[np.float64]:
    return np.asarray(alpha * np.exp(-beta * t) + gamma)


@dataclass(frozen=True)
class TransferEfficiency:
    """Share of the information in a teacher's predictions that the student's predictions hold.

    Attributes:
        value: eta in [0, 1], mutual information over entropy; 0 if the teacher predicts one class only.
        mutual_information: I(p_T; p_S), nats, >= 0.
        teacher_entropy: H(p_T), nats.
        estimator: how both were estimated.
        n: number of images.
    """

    value: float
    mutual_information: float
    teacher_entropy: float
    estimator: Estimator
    n: int


def transfer_efficiency(teacher: Tensor, student: Tensor, estimator: Estimator = "soft") -> TransferEfficiency:
    """Knowledge-transfer efficiency `eta = I(p_T; p_S) / H(p_T)` from paired predictions.

    Plug-in estimates from one joint table `[K, L]` of the teacher's and the student's class; H(p_T) is the entropy of
    the teacher's mean prediction. The table of each estimator:

    - soft: the mean outer product of the softmax outputs, as if one class were drawn from each of an image's two
      predictions. The draws are independent, so even a perfect copy of an unsure teacher has eta below 1. Compare at
      equal temperatures.
    - hard: counts of the most likely classes.
    - miller_madow: as hard, with (nonzero cells - 1) / 2n added to each entropy (Miller 1955). It removes most of the
      bias of hard, whose I is too large by about (K - 1)^2 / 2n for independent predictions. It corrects counts, which
      soft tables do not hold.

    Args:
        teacher: logits `[N, K]`, any float dtype.
        student: logits of the same images, `[N, L]`; the classes of the two may differ.
        estimator: one of the three.

    Raises:
        DataError: no images, different numbers of them, or logits that are not finite.
    """
    if teacher.dim() != 2 or student.dim() != 2 or len(teacher) != len(student) or len(teacher) == 0:
        raise DataError(
            f"transfer efficiency needs logits [N, K] of the same images, at least 1, got {list(teacher.shape)} and "
            f"{list(student.shape)}"
        )
    if not bool(torch.isfinite(teacher).all() and torch.isfinite(student).all()):
        raise DataError("transfer efficiency needs finite logits, got NaN or infinity; check where the loss diverged")
    n = len(teacher)
    predict = partial(F.softmax, dim=1) if estimator == "soft" else _most_likely
    joint = predict(teacher.detach().double()).T @ predict(student.detach().double()) / n
    tables = (joint.sum(dim=1), joint.sum(dim=0), joint)
    entropies = [-float(torch.special.xlogy(table, table).sum()) for table in tables]
    if estimator == "miller_madow":
        entropies = [h + (int((table > 0).sum()) - 1) / (2 * n) for h, table in zip(entropies, tables, strict=True)]
    # I = H(p_T) + H(p_S) - H(p_T, p_S). Rounding may put it below 0 or above the entropy, and the entropy below 0.
    entropy = max(0.0, entropies[0])
    information = min(entropy, max(0.0, entropies[0] + entropies[1] - entropies[2]))
    value = information / entropy if entropy > 1e-12 else 0.0
    return TransferEfficiency(value, information, entropy, estimator, n)


def _most_likely(logits: Tensor) -> Tensor:
    return F.one_hot(logits.argmax(dim=1), logits.shape[1]).to(logits)


def stability(values: Sequence[float], last: int | None = None) -> float | None:
    """Standard deviation (n - 1) of the last evaluations of a run, or of the final evaluations of several seeds.

    Args:
        values: evaluations, oldest first.
        last: number of evaluations to use; None uses all.

    Returns:
        0 or more, in the unit of the values; None for fewer than two evaluations.

    Raises:
        DataError: `last` is below 2, or a value is not finite.
    """
    if (last is not None and last < 2) or not all(math.isfinite(v) for v in values):
        raise DataError(f"stability needs finite values and last >= 2, got last={last} and {list(values)}")
    recent = values if last is None else values[-last:]
    return statistics.stdev(recent) if len(recent) > 1 else None
