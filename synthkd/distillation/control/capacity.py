"""Controllers that adapt to the capacity of the student: the weights of loss terms, and the strength of distillation.

The capacity of the student at time t is C_S(t), that of the teacher C_T. A capacity is any number >= 0 that one
estimator gives for both models on the same images: held-out accuracy, or the information about the label in nats
(`synthkd.compression.capacity.label_information`). Only the ratio of the two counts. The number of parameters is no
such capacity, because it does not change while the student learns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from synthkd.distillation.control.controller import Controller, Evaluation, Outcome
from synthkd.distillation.terms.objective import Origin
from synthkd.errors import DataError
from synthkd.metrics.transfer import POINTS, GapCurve, fit_capacity_gap
from synthkd.settings import StrengthSettings, WeightSettings

BOOST = 1.5
"""Factor of the strength while the capacity gap is above its threshold. It is moderate, since the strength multiplies
all terms of the teacher, and with them the size of a step."""


def capacity_strength(student: float, teacher: float, beta: float = 1.0) -> float:
    """Capacity-aware strength `gamma_t = sigmoid(C_S(t) / C_T * beta)`.

    It is 1/2 for a student of capacity 0 and `sigmoid(beta)` for a student with the capacity of its teacher. With
    beta = 1 it thus rises by 0.23 during the whole training; with a negative beta it falls.

    Args:
        student: C_S(t) >= 0.
        teacher: C_T > 0.
        beta: gain.

    Raises:
        DataError: capacities that are not finite, or have no ratio.
    """
    return _sigmoid(_ratio(student, teacher) * beta)


class AdaptiveWeights(Controller):
    """Two weights that define each other: `alpha_t = sigmoid(C_S(t) / C_T * beta_t)` and `beta_t = 1 - alpha_t`.

    At each t the two equations have one solution. An update is one step of an iteration over time,

        alpha <- alpha + rate * (sigmoid(C_S / C_T * (1 - alpha)) - alpha)

    which for a constant ratio converges to that solution from any start in [0, 1]. At rate 1 (no damping) it cycles
    between two values for ratios above 5.86; at rate 1/2 it converges for any ratio below 74. The weights hardly move:
    for ratios from 0 to 1 the solution goes from alpha = 0.5 to 0.599.

    Args:
        settings: the first alpha and the rate.

    Attributes:
        settings: as given.
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
        """Return the new alpha_t.

        Args:
            student: C_S(t) >= 0.
            teacher: C_T > 0.

        Raises:
            DataError: capacities that are not finite, or have no ratio.
        """
        target = _sigmoid(_ratio(student, teacher) * self.other)
        self.value += self.settings.rate * (target - self.value)
        return self.value

    def follow(self, evaluation: Evaluation) -> dict[str, float]:
        """Update the weights by the accuracies of student and teacher; without a teacher they stay."""
        if not evaluation.teacher:  # also for a teacher that is never right, since there is no ratio to 0
            return {}
        # At step 0 the student has learned nothing, so its accuracy says nothing about its capacity.
        if evaluation.step > 0:
            self.update(evaluation.accuracies[0], evaluation.teacher)
        return {"adapt/weight_of_answers": self.value}

    def factor(self, origin: Origin) -> float:
        """`2 alpha_t` for terms of the teacher's logits, `2 beta_t` for all others, so that the mean stays 1."""
        return 2.0 * (self.value if origin == "logits" else self.other)

    def state_dict(self) -> dict[str, Any]:
        """alpha_t, as `value`."""
        return {"value": self.value}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.value = float(state["value"])


class StrengthController(Controller):
    """Strength of distillation: `capacity_strength`, times `BOOST` while the capacity gap is above a threshold.

    The gap is read from a curve fitted to all evaluations, so that a single noisy one does not move it far. While there
    are too few evaluations for a curve, it is the gap at the last one.

    Args:
        settings: gain and threshold.

    Attributes:
        settings: as given.
        value: the strength; before the first update that of a student of capacity 0, without the boost.
        points: (time, gap) of every update.
        curve: fitted to the points; None while there are too few.
    """

    def __init__(self, settings: StrengthSettings) -> None:
        self.settings = settings
        # sigmoid(0 * beta) = 1/2: the student has learned nothing yet.
        self.value = 1.0 if settings.beta is None else 0.5
        self.points: list[tuple[float, float]] = []
        self.curve: GapCurve | None = None

    def update(self, time: float, student: float, teacher: float) -> float:
        """Return the new strength; the gap is `1 - C_S(t) / C_T`.

        Args:
            time: t, a step, after that of the last update.
            student: C_S(t) >= 0.
            teacher: C_T > 0.

        Raises:
            DataError: capacities that are not finite, or have no ratio; a time that is not after the last one.
        """
        gap = 1.0 - _ratio(student, teacher)
        if not math.isfinite(time) or (self.points and time <= self.points[-1][0]):
            raise DataError(f"strength needs times that go up, got {time} after {self.points[-1:]}; pass the step")
        self._fit([*self.points, (float(time), gap)])
        present_gap = gap if self.curve is None else self.curve.at(time)
        s = self.settings
        strength = 1.0 if s.beta is None else capacity_strength(student, teacher, s.beta)
        self.value = strength * (BOOST if present_gap > s.threshold else 1.0)
        return self.value

    def follow(self, evaluation: Evaluation) -> dict[str, float]:
        """Update the strength by the accuracies of student and teacher; without a teacher it stays."""
        if not evaluation.teacher:
            return {}
        self.update(evaluation.step, evaluation.accuracies[0], evaluation.teacher)
        fitted = {} if self.curve is None else {"adapt/gap_fitted": self.curve.at(evaluation.step)}
        return {"adapt/strength": self.value, "adapt/gap": self.points[-1][1], **fitted}

    def factor(self, origin: Origin) -> float:
        """The strength for terms of the teacher's logits or features, 1 for all others."""
        return 1.0 if origin == "own" else self.value

    def outcome(self, names: Sequence[str]) -> Outcome:
        """The fitted gap, where there is a curve; values that are not finite are None there."""
        if self.curve is None:
            return {}
        threshold = self.settings.threshold
        # JSON has no infinity; a standard error is infinite where the points do not determine the parameter.
        *errors, below = (
            value if math.isfinite(value) else None for value in (*self.curve.errors, self.curve.below(threshold))
        )
        summary = {"errors": errors, "threshold": threshold, "below_from_step": below}
        return {"gap": asdict(self.curve) | summary}

    def state_dict(self) -> dict[str, Any]:
        """The strength as `value`, and the `points`; the curve follows from them."""
        return {"value": self.value, "points": [list(point) for point in self.points]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.value = float(state["value"])
        self._fit([(float(time), float(gap)) for time, gap in state["points"]])

    def _fit(self, points: list[tuple[float, float]]) -> None:
        self.points = points
        # Fitted again from all points, so that a resumed run has the curve of an unbroken one, bit for bit.
        self.curve = None if len(points) < POINTS else fit_capacity_gap(*zip(*points, strict=True))


def _ratio(student: float, teacher: float) -> float:
    if not (0.0 <= student < math.inf and 0.0 < teacher < math.inf):
        raise DataError(
            f"capacities must be finite, the student's >= 0 and the teacher's > 0, got {student} and {teacher}; give "
            "both by one estimator on the same images"
        )
    return student / teacher


def _sigmoid(x: float) -> float:
    # By tanh, which does not overflow: exp(-x) would for a large negative x.
    return 0.5 * (1.0 + math.tanh(0.5 * x))
