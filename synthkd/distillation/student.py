"""A network that learns, with all that its steps need: what it is shown, its terms, and what adapts them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from synthkd.data.bank import MemoryBank
from synthkd.data.hybrid import Labeller
from synthkd.distillation.adaptation import Adaptation
from synthkd.distillation.terms.auxiliary import Lessons
from synthkd.distillation.terms.contrast import Beside
from synthkd.distillation.terms.objective import Regulator, StudentView, Terms, terms_of
from synthkd.losses import logits as losses
from synthkd.models.classifier import Classifier
from synthkd.rng import derive
from synthkd.schedules import ever, value_at
from synthkd.settings import DistillSettings, OnlineSettings, OptimizerSettings
from synthkd.taps import evaluating, observe
from synthkd.training.learner import Learner
from synthkd.types import Batch


class Pupil:
    """Looks at batches, and learns from what it, its teacher and its peers make of them.

    Args:
        learner: the network with its optimiser, and `lessons` as its helpers.
        settings: temperature and weights.
        accelerator: precision.
        lessons: terms that look inside networks, or None.
        terms: the objective; None: that of the settings alone.
        adaptation: what moves temperature and weights, or None.
        teacher: labels the images that lessons need beside the batch.
        bank: where some of those come from.
        regulator: the network itself, where it changes its size.
        online: its peers, or None.

    Attributes:
        learner, lessons, terms, adaptation, teacher: as given; the latter two may be set later.
    """

    def __init__(
        self,
        learner: Learner,
        settings: DistillSettings,
        accelerator: Accelerator,
        lessons: Lessons | None = None,
        terms: Terms | None = None,
        adaptation: Adaptation | None = None,
        teacher: Labeller | None = None,
        bank: MemoryBank | None = None,
        regulator: Regulator | None = None,
        online: OnlineSettings | None = None,
    ) -> None:
        self.learner = learner
        self._settings = settings
        self._accelerator = accelerator
        self.lessons = lessons
        self.terms = terms_of(settings) if terms is None else terms
        self.adaptation = adaptation
        self.teacher = teacher
        self._bank = bank
        self._regulator = regulator
        self._online = online
        self._teaches_by_average = online is not None and online.averaged
        # wrapped for several processes, the student is a child of the wrapper
        self._prefix = "" if learner.model is learner.module else "module."
        self._places = () if lessons is None else tuple(self._prefix + place for place in lessons.student_places)

    def look(self, batch: Batch, step: int, training: bool = True) -> StudentView:
        """A pass over the batch, with gradient; whoever teaches is the one that labelled it.

        Args:
            batch: labelled.
            step: of the student.
            training: otherwise the pass leaves the network as it is.
        """
        beside = None if self.lessons is None else self.lessons.beside(batch, step, self._bank)
        if training:
            self.learner.model.train()
        with nullcontext() if training else evaluating(self.learner.model):
            logits, features, turned = self._pass(batch.images, None if beside is None else beside.views)
        total = self.learner.total
        temperature = value_at(self._settings.temperature, step, total)
        if self.adaptation is not None and self.adaptation.temperature is not None:
            temperature = self.adaptation.temperature.value
        average = self._settings.average  # a pass of its own, spared while nobody asks for it
        asks = value_at(average, step, total) != 0.0 if training else ever(average)
        return StudentView(
            batch=batch,
            teacher=batch.teacher_logits,
            student=logits,
            temperature=temperature,
            student_features=features,
            transferred=self._transferred(batch, features, logits, temperature, step, beside, turned),
            averaged=self._averaged(batch.images) if asks or self._teaches_by_average else None,
            mutual_temperature=1.0 if self._online is None else value_at(self._online.temperature, step, total),
        )

    def answer(self, view: StudentView) -> Tensor:
        """What the others learn from, `[N, K]`, without gradient."""
        return view.averaged if self._teaches_by_average and view.averaged is not None else view.student.detach()

    def rehearse(self, view: StudentView) -> None:
        """Compute every term that ever has a weight, and nothing else.

        Raises:
            ConfigError: a term of the user's own that fails or gives no loss, or no term with a weight.
        """
        objective = self.terms.objective
        replace(objective, weights={name: float(ever(w)) for name, w in objective.weights.items()})(view, 0, 1)

    def learn(self, view: StudentView, step: int) -> dict[str, Tensor | float]:
        """One update; returns what is worth logging, named after the learner."""
        name = self.learner.name
        loss = self.terms.objective(view, step, self.learner.total, self._factor)
        logged = self.learner.update(loss, step)
        if view.batch.teacher_logits is None:
            return logged
        agreement = losses.agreement(view.batch.teacher_logits, view.student.detach())
        if self._regulator is not None:
            logged |= self._regulator.update(float(logged[f"{name}/gradient_norm"]), float(agreement))
        return logged | {f"{name}/agreement": agreement}

    def _factor(self, term: str) -> float:
        return 1.0 if self.adaptation is None else self.adaptation.factor(self.terms.origins[term])

    def _pass(self, images: Tensor, views: Tensor | None) -> tuple[Tensor, Mapping[str, Tensor], Mapping[str, Tensor]]:
        """One pass over images and views: logits and features of the images, features of the views."""
        alone = views is None or not len(views)
        with self._accelerator.autocast():
            shown = images if views is None or alone else torch.cat([images, views])
            seen = observe(self.learner.model, shown, self._places)
        features = {path.removeprefix(self._prefix): value for path, value in seen.features.items()}
        if alone:  # a slice of everything would cost a copy on the way back
            return seen.logits.float(), features, {}
        count = len(images)
        ours, turned = (
            {path: value[rows] for path, value in features.items()} for rows in (slice(count), slice(count, None))
        )
        return seen.logits[:count].float(), ours, turned

    def _averaged(self, images: Tensor) -> Tensor:
        average = self.learner.evaluated
        with torch.no_grad(), evaluating(average), self._accelerator.autocast():
            logits: Tensor = average(images)
        return logits.float()

    def _transferred(
        self,
        batch: Batch,
        features: Mapping[str, Tensor],
        logits: Tensor,
        temperature: float,
        step: int,
        beside: Beside | None,
        turned: Mapping[str, Tensor],
    ) -> Mapping[str, Tensor]:
        helpers = self.learner.helpers
        if helpers is None:
            return {}
        shown: Mapping[str, Tensor] = {}
        if beside is not None and len(beside.images):
            assert self.teacher is not None
            shown = self.teacher(beside.images).features
        found: Mapping[str, Tensor] = helpers(batch, features, logits, temperature, step, beside, shown, turned)
        return found

    def state_dict(self) -> dict[str, Any]:
        return self.learner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.learner.load_state_dict(state)


def make_pupil(
    name: str,
    module: nn.Module,
    settings: DistillSettings,
    optimizer: OptimizerSettings,
    total: int,
    accelerator: Accelerator,
    teacher: Classifier | None = None,
    seed: int = 0,
    regulator: Regulator | None = None,
    online: OnlineSettings | None = None,
    **more: Any,
) -> Pupil:
    """A pupil with its learner, and the layers that the settings ask for beside it.

    Args:
        name: for logs and errors.
        module: what learns.
        settings: temperature and weights.
        optimizer: of the module and the layers beside it.
        total: steps of the learner.
        accelerator: device, precision and processes.
        teacher: whose features are compared; None: nobody's.
        seed: of random directions and turns.
        regulator, online: see `Pupil`, as is what else it takes.

    Raises:
        ConfigError: terms that do not fit the networks.
    """
    torch.manual_seed(derive(seed, f"{name}/lessons"))  # whoever else learns, its layers start alike
    lessons = Lessons(settings, teacher, module, seed) if isinstance(module, Classifier) else None
    terms = terms_of(settings, None if lessons is None else lessons.weights, regulator, online)
    if lessons is not None and not any(True for _ in lessons.children()):
        lessons = None
    learner = Learner(name, module, optimizer, total, accelerator, lessons)
    return Pupil(learner, settings, accelerator, lessons, terms, regulator=regulator, online=online, **more)
