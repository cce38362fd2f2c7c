"""What scores of members and non-members show about a model: rates with exact intervals, and a lower bound of epsilon.

A member is a point that the model was trained on. A score is any number that is higher where a point looks more like a
member; the attack guesses "member" above a threshold. A tie never helps it: a non-member at the threshold counts as a
false positive, a member at the score of a threshold's non-member as not found.

The lower bound of epsilon (Kairouz, Oh and Viswanath 2015; Nasr et al. 2021) compares rates with errors: a guess about
a point has `rate <= e^epsilon * error + delta`. Its thresholds are declared beforehand as counts of allowed errors,
never chosen by what they give. A threshold at an order statistic of one side has an error rate whose exact upper limit
is that of Clopper and Pearson at the allowed count, and the other side is independent of it. So the bound holds for all
declared thresholds together, by Bonferroni, without half of the points being spent on choosing one.
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
from synthkd.rng import numpy_stream

_FIXED = (0.01, 0.001)  # error rates at which rates are reported
_ALLOWED = (0.0, 0.01, 0.1)  # shares of errors that the thresholds of the epsilon bound allow
_FEWEST = 20  # members, and non-members, that a class needs to be judged by itself
_POINTS = 200  # of a curve
_FEW_HITS = 10  # below, a bootstrap of a rate sees too little


@dataclass(frozen=True)
class RateAt:
    """Share of one side that is found while a fixed share of the other is mistaken for it.

    Attributes:
        error: the share of mistakes allowed, such as 0.01.
        rate: the share found, with the interval of Clopper and Pearson for the threshold that was met; None where the
            other side has fewer than `1 / error` points, which cannot show so small a share.
        reason: why there is no rate; else empty.
    """

    error: float
    rate: Proportion | None
    reason: str = ""


@dataclass(frozen=True)
class WorstClass:
    """The class whose members are told best from its non-members.

    Attributes:
        label: of the class.
        auc: of the class alone; the interval holds for all classes compared together (Bonferroni).
        n_in, n_out: members and non-members of the class.
        compared: classes with at least 20 members and 20 non-members; only these can be the worst.
        suppressed: classes with fewer, which are not judged: their rates would be noise, or point at single people.
    """

    label: int
    auc: Area
    n_in: int
    n_out: int
    compared: int
    suppressed: int


@dataclass(frozen=True)
class Attack:
    """What one attack showed.

    Attributes:
        name: of the attack.
        n_in, n_out: members and non-members.
        auc: area under the ROC curve.
        tpr: true-positive rates at false-positive rates of 1 % and 0.1 %.
        tnr: the other direction: true-negative rates at false-negative rates of 1 % and 0.1 %.
        epsilon: lower bound of epsilon at `delta`, 0 where nothing is shown; see `ceiling`.
        ceiling: what a perfect attack could have shown with these counts. A bound of 0 under a low ceiling is no
            evidence that epsilon is small.
        delta: of the bound.
        confidence: of the bound and of every interval, each for all attacks of the family together.
        family: number of attacks that are compared; 1 where this one was alone.
        heuristic: True where the points are not independent given the model, as when one model was trained on all of
            them; then `epsilon` is no formal bound.
        roc: (false-positive rate, true-positive rate) from (0, 0) to (1, 1): the most true positives at each count of
            false positives, at most 200 points, evenly spaced on a logarithmic axis.
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
    roc: tuple[tuple[float, float], ...]
    worst_class: WorstClass | None

    @property
    def note(self) -> str:
        """What a reader must know to use the bound; empty where it is formal."""
        if not self.heuristic:
            return ""
        return (
            "heuristic: all points belong to one training run and are counted as independent, so epsilon is an "
            "estimate of what leaks, not a formal lower bound"
        )


