"""Looks at the students while they learn, and what follows from them: temperature, weights, strength, roles."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthkd.distillation.control.capacity import AdaptiveWeights, StrengthController
from synthkd.distillation.control.controller import Controller, Look
from synthkd.distillation.control.roles import Roles
from synthkd.distillation.control.selection import TeacherSelection
from synthkd.distillation.control.temperature import LossTemperature
from synthkd.distillation.team import TeacherTeam
from synthkd.distillation.terms.objective import Origin
from synthkd.losses.logits import kl_divergence
from synthkd.metrics.transfer import stability, transfer_efficiency
from synthkd.settings import AdaptSettings
from synthkd.taps import evaluating
from synthkd.training.monitor import series

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
        temperature, weights, strength, roles: controllers, or None.
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
        self.temperature = None if settings.temperature is None else LossTemperature(settings.temperature)
        self.weights = None if settings.weights is None else AdaptiveWeights(settings.weights)
        self.strength = None if settings.strength is None else StrengthController(settings.strength)
        self.roles = roles
        self._students, self._probe, self._team, self._selection = students, probe, team, selection
        if team is not None:
            team.selection = selection
        controllers: dict[str, Controller | None] = {
            "temperature": self.temperature,
            "weights": self.weights,
            "strength": self.strength,
            "roles": roles,
            "selection": selection,
        }
        self._controllers = {name: one for name, one in controllers.items() if one is not None}
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
        return math.prod(one.factor(origin) for one in self._controllers.values())

    def __call__(self, step: int) -> dict[str, Tensor | float]:
        """One look, at the student's own 0-based step; returns what is worth logging."""
        probe = self._probe()
        if probe is None:
            return {}
        labels, taught, team = probe.labels, probe.teacher_logits, self._team
        if labels is None:
            assert taught is not None
            labels = taught.argmax(dim=1)
        answers = [_answers(student, probe.images) for student in self._students()]
        theirs = [] if team is None else list(team.answers(probe.images))
        look = Look(
            step=step,
            loss=float(F.cross_entropy(answers[0], labels)),
            accuracies=tuple(_accuracy(said, labels) for said in answers),
            teacher=0.0 if taught is None else _accuracy(taught, labels),
            divergences=tuple(float(kl_divergence(said, answers[0]).mean()) for said in theirs),
            costs=() if team is None else team.costs,
        )
        logged: dict[str, Tensor | float] = {"evaluation/accuracy": look.accuracies[0], "evaluation/loss": look.loss}
        logged |= {f"evaluation/accuracy of peer {n}": value for n, value in enumerate(look.accuracies) if n > 0}
        if taught is not None:
            efficiency = transfer_efficiency(taught, answers[0])
            logged["evaluation/transfer_efficiency"] = efficiency.value
            self._efficiency = asdict(efficiency)
        for one in self._controllers.values():
            logged |= one.follow(look)
        return logged

    def outcome(self, names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What the looks came to, for the result of a run.

        Args:
            names: of the students, in the order of their numbers.
            rows: of the run's log.
        """
        _, accuracies = series(rows, "evaluation/accuracy")
        accuracies = accuracies[1:]  # the first is of a student that has learned nothing
        found: dict[str, Any] = {
            "every": self.every,
            "accuracy": accuracies[-1] if accuracies else None,
            "stability": stability(accuracies, LAST),
            "stability_of": min(LAST, len(accuracies)),
            "transfer_efficiency": self._efficiency,
        }
        for one in self._controllers.values():
            found |= one.outcome(names)
        return found

    def state_dict(self) -> dict[str, Any]:
        states = {name: one.state_dict() for name, one in self._controllers.items()}
        return states | {"efficiency": self._efficiency}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._efficiency = state["efficiency"]
        for name, one in self._controllers.items():
            one.load_state_dict(state[name])


def _answers(student: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad(), evaluating(student):
        return torch.cat([student(part).float() for part in images.split(CHUNK)])


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(dim=1) == labels).float().mean())
