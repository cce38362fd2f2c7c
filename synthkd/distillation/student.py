"""A student: a trainable network with its optimizer, its loss terms and the controllers of their weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
from synthkd.distillation.terms.objective import Regulator, StudentView, terms_of
from synthkd.losses.logits import agreement
from synthkd.losses.objective import Loss
from synthkd.passes import features_in_chunks
from synthkd.processes import ONE_PROCESS, Processes
from synthkd.schedules import ever, value_at
from synthkd.settings import DistillSettings, OnlineSettings, OptimizerSettings
from synthkd.taps import evaluating, observe
from synthkd.training.learner import Learner
from synthkd.types import Batch, Outputs


class Student:
    """Runs the forward pass, builds the loss from its own, the teacher's and the peers' logits, and updates itself.

    The student of a run is an object of this class, and so is each of its peers.

    Args:
        learner: the network with its optimizer, which also trains the layers of `auxiliary`.
        settings: temperature and weights.
        accelerator: precision.
        auxiliary: layers of the feature, contrastive and exit losses, or None.
        controllers: move the temperature and the weights of this student; None, as for peers: nothing moves them.
        teacher: gives features of the extra images of the contrastive losses; None if no loss needs them.
        bank: negatives of the contrastive losses are drawn from it, if any.
        regulator: moves the width of a network that changes it, else None.
        online: mutual learning with peers, or None.

    Attributes:
        learner, auxiliary, teacher: as given.
        terms: the loss terms of all these.

    Raises:
        ConfigError: a loss of the user's own that cannot be imported.
    """

    def __init__(
        self,
        learner: Learner,
        settings: DistillSettings,
        accelerator: Accelerator,
        auxiliary: AuxiliaryLayers | None = None,
        controllers: Controllers | None = None,
        teacher: Labeller | None = None,
        bank: MemoryBank | None = None,
        regulator: Regulator | None = None,
        online: OnlineSettings | None = None,
    ) -> None:
        self.learner = learner
        self.auxiliary = auxiliary
        weights = {} if auxiliary is None else auxiliary.weights
        self.terms = terms_of(settings, weights, regulator, online)
        self._auxiliary_weights = [weight for weight, _ in weights.values()]
        self._settings = settings
        self._accelerator = accelerator
        self._controllers = Controllers() if controllers is None else controllers
        self.teacher = teacher
        self._bank = bank
        self._regulator = regulator
        self._online = online
        self._teaches_by_average = online is not None and online.averaged
        # In several processes accelerate wraps the network, and the module paths of its layers begin with "module.".
        self._prefix = "" if learner.model is learner.module else "module."
        compared = [one.student_places for one in (auxiliary, regulator) if one is not None]
        self._places = tuple(self._prefix + place for places in compared for place in places)

    @property
    def name(self) -> str:
        """Name in logs and errors: "student", "peer 1", ..."""
        return self.learner.name

    def forward(self, batch: Batch, step: int, training: bool = True) -> StudentView:
        """One forward pass over the batch and its extra images, with gradient.

        Args:
            batch: images with the teacher's logits.
            step: 0-based step of the student.
            training: False runs the network in eval mode, so that its BatchNorm moments do not change.

        Returns:
            All inputs of the loss terms but the logits of peers.
        """
        total = self.learner.total
        # Where no term of the auxiliary layers has a weight, as at the end of a curve, all that they take is skipped.
        compares = not training or any(value_at(weight, step, total) for weight in self._auxiliary_weights)
        # The extra images come first: the views of a contrastive loss go through the network with the batch.
        extra = self.auxiliary.extra_images(batch, step, self._bank) if self.auxiliary and compares else None
        views = extra.views if extra is not None and len(extra.views) else None
        if training:
            self.learner.model.train()
        with nullcontext() if training else evaluating(self.learner.model):
            logits, features, view_features = self._run(batch.images, views)
        temperature = self._controllers.temperature
        if temperature is None:
            temperature = value_at(self._settings.temperature, step, total)
        transferred: Mapping[str, Tensor] = {}
        if compares:
            transferred = self._auxiliary_terms(batch, features, logits, temperature, step, extra, view_features)
        # The average of the weights needs a forward pass of its own, which is skipped while nothing uses it. The
        # rehearsal computes every term whose weight is not 0 at some step, so it needs the pass if one ever does.
        average = self._settings.average
        needs_average = value_at(average, step, total) != 0.0 if training else ever(average)
        return StudentView(
            batch=batch,
            teacher=batch.teacher_logits,
            student=logits,
            temperature=temperature,
            student_features=features,
            transferred=transferred,
            averaged=self._averaged(batch.images) if needs_average or self._teaches_by_average else None,
            mutual_temperature=1.0 if self._online is None else value_at(self._online.temperature, step, total),
        )

    def logits_for_peers(self, view: StudentView) -> Tensor:
        """The logits `[N, K]` that peers learn from, without gradient: its own, or those by its averaged weights."""
        return view.averaged if self._teaches_by_average and view.averaged is not None else view.student.detach()

    def loss(self, view: StudentView, step: int) -> Loss:
        """The weighted sum of the terms whose weight is not 0 at this step."""
        factor, origins = self._controllers.factor, self.terms.origins
        loss = self.terms.objective(view, step, self.learner.total, lambda term: factor(origins[term]))
        # DistributedDataParallel waits for the gradient of every layer of its pass, also of terms without a weight now.
        idle = [value for name, value in view.transferred.items() if name not in loss.terms]
        if self._prefix and idle:
            loss = replace(loss, total=loss.total + 0.0 * torch.stack(idle).sum())
        return loss

    def all_terms(self, view: StudentView) -> Loss:
        """The sum of all terms whose weight is not 0 at some step, to find mistakes before the training.

        Raises:
            ConfigError: a term of the user's own that fails or gives no loss, or no term with a weight.
        """
        objective = self.terms.objective
        # Weight 1 for each, because a curve may be 0 at the step that stands for all steps here.
        return replace(objective, weights={name: float(ever(w)) for name, w in objective.weights.items()})(view, 0, 1)

    def update(self, loss: Loss, view: StudentView, step: int) -> dict[str, Tensor | float]:
        """Backward pass and optimizer step; returns what is logged, with the student's name before every name."""
        logged = self.learner.update(loss, step)
        if view.batch.teacher_logits is None:
            return logged
        agreed = agreement(view.batch.teacher_logits, view.student.detach())
        # After the optimizer step, which may have moved the width out of its bounds. A gradient that is not finite, as
        # some are in fp16, has moved nothing.
        if self._regulator is not None and math.isfinite(gradient := float(logged[f"{self.name}/gradient_norm"])):
            logged |= self._regulator.update(gradient, view)
        return logged | {f"{self.name}/agreement": agreed}

    def state_dict(self) -> dict[str, Any]:
        """The state of the learner."""
        return self.learner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.learner.load_state_dict(state)

    def _run(self, images: Tensor, views: Tensor | None) -> tuple[Tensor, Mapping[str, Tensor], Mapping[str, Tensor]]:
        """Logits and features of the images, and features of the augmented views, from one pass over both."""
        # One pass is faster than two, and BatchNorm updates its moments once, over images and views together.
        inputs = images if views is None else torch.cat([images, views])
        processes, model = self.learner.processes, self.learner.model
        with self._accelerator.autocast(), processes.norms() if model.training else nullcontext():
            outputs = processes.outputs(lambda rows: observe(model, rows, self._places), inputs)
        # Losses are computed in float32; half precision has too few digits for differences of log-probabilities.
        features = {path.removeprefix(self._prefix): value for path, value in outputs.features.items()}
        if views is None:  # a slice of all rows would cost a copy in the backward pass
            return outputs.logits.float(), features, {}
        count = len(images)
        image_features = {path: value[:count] for path, value in features.items()}
        view_features = {path: value[count:] for path, value in features.items()}
        return outputs.logits[:count].float(), image_features, view_features

    def _averaged(self, images: Tensor) -> Tensor:
        average = self.learner.evaluated
        # In eval mode, since a pass in training mode would change the BatchNorm moments of the average.
        with torch.no_grad(), evaluating(average), self._accelerator.autocast():
            outputs = self.learner.processes.outputs(lambda rows: Outputs(average(rows)), images)
        return outputs.logits.float()

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
        # Those of `auxiliary` as accelerate prepared them: in several processes a wrapper averages their gradients.
        layers = self.learner.helpers
        if layers is None:
            return {}
        teacher_features: Mapping[str, Tensor] = {}
        # The teacher has seen the batch when it labelled it, but not the views and the negatives.
        if self.teacher is not None and extra is not None and len(extra.images):
            # No pass is larger than those over the batch and its views.
            size = max(len(batch), len(extra.views))
            teacher_features = features_in_chunks(self.teacher, size, extra.images)
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
    controllers: Controllers | None = None,
    teacher: Labeller | None = None,
    bank: MemoryBank | None = None,
    extensions: Sequence[int] = (),
    processes: Processes = ONE_PROCESS,
) -> Student:
    """A student with its learner.

    Args:
        name: for logs and errors.
        module: the network to train.
        settings: temperature and weights.
        optimizer: of the network and the auxiliary layers.
        total: steps of the student.
        accelerator: device, precision and processes.
        auxiliary: layers of the feature, contrastive and exit losses, or None.
        regulator, online, controllers, teacher, bank: see `Student`.
        extensions, processes: see `Learner`.

    Raises:
        ConfigError: a loss of the user's own that cannot be imported.
    """
    learner = Learner(name, module, optimizer, total, accelerator, auxiliary, extensions, processes)
    return Student(learner, settings, accelerator, auxiliary, controllers, teacher, bank, regulator, online)
