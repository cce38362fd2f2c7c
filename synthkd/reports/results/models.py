"""What a result says of a model: its accuracy, its agreement with a teacher, what it is and what was noticed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from synthkd.metrics.utility import Proportion
from synthkd.reports.results.codec import OMITTED


@dataclass(frozen=True)
class Accuracy:
    """Accuracy on the test data; None and no other key where there is none.

    Attributes:
        accuracy: share of test images that are classified correctly, in [0, 1].
        accuracy_interval: 95 % Wilson interval of it, low and high.
        n: number of test images.
    """

    accuracy: float | None = None
    accuracy_interval: tuple[float, float] | None = field(default=None, metadata=OMITTED)
    n: int | None = field(default=None, metadata=OMITTED)


@dataclass(frozen=True)
class Agreement:
    """How often a student and its teacher choose the same class; None and no other key where nothing was compared.

    Attributes:
        agreement: share of the images, in [0, 1].
        agreement_interval: 95 % Wilson interval of it, low and high.
        agreement_n: number of images.
        agreement_on: what the images are, in words; "test" for test data.
    """

    agreement: float | None = None
    agreement_interval: tuple[float, float] | None = field(default=None, metadata=OMITTED)
    agreement_n: int | None = field(default=None, metadata=OMITTED)
    agreement_on: str | None = field(default=None, metadata=OMITTED)

    @classmethod
    def on(cls, share: Proportion, images: str) -> Agreement:
        """An agreement on images that `images` describes."""
        return Agreement(share.value, (share.low, share.high), share.n, images)


@dataclass(frozen=True)
class ModelDescription:
    """What a model is.

    Attributes:
        arch: architecture, with width and depth.
        parameters: number of parameters.
        bytes: size of the state dict.
        latency_ms: median milliseconds of one image.
    """

    arch: str | None = None
    parameters: int | None = None
    bytes: int | None = None
    latency_ms: float | None = None


@dataclass(frozen=True)
class ModelResult(ModelDescription, Accuracy):
    """A model and its accuracy."""

    @classmethod
    def tested(cls, score: Proportion | None, description: ModelDescription) -> ModelResult:
        """A model that was tested; `score` is None without test data."""
        return ModelResult(**_accuracy(score), **vars(description))


@dataclass(frozen=True)
class Baseline(Agreement, Accuracy):
    """A student that a finished one is compared with.

    It has an accuracy where there is test data, else an agreement.

    Attributes:
        steps: that it took; None of one that took no step.
    """

    steps: int | None = field(default=None, metadata=OMITTED)

    @classmethod
    def measured(cls, score: Proportion | None, agreement: Agreement | None, steps: int | None) -> Baseline:
        """By a score on test data, or by an agreement."""
        return Baseline(**_accuracy(score), **vars(agreement or Agreement()), steps=steps)


@dataclass(frozen=True)
class StudentResult(ModelResult, Agreement, Accuracy):
    """A finished student: accuracy, agreement, description.

    Attributes:
        inherited_parameters: how many of its parameters started from values of the teacher.
        start: the student before its first step, with BatchNorm statistics of the run's images; None of one that
            started at random.
        drawn: one with the same start that learned from drawn pictures alone; None where a run has no such baseline.
    """

    inherited_parameters: int | None = None
    start: Baseline | None = field(default=None, metadata=OMITTED)
    drawn: Baseline | None = field(default=None, metadata=OMITTED)

    @classmethod
    def of_student(
        cls,
        score: Proportion | None,
        agreement: Agreement,
        description: ModelDescription,
        inherited: int,
        start: Baseline | None = None,
        drawn: Baseline | None = None,
    ) -> StudentResult:
        """A student that was tested; `score` is None without test data."""
        parts = _accuracy(score) | vars(agreement) | vars(description)
        return StudentResult(**parts, inherited_parameters=inherited, start=start, drawn=drawn)


@dataclass(frozen=True)
class QualityResult:
    """Quality of one of several teachers, see `synthkd.compression.capacity.teacher_quality`."""

    fisher_trace: float
    feature_dimension: int
    relative_trace: float
    relative_dimension: float
    score: float


@dataclass(frozen=True)
class _Named:
    name: str | None = None


@dataclass(frozen=True)
class TeamTeacher(ModelResult, _Named):
    """One of several teachers.

    Attributes:
        name: "teacher 1" and so on.
        quality: among these teachers; None where there were no images to measure it on.
        selected: how often it was chosen to teach; None where all teach at once.
    """

    quality: QualityResult | None = None
    selected: int | None = None

    @classmethod
    def of_team(cls, name: str, model: ModelResult, quality: QualityResult | None, selected: int | None) -> TeamTeacher:
        """A teacher with its place in the team."""
        return TeamTeacher(name=name, **vars(model), quality=quality, selected=selected)


@dataclass(frozen=True)
class Ratio:
    """Student over teacher; a key that was not measured is left out."""

    parameters: float | None = field(default=None, metadata=OMITTED)
    accuracy: float | None = field(default=None, metadata=OMITTED)


@dataclass(frozen=True)
class Queries:
    """How often a black box was asked.

    Attributes:
        used: number of different images that it was asked about.
        budget: the most that were allowed.
        answers: "labels" or "probabilities".
    """

    used: int
    budget: int
    answers: str


@dataclass(frozen=True)
class DataDescription:
    """What a model was made for.

    Attributes:
        class_names: one per class, in the order of the logits; empty where they have no names.
        spec: images and classes, in words.
        train: number of training images of `teach`.
        holdout: number of its held-out images.
    """

    class_names: tuple[str, ...] = ()
    spec: str | None = None
    train: int | None = field(default=None, metadata=OMITTED)
    holdout: int | None = field(default=None, metadata=OMITTED)


@dataclass(frozen=True)
class RaisedAlarm:
    """An alarm of `synthkd.distillation.alarms`; without numbers where it was read from a log."""

    name: str
    message: str
    value: float | None = None
    threshold: float | None = None


def _accuracy(score: Proportion | None) -> dict[str, Any]:
    if score is None:
        return {}
    return {"accuracy": score.value, "accuracy_interval": (score.low, score.high), "n": score.n}
