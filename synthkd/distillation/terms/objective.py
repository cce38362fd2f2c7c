"""The student's objective: its loss terms by name, with their inputs and weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, Protocol

import torch
from torch import Tensor

from synthkd.errors import ConfigError
from synthkd.imports import resolve
from synthkd.losses import logits as losses
from synthkd.losses.objective import Objective
from synthkd.settings import Curve, DecoupledTerm, DistillSettings, OnlineSettings, Schedule, by_name
from synthkd.types import Batch

Term = Callable[["StudentView"], Tensor]
"""A loss term: a scalar with gradient."""
Origin = Literal["logits", "features", "own"]
"""Where a term comes from: a teacher's logits, its features, or neither of them ("own")."""


@dataclass(frozen=True)
class StudentView:
    """The inputs of the terms of the student's objective.

    Attributes:
        batch: images, labels and importance weights.
        teacher: logits `[N, K]` of the frozen teacher, or of the student that teaches at present; None without either.
        student: the student's logits `[N, K]`, with gradient.
        temperature: T of the soft labels at this step.
        student_features: module path -> features of the student; empty unless a term compares some.
        transferred: name -> scalar with gradient: the terms that the auxiliary layers computed.
        averaged: logits `[N, K]` by the average of the student's weights, without gradient; None if nothing needs them.
        others: logits `[N, K]` of each student that learns together with this one, without gradient.
        mutual_temperature: T of the mutual term at this step.
    """

    batch: Batch
    teacher: Tensor | None
    student: Tensor
    temperature: float
    student_features: Mapping[str, Tensor] = field(default_factory=dict)
    transferred: Mapping[str, Tensor] = field(default_factory=dict)
    averaged: Tensor | None = None
    others: tuple[Tensor, ...] = ()
    mutual_temperature: float = 1.0


class Regulator(Protocol):
    """Moves the width of a student; `synthkd.distillation.control.width.WidthRegulator` is one."""

    @property
    def student_places(self) -> tuple[str, ...]:
        """Module paths of the student whose features `update` needs."""
        ...

    def penalty(self) -> Tensor:
        """A scalar with gradient that is added to the loss."""
        ...

    def update(self, gradient: float, view: StudentView) -> dict[str, float]:
        """Adapt the width after a step.

        Args:
            gradient: norm of the gradient of this step.
            view: of this step, with the teacher's logits.

        Returns:
            What is logged, by name.
        """
        ...


@dataclass(frozen=True)
class Terms:
    """The loss terms of a student.

    Attributes:
        objective: the terms and their weights.
        origins: name of a term -> where it comes from.
    """

    objective: Objective[StudentView]
    origins: Mapping[str, Origin]


def terms_of(
    settings: DistillSettings,
    transfer: Mapping[str, tuple[Schedule, Origin]] | None = None,
    regulator: Regulator | None = None,
    online: OnlineSettings | None = None,
) -> Terms:
    """The terms `alpha CE + (1 - alpha) T^2 KL + logit_match |.|`, those of features and peers, and a user's own.

    Args:
        settings: temperature and weights.
        transfer: weight and origin of the terms that a view holds as `transferred`.
        regulator: of a student that changes its width, else None.
        online: mutual learning with peers, or None.

    Returns:
        The terms; a term of the user's own raises `ConfigError` when it is called and fails, or gives no loss.

    Raises:
        ConfigError: a term of the user's own that cannot be imported.
    """
    terms: dict[str, tuple[Term, Schedule, Origin]] = {
        "soft": (
            partial(_soft, standardise=settings.standardise),
            _one_minus(settings.alpha) if settings.soft is None else settings.soft,
            "logits",
        ),
        "hard": (_hard, settings.alpha, "own"),
        "logit_match": (_matched, settings.logit_match, "logits"),
        "average": (_average, settings.average, "own"),
    }
    for name, term in by_name([term for term in settings.transfer if isinstance(term, DecoupledTerm)]).items():
        terms[name] = (partial(_decoupled, alpha=term.alpha, beta=term.beta), term.weight, "logits")
    for name, (weight, origin) in (transfer or {}).items():
        terms[name] = (partial(_transferred, name=name), weight, origin)
    if online is not None:
        terms["mutual"] = (_mutual, online.mutual, "own")
    if regulator is not None:
        terms["width"] = (lambda _: regulator.penalty(), 1.0, "own")
    for target, weight in settings.terms.items():
        terms[target] = (_own(target), weight, "own")
    functions = {name: term for name, (term, _, _) in terms.items()}
    weights = {name: weight for name, (_, weight, _) in terms.items()}
    return Terms(Objective(functions, weights), {name: origin for name, (_, _, origin) in terms.items()})


