"""One step of the student: a batch, the objective, an update."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from synthkd.data.bank import MemoryBank
from synthkd.imports import resolve
from synthkd.losses import logits as losses
from synthkd.losses.objective import Objective
from synthkd.schedules import value_at
from synthkd.settings import Curve, DistillSettings, Schedule
from synthkd.training.learner import Learner
from synthkd.types import Batch, BatchSource

Term = Callable[["StudentView"], Tensor]


@dataclass(frozen=True)
class StudentView:
    """What a term of the student's objective sees.

    Attributes:
        batch: images, labels and importance weights.
        teacher: teacher logits `[N, K]`.
        student: student logits `[N, K]`, with gradient.
        temperature: T of the soft labels at this step.
    """

    batch: Batch
    teacher: Tensor
    student: Tensor
    temperature: float


def objective(settings: DistillSettings) -> Objective[StudentView]:
    """`alpha CE + (1 - alpha) T^2 KL + logit_match |.|` and the user's own terms."""
    terms: dict[str, Term] = {
        "soft": lambda v: losses.distillation(v.teacher, v.student, v.temperature, v.batch.weights),
        "hard": lambda v: losses.hard_label(v.student, v.batch.labels, v.batch.weights),
        "logit_match": lambda v: losses.centred_difference(v.teacher, v.student, v.batch.weights),
    }
    weights: dict[str, Schedule] = {
        "soft": _one_minus(settings.alpha),
        "hard": settings.alpha,
        "logit_match": settings.logit_match,
    }
    for target, weight in settings.terms.items():
        terms[target] = resolve(target, "distill.terms")
        weights[target] = weight
    return Objective(terms, weights)


def _one_minus(schedule: Schedule) -> Schedule:
    if isinstance(schedule, Curve):
        return schedule.model_copy(update={"start": 1.0 - schedule.start, "end": 1.0 - schedule.end})
    return 1.0 - schedule


class DistillStep:
    """Draws a batch, compares student and teacher, updates the student, and reprioritises what was drawn.

    Args:
        learner: the student with its optimiser.
        source: batches with teacher logits.
        settings: temperature and weights.
        accelerator: precision and processes.
        bank: where priorities go, or None when draws are not prioritized.
    """

    def __init__(
        self,
        learner: Learner,
        source: BatchSource,
        settings: DistillSettings,
        accelerator: Accelerator,
        bank: MemoryBank | None = None,
    ) -> None:
        self._learner = learner
        self._source = source
        self._settings = settings
        self._objective = objective(settings)
        self._accelerator = accelerator
        self._bank = bank

    def __call__(self, step: int) -> dict[str, Tensor | float]:
        """The student's own 0-based step; returns what is worth logging."""
        batch = self._source.batch(step)
        assert batch.teacher_logits is not None
        self._learner.model.train()
        with self._accelerator.autocast():
            student = self._learner.model(batch.images)
        total = self._learner.total
        temperature = value_at(self._settings.temperature, step, total)
        view = StudentView(batch, batch.teacher_logits, student.float(), temperature)
        logged = self._learner.update(self._objective(view, step, total), step)
        if self._bank is not None and batch.slots is not None:
            self._reprioritise(self._bank, batch.slots, view)
        return logged | {"student/agreement": losses.agreement(view.teacher, view.student.detach())}

    def _reprioritise(self, bank: MemoryBank, slots: Tensor, view: StudentView) -> None:
        """Priority is the divergence from the teacher; mixtures and foreign rows have slot -1 and keep theirs."""
        with torch.no_grad():
            divergence = losses.kl_divergence(view.teacher, view.student) + 1e-6
        slots, divergence = self._accelerator.gather((slots, divergence))
        mine = slots >= 0
        bank.reprioritise(slots[mine].cpu(), divergence[mine].cpu())