@dataclass(frozen=True)
class RateRatio:
    """True-positive rate of an attack on the student over that on the teacher, on the same points.

    Attributes:
        value: the ratio; None where the attack finds no member of the teacher.
        low, high: ends of the interval; `high` is infinite where nothing bounds the ratio.
        error: the false-positive rate of both.
        method: how the interval was made. A paired bootstrap; where either rate rests on fewer than 10 hits, which a
            bootstrap takes too lightly, the exact intervals of both rates divided by each other.
    """

    value: float | None
    low: float
    high: float
    error: float
    method: str


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
    """Everything that one attack's scores show.

    Args:
        name: of the attack.
        scores_in: `[N]`, any real dtype, of members; at least 2.
        scores_out: `[M]`, of non-members; at least 2.
        labels_in: int64 `[N]`, classes of the members, for the worst class; None leaves it out.
        labels_out: int64 `[M]`.
        delta: of the epsilon bound.
        confidence: of the bound and the intervals.
        family: how many attacks on these points are compared; the largest of their bounds then still holds.
        independent: whether the points are independent given the model: each was in or out of a training run of its
            own. Points of one run are not, which makes the bound heuristic.

    Raises:
        ConfigError: `delta` not in [0, 1), `confidence` not in (0, 1), or `family` below 1.
        DataError: too few scores, a score that is not finite, or labels that do not match.
    """
    check_level(delta, confidence)
    if family < 1:
        raise ConfigError(f"family must count the attacks compared, 1 or more, got {family}")
    inside, outside = numbers(scores_in, "scores of members", 2), numbers(scores_out, "scores of non-members", 2)
    level = 1 - (1 - confidence) / family
    epsilon, most = _epsilon(inside, outside, delta, level)
    worst = None
    if labels_in is not None or labels_out is not None:
        labels = _labels(labels_in, len(inside), "members"), _labels(labels_out, len(outside), "non-members")
        worst = _worst_class(inside, outside, *labels, level)
    return Attack(
        name=name,
        n_in=len(inside),
        n_out=len(outside),
        auc=auc(inside, outside, level),
        tpr=tuple(_rate_at(inside, outside, error, level, "non-members") for error in _FIXED),
        tnr=tuple(_rate_at(-outside, -inside, error, level, "members") for error in _FIXED),
        epsilon=epsilon,
        ceiling=most,
        delta=delta,
        confidence=confidence,
        family=family,
        heuristic=not independent,
        roc=_roc(inside, outside),
        worst_class=worst,
    )


def ceiling(n_in: int, n_out: int, delta: float = 1e-5, confidence: float = 0.95) -> float:
    """Largest lower bound of epsilon that an attack without a mistake can show with one threshold.

    Args:
        n_in: members.
        n_out: non-members.
        delta: of the bound.
        confidence: of the bound; both rates hold together.

    Raises:
        ConfigError: no points on a side, or `delta` or `confidence` out of range.
    """
    check_level(delta, confidence)
    if min(n_in, n_out) < 1:
        raise ConfigError(f"a ceiling needs a point on each side, got {n_in} members and {n_out} non-members")
    return _bound(n_in, n_in, 0, n_out, delta, (1 - confidence) / 2)


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
    """How many members an attack finds in the student for each that it finds in the teacher.

    Args:
        student_in: `[N]` scores of members by the attack on the student.
        student_out: `[M]` of non-members.
        teacher_in: `[N]` by the attack on the teacher, of the same members in the same order.
        teacher_out: `[M]`, of the same non-members.
        error: false-positive rate of both, between 0 and 1; `1 / error` non-members at least are needed.
        confidence: of the interval.
        draws: of the bootstrap; points are drawn anew, with both their scores, and so are the thresholds.
        seed: of the draws.

    Raises:
        ConfigError: `confidence` or `error` not in (0, 1), or no draws.
        DataError: sides that do not match, too few non-members, or a score that is not finite.
    """
    check_level(0.0, confidence)
    if not 0 < error < 1 or draws < 1:
        raise ConfigError(f"need a false-positive rate in (0, 1) and 1 draw or more, got {error} and {draws}")
    inside = [numbers(side, f"{who}'s scores of members") for who, side in _both(student_in, teacher_in)]
    outside = [numbers(side, f"{who}'s scores of non-members") for who, side in _both(student_out, teacher_out)]
    for sides, what in ((inside, "members"), (outside, "non-members")):
        if len(sides[0]) != len(sides[1]):
            raise DataError(
                f"student and teacher must be attacked on the same {what}, got {len(sides[0])} and {len(sides[1])}"
            )
    n_in, n_out = len(inside[0]), len(outside[0])
    if lacking := _lacking(n_out, error, "non-members"):
        raise DataError(lacking)
    allowed = _errors(error, n_out)
    student, teacher = (_hits(*sides, allowed) for sides in zip(inside, outside, strict=True))
    value = student / teacher if teacher else None

    if min(student, teacher) < _FEW_HITS:
        together = 1 - (1 - confidence) / 2
        above, below = clopper_pearson(student, n_in, together), clopper_pearson(teacher, n_in, together)
        high = above.high / below.low if below.low > 0 else math.inf
        return RateRatio(value, above.low / below.high, high, error, "exact intervals of both rates")
    rng = numpy_stream(seed, "ratio of rates")
    ratios = np.empty(draws)
    for draw in range(draws):
        rows, others = rng.integers(n_in, size=n_in), rng.integers(n_out, size=n_out)
        found = [_hits(a[rows], b[others], allowed) for a, b in zip(inside, outside, strict=True)]
        ratios[draw] = found[0] / found[1] if found[1] else math.inf
    low, high = np.quantile(ratios, [(1 - confidence) / 2, (1 + confidence) / 2], method="nearest")
    return RateRatio(value, float(low), float(high), error, f"paired bootstrap of {draws:,} draws")


