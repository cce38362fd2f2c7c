"""Controllers that follow the capacity of the student: the weights of loss terms, and the strength of distillation.

A capacity, C_S(t) of the student at time t and C_T of the teacher, is any number >= 0 that both models get from the
same images by the same estimator: held-out accuracy, or the nats about the label in
`synthkd.compression.capacity.label_information`. Only their ratio counts. A count of parameters would not do, because
it never changes while the student learns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from scipy.optimize import brentq

from synthkd.distillation.control.controller import Controller, Evaluation
from synthkd.distillation.terms.objective import Origin
from synthkd.errors import DataError
from synthkd.metrics.transfer import POINTS, GapCurve, fit_capacity_gap
from synthkd.settings import StrengthSettings, WeightSettings


def capacity_strength(student: float, teacher: float, beta: float = 1.0) -> float:
    """Capacity-aware strength `gamma_t = sigmoid(C_S(t) / C_T * beta)`.

    It is 1/2 for a student that knows nothing and `sigmoid(beta)` for one as capable as its teacher: with beta = 1 it
    rises by 0.23 during the whole training. A negative beta makes it fall instead.

    Args:
        student: C_S(t) >= 0.
        teacher: C_T > 0.
        beta: gain.

    Raises:
        DataError: capacities that are not finite, or have no ratio.
    """
    return _sigmoid(_ratio(student, teacher) * beta)


class AdaptiveWeights(Controller):
    """Two weights `alpha_t = sigmoid(C_S(t) / C_T * beta_t)` and `beta_t = 1 - alpha_t`, which define each other.

    At each t that is a fixed point. Here an update is one step of an iteration over time,

        alpha <- alpha + rate * (sigmoid(C_S / C_T * (1 - alpha)) - alpha)

    which for a constant ratio tends to `balanced_weight` from any start in [0, 1]. At rate 1 (no damping) it
    cycles between two values for ratios above 5.86; at rate 1/2 it converges for any below 74. The weights hardly
    move: for ratios from 0 to 1 alpha goes from 0.5 to 0.599.

    Attributes:
        value: alpha_t, in (0, 1).
    """

    def __init__(self, settings: WeightSettings) -> None:
        self.settings = settings
        self.value = settings.start

    @property
    def other(self) -> float:
        """beta_t, the second weight."""
        return 1.0 - self.value

    def update(self, student: float, teacher: float) -> float:
        """Take the capacities C_S(t) >= 0 and C_T > 0 and return the new alpha_t.

        Raises:
            DataError: capacities that are not finite, or have no ratio.
        """
        target = _sigmoid(_ratio(student, teacher) * self.other)
        self.value += self.settings.rate * (target - self.value)
        return self.value

    def follow(self, evaluation: Evaluation) -> dict[str, float]:
        """Follow an evaluation; returns what is logged."""
        if not evaluation.teacher:
            return {}
        if evaluation.step > 0:
            self.update(evaluation.accuracies[0], evaluation.teacher)
        return {"adapt/weight_of_answers": self.value}

    def factor(self, origin: Origin) -> float:
        """The factor of the weight of a term of this origin at present."""
        return 2.0 * (self.value if origin == "answers" else self.other)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` continues from."""
        return {"value": self.value}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.value = float(state["value"])


def balanced_weight(ratio: float) -> float:
    """The one alpha in [1/2, 1) with `alpha = sigmoid(ratio * (1 - alpha))`, for a ratio C_S / C_T >= 0.

    Raises:
        DataError: a ratio that is negative or not finite.
    """
    ratio = _ratio(ratio, 1.0)
    return float(brentq(lambda alpha: alpha - _sigmoid(ratio * (1.0 - alpha)), 0.0, 1.0, xtol=1e-14))


class StrengthController(Controller):
    """Strength of distillation: `capacity_strength`, times `boost` while the capacity gap is above a threshold.

    The gap that counts is the fitted curve at the present, which does not jump with a single evaluation, or the last
    one itself while there are too few for a curve.

    Attributes:
        value: the strength; before the first update that of a student that knows nothing, not boosted.
        points: (time, gap) of every update.
        curve: the one through the points; None while they are too few.
    """

    def __init__(self, settings: StrengthSettings) -> None:
        self.settings = settings
        self.value = 1.0 if settings.beta is None else 0.5
        self.points: list[tuple[float, float]] = []
        self.curve: GapCurve | None = None

    def update(self, time: float, student: float, teacher: float) -> float:
        """Take the capacities C_S(t) >= 0 and C_T > 0 at a later time (a step) and return the new strength.

        The gap is the share that is missing, `1 - C_S(t) / C_T`.

        Raises:
            DataError: capacities that are not finite, or have no ratio; a time that is not after the last one.
        """
        gap = 1.0 - _ratio(student, teacher)
        if not math.isfinite(time) or (self.points and time <= self.points[-1][0]):
            raise DataError(f"strength needs times that go up, got {time} after {self.points[-1:]}; pass the step")
        self._take([*self.points, (float(time), gap)])
        now = gap if self.curve is None else self.curve.at(time)
        s = self.settings
        strength = 1.0 if s.beta is None else capacity_strength(student, teacher, s.beta)
        self.value = strength * (s.boost if now > s.threshold else 1.0)
        return self.value

    def follow(self, evaluation: Evaluation) -> dict[str, float]:
        """Follow an evaluation; returns what is logged."""
        if not evaluation.teacher:
            return {}
        self.update(evaluation.step, evaluation.accuracies[0], evaluation.teacher)
        fitted = {} if self.curve is None else {"adapt/gap_fitted": self.curve.at(evaluation.step)}
        return {"adapt/strength": self.value, "adapt/gap": self.points[-1][1], **fitted}

    def factor(self, origin: Origin) -> float:
        """The factor of the weight of a term of this origin at present."""
        return 1.0 if origin == "own" else self.value

    def outcome(self, names: Sequence[str]) -> dict[str, Any]:
        """What the evaluations came to, JSON-able; `names` are those of the students by number."""
        if self.curve is None:
            return {}
        threshold = self.settings.threshold
        *errors, below = (
            value if math.isfinite(value) else None for value in (*self.curve.errors, self.curve.below(threshold))
        )
        summary = {"errors": errors, "threshold": threshold, "below_from_step": below}
        return {"gap": asdict(self.curve) | summary}

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` continues from."""
        return {"value": self.value, "points": [list(point) for point in self.points]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.value = float(state["value"])
        self._take([(float(time), float(gap)) for time, gap in state["points"]])

    def _take(self, points: list[tuple[float, float]]) -> None:
        self.points = points
        self.curve = None if len(points) < POINTS else fit_capacity_gap(*zip(*points, strict=True))


def _ratio(student: float, teacher: float) -> float:
    if not (0.0 <= student < math.inf and 0.0 < teacher < math.inf):
        raise DataError(
            f"capacities must be finite, the student's >= 0 and the teacher's > 0, got {student} and {teacher}; give "
            "both by one estimator on the same images"
        )
    return student / teacher


def _sigmoid(x: float) -> float:
    return 0.5 * (1.0 + math.tanh(0.5 * x))
