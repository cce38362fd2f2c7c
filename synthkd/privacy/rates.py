"""The result of an attack from its scores of members and non-members: rates with exact intervals, a bound of epsilon.

A member is a point that the model was trained on. A score is any number that is higher where a point looks more like a
member; the attack guesses "member" above a threshold (`synthkd.privacy.thresholds`).

The lower bound of epsilon (Kairouz, Oh and Viswanath 2015; Nasr et al. 2021) compares rates with errors: under
(epsilon, delta)-differential privacy every guess has `rate <= e^epsilon * error + delta`. It is the largest bound over
a few thresholds, each fixed beforehand by how many errors it allows, and holds for all of them together (Bonferroni).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from synthkd.errors import ConfigError, DataError
from synthkd.metrics.arrays import Array
from synthkd.metrics.utility import Proportion
from synthkd.privacy.intervals import Area, Scores, auc, check_level, clopper_pearson, lower_limit, numbers, upper_limit
from synthkd.privacy.thresholds import allowed_errors, hits, too_few

_REPORTED_ERRORS = (0.01, 0.001)  # error rates at which rates are reported
_BOUND_ERRORS = (0.0, 0.01, 0.1)  # error rates that the thresholds of the epsilon bound allow; more would widen limits
_FEWEST = 20  # members, and non-members, that a class needs to be judged by itself
_ROC_POINTS = 200


@dataclass(frozen=True)
class RateAt:
    """Share of one side above the threshold of a fixed error rate on the other side.

    Attributes:
        error: the error rate, such as 0.01.
        rate: the share, with the interval of Clopper and Pearson; None where the other side has fewer than `1 / error`
            points, which cannot show so small an error rate.
        reason: why there is no rate; else empty.
    """

    error: float
    rate: Proportion | None
    reason: str = ""


@dataclass(frozen=True)
class WorstClass:
    """The class with the largest AUC between its members and its non-members.

    Attributes:
        label: of the class.
        auc: of the class alone; the interval holds for all classes compared together (Bonferroni).
        n_in, n_out: members and non-members of the class.
        compared: number of classes with at least 20 members and 20 non-members; only these can be the worst.
        suppressed: number of classes with fewer. Their rates would be noise, or point at single people.
    """

    label: int
    auc: Area
    n_in: int
    n_out: int
    compared: int
    suppressed: int


@dataclass(frozen=True)
class AttackSummary:
    """Result of one attack, without its ROC curve.

    Attributes:
        name: of the attack.
        n_in, n_out: members and non-members.
        auc: area under the ROC curve.
        tpr: true-positive rates at false-positive rates of 1 % and 0.1 %.
        tnr: true-negative rates at false-negative rates of 1 % and 0.1 %.
        epsilon: lower bound of epsilon at `delta`; 0 where nothing is shown, see `ceiling`.
        ceiling: the bound that a perfect attack would have shown with as many points. A bound of 0 under a low ceiling
            is no evidence that epsilon is small.
        delta: of the bound.
        confidence: of the bound and of every interval, each for all attacks of the family together.
        family: number of attacks that are compared; 1 for a single attack.
        heuristic: True where the points are not independent given the model, as when one model was trained on all of
            them; then `epsilon` is no formal bound.
        worst_class: None without labels, or where no class has enough points.
    """

    name: str
    n_in: int
    n_out: int
    auc: Area
    tpr: tuple[RateAt, ...]
    tnr: tuple[RateAt, ...]
    epsilon: float
    ceiling: float
    delta: float
    confidence: float
    family: int
    heuristic: bool
    worst_class: WorstClass | None


@dataclass(frozen=True)
class Attack(AttackSummary):
    """Result of one attack.

    Attributes:
        roc: (false-positive rate, true-positive rate) from (0, 0) to (1, 1): the most true positives at each count of
            false positives, at most 200 points, evenly spaced on a logarithmic axis.
    """

    roc: tuple[tuple[float, float], ...]


def attack(
    name: str,
    scores_in: Array,
    scores_out: Array,
    labels_in: Array | None = None,
    labels_out: Array | None = None,
    delta: float = 1e-5,
    confidence: float = 0.95,
    family: int = 1,
    independent: bool = False,
) -> Attack:
    """Rates, ROC curve, epsilon bound and worst class of one attack.

    Args:
        name: of the attack.
        scores_in: `[N]`, any real dtype, of members; N at least 2.
        scores_out: `[M]`, of non-members; M at least 2.
        labels_in: int64 `[N]`, classes of the members, for the worst class; None leaves it out.
        labels_out: int64 `[M]`, classes of the non-members.
        delta: of the epsilon bound, in [0, 1).
        confidence: of the bound and the intervals, in (0, 1).
        family: how many attacks on these points are compared; the largest of their bounds then still holds.
        independent: whether the points are independent given the model: each was in or out of a training run of its
            own. Points of one run are not, which makes the bound heuristic.

    Raises:
        ConfigError: `delta`, `confidence` or `family` out of range.
        DataError: too few scores, a score that is not finite, or labels that do not match the scores.
    """
    check_level(delta, confidence)
    if family < 1:
        raise ConfigError(f"family must count the attacks compared, 1 or more, got {family}")
    inside, outside = numbers(scores_in, "scores of members", 2), numbers(scores_out, "scores of non-members", 2)
    level = 1 - (1 - confidence) / family
    epsilon, most = _epsilon_bound(inside, outside, delta, level)
    worst = None
    if labels_in is not None or labels_out is not None:
        labels = _labels(labels_in, len(inside), "members"), _labels(labels_out, len(outside), "non-members")
        worst = _worst_class(inside, outside, *labels, level)
    return Attack(
        name=name,
        n_in=len(inside),
        n_out=len(outside),
        auc=auc(inside, outside, level),
        tpr=tuple(_rate_at(inside, outside, error, level, "non-members") for error in _REPORTED_ERRORS),
        tnr=tuple(_rate_at(-outside, -inside, error, level, "members") for error in _REPORTED_ERRORS),
        epsilon=epsilon,
        ceiling=most,
        delta=delta,
        confidence=confidence,
        family=family,
        heuristic=not independent,
        roc=_roc(inside, outside),
        worst_class=worst,
    )


def _epsilon_bound(inside: Scores, outside: Scores, delta: float, confidence: float) -> tuple[float, float]:
    """The largest bound over all thresholds, and the bound of an attack without errors at the same confidence."""
    # The second direction finds non-members: its scores are negated, and members are the errors.
    directions = ((inside, outside), (-outside, -inside))
    # A threshold at an order statistic of one side has an error rate whose exact upper limit is that of Clopper and
    # Pearson at the allowed count, and the other side is independent of it. So every point serves: none is set aside to
    # choose a threshold. Allowed counts may coincide for few points, so they are sets.
    counts = [{allowed_errors(share, len(other)) for share in _BOUND_ERRORS} for _, other in directions]
    # Bonferroni over all thresholds, and over the limits of the rate and of the error.
    tail = (1 - confidence) / sum(map(len, counts)) / 2
    bounds = [
        _bound(hits(scores, other, allowed), len(scores), allowed, len(other), delta, tail)
        for (scores, other), each in zip(directions, counts, strict=True)
        for allowed in each
    ]
    return max(bounds), _bound(len(inside), len(inside), 0, len(outside), delta, tail)


def _bound(correct: int, n: int, errors: int, m: int, delta: float, tail: float) -> float:
    """Lower bound of epsilon from `correct` of `n` and `errors` of `m`, each limit wrong with probability `tail`."""
    rate, error = lower_limit(correct, n, tail), upper_limit(errors, m, tail)
    # `rate <= e^epsilon * error + delta`, solved for epsilon. It also holds for the complements, whose limits are these
    # limits, so the second bound costs no confidence.
    directions = ((rate, error), (1 - error, 1 - rate))
    return max([0.0, *(math.log((right - delta) / wrong) for right, wrong in directions if right > delta)])


def _rate_at(scores: Scores, other: Scores, error: float, confidence: float, what: str) -> RateAt:
    """Share of `scores` above the threshold of an error rate on `other`, whose points the reason calls `what`."""
    if reason := too_few(len(other), error, what):
        return RateAt(error, None, reason)
    correct = hits(scores, other, allowed_errors(error, len(other)))
    return RateAt(error, clopper_pearson(correct, len(scores), confidence))


def _roc(inside: Scores, outside: Scores) -> tuple[tuple[float, float], ...]:
    """Corners of the ROC curve, thinned to `_ROC_POINTS`; see `Attack.roc`."""
    thresholds = np.unique(np.concatenate([inside, outside]))[::-1]
    correct, errors = (
        np.append(0, len(side) - np.searchsorted(np.sort(side), thresholds, side="left")) for side in (inside, outside)
    )
    # Of all thresholds with the same count of errors the last one has the most true positives.
    corners = np.append(np.flatnonzero(np.diff(errors)), len(errors) - 1)
    correct, errors = correct[corners], errors[corners]
    if len(errors) > _ROC_POINTS:
        targets = np.append(0, np.rint(np.geomspace(1, len(outside), _ROC_POINTS - 1)))
        subset = np.unique(np.searchsorted(errors, targets, side="right") - 1)
        correct, errors = correct[subset], errors[subset]
    return tuple(zip((errors / len(outside)).tolist(), (correct / len(inside)).tolist(), strict=True))


def _worst_class(
    inside: Scores, outside: Scores, labels_in: NDArray[Any], labels_out: NDArray[Any], confidence: float
) -> WorstClass | None:
    """The class with the largest AUC among those with enough points; None where there is none."""
    classes = np.union1d(labels_in, labels_out)
    sides = {int(label): (inside[labels_in == label], outside[labels_out == label]) for label in classes}
    enough = {label: pair for label, pair in sides.items() if min(map(len, pair)) >= _FEWEST}
    if not enough:
        return None
    level = 1 - (1 - confidence) / len(enough)  # Bonferroni: the largest of several areas is reported
    areas = {label: auc(*pair, level) for label, pair in enough.items()}
    worst = max(areas, key=lambda label: areas[label].value)
    n_in, n_out = map(len, enough[worst])
    return WorstClass(worst, areas[worst], n_in, n_out, compared=len(enough), suppressed=len(sides) - len(enough))


def _labels(labels: Array | None, n: int, what: str) -> NDArray[Any]:
    """The labels `[n]` as a numpy array; raises DataError where there are none or another number."""
    given = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
    if labels is None or given.shape != (n,):
        got = "none" if labels is None else list(given.shape)
        raise DataError(f"labels of {what}: one a score is needed, {n} in all, got {got}; or give no labels at all")
    return given
