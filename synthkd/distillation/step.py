"""One step of the student: a batch, the objective, an update."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from synthkd.data.bank import MemoryBank
from synthkd.distillation.settings import DecoupledTerm, DistillSettings
from synthkd.distillation.transfer import Transfer
from synthkd.imports import resolve
from synthkd.losses import logits as losses
from synthkd.losses.objective import Objective
from synthkd.schedules import value_at
from synthkd.settings import Curve, Schedule
from synthkd.taps import observe
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
        student_features: module path -> features of the student; empty unless a term compares some.
        transferred: name -> scalar, what `synthkd.distillation.transfer` made of the features.
    """

    batch: Batch
    teacher: Tensor
    student: Tensor
    temperature: float
    student_features: Mapping[str, Tensor] = field(default_factory=dict)
    transferred: Mapping[str, Tensor] = field(default_factory=dict)


class Regulator(Protocol):
    """A student that changes its own size, as `synthkd.compression.width.Slimmable` does."""

    def penalty(self) -> Tensor:
        """A scalar to add to the loss."""
        ...

    def update(self, gradient: float, similarity: float) -> dict[str, float]:
        """After a step: the norm of its gradient, and the agreement with the teacher; what is worth logging."""
        ...


def objective(
    settings: DistillSettings, transfer: Mapping[str, Schedule] | None = None, regulator: Regulator | None = None
) -> Objective[StudentView]:
    """`alpha CE + (1 - alpha) T^2 KL + logit_match |.| + width`, transferred terms, and the user's own.

    Args:
        settings: temperature and weights.
        transfer: weights of the terms that a view holds as `transferred`.
        regulator: a student that changes its size.

    Raises:
        ConfigError: a term that cannot be imported.
    """
    terms: dict[str, Term] = {
        "soft": partial(_soft, standardise=settings.standardise),
        "hard": _hard,
        "logit_match": lambda v: losses.centred_difference(v.teacher, v.student, v.batch.weights),
    }
    weights: dict[str, Schedule] = {
        "soft": _one_minus(settings.alpha) if settings.soft is None else settings.soft,
        "hard": settings.alpha,
        "logit_match": settings.logit_match,
    }
    for number, term in enumerate(term for term in settings.transfer if isinstance(term, DecoupledTerm)):
        name = f"{term.kind} {number + 1}" if number else term.kind
        terms[name] = partial(_decoupled, alpha=term.alpha, beta=term.beta)
        weights[name] = term.weight
    for name, weight in (transfer or {}).items():
        terms[name] = partial(_transferred, name=name)
        weights[name] = weight
    if regulator is not None:
        terms["width"] = lambda v: regulator.penalty()  # noqa: ARG005
        weights["width"] = 1.0
    for target, weight in settings.terms.items():
        terms[target] = resolve(target, "distill.terms")
        weights[target] = weight
    return Objective(terms, weights)


def _soft(view: StudentView, standardise: bool) -> Tensor:
    teacher, student = view.teacher, view.student
    if standardise:
        teacher, student = losses.standardised(teacher), losses.standardised(student)
    return losses.distillation(teacher, student, view.temperature, view.batch.weights)


def _decoupled(view: StudentView, alpha: float, beta: float) -> Tensor:
    """Its target is the class that the teacher sees, since mixtures and generated images have no other."""
    seen = view.teacher.argmax(dim=1)
    return losses.decoupled(view.teacher, view.student, seen, view.temperature, alpha, beta, view.batch.weights)


def _transferred(view: StudentView, name: str) -> Tensor:
    return view.transferred[name]


def _hard(view: StudentView) -> Tensor:
    batch = view.batch
    if batch.annotated is None:
        return losses.hard_label(view.student, batch.labels, batch.weights)
    if not batch.annotated.any():  # none was drawn, or all of them went into mixtures
        return view.student.sum() * 0.0
    rows = batch.annotated
    return losses.hard_label(
        view.student[rows], batch.labels[rows], None if batch.weights is None else batch.weights[rows]
    )


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
        transfer: the terms that compare features, whose layers are the learner's helpers.
        regulator: the student itself, where it changes its size.
    """

    def __init__(
        self,
        learner: Learner,
        source: BatchSource,
        settings: DistillSettings,
        accelerator: Accelerator,
        bank: MemoryBank | None = None,
        transfer: Transfer | None = None,
        regulator: Regulator | None = None,
    ) -> None:
        self._learner = learner
        self._source = source
        self._settings = settings
        weights = {} if transfer is None else {name: term.weight for name, term in transfer.terms.items()}
        self._objective = objective(settings, weights, regulator)
        # wrapped for several processes, the student is a child of the wrapper
        self._prefix = "" if learner.model is learner.module else "module."
        self._places = () if transfer is None else tuple(self._prefix + place for place in transfer.student_places)
        self._accelerator = accelerator
        self._bank = bank
        self._regulator = regulator

    def __call__(self, step: int) -> dict[str, Tensor | float]:
        """The student's own 0-based step; returns what is worth logging."""
        batch = self._source.batch(step)
        assert batch.teacher_logits is not None
        self._learner.model.train()
        with self._accelerator.autocast():
            seen = observe(self._learner.model, batch.images, self._places)
        total = self._learner.total
        temperature = value_at(self._settings.temperature, step, total)
        features = {path.removeprefix(self._prefix): value for path, value in seen.features.items()}
        helpers = self._learner.helpers
        transferred = {} if helpers is None else helpers(batch.teacher_features, features, step)
        view = StudentView(batch, batch.teacher_logits, seen.logits.float(), temperature, features, transferred)
        logged = self._learner.update(self._objective(view, step, total), step)
        if self._bank is not None and batch.slots is not None:
            self._reprioritise(self._bank, batch.slots, view)
        agreement = losses.agreement(view.teacher, view.student.detach())
        if self._regulator is not None:
            logged |= self._regulator.update(float(logged[f"{self._learner.name}/gradient_norm"]), float(agreement))
        return logged | {"student/agreement": agreement}

    def _reprioritise(self, bank: MemoryBank, slots: Tensor, view: StudentView) -> None:
        """Priority is the divergence from the teacher; mixtures and foreign rows have slot -1 and keep theirs."""
        with torch.no_grad():
            divergence = losses.kl_divergence(view.teacher, view.student) + 1e-6
        slots, divergence = self._accelerator.gather((slots, divergence))
        mine = slots >= 0
        bank.reprioritise(slots[mine].cpu(), divergence[mine].cpu())
