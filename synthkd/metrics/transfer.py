"""How far a distillation has come: the gap to the teacher over time, what has been transferred, how steady it is."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import OptimizeWarning, curve_fit
from torch import Tensor

from synthkd.errors import DataError

Estimator = Literal["soft", "hard", "miller_madow"]
POINTS = 4
"""Fewest evaluations that a curve of three numbers is fitted to."""


@dataclass(frozen=True)
class GapCurve:
    """A capacity gap `alpha e^(-beta (t - start)) + gamma` fitted to points.

    Attributes:
        alpha: what of the gap closes, in the unit of the capacity; negative for a gap that widens.
        beta: rate at which it does, per unit of time; 0 for a gap that stands still.
        gamma: what stays.
        start: the first time.
        errors: standard errors of alpha, beta and gamma, infinite where the points do not say.
        n: number of points.
    """

    alpha: float
    beta: float
    gamma: float
    start: float
    errors: tuple[float, float, float]
    n: int

    def at(self, time: float) -> float:
        """The gap at a time."""
        return self.alpha * math.exp(-self.beta * (time - self.start)) + self.gamma

    def below(self, threshold: float) -> float:
        """First time from `start` on at which the gap is at most a threshold; infinite where it stays above."""
        if self.at(self.start) <= threshold:
            return self.start
        if self.gamma >= threshold or self.alpha <= 0.0:
            return math.inf
        return self.start + math.log(self.alpha / (threshold - self.gamma)) / self.beta


def fit_capacity_gap(times: Sequence[float], gaps: Sequence[float]) -> GapCurve:
    """Least-squares fit of `alpha e^(-beta t) + gamma` by scipy's `curve_fit`.

    A gap that moves in a straight line has no such curve: over the span of the times beta is held between 0.01 and 100,
    and the standard errors tell.

    Args:
        times: at least 4, of which 3 differ.
        gaps: C_T - C_S(t), or one minus their ratio, at those times.

    Raises:
        DataError: too few points, or values that are not finite.
    """
    t, y = np.asarray(times, dtype=np.float64), np.asarray(gaps, dtype=np.float64)
    sound = t.ndim == 1 and t.shape == y.shape and bool(np.isfinite([t, y]).all())
    if not sound or len(t) < POINTS or len(np.unique(t)) < 3:
        raise DataError(
            f"a capacity gap is fitted to at least {POINTS} finite points, at 3 times or more, got {t.size} times and "
            f"{y.size} gaps; evaluate more often"
        )
    start, span, size = float(t.min()), float(np.ptp(t)), float(np.ptp(y))
    if size <= 1e-12 * float(np.abs(y).max()):
        return GapCurve(0.0, 0.0, float(y.mean()), start, (math.inf, math.inf, 0.0), len(t))
    # time and value from 0 to 1, so that one first guess serves every run
    first, last = float(y[t.argmin()]), float(y[t.argmax()])
    bounds = ([-np.inf, 0.01, -np.inf], [np.inf, 100.0, np.inf])
    guess = ((first - last) / size, 3.0, 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OptimizeWarning)  # of errors that are infinite, which says the same
        found, covariance = curve_fit(_decay, (t - start) / span, (y - last) / size, guess, bounds=bounds, maxfev=5000)
    alpha, beta, gamma = (float(value) for value in found)
    errors = [float(e) for e in np.sqrt(np.diag(covariance)) * (size, 1.0 / span, size)]
    return GapCurve(alpha * size, beta / span, gamma * size + last, start, (errors[0], errors[1], errors[2]), len(t))


def _decay(t: Any, alpha: float, beta: float, gamma: float) -> Any:
    return alpha * np.exp(-beta * t) + gamma


@dataclass(frozen=True)
class TransferEfficiency:
    """How much of what a teacher says its student says too.

    Attributes:
        value: eta in [0, 1], mutual information over entropy; 0 where the teacher always says the same.
        mutual_information: I(p_T; p_S), nats, >= 0.
        teacher_entropy: H(p_T), nats.
        estimator: of both.
        n: images it was taken on.
    """

    value: float
    mutual_information: float
    teacher_entropy: float
    estimator: Estimator
    n: int


def transfer_efficiency(teacher: Tensor, student: Tensor, estimator: Estimator = "soft") -> TransferEfficiency:
    """Knowledge-transfer efficiency `eta = I(p_T; p_S) / H(p_T)` from paired predictions.

    Both are taken from one joint table `[K, K]` of the teacher's and the student's class, put into the formulae as it
    is (the plug-in estimator), with H(p_T) the entropy of the teacher's mean prediction.

    - soft: the mean outer product of the softmax outputs, two classes drawn for each image from its two predictions. A
      student that copies an unsure teacher has eta below 1, since the draws are separate; compare at one temperature.
    - hard: counts of the most likely classes.
    - miller_madow: hard, each entropy with (filled cells - 1) / 2n added (Miller 1955). Hard I is too large by about
      (K - 1)^2 / 2n where the two are independent, which is a lot for few images. Soft tables hold no counts.

    Args:
        teacher: logits `[N, K]`.
        student: logits of the same images, `[N, L]`; the classes of the two may differ.
        estimator: one of the three.

    Raises:
        DataError: no images, unlike numbers of them, or logits that are not finite.
    """
    if teacher.dim() != 2 or student.dim() != 2 or len(teacher) != len(student) or len(teacher) == 0:
        raise DataError(
            f"transfer efficiency needs logits [N, K] of the same images, at least 1, got {list(teacher.shape)} and "
            f"{list(student.shape)}"
        )
    if not bool(torch.isfinite(teacher).all() and torch.isfinite(student).all()):
        raise DataError("transfer efficiency needs finite logits, got NaN or infinity; see where the loss diverged")
    n = len(teacher)
    first, second = (_predictions(x.detach().double(), estimator == "soft") for x in (teacher, student))
    joint = first.T @ second / n
    tables = (joint.sum(dim=1), joint.sum(dim=0), joint)
    entropies = [-float(torch.special.xlogy(table, table).sum()) for table in tables]
    if estimator == "miller_madow":
        entropies = [h + (int((table > 0).sum()) - 1) / (2 * n) for h, table in zip(entropies, tables, strict=True)]
    entropy = max(0.0, entropies[0])
    information = min(entropy, max(0.0, entropies[0] + entropies[1] - entropies[2]))
    value = information / entropy if entropy > 1e-12 else 0.0
    return TransferEfficiency(value, information, entropy, estimator, n)


def _predictions(logits: Tensor, soft: bool) -> Tensor:
    return F.softmax(logits, dim=1) if soft else F.one_hot(logits.argmax(dim=1), logits.shape[1]).to(logits)


def stability(values: Sequence[float], last: int | None = None) -> float | None:
    """Standard deviation (n - 1) of the last evaluations of a run, or of the final ones of several seeds; 0 is steady.

    Args:
        values: evaluations, oldest first.
        last: how many to take; None takes all.

    Returns:
        None for fewer than two, which say nothing.

    Raises:
        DataError: `last` below 2, or values that are not finite.
    """
    if (last is not None and last < 2) or not all(math.isfinite(v) for v in values):
        raise DataError(f"stability needs finite values and last >= 2, got last={last} and {list(values)}")
    kept = values if last is None else values[-last:]
    return statistics.stdev(kept) if len(kept) > 1 else None
