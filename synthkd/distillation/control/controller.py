"""The interface of controllers: they follow evaluations of the student and scale the weights of loss terms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypedDict

from synthkd.distillation.terms.objective import Origin
from synthkd.types import Stateful


@dataclass(frozen=True)
class Evaluation:
    """An evaluation of the students on held-out images.

    Attributes:
        step: the student's own, 0-based. At step 0 it has learned nothing, so controllers that adapt to its loss or
            its accuracy do not move yet.
        loss: the student's cross-entropy to the labels, nats.
        accuracies: in [0, 1], the student's first, then those of its peers.
        teacher: accuracy of the frozen teacher in [0, 1]; 0 without a teacher, or if it is never right.
        divergences: mean KL(teacher || student) of each of several teachers, nats; empty unless one is selected.
        costs: of each of these teachers in [0, 1], as `TeacherTeam.costs`.
    """

    step: int
    loss: float
    accuracies: tuple[float, ...]
    teacher: float = 0.0
    divergences: tuple[float, ...] = ()
    costs: tuple[float, ...] = ()


class Outcome(TypedDict, total=False):
    """The summary of all evaluations of a run, as `result.json` has it.

    Attributes:
        every: student steps between two evaluations.
        accuracy: of the student at the last evaluation, in [0, 1]; None without an evaluation.
        stability: standard deviation of the accuracy over the last evaluations; None for fewer than two.
        stability_of: the number of these evaluations.
        transfer_efficiency: the fields of `synthkd.metrics.transfer.TransferEfficiency` at the last evaluation; None
            without a teacher.
        gap: the fields of `synthkd.metrics.transfer.GapCurve`, the threshold, and the step from which the curve is
            below it; only if the strength of distillation adapts.
        teaching: name of the student that teaches at the end; only if roles are swapped.
        selected: how often each teacher was selected; only if one of several is.
    """

    every: int
    accuracy: float | None
    stability: float | None
    stability_of: int
    transfer_efficiency: dict[str, Any] | None
    gap: dict[str, Any]
    teaching: str
    selected: list[int]


class Controller(Stateful, Protocol):
    """A part of the run that adapts to the evaluations of the student."""

    def follow(self, evaluation: Evaluation) -> dict[str, float]:
        """Adapt to one evaluation.

        Returns:
            What is logged, by name.
        """
        ...

    def factor(self, origin: Origin) -> float:
        """The present factor on the weight of a term.

        Args:
            origin: where the term comes from.
        """
        return 1.0

    def outcome(self, names: Sequence[str]) -> Outcome:
        """This controller's part of the summary of all evaluations.

        Args:
            names: of the students, the student's first.
        """
        return {}
