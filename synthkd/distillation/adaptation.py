"""Looks at the students while they learn, and what follows from them: temperature, weights, strength, roles."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthkd.adaptive import AdaptiveWeights, StrengthController
from synthkd.distillation.roles import Roles
from synthkd.distillation.selection import TeacherSelection
from synthkd.distillation.settings import AdaptSettings
from synthkd.distillation.team import TeacherTeam
from synthkd.distillation.terms import Origin
from synthkd.losses.logits import kl_divergence
from synthkd.monitor import series
from synthkd.progress import stability, transfer_efficiency
from synthkd.schedules import TemperatureController
from synthkd.taps import evaluating
from synthkd.types import Stateful

CHUNK = 250
LAST = 5
"""Looks over which the stability of a run is taken."""


@dataclass(frozen=True)
class Probe:
    """Images that the students are asked about and do not learn from.

    Attributes:
        images: float32 `[N, C, H, W]` in [0, 1].
        labels: int64 `[N]`, annotated; None where the teacher's answers stand for them.
        teacher_logits: float32 `[N, K]`, or None without a teacher.
    """

    images: Tensor
    labels: Tensor | None
    teacher_logits: Tensor | None


class Adaptation:
    """Looks at the students every so often, and lets what the settings ask for follow.

    A capacity is the accuracy on the probe, of the student and of the frozen teacher, whoever teaches just now; where
    the teacher's answers stand for labels, its own is 1. The loss that the temperature follows is the cross-entropy to
    the labels.

    Args:
        settings: what adapts.
        students: modules as they are evaluated, the student first, then its peers.
        probe: the images of the moment, or None while there are none.
        roles: who teaches, where that may change.
        team: several teachers, where one of them is selected.
        selection: selects it.

    Attributes:
        temperature, weights, strength: controllers, or None.
    """

    def __init__(
        self,
        settings: AdaptSettings,
        students: Callable[[], Sequence[nn.Module]],
        probe: Callable[[], Probe | None],
        roles: Roles | None = None,
        team: TeacherTeam | None = None,
        selection: TeacherSelection | None = None,
    ) -> None:
        self.every = settings.every
        self.temperature = None if settings.temperature is None else TemperatureController(settings.temperature)
        self.weights = None if settings.weights is None else AdaptiveWeights(settings.weights)
        self.strength = None if settings.strength is None else StrengthController(settings.strength)
        self.roles = roles
        self._students = students
        self._probe = probe
        self._team = team
        self._selection = selection
        self._efficiency: dict[str, Any] | None = None

    @property
    def teaching(self) -> int | None:
        """Number of the network whose answers are the soft labels; None: the frozen teacher."""
        return None if self.roles is None else self.roles.teaching

    @property
    def selected(self) -> list[int] | None:
        """How often each teacher was selected; None where none is."""
        return None if self._selection is None else list(self._selection.counts)

    def factor(self, origin: Origin) -> float:
        """What the weight of a term is multiplied by at present."""
        factor = 1.0
        if self.strength is not None and origin != "own":
            factor *= self.strength.value
        if self.weights is not None:
            factor *= 2.0 * (self.weights.value if origin == "answers" else self.weights.other)
        return factor

    def __call__(self, step: int) -> dict[str, Tensor | float]:
        """One look, at the student's own 0-based step; returns what is worth logging."""
        probe = self._probe()
        if probe is None:
            return {}
        labels, taught = probe.labels, probe.teacher_logits
        if labels is None:
            assert taught is not None
            labels = taught.argmax(dim=1)
        answers = [_answers(student, probe.images) for student in self._students()]
        accuracies = [float((said.argmax(dim=1) == labels).float().mean()) for said in answers]
        loss = float(F.cross_entropy(answers[0], labels))
        logged: dict[str, Tensor | float] = {"look/accuracy": accuracies[0], "look/loss": loss}
        logged |= {f"look/accuracy of peer {n}": value for n, value in enumerate(accuracies[1:], start=1)}
        teacher = 0.0
        if taught is not None:
            efficiency = transfer_efficiency(taught, answers[0])
            logged["look/transfer_efficiency"] = efficiency.value
            self._efficiency = asdict(efficiency)
            teacher = float((taught.argmax(dim=1) == labels).float().mean())
        if self.temperature is not None:
            logged["adapt/temperature"] = self.temperature.update(loss)
        if self.weights is not None and teacher:
            logged["adapt/weight_of_answers"] = self.weights.update(accuracies[0], teacher)
        if self.strength is not None and teacher:
            logged["adapt/strength"] = self.strength.update(step, accuracies[0], teacher)
            logged["adapt/gap"] = self.strength.points[-1][1]
            if (curve := self.strength.curve) is not None:
                logged["adapt/gap_fitted"] = curve.at(step)
        if self.roles is not None:
            self.roles.update(accuracies)
            logged["adapt/teaching"] = float(self.roles.teaching)
        if self._selection is not None and self._team is not None:
            theirs = self._team.answers(probe.images)
            divergences = [float(kl_divergence(said, answers[0]).mean()) for said in theirs]
            self._team.selected = self._selection.choose(accuracies[0], divergences, self._team.costs)
            logged |= {"adapt/selected_teacher": float(self._team.selected), "adapt/reward": self._selection.last}
        return logged

    def outcome(self, names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What the looks came to, for the result of a run.

        Args:
            names: of the students, in the order of their numbers.
            rows: of the run's log.
        """
        accuracies = series(rows, "look/accuracy")[1][1:]  # the first look is at a student that has learned nothing
        found: dict[str, Any] = {
            "every": self.every,
            "accuracy": accuracies[-1] if accuracies else None,
            "stability": stability(accuracies, LAST),
            "stability_of": min(LAST, len(accuracies)),
            "transfer_efficiency": self._efficiency,
        }
        if self.strength is not None and (curve := self.strength.curve) is not None:
            threshold = self.strength.settings.threshold
            below = curve.below(threshold)
            found["gap"] = {
                **{name: getattr(curve, name) for name in ("alpha", "beta", "gamma", "start", "n")},
                "errors": [error if math.isfinite(error) else None for error in curve.errors],
                "threshold": threshold,
                "below_from_step": below if math.isfinite(below) else None,
            }
        if self.roles is not None:
            found["teaching"] = names[self.roles.teaching]
        if self.selected is not None:
            found["selected"] = self.selected
        return found

    def _parts(self) -> dict[str, Stateful]:
        parts = {
            "temperature": self.temperature,
            "weights": self.weights,
            "strength": self.strength,
            "roles": self.roles,
            "selection": self._selection,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def state_dict(self) -> dict[str, Any]:
        selected = {} if self._team is None else {"selected": self._team.selected}
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        return parts | selected | {"efficiency": self._efficiency}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._efficiency = state["efficiency"]
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        if self._team is not None:
            self._team.selected = int(state["selected"])


def _answers(student: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad(), evaluating(student):
        return torch.cat([student(part).float() for part in images.split(CHUNK)])
