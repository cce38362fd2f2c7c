"""Teachers: they label images and are never trained. Several of them label as one, a `TeacherTeam`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from synthkd.distillation.control.selection import TeacherSelection
from synthkd.errors import ConfigError
from synthkd.models.channels_last import channels_last
from synthkd.models.classifier import Classifier
from synthkd.models.contract import finite_logits
from synthkd.models.cost import macs
from synthkd.models.folding import fold_batch_norm
from synthkd.settings import TeamSettings
from synthkd.taps import observe
from synthkd.types import Outputs

LEAST_ENTROPY = 1e-3
"""Nats. A smaller entropy counts as this: which of two teachers is the more certain of 99.99 % says nothing."""


class FrozenTeacher:
    """A frozen network that labels images without gradient.

    Its BatchNorm is folded into the convolutions before it.

    Args:
        model: the teacher; itself left as it is but for device, eval mode and requires_grad False.
        accelerator: device and precision.
        features: module paths whose outputs every pass shows beside the logits.
        name: for errors.

    Attributes:
        model, spec, features: as given.
    """

    def __init__(
        self, model: Classifier, accelerator: Accelerator, features: Sequence[str] = (), name: str = "the teacher"
    ) -> None:
        self._name = name
        self.model = channels_last(model.to(accelerator.device))
        self.model.eval().requires_grad_(False)
        self.spec = model.spec
        self._accelerator = accelerator
        self.features = tuple(features)
        self._fast = fold_batch_norm(self.model, self.features).to(memory_format=torch.channels_last)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Outputs:
        """Logits float32 `[N, K]`, and the features asked for, of images float32 `[N, C, H, W]` in [0, 1].

        Raises:
            ModelError: logits that are not finite.
        """
        with self._accelerator.autocast():
            outputs = observe(self._fast, images, self.features)
        return Outputs(finite_logits(outputs.logits.float(), self._name), outputs.features)

    def logits(self, images: Tensor) -> Tensor:
        """Logits alone, float32 `[N, K]`."""
        return self(images).logits


class TeacherTeam:
    """Teachers whose logits are averaged; one alone is heard as it is.

    The softmax of a mean of logits is the normalised geometric mean of the teachers' predictions, and what is averaged
    are logits, so any temperature and any term may follow. A constant that a teacher adds to a row of its logits moves
    that row of the mean by a constant, which no softmax sees; a factor counts: at the same weight, a teacher with twice
    as large logits has twice the say. Teachers that were trained in very different ways want `weights` to even that
    out.

    The weights, which add up to 1 for each image:

    - fixed: those of the settings, or all alike.
    - sample: by image, proportional to `1 / H(softmax(z_k))`, the inverse entropy of teacher k's own prediction.
    - confidence: by batch, the same with the mean entropy of the images it is called with. Labels then depend on what
      else is in the batch.
    - selected: all of it to one teacher, which alone is run.

    Being certain is not being right: sample and confidence trust the teacher with the largest logits.

    Args:
        teachers: at least one; for the first one's features, give them to that one alone.
        settings: how they are weighted.
        selection: selects the teacher that labels, of `selected` weighting; None: the first labels.

    Attributes:
        models: of all teachers.
        model: the first teacher, which a generator is trained against and whose features are compared.
        spec: of every teacher.

    Raises:
        ConfigError: no teacher, teachers of different images or classes, or not one weight for each.
    """

    def __init__(
        self, teachers: Sequence[FrozenTeacher], settings: TeamSettings, selection: TeacherSelection | None = None
    ) -> None:
        _require_alike(teachers)
        weights = (1.0,) * len(teachers) if settings.weights is None else settings.weights
        if len(weights) != len(teachers):
            raise ConfigError(
                f"team.weights: there are {len(weights)} for {len(teachers)} teachers; give one for each, the first "
                "being `teacher`"
            )
        self.models = tuple(teacher.model for teacher in teachers)
        self.model = teachers[0].model
        self.spec = teachers[0].spec
        self._selection = selection
        self._teachers = tuple(teachers)
        self._weighting = settings.weighting
        self._weights = tuple(weight / sum(weights) for weight in weights)

    @property
    def selected(self) -> int:
        """Number of the teacher that labels, of `selected` weighting."""
        return 0 if self._selection is None else self._selection.selected

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Outputs:
        """Combined logits float32 `[N, K]`, and the first teacher's features where it was made to show some, of images
        float32 `[N, C, H, W]` in [0, 1].

        A teacher whose logits do not count is not run, but for the features.
        """
        numbers = self._counted()
        first = self._teachers[0](images) if 0 in numbers or self._teachers[0].features else None
        answers = [
            first.logits if number == 0 and first is not None else self._teachers[number].logits(images)
            for number in numbers
        ]
        return Outputs(self._combined(numbers, torch.stack(answers)), {} if first is None else first.features)

    def logits(self, images: Tensor) -> Tensor:
        """Combined logits alone, float32 `[N, K]`."""
        return self(images).logits

    @torch.no_grad()
    def answers(self, images: Tensor) -> Tensor:
        """What each teacher says, float32 logits `[T, N, K]`; all of them are run, whatever their weights."""
        return torch.stack([teacher.logits(images) for teacher in self._teachers])

    def consensus(self, images: Tensor) -> Tensor:
        """Logits `[N, K]` of all of them together, whoever is selected at the moment."""
        return self.answers(images).mean(dim=0) if self._weighting == "selected" else self.logits(images)

    @cached_property
    def costs(self) -> tuple[float, ...]:
        """Multiply-accumulates of each teacher for an image, over those of the largest: in [0, 1]."""
        counts = [macs(teacher.model) for teacher in self._teachers]
        most = max(counts) or 1
        return tuple(count / most for count in counts)

    def _counted(self) -> list[int]:
        if self._weighting == "selected":
            return [self.selected]
        return [number for number, weight in enumerate(self._weights) if weight > 0.0]

    def _combined(self, numbers: list[int], answers: Tensor) -> Tensor:
        """The weighted mean `[N, K]` of answers `[A, N, K]`; a single one stays as it is."""
        if len(numbers) == 1:
            return answers[0]
        if self._weighting == "fixed":
            weights = answers.new_tensor([self._weights[number] for number in numbers])[:, None]
        else:
            weights = certainty_weights(answers, batch=self._weighting == "confidence")
        return (weights[:, :, None] * answers).sum(dim=0)


def certainty_weights(logits: Tensor, batch: bool = False) -> Tensor:
    """Weights `[T, N]` of teachers, proportional to the inverse entropy of their predictions, that add up to 1 over T.

    Finite for one-hot predictions, since an entropy below `LEAST_ENTROPY` counts as that: teachers that are all certain
    weigh the same.

    Args:
        logits: `[T, N, K]`.
        batch: take each teacher's mean entropy over the N images; then the weights are `[T, 1]`.
    """
    log_p = F.log_softmax(logits.float(), dim=2)
    entropy = -(log_p.exp() * log_p).sum(dim=2)
    if batch:
        entropy = entropy.mean(dim=1, keepdim=True)
    inverse = 1.0 / entropy.clamp_min(LEAST_ENTROPY)
    return inverse / inverse.sum(dim=0)


def _require_alike(teachers: Sequence[FrozenTeacher]) -> None:
    """Raise `ConfigError` unless there are teachers, of the same images and classes as the first."""
    if not teachers:
        raise ConfigError("teachers: a team needs at least 1 teacher, got none")
    first = teachers[0].model
    for number, teacher in enumerate(teachers[1:]):
        if teacher.spec != first.spec:
            raise ConfigError(
                f"teachers.{number}: it takes {teacher.spec}, the first teacher {first.spec}; they must be the same"
            )
        ours, theirs = teacher.model.class_names, first.class_names
        if ours and theirs and ours != theirs:
            place = next(place for place, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
            raise ConfigError(
                f"teachers.{number}: its class {place} is {ours[place]!r}, the first teacher's is {theirs[place]!r}; "
                "all must number and name the classes alike"
            )
