"""One step of the student: a batch, the objective, an update."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from synthkd.data.bank import MemoryBank
from synthkd.distillation.hints import Pair
from synthkd.errors import ConfigError
from synthkd.imports import resolve
from synthkd.losses import logits as losses
from synthkd.losses.objective import Objective
from synthkd.losses.relations import semantic_consistency
from synthkd.schedules import value_at
from synthkd.settings import Curve, DistillSettings, Schedule
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
        student_features: module path -> features of the student; empty unless `hint` or `semantic` compares some.
    """

    batch: Batch
    teacher: Tensor
    student: Tensor
    temperature: float
    student_features: Mapping[str, Tensor] = field(default_factory=dict)


class Regulator(Protocol):
    """A student that changes its own size, as `synthkd.compression.width.Slimmable` does."""

    def penalty(self) -> Tensor:
        """A scalar to add to the loss."""
        ...

    def update(self, gradient: float, similarity: float) -> dict[str, float]:
        """After a step: the norm of its gradient, and the agreement with the teacher; what is worth logging."""
        ...


def objective(
    settings: DistillSettings,
    hints: nn.Module | None = None,
    penultimate: Pair | None = None,
    regulator: Regulator | None = None,
) -> Objective[StudentView]:
    """`alpha CE + (1 - alpha) T^2 KL + logit_match |.| + hint + semantic + width`, and the user's own terms.

    Args:
        settings: temperature and weights.
        hints: (teacher features, student features) -> scalar; needed when `settings.hint` is not 0.
        penultimate: where both have their penultimate features; needed when `settings.semantic` is not 0.
        regulator: a student that changes its size.

    Raises:
        ConfigError: a weight without what it weighs, or a term that cannot be imported.
    """
    for name, needed in (("hint", hints), ("semantic", penultimate)):
        if getattr(settings, name) != 0.0 and needed is None:
            raise ConfigError(f"distill.{name}: a weight without features to compare; give them, or set it to 0")
    terms: dict[str, Term] = {
        "soft": lambda v: losses.distillation(v.teacher, v.student, v.temperature, v.batch.weights),
        "hard": _hard,
        "logit_match": lambda v: losses.centred_difference(v.teacher, v.student, v.batch.weights),
    }
    weights: dict[str, Schedule] = {
        "soft": _one_minus(settings.alpha),
        "hard": settings.alpha,
        "logit_match": settings.logit_match,
    }
    if hints is not None:
        terms["hint"] = lambda v: hints(v.batch.teacher_features, v.student_features)
        weights["hint"] = settings.hint
    if penultimate is not None:
        terms["semantic"] = lambda v: semantic_consistency(
            v.batch.teacher_features[penultimate.teacher], v.student_features[penultimate.student]
        )
        weights["semantic"] = settings.semantic
    if regulator is not None:
        terms["width"] = lambda v: regulator.penalty()  # noqa: ARG005
        weights["width"] = 1.0
    for target, weight in settings.terms.items():
        terms[target] = resolve(target, "distill.terms")
        weights[target] = weight
    return Objective(terms, weights)


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
        places: module paths of the student whose features the learner's helpers (the hints) compare.
        penultimate: where teacher and student have their penultimate features, where those are compared.
        regulator: the student itself, where it changes its size.
    """

    def __init__(
        self,
        learner: Learner,
        source: BatchSource,
        settings: DistillSettings,
        accelerator: Accelerator,
        bank: MemoryBank | None = None,
        places: Sequence[str] = (),
        penultimate: Pair | None = None,
        regulator: Regulator | None = None,
    ) -> None:
        self._learner = learner
        self._source = source
        self._settings = settings
        self._objective = objective(settings, learner.helpers, penultimate, regulator)
        # wrapped for several processes, the student is a child of the wrapper
        self._prefix = "" if learner.model is learner.module else "module."
        places = [*places, *([] if penultimate is None else [penultimate.student])]
        self._places = tuple(self._prefix + place for place in dict.fromkeys(places))
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
        view = StudentView(batch, batch.teacher_logits, seen.logits.float(), temperature, features)
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