def _soft(view: StudentView, standardise: bool) -> Tensor:
    # This student teaches the others, and there is no frozen teacher. The 0 has a gradient, so that backward works even
    # if it is the only term.
    if view.teacher is None:
        return view.student.sum() * 0.0
    teacher, student = view.teacher, view.student
    if standardise:
        teacher, student = losses.standardised(teacher), losses.standardised(student)
    return losses.distillation_loss(teacher, student, view.temperature, view.batch.weights)


def _matched(view: StudentView) -> Tensor:
    assert view.teacher is not None
    return losses.centred_difference(view.teacher, view.student, view.batch.weights)


def _average(view: StudentView) -> Tensor:
    assert view.averaged is not None
    return losses.distillation_loss(view.averaged, view.student, view.temperature, view.batch.weights)


def _mutual(view: StudentView) -> Tensor:
    """Deep mutual learning (Zhang et al. 2018, with T = 1): the mean of `T^2 KL(other || student)` over the others."""
    temperature, weights = view.mutual_temperature, view.batch.weights
    return torch.stack([losses.distillation_loss(o, view.student, temperature, weights) for o in view.others]).mean()


def _decoupled(view: StudentView, alpha: float, beta: float) -> Tensor:
    assert view.teacher is not None
    # The target is the class that the teacher predicts, since mixtures have no other label.
    predicted = view.teacher.argmax(dim=1)
    return losses.decoupled(view.teacher, view.student, predicted, view.temperature, alpha, beta, view.batch.weights)


def _transferred(view: StudentView, name: str) -> Tensor:
    return view.transferred[name]


def _hard(view: StudentView) -> Tensor:
    batch = view.batch
    if batch.annotated is None:
        return losses.hard_label(view.student, batch.labels, batch.weights)
    # With real images in the run, only labels that people gave are hard labels; the class that a generator was asked
    # for may not be what its image shows.
    rows, weights = batch.annotated, batch.weights
    if not rows.any():  # no annotated image was drawn, or all of them are in mixtures
        return view.student.sum() * 0.0
    return losses.hard_label(view.student[rows], batch.labels[rows], None if weights is None else weights[rows])


def _own(target: str) -> Term:
    """A loss of the user's own; errors in it name it."""
    function = resolve(target, "distill.terms", None)

    def term(view: StudentView) -> Tensor:
        try:
            loss = function(view)
        except Exception as error:  # the user's code may raise anything
            raise ConfigError(f"{usage}, and failed: {error!r}") from error
        if not isinstance(loss, Tensor):
            raise ConfigError(f"{usage}, and gave a {type(loss).__name__}")
        if loss.dim() or loss.requires_grad != view.student.requires_grad:
            raise ConfigError(f"{usage}, and gave shape {list(loss.shape)}, requires_grad {loss.requires_grad}")
        return loss

    usage = f"distill.terms: {target} is called with a StudentView to give a scalar tensor with gradient"
    return term


def _one_minus(schedule: Schedule) -> Schedule:
    if isinstance(schedule, Curve):
        return schedule.model_copy(update={"start": 1.0 - schedule.start, "end": 1.0 - schedule.end})
    return 1.0 - schedule
