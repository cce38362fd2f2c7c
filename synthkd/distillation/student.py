"""A trainable network with its optimizer, its loss terms and the controllers of their weights."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from synthkd.data.bank import MemoryBank
from synthkd.data.sources import Labeller
from synthkd.distillation.control.controllers import Controllers
from synthkd.distillation.terms.auxiliary import AuxiliaryLayers
from synthkd.distillation.terms.contrast import ExtraImages
from synthkd.distillation.terms.objective import Regulator, StudentView, Terms, terms_of
from synthkd.losses.logits import agreement
from synthkd.losses.objective import Loss
from synthkd.schedules import ever, value_at
from synthkd.settings import DistillSettings, OnlineSettings, OptimizerSettings
from synthkd.taps import evaluating, observe
from synthkd.training.learner import Learner
from synthkd.types import Batch


class Student:
    """Runs the forward pass, builds the loss from its own, the teacher's and its peers' logits, and is updated.

    The student of a run and each of its peers is one of these.

    Args:
        learner: the network with its optimizer; `auxiliary` are its helpers.
        settings: temperature and weights.
        accelerator: precision.
        auxiliary: layers of the feature, contrastive and exit losses, or None.
        terms: the objective; None: that of the settings alone.
        controllers: move the temperature and the weights of this student; a peer has none that move anything.
        teacher: labels the extra images of the contrastive losses.
        bank: negatives of the contrastive losses are drawn from it.
        regulator: the network itself, where it changes its width.
        online: mutual learning with peers, or None.

    Attributes:
        learner, auxiliary, terms, teacher: as given.
    """

    def __init__(
        self,
        learner: Learner,
        settings: DistillSettings,
        accelerator: Accelerator,
        auxiliary: AuxiliaryLayers | None = None,
        terms: Terms | None = None,
        controllers: Controllers | None = None,
        teacher: Labeller | None = None,
        bank: MemoryBank | None = None,
        regulator: Regulator | None = None,
        online: OnlineSettings | None = None,
    ) -> None:
        self.learner = learner
        self.auxiliary = auxiliary
        self.terms = terms_of(settings) if terms is None else terms
        self._settings = settings
        self._accelerator = accelerator
        self._controllers = Controllers() if controllers is None else controllers
        self.teacher = teacher
        self._bank = bank
        self._regulator = regulator
        self._online = online
        self._teaches_by_average = online is not None and online.averaged
        # Wrapped for several processes, the student is a child of the wrapper, and so are its layers.
        self._prefix = "" if learner.model is learner.module else "module."
        self._places = () if auxiliary is None else tuple(self._prefix + place for place in auxiliary.student_places)

    @property
    def name(self) -> str:
        """Its name in logs and errors: "student", "peer 1", ..."""
        return self.learner.name

    def forward(self, batch: Batch, step: int, training: bool = True) -> StudentView:
        """One forward pass over the batch and its extra images, with gradient.

        Args:
            batch: images with the teacher's logits.
            step: 0-based step of the student.
            training: False leaves BatchNorm moments and dropout of the network untouched.

        Returns:
            All that the loss terms read; the logits of peers are still missing.
        """
        total = self.learner.total
        extra = None if self.auxiliary is None else self.auxiliary.extra_images(batch, step, self._bank)
        if training:
            self.learner.model.train()
        with nullcontext() if training else evaluating(self.learner.model):
            logits, features, view_features = self._run(batch.images, None if extra is None else extra.views)
        temperature = self._controllers.temperature
        if temperature is None:
            temperature = value_at(self._settings.temperature, step, total)
        # The average of the weights takes a pass of its own; it is skipped while no term needs it.
        average = self._settings.average
        needs_average = value_at(average, step, total) != 0.0 if training else ever(average)
        return StudentView(
            batch=batch,
            teacher=batch.teacher_logits,
            student=logits,
            temperature=temperature,
            student_features=features,
            transferred=self._auxiliary_terms(batch, features, logits, temperature, step, extra, view_features),
            averaged=self._averaged(batch.images) if needs_average or self._teaches_by_average else None,
            mutual_temperature=1.0 if self._online is None else value_at(self._online.temperature, step, total),
        )

    def answer(self, view: StudentView) -> Tensor:
        """The logits `[N, K]` that its peers learn from, without gradient."""
        return view.averaged if self._teaches_by_average and view.averaged is not None else view.student.detach()

    def loss(self, view: StudentView, step: int) -> Loss:
        """The weighted sum of the terms whose weight is not 0 at this step."""
        return self.terms.objective(view, step, self.learner.total, self._factor)

    def all_terms(self, view: StudentView) -> Loss:
        """Every term that has a weight at any step, computed once, to find mistakes before the training.

        Raises:
            ConfigError: a term of the user's own that fails or gives no loss, or no term with a weight.
        """
        objective = self.terms.objective
        return replace(objective, weights={name: float(ever(w)) for name, w in objective.weights.items()})(view, 0, 1)

    def update(self, loss: Loss, view: StudentView, step: int) -> dict[str, Tensor | float]:
        """Backward pass and optimizer step; returns what is logged, named after the learner."""
        logged = self.learner.update(loss, step)
        if view.batch.teacher_logits is None:
            return logged
        agreed = agreement(view.batch.teacher_logits, view.student.detach())
        if self._regulator is not None:
            logged |= self._regulator.update(float(logged[f"{self.name}/gradient_norm"]), float(agreed))
        return logged | {f"{self.name}/agreement": agreed}

    def state_dict(self) -> dict[str, Any]:
        """That of the learner."""
        return self.learner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.learner.load_state_dict(state)

    def _factor(self, term: str) -> float:
        return self._controllers.factor(self.terms.origins[term])

    def _run(self, images: Tensor, views: Tensor | None) -> tuple[Tensor, Mapping[str, Tensor], Mapping[str, Tensor]]:
        """Logits and features of the images, and features of the augmented views, from one pass over both."""
        # Images and views go through the network together: BatchNorm sees them as one batch, and one pass is faster.
        only_images = views is None or not len(views)
        with self._accelerator.autocast():
            inputs = images if views is None or only_images else torch.cat([images, views])
            outputs = observe(self.learner.model, inputs, self._places)
        features = {path.removeprefix(self._prefix): value for path, value in outputs.features.items()}
        if only_images:  # a slice of everything would cost a copy in the backward pass
            return outputs.logits.float(), features, {}
        count = len(images)
        of_images, of_views = (
            {path: value[rows] for path, value in features.items()} for rows in (slice(count), slice(count, None))
        )
        return outputs.logits[:count].float(), of_images, of_views

    def _averaged(self, images: Tensor) -> Tensor:
        average = self.learner.evaluated
        with torch.no_grad(), evaluating(average), self._accelerator.autocast():
            logits: Tensor = average(images)
        return logits.float()

    def _auxiliary_terms(
        self,
        batch: Batch,
        features: Mapping[str, Tensor],
        logits: Tensor,
        temperature: float,
        step: int,
        extra: ExtraImages | None,
        view_features: Mapping[str, Tensor],
    ) -> Mapping[str, Tensor]:
        layers = self.learner.helpers
        if layers is None:
            return {}
        teacher_features: Mapping[str, Tensor] = {}
        if extra is not None and len(extra.images):
            assert self.teacher is not None
            teacher_features = self.teacher(extra.images).features
        terms: Mapping[str, Tensor] = layers(
            batch, features, logits, temperature, step, extra, teacher_features, view_features
        )
        return terms


def build_student(
    name: str,
    module: nn.Module,
    settings: DistillSettings,
    optimizer: OptimizerSettings,
    total: int,
    accelerator: Accelerator,
    auxiliary: AuxiliaryLayers | None = None,
    regulator: Regulator | None = None,
    online: OnlineSettings | None = None,
    **more: Any,
) -> Student:
    """A student with its learner and its objective.

    Args:
        name: for logs and errors.
        module: the network that is trained.
        settings: temperature and weights.
        optimizer: of the module and the auxiliary layers.
        total: steps of the learner.
        accelerator: device, precision and processes.
        auxiliary: layers of the losses that compare features, or None.
        regulator, online, more: see `Student`.
    """
    terms = terms_of(settings, None if auxiliary is None else auxiliary.weights, regulator, online)
    learner = Learner(name, module, optimizer, total, accelerator, auxiliary)
    return Student(learner, settings, accelerator, auxiliary, terms, regulator=regulator, online=online, **more)
