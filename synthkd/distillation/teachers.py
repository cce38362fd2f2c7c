"""Frozen teachers, which label images, and teams of teachers, which label by a weighted mean of their logits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from synthkd.distillation.control.selection import TeacherSelection
from synthkd.errors import ConfigError
from synthkd.models.channels_last import channels_last, frozen_channels_last
from synthkd.models.classifier import Classifier
from synthkd.models.contract import finite_logits
from synthkd.models.cost import macs
from synthkd.models.folding import fold_batch_norm
from synthkd.settings import TeamSettings
from synthkd.taps import observe
from synthkd.types import Outputs

LEAST_ENTROPY = 1e-3
"""Nats. A smaller entropy counts as this one: how much a prediction exceeds 99.99 % says nothing about its quality."""


class FrozenTeacher:
    """A frozen network that labels images without gradient.

    It runs a copy of the network in which each BatchNorm is folded into the layer before it, which is faster.

    Args:
        model: the teacher. It is moved to the device and set to eval mode and requires_grad False, nothing else.
        accelerator: device and precision.
        features: module paths whose outputs are returned beside the logits.
        name: for errors.

    Attributes:
        model, features: as given.
        spec: sizes of images and classes of the model.
    """

    def __init__(
        self, model: Classifier, accelerator: Accelerator, features: Sequence[str] = (), name: str = "the teacher"
    ) -> None:
        self._name = name
        # Convolutions are faster in this memory format, on CPUs too.
        self.model = channels_last(model.to(accelerator.device))
        self.model.eval().requires_grad_(False)
        self.spec = model.spec
        self._accelerator = accelerator
        self.features = tuple(features)
        # Labels come from a folded copy. `model` stays whole: generators and alarms read its BatchNorm statistics.
        self._fast = frozen_channels_last(fold_batch_norm(self.model, self.features))

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Outputs:
        """Label images.

        Args:
            images: float32 `[N, C, H, W]` in [0, 1].

        Returns:
            Logits float32 `[N, K]`, and the output of each module path of `features`.

        Raises:
            ModelError: logits that are not finite.
        """
        with self._accelerator.autocast():
            outputs = observe(self._fast, images, self.features)
        # Checked here, since a NaN would show only in the student's loss and be blamed on the student.
        return Outputs(finite_logits(outputs.logits.float(), self._name), outputs.features)

    def logits(self, images: Tensor) -> Tensor:
        """Logits alone, float32 `[N, K]`."""
        return self(images).logits


class TeacherTeam:
    """Teachers whose logits are averaged with weights; the logits of a single teacher stay as they are.

    The softmax of a mean of logits is the normalised geometric mean of the teachers' predictions. Because logits are
    averaged, any temperature and any loss term can be applied to the mean. Adding a constant to a row of a teacher's
    logits does not change the softmax of the mean. Multiplying them does: at the same weight, a teacher with twice as
    large logits has twice the influence. For teachers that were trained in very different ways, set `weights` against
    this.

    The weights add up to 1 for each image:

    - fixed: those of the settings, or equal ones.
    - sample: by image, proportional to `1 / H(softmax(z_k))`, the inverse entropy of teacher k's own prediction.
    - confidence: by batch, as sample but with the mean entropy over the images of the call. The soft labels of an image
      then depend on the other images of the batch.
    - selected: 1 for one teacher and 0 for all others, which are not run.

    A certain teacher may be wrong: sample and confidence trust the teacher with the most confident predictions.

    Args:
        teachers: at least one. Only the first may return features.
        settings: how they are weighted.
        selection: selects the teacher that labels (weighting `selected`); None: the first labels.

    Attributes:
        models: the networks of all teachers.
        model: the first teacher, which a generator is trained against and whose features are compared.
        spec: sizes of images and classes of every teacher.

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
        """Number of the teacher that labels at present (weighting `selected`)."""
        return 0 if self._selection is None else self._selection.selected

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Outputs:
        """Label images.

        A teacher whose logits have weight 0 is not run, except the first one if it returns features.

        Args:
            images: float32 `[N, C, H, W]` in [0, 1].

        Returns:
            Combined logits float32 `[N, K]`, and the features of the first teacher.
        """
        numbers = self._counted()
        # Features come from the first teacher alone, so it may have to run although its logits have weight 0.
        first = self._teachers[0](images) if 0 in numbers or self._teachers[0].features else None
        logits = [
            first.logits if number == 0 and first is not None else self._teachers[number].logits(images)
            for number in numbers
        ]
        return Outputs(self._combined(numbers, torch.stack(logits)), {} if first is None else first.features)

    def logits(self, images: Tensor) -> Tensor:
        """Combined logits alone, float32 `[N, K]`."""
        return self(images).logits

    @torch.no_grad()
    def separate_logits(self, images: Tensor) -> Tensor:
        """Logits of each teacher, float32 `[T, N, K]`; all teachers are run, whatever their weights."""
        return torch.stack([teacher.logits(images) for teacher in self._teachers])

    def consensus(self, images: Tensor) -> Tensor:
        """Combined logits float32 `[N, K]`; the equal mean of all teachers if only a selected one labels."""
        # A target that moved with the selection would make evaluations before and after a choice incomparable.
        return self.separate_logits(images).mean(dim=0) if self._weighting == "selected" else self.logits(images)

    @cached_property
    def costs(self) -> tuple[float, ...]:
        """Multiply-accumulates of each teacher for one image, as a share of the largest; in [0, 1]."""
        counts = [macs(teacher.model) for teacher in self._teachers]
        most = max(counts) or 1
        return tuple(count / most for count in counts)

    def _counted(self) -> list[int]:
        """Numbers of the teachers whose logits have a weight above 0."""
        if self._weighting == "selected":
            return [self.selected]
        return [number for number, weight in enumerate(self._weights) if weight > 0.0]

    def _combined(self, numbers: list[int], logits: Tensor) -> Tensor:
        """The weighted mean `[N, K]` of logits `[A, N, K]` of the teachers with these numbers."""
        if len(numbers) == 1:  # bit for bit those of the teacher
            return logits[0]
        if self._weighting == "fixed":
            weights = logits.new_tensor([self._weights[number] for number in numbers])[:, None]
        else:
            weights = certainty_weights(logits, batch=self._weighting == "confidence")
        return (weights[:, :, None] * logits).sum(dim=0)


def certainty_weights(logits: Tensor, batch: bool = False) -> Tensor:
    """Weights of teachers, proportional to the inverse entropy of their predictions.

    An entropy below `LEAST_ENTROPY` counts as `LEAST_ENTROPY`. The weights are therefore finite for one-hot
    predictions, and equal for teachers that are all certain.

    Args:
        logits: `[T, N, K]`.
        batch: take each teacher's mean entropy over the N images.

    Returns:
        float32 `[T, N]`, or `[T, 1]` with `batch`; they add up to 1 over T.
    """
    # In log space, so that p log p of a vanishing probability is 0 and not NaN.
    log_p = F.log_softmax(logits.float(), dim=2)
    entropy = -(log_p.exp() * log_p).sum(dim=2)
    if batch:
        entropy = entropy.mean(dim=1, keepdim=True)
    inverse = 1.0 / entropy.clamp_min(LEAST_ENTROPY)
    return inverse / inverse.sum(dim=0)


def _require_alike(teachers: Sequence[FrozenTeacher]) -> None:
    """Raise `ConfigError` unless there is a teacher, and all have the images and classes of the first."""
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
