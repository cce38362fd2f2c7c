"""Selection of one of several teachers by a linear bandit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from synthkd.distillation.control.controller import Controller, Evaluation, Outcome
from synthkd.errors import CheckpointError, ConfigError, DataError
from synthkd.settings import SelectionSettings

SHARED = 4
"""Number of features that all teachers share: 1, accuracy, divergence, cost. One indicator per teacher follows."""
EXPLORATION = 1.0
"""Standard errors that are added to the expected reward of a teacher (alpha of LinUCB). The residuals set the size of a
standard error, so one of them suits any weights of the reward."""
FORGET = 0.02
"""Share of the weight of earlier rewards that each choice removes, since what helps a student changes: the regression
remembers about the last 50 choices."""


class TeacherSelection(Controller):
    """Chooses teachers by a linear bandit over the student's accuracy, and the divergence and the cost of each teacher.

    The reward of a choice is `a * (accuracy gain) + b * KL(teacher || student) - c * cost`, where a, b and c are
    `accuracy`, `divergence` and `cost` of the settings. Divergence and cost are known when a teacher is chosen, so only
    the gain has to be learned. (The divergence after the choice would reward a teacher for what it failed to teach.)

    The gain is predicted by LinUCB (Li et al. 2010), with one ridge regression for all teachers on the features
    `x = (1, accuracy, KL_k, cost_k, indicator of teacher k)`. A run has few choices: with one regression per teacher
    (their algorithm 1) chance would decide most parameters. With a common one, every choice adds to what holds for all
    teachers, such as gains that shrink as the student learns, and each teacher has one parameter of its own. Old
    choices count less, as in discounted regression (D-LinUCB, Russac et al. 2019; its second matrix, which would make
    the standard errors somewhat smaller, is left out):

        V = I + sum_s f^(t-s) x_s x_s^T,   theta = V^-1 sum_s f^(t-s) x_s y_s,   f = 1 - FORGET

    The teacher with the largest `theta^T x + b KL - c cost + EXPLORATION * sigma * sqrt(x^T V^-1 x)` is chosen. sigma^2
    is the penalised mean square of the residuals, so that a common factor on a, b and c changes no choice. At first
    each teacher is tried once, in the order of the numbers; of equal teachers the lowest number is chosen. Nothing is
    random.

    Args:
        teachers: their number.
        settings: weights of the reward. The caller decides when to choose.

    Attributes:
        settings: as given.
        selected: number of the teacher chosen last; 0 at first.
        last: the latest reward; 0 at first.
        expected: expected reward of each teacher at the last choice, without exploration; 0 at first.
        counts: how often each teacher was chosen.

    Raises:
        ConfigError: no teacher.
    """

    def __init__(self, teachers: int, settings: SelectionSettings) -> None:
        if teachers < 1:
            raise ConfigError(f"teachers: a selection needs at least 1 teacher, got {teachers}")
        self.settings = settings
        self.selected = 0
        self.last = 0.0
        self.expected = [0.0] * teachers
        self.counts = [0] * teachers
        size = SHARED + teachers
        # Discounted sums over past choices: of x x^T, of x y, of y^2 and of 1.
        self._gram = torch.zeros(size, size, dtype=torch.float64)
        self._moment = torch.zeros(size, dtype=torch.float64)
        self._square = 0.0
        self._weight = 0.0
        # x, accuracy and b KL - c cost at the latest choice, whose gain is not known until the next evaluation.
        self._features = torch.zeros(size, dtype=torch.float64)
        self._accuracy = 0.0
        self._immediate = 0.0

    def choose(self, accuracy: float, divergences: Sequence[float], costs: Sequence[float]) -> int:
        """Reward the last choice, if there was one, by the student's new accuracy, and choose the next teacher.

        Args:
            accuracy: of the student, always on the same images; in [0, 1], not in percent.
            divergences: mean KL(teacher || student) of each teacher, nats.
            costs: of labelling by each teacher, >= 0: its multiply-accumulates over those of the largest.

        Returns:
            Its number.

        Raises:
            DataError: not one divergence and cost for each teacher, or a value that is not finite.
        """
        count = len(self.counts)
        if not len(divergences) == len(costs) == count:
            raise DataError(
                f"selection among {count} teachers needs a divergence and a cost of each, got {len(divergences)} and "
                f"{len(costs)}"
            )
        if not all(map(math.isfinite, (accuracy, *divergences, *costs))):
            raise DataError(
                f"selection needs finite values, got accuracy {accuracy}, divergences {list(divergences)} and costs "
                f"{list(costs)}; check the models that they come from"
            )
        # Before the choice, which should already use the reward of the last one.
        if any(self.counts):
            self._reward(accuracy)
        s = self.settings
        immediate = [s.divergence * kl - s.cost * cost for kl, cost in zip(divergences, costs, strict=True)]
        shared = [[1.0, accuracy, kl, cost] for kl, cost in zip(divergences, costs, strict=True)]
        features = torch.cat([torch.tensor(shared, dtype=torch.float64), torch.eye(count, dtype=torch.float64)], dim=1)
        gains, errors = self._predict(features)
        self.expected = [gain + certain for gain, certain in zip(gains, immediate, strict=True)]
        bounds = [value + EXPLORATION * error for value, error in zip(self.expected, errors, strict=True)]
        # A teacher that was never tried comes first: its indicator has no data, and its bound would be a guess.
        self.selected = self.counts.index(0) if 0 in self.counts else bounds.index(max(bounds))
        self.counts[self.selected] += 1
        self._features, self._accuracy, self._immediate = features[self.selected], accuracy, immediate[self.selected]
        return self.selected

    def follow(self, evaluation: Evaluation) -> dict[str, float]:
        """Choose the teacher that labels until the next evaluation."""
        self.choose(evaluation.accuracies[0], evaluation.divergences, evaluation.costs)
        return {"adapt/selected_teacher": float(self.selected), "adapt/reward": self.last}

    def outcome(self, names: Sequence[str]) -> Outcome:
        """How often each teacher was selected."""
        return {"selected": list(self.counts)}

    def state_dict(self) -> dict[str, Any]:
        """Counts, rewards, the sums of the regression, and the latest choice, whose reward is still open."""
        return {
            "selected": self.selected,
            "last": self.last,
            "expected": list(self.expected),
            "counts": list(self.counts),
            "gram": self._gram.clone(),
            "moment": self._moment.clone(),
            "square": self._square,
            "weight": self._weight,
            "features": self._features.clone(),
            "accuracy": self._accuracy,
            "known": self._immediate,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned.

        Raises:
            CheckpointError: a state of another number of teachers.
        """
        if len(state["counts"]) != len(self.counts):
            raise CheckpointError(
                f"the checkpoint selects among {len(state['counts'])} teachers, this run among {len(self.counts)}; "
                "resume with the same teachers"
            )
        self.selected = int(state["selected"])
        self.last = float(state["last"])
        self.expected = [float(value) for value in state["expected"]]
        self.counts = [int(count) for count in state["counts"]]
        self._gram, self._moment = state["gram"].clone(), state["moment"].clone()
        self._square, self._weight = float(state["square"]), float(state["weight"])
        self._features = state["features"].clone()
        self._accuracy, self._immediate = float(state["accuracy"]), float(state["known"])

    def _reward(self, accuracy: float) -> None:
        """Add the gain of the last choice to the regression."""
        # The choice is rewarded by the features of its own time, not by the present ones.
        gain = self.settings.accuracy * (accuracy - self._accuracy)
        self.last = gain + self._immediate
        retained, x = 1.0 - FORGET, self._features
        self._gram = retained * self._gram + torch.outer(x, x)
        self._moment = retained * self._moment + gain * x
        self._square = retained * self._square + gain**2
        self._weight = retained * self._weight + 1.0

    def _predict(self, features: Tensor) -> tuple[list[float], list[float]]:
        """Expected gain and its standard error for each row of features `[T, D]`; zeros before the first reward."""
        # The identity of the ridge is added here and not in the running sum, where it would be discounted away.
        precision = self._gram + torch.eye(len(self._gram), dtype=torch.float64)
        theta = torch.linalg.solve(precision, self._moment)
        # The minimum of the penalised sum of squares. After a single gain, which the regression could fit exactly, the
        # penalty keeps it above 0, so that even then the standard error has the size of the gain.
        residual = max(0.0, self._square - float(self._moment @ theta))
        variance = residual / self._weight if self._weight else 0.0
        leverage = (features * torch.linalg.solve(precision, features.T).T).sum(dim=1)
        return (features @ theta).tolist(), (variance * leverage).sqrt().tolist()
