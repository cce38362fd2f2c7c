"""What a controller is: it follows evaluations of the student, and multiplies weights of loss terms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from synthkd.distillation.terms.objective import Origin
from synthkd.types import Stateful


@dataclass(frozen=True)
class Evaluation:
    """An evaluation of the students on held-out images.

    Attributes:
        step: the student's own, 0-based. At 0 it has learned nothing, so that nothing moves which answers to how well
            it does.
        loss: its cross-entropy to the labels, nats.
        accuracies: in [0, 1], the student's first, then those of its peers.
        teacher: accuracy of the frozen teacher; 0 where there is none, or it is never right.
        divergences: mean KL(teacher || student) of each of several teachers, nats; empty where none is selected.
        costs: of each of these teachers, as `TeacherTeam.costs`.
    """

    step: int
    loss: float
    accuracies: tuple[float, ...]
    teacher: float = 0.0
    divergences: tuple[float, ...] = ()
    costs: tuple[float, ...] = ()


class Controller(Stateful, Protocol):
    """What follows the evaluations of the student."""

    def follow(self, evaluation: Evaluation) -> dict[str, float]:
        """Take an evaluation and return what is logged."""
        ...

    def factor(self, origin: Origin) -> float:
        """What the weight of a term is multiplied by at present."""
        return 1.0

    def outcome(self, names: Sequence[str]) -> dict[str, Any]:
        """What the evaluations came to, JSON-able; `names` are those of the students by number."""
        return {}