def _epsilon(inside: Scores, outside: Scores, delta: float, confidence: float) -> tuple[float, float]:
    """The largest bound of the declared thresholds, and what it would be without a mistake."""
    sides = ((inside, outside), (-outside, -inside))
    looks = [{_errors(share, len(other)) for share in _ALLOWED} for _, other in sides]
    tail = (1 - confidence) / sum(len(counts) for counts in looks) / 2
    bounds = [
        _bound(_hits(found, other, allowed), len(found), allowed, len(other), delta, tail)
        for (found, other), counts in zip(sides, looks, strict=True)
        for allowed in counts
    ]
    return max(bounds), _bound(len(inside), len(inside), 0, len(outside), delta, tail)


def _bound(hits: int, n: int, errors: int, m: int, delta: float, tail: float) -> float:
    """Lower bound of epsilon from `hits` of `n` and `errors` of `m`, each limit wrong with probability `tail`.

    The limits of the two rates are those of their complements as well, so both directions hold together.
    """
    rate, error = lower_limit(hits, n, tail), upper_limit(errors, m, tail)
    directions = ((rate, error), (1 - error, 1 - rate))
    return max([0.0, *(math.log((right - delta) / wrong) for right, wrong in directions if right > delta)])


def _hits(found: Scores, other: Scores, allowed: int) -> int:
    """How many score above all of the other side but the `allowed` highest."""
    place = len(other) - 1 - allowed
    return int((found > np.partition(other, place)[place]).sum())


def _errors(share: float, n: int) -> int:
    """Mistakes that a share of `n` allows; a product such as 0.29 * 100 must not lose one to rounding."""
    return math.floor(share * n + 1e-9)


def _lacking(n: int, error: float, what: str) -> str:
    """Why `n` points cannot show an error rate; empty where they can."""
    least = math.ceil(1 / error - 1e-9)
    return "" if n >= least else f"an error rate of {error:.1%} needs {least:,} {what} or more, got {n:,}"


def _rate_at(found: Scores, other: Scores, error: float, confidence: float, what: str) -> RateAt:
    if lacking := _lacking(len(other), error, what):
        return RateAt(error, None, lacking)
    return RateAt(error, clopper_pearson(_hits(found, other, _errors(error, len(other))), len(found), confidence))


def _roc(inside: Scores, outside: Scores) -> tuple[tuple[float, float], ...]:
    thresholds = np.unique(np.concatenate([inside, outside]))[::-1]
    hits, errors = (
        np.append(0, len(side) - np.searchsorted(np.sort(side), thresholds, side="left")) for side in (inside, outside)
    )
    corners = np.append(np.flatnonzero(np.diff(errors)), len(errors) - 1)
    hits, errors = hits[corners], errors[corners]
    if len(errors) > _POINTS:
        wanted = np.append(0, np.rint(np.geomspace(1, len(outside), _POINTS - 1)))
        kept = np.unique(np.searchsorted(errors, wanted, side="right") - 1)
        hits, errors = hits[kept], errors[kept]
    return tuple(zip((errors / len(outside)).tolist(), (hits / len(inside)).tolist(), strict=True))


def _worst_class(
    inside: Scores, outside: Scores, labels_in: NDArray[Any], labels_out: NDArray[Any], confidence: float
) -> WorstClass | None:
    classes = np.union1d(labels_in, labels_out)
    sides = {int(label): (inside[labels_in == label], outside[labels_out == label]) for label in classes}
    enough = {label: pair for label, pair in sides.items() if min(map(len, pair)) >= _FEWEST}
    if not enough:
        return None
    level = 1 - (1 - confidence) / len(enough)
    areas = {label: auc(*pair, level) for label, pair in enough.items()}
    label = max(areas, key=lambda each: areas[each].value)
    n_in, n_out = map(len, enough[label])
    return WorstClass(label, areas[label], n_in, n_out, compared=len(enough), suppressed=len(sides) - len(enough))


def _labels(labels: Array | None, n: int, what: str) -> NDArray[Any]:
    given = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
    if labels is None or given.shape != (n,):
        got = "none" if labels is None else list(given.shape)
        raise DataError(f"labels of {what}: one a score is needed, {n} in all, got {got}; or give no labels at all")
    return given


def _both(student: Array, teacher: Array) -> tuple[tuple[str, Array], tuple[str, Array]]:
    return ("student", student), ("teacher", teacher)
