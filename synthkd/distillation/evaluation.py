"""Periodic evaluation of the students on held-out images; it drives the controllers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthkd.distillation.control.controller import Evaluation, Outcome
from synthkd.distillation.control.controllers import Controllers
from synthkd.distillation.phases import rounds_alone
from synthkd.distillation.teachers import TeacherTeam
from synthkd.losses.logits import kl_divergence
from synthkd.metrics.transfer import stability, transfer_efficiency
from synthkd.passes import in_chunks
from synthkd.settings import PhaseSettings
from synthkd.taps import evaluating
from synthkd.training.monitor import Row, series

CHUNK = 250
"""Images of one forward pass, if nothing else is said."""
LAST = 5
"""Number of evaluations at the end of a run whose spread is its stability."""


@dataclass(frozen=True)
class HeldOut:
    """Held-out images: the students are evaluated on them and do not learn from them.

    Attributes:
        images: float32 `[N, C, H, W]` in [0, 1].
        labels: int64 `[N]`, annotated; None if the teacher's predictions take the place of labels.
        teacher_logits: float32 `[N, K]`, or None without a teacher, in which case there are labels.
    """

    images: Tensor
    labels: Tensor | None
    teacher_logits: Tensor | None

    @property
    def targets(self) -> Tensor:
        """Labels int64 `[N]`: the annotated ones, else the teacher's predictions."""
        if self.labels is not None:
            return self.labels
        assert self.teacher_logits is not None
        return self.teacher_logits.argmax(dim=1)


@dataclass
class PeriodicEvaluation:
    """Evaluates the students at intervals, and passes each evaluation to the controllers.

    Controllers compare two accuracies on the held-out images: the student's and the frozen teacher's, also while a peer
    teaches. If the teacher's predictions take the place of labels, its own accuracy is 1. The temperature follows the
    cross-entropy of the student to the labels.

    Attributes:
        every: student steps between two evaluations.
        students: returns the modules to evaluate, the student first, then its peers.
        held_out: returns the present held-out images, or None while there are none.
        controllers: follow each evaluation.
        team: several teachers of which one is selected, or None.
        batch_size: largest number of images of a pass.
        efficiency: the fields of the latest transfer efficiency; None before the first.
    """

    every: int
    students: Callable[[], Sequence[nn.Module]]
    held_out: Callable[[], HeldOut | None]
    controllers: Controllers
    team: TeacherTeam | None = None
    batch_size: int = CHUNK
    efficiency: dict[str, Any] | None = field(default=None, init=False)

    def __call__(self, step: int) -> dict[str, Tensor | float]:
        """Evaluate the students and let the controllers follow.

        Args:
            step: the student's own, 0-based.

        Returns:
            What is logged, by name; empty without held-out images.
        """
        held_out = self.held_out()
        if held_out is None:
            return {}
        labels, teacher = held_out.targets, held_out.teacher_logits
        logits = [self._logits(student, held_out.images) for student in self.students()]
        accuracies = tuple(_accuracy(one, labels) for one in logits)
        # Of every teacher, also those that do not label at present: the selection compares them all.
        team_logits = [] if self.team is None else self._team_logits(self.team, held_out.images)
        evaluation = Evaluation(
            step=step,
            loss=float(F.cross_entropy(logits[0], labels)),
            accuracies=accuracies,
            teacher=0.0 if teacher is None else _accuracy(teacher, labels),
            divergences=tuple(float(kl_divergence(one, logits[0]).mean()) for one in team_logits),
            costs=() if self.team is None else self.team.costs,
        )
        logged: dict[str, Tensor | float] = {"evaluation/accuracy": accuracies[0], "evaluation/loss": evaluation.loss}
        logged |= {f"evaluation/accuracy of peer {number}": accuracies[number] for number in range(1, len(accuracies))}
        if teacher is not None:
            efficiency = transfer_efficiency(teacher, logits[0])
            logged["evaluation/transfer_efficiency"] = efficiency.value
            self.efficiency = asdict(efficiency)
        return logged | self.controllers.follow(evaluation)

    def outcome(self, names: Sequence[str], rows: Sequence[Row], phases: Sequence[PhaseSettings] = ()) -> Outcome:
        """The summary of all evaluations, for the result of a run.

        Args:
            names: of the students, the student's first.
            rows: of the run's log.
            phases: of the run; where the generator takes no round alone, none need be given.
        """
        measured = zip(*series(rows, "evaluation/accuracy"), strict=True)
        # An evaluation at the student's first step comes before it has learned anything.
        accuracies = [accuracy for step, accuracy in measured if step - rounds_alone(phases, step) > 1]
        outcome: Outcome = {
            "every": self.every,
            "accuracy": accuracies[-1] if accuracies else None,
            "stability": stability(accuracies, LAST),
            "stability_of": min(LAST, len(accuracies)),
            "transfer_efficiency": self.efficiency,
        }
        return outcome | self.controllers.outcome(names)

    def _logits(self, student: nn.Module, images: Tensor) -> Tensor:
        with torch.no_grad(), evaluating(student):
            return in_chunks(lambda chunk: student(chunk).float(), self.batch_size, images)

    def _team_logits(self, team: TeacherTeam, images: Tensor) -> list[Tensor]:
        # The images come first in what a chunk gives, the teachers second.
        by_image = in_chunks(lambda chunk: team.separate_logits(chunk).transpose(0, 1), self.batch_size, images)
        return list(by_image.unbind(1))

    def state_dict(self) -> dict[str, Any]:
        """The states of the controllers by name, and the latest transfer efficiency as `efficiency`."""
        return self.controllers.state_dict() | {"efficiency": self.efficiency}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.efficiency = state["efficiency"]
        self.controllers.load_state_dict(state)


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(dim=1) == labels).float().mean())
