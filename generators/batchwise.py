"""Base class of the generators that optimise each batch of images anew, as DeepInversion, CMI, NAYER and SRe2L do.

A round paints a batch, lets the teacher (and the student) see a random view of it, and moves whatever paints it down
the gradient of the loss, for many steps. The images of the best step are kept. BatchNorm statistics are of the whole
batch, so that no single image could be made by itself: a sample of a generator that keeps no network is an image of an
earlier round (`Pooled`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from synthkd.errors import TrainingError
from synthkd.generators.inversion_network import BETAS
from synthkd.generators.local import autocast_of, folded, local_accelerator, require_statistics
from synthkd.generators.method_settings import BatchwiseSettings
from synthkd.generators.moments import MovingMoments
from synthkd.generators.pool import PoolSamples
from synthkd.generators.teacher_student import TEACHER_TERMS, JointOutputs, Term, joint_forward, teacher_logits
from synthkd.generators.views import shifted
from synthkd.losses.objective import Objective
from synthkd.models.classifier import Classifier, as_classifier
from synthkd.processes import Processes
from synthkd.rng import stream
from synthkd.training.learner import require_finite
from synthkd.types import ImageSpec, Round, balanced_labels


@dataclass(frozen=True)
class Canvas:
    """What a round optimises.

    Attributes:
        parameters: leaf tensors, which get gradients.
        paint: the images float `[N, C, H, W]` in [0, 1] that they give now, with gradient.
        settle: called after each step.
    """

    parameters: list[Tensor]
    paint: Callable[[], Tensor]
    settle: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Attempt:
    """One step of a round, from which the terms are computed.

    Attributes:
        joint: outputs of teacher and student for a view of the images.
        images: the images themselves, with gradient.
        rng: random numbers of this step.
    """

    joint: JointOutputs
    images: Tensor
    rng: torch.Generator


AttemptTerm = Callable[[Attempt], Tensor]


class Batchwise(ABC):
    """A generator of one teacher that optimises each batch anew. A subclass implements `_begin`.

    Attributes:
        folds: whether copies without BatchNorm may stand for teacher and student in a round (see `folded`).

    Args:
        settings: sizes, rates and weights.
        teacher: the frozen teacher, only read.
        seed: the run's seed.
        accelerator: device and precision; None: the teacher's device, full precision.
        spec: images and classes of a teacher that is no `Classifier`.
        joint: terms of the outputs alone, beside those that all have.
        more: terms that need the images too.

    Raises:
        ModelError: BatchNorm matching has a weight and the teacher has no BatchNorm statistics, or its images and
            classes are unknown.
    """

    folds: ClassVar = True

    def __init__(
        self,
        settings: BatchwiseSettings,
        teacher: nn.Module,
        seed: int,
        accelerator: Accelerator | None,
        spec: ImageSpec | None,
        joint: Mapping[str, Term],
        more: Mapping[str, AttemptTerm] | None = None,
    ) -> None:
        teacher = as_classifier(teacher, spec)
        accelerator = local_accelerator(accelerator, teacher)
        require_statistics(teacher, settings.batch_norm)
        self._settings = settings
        self.spec = teacher.spec
        self._teacher = teacher
        self._fast_teacher = folded(teacher, accelerator, statistics=settings.batch_norm > 0) if self.folds else teacher
        self._seed = seed
        self._device = accelerator.device
        self._processes = Processes.of(accelerator)
        self._accelerator = accelerator
        self._autocast = autocast_of(accelerator)
        self._moments = MovingMoments(settings.memory, self._device)
        terms = {"one_hot": TEACHER_TERMS["one_hot"], **joint}
        every: dict[str, AttemptTerm] = {name: _of_joint(term) for name, term in terms.items()}
        every |= {"batch_norm": self._batch_norm} | dict(more or {})
        self._objective: Objective[Attempt] = Objective(every, {name: getattr(settings, name) for name in every})

    @abstractmethod
    def _begin(self, index: int, labels: Tensor) -> Canvas:
        """The canvas of round `index`, for labels int64 `[N]` on the device."""

    def _view(self, images: Tensor, rng: torch.Generator) -> Tensor:
        """What teacher and student see: each image shifted and flipped by itself."""
        return shifted(images, self._settings.shift, self._settings.flip, rng)

    def _batch_norm(self, attempt: Attempt) -> Tensor:
        return TEACHER_TERMS["batch_norm"](attempt.joint)

    def _rate(self, step: int) -> float:
        """Learning rate of a step of a round."""
        return self._settings.lr

    @property
    def _keeps_last(self) -> bool:
        """Whether a round gives the images of its last step, without those of the step with the lowest loss."""
        return False

    def _note(self) -> object:
        """Something about the present step that `_end` gets if its images are kept."""
        return None

    def _end(self, note: object) -> None:  # noqa: B027
        """The end of a round."""

    def _made(self, images: Tensor, labels: Tensor) -> None:  # noqa: B027
        """The images of a round and their labels."""

    def round(self, index: int, difficulty: float, student: nn.Module | None = None) -> Round:
        """One round: a batch of images, optimised from its beginning.

        Args:
            index: number of the round.
            difficulty: in [0, 1].
            student: compared with the teacher by the student's terms, unchanged; None leaves those terms out.

        Returns:
            Images, balanced labels, the teacher's logits, and the terms of the last step.

        Raises:
            ModelError: the teacher's logits are not finite.
            TrainingError: a loss or the images are not finite.
        """
        s = self._settings
        labels = balanced_labels(s.batch_size, index * s.batch_size, self.spec.classes).to(self._device)
        canvas = self._begin(index, labels)
        optimizer = torch.optim.Adam(canvas.parameters, s.lr, BETAS)
        lowest, best, note = float("inf"), torch.empty(0), None
        teacher, rival = self._in_a_round(student)
        with joint_forward(
            teacher, rival, self._autocast, statistics=s.batch_norm > 0, processes=self._processes
        ) as forward:
            for step in range(s.steps):
                rng = stream(self._seed, "views", index * s.steps + step)
                with self._autocast():
                    images = canvas.paint().float()
                outputs = forward(self._view(images, rng), labels, difficulty)
                statistics = self._moments.averaged(outputs.teacher.statistics)
                joint = replace(outputs, teacher=replace(outputs.teacher, statistics=statistics))
                loss = self._objective(Attempt(joint, images, rng), 0, 1)
                require_finite(loss, "generator", index, "round")
                value = float(loss.total.detach())
                if self._keeps_last or not len(best) or value < lowest:
                    # A copy: pixels are moved in place by the next step.
                    lowest, best, note = value, images.detach().clone(), self._note()
                optimizer.param_groups[0]["lr"] = self._rate(step)
                optimizer.zero_grad(set_to_none=True)
                loss.total.backward()
                optimizer.step()
                canvas.settle()
        if not bool(torch.isfinite(best).all()):
            raise TrainingError(f"generator: the images are not finite in round {index}; lower its lr")
        self._moments.keep(statistics)
        self._end(note)
        self._made(best, labels)
        terms = {f"generator/{name}": float(term.detach()) for name, term in loss.terms.items()}
        # Anew: the logits above are of a view of the images.
        logits = teacher_logits(self._teacher, best, self._autocast)
        return Round(best.contiguous(), labels, logits, terms | {"generator/loss": lowest})

    def _in_a_round(self, student: nn.Module | None) -> tuple[Classifier, nn.Module | None]:
        """Teacher and student as a round runs them."""
        rival = student if student is None or not self.folds else folded(student, self._accelerator)
        return self._fast_teacher, rival

    def state_dict(self) -> dict[str, Any]:
        """The moments to which later rounds are averaged."""
        return {"moments": self._moments.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._moments.load_state_dict(state["moments"])


class Pooled(Batchwise, PoolSamples):
    """A generator whose samples are images of earlier rounds."""

    def _made(self, images: Tensor, labels: Tensor) -> None:
        self._pool.add(images, labels)

    def state_dict(self) -> dict[str, Any]:
        """The images of earlier rounds, and the moments to which later rounds are averaged."""
        return super().state_dict() | {"pool": self._pool.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        super().load_state_dict(state)
        self._pool.load_state_dict(state["pool"])


def _of_joint(term: Term) -> AttemptTerm:
    return lambda attempt: term(attempt.joint)
