"""The results of the jobs that train: teach, distill, and the release of a private generator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

from synthkd.metrics.transfer import TransferEfficiency
from synthkd.reports.results.base import JobResult, RunCost
from synthkd.reports.results.codec import OMITTED
from synthkd.reports.results.models import (
    DataDescription,
    ModelResult,
    Queries,
    RaisedAlarm,
    Ratio,
    StudentResult,
    TeamTeacher,
)


@dataclass(frozen=True)
class FittedGap:
    """The fitted curve `alpha e^(-beta (t - start)) + gamma` of the capacity gap over the student's steps.

    Attributes:
        alpha, beta, gamma, start: of the curve, see `synthkd.metrics.transfer.GapCurve`.
        errors: standard errors of alpha, beta and gamma; None where the points do not determine one.
        n: number of points.
        threshold: the gap below which the student is close to its teacher.
        below_from_step: the student's step from which the curve stays below the threshold; None: it never does.
    """

    alpha: float | None = None
    beta: float | None = None
    gamma: float | None = None
    start: float | None = None
    errors: tuple[float | None, float | None, float | None] | None = None
    n: int | None = None
    threshold: float | None = None
    below_from_step: float | None = None


@dataclass(frozen=True)
class Evaluations:
    """What the evaluations during a distillation came to.

    Attributes:
        every: steps between two of them.
        accuracy: of the student at the last one, in [0, 1].
        stability: standard deviation of the accuracy over the last evaluations; None for fewer than two.
        stability_of: how many evaluations that is.
        transfer_efficiency: at the last evaluation; None without a teacher.
        gap: the fitted capacity gap, where the strength of distillation adapts.
        teaching: whose answers are the soft labels at the end, where roles swap: "student" or "peer 1" and so on.
        selected: how often each teacher was chosen, where one is selected.
    """

    every: int | None = None
    accuracy: float | None = None
    stability: float | None = None
    stability_of: int | None = None
    transfer_efficiency: TransferEfficiency | None = None
    gap: FittedGap | None = field(default=None, metadata=OMITTED)
    teaching: str | None = field(default=None, metadata=OMITTED)
    selected: tuple[int, ...] | None = field(default=None, metadata=OMITTED)


@dataclass(frozen=True)
class RunningScoresResult:
    """Scores of generated images while a run went.

    Attributes:
        last: name -> value of the last measurement.
        measured: number of measurements.
        seconds: wall time of all of them.
        features: network of the distances.
        reference: name of the real images, or None.
        reference_n: number of the real images.
    """

    last: Mapping[str, float]
    measured: int
    seconds: float
    features: str
    reference: str | None = None
    reference_n: int = 0


@dataclass(frozen=True, kw_only=True)
class TeachResult(JobResult):
    """The result of `teach`.

    Attributes:
        seconds: wall time of training and evaluation.
        teacher: the trained model.
        data: what it was trained on.
        dp: the claim of differential privacy, as `synthkd.privacy.accounting.claimed` writes it; None without noise.
        alarms: raised about the model; None where nobody looked.
        cost: what it took.
    """

    job: str = "teach"
    seconds: float | None = None
    teacher: ModelResult | None = None
    data: DataDescription = field(default_factory=DataDescription)
    dp: Mapping[str, Any] | None = None
    alarms: tuple[RaisedAlarm, ...] | None = None
    cost: RunCost = field(default_factory=RunCost)


@dataclass(frozen=True)
class AccuracyEstimate:
    """How good a student probably is on images of the task, where there are none to test it on.

    Attributes:
        agreement: estimated share of images that the student answers as its teacher does.
        agreement_interval: of it, low and high.
        runs: number of runs with test data that the estimate was checked on.
        covered: of these, the runs whose truth was in the interval that other datasets gave: the accuracy where one is
            estimated, else the agreement.
        teacher_accuracy: of the teacher, as the configuration states it.
        accuracy: estimated accuracy; None if that of the teacher is not stated.
        accuracy_interval: of it, low and high.
    """

    agreement: float
    agreement_interval: tuple[float, float]
    runs: int
    covered: int
    teacher_accuracy: float | None = field(default=None, metadata=OMITTED)
    accuracy: float | None = field(default=None, metadata=OMITTED)
    accuracy_interval: tuple[float, float] | None = field(default=None, metadata=OMITTED)

    @property
    def value(self) -> float:
        """The accuracy, or the agreement if no accuracy is estimated."""
        return self.agreement if self.accuracy is None else self.accuracy

    @property
    def interval(self) -> tuple[float, float]:
        """The interval of the value."""
        return self.agreement_interval if self.accuracy_interval is None else self.accuracy_interval

    @property
    def what(self) -> str:
        """What the value is, in words."""
        return "agreement with its teacher on real images" if self.accuracy is None else "accuracy"


@dataclass(frozen=True)
class EarlierResult:
    """What a run came to before it was extended.

    Attributes:
        folder: in the run directory, with the result and the student of then.
        steps: of the student until then.
        student: as it was then.
    """

    folder: str
    steps: int | None = None
    student: StudentResult = field(default_factory=StudentResult)


@dataclass(frozen=True)
class BudgetResult:
    """A budget of time, and what became of it.

    Attributes:
        budget: as the recipe has it, e.g. "30m".
        planned: seconds that the run was to take by its plan, the measuring of the machine included.
        seconds: that it took, without the training of its teachers.
    """

    budget: str
    planned: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class DistillResult(JobResult):
    """The result of `distill`.

    Attributes:
        seconds: wall time of all stages.
        real_images_used: real images that student or generator have seen; None where nobody can say.
        teacher: the teacher, or all teachers together with the size of the first; None without one.
        student: the finished student.
        data: what it is made for.
        cost: what it took.
        alarms: raised at the end; None where nobody looked.
        evaluations: what the evaluations during training came to.
        teachers: each of several teachers.
        peers: the networks that learned together with the student.
        ratio: student over teacher, where there is a teacher.
        scores: of generated images, if the run measured them.
        before: what the run came to before each of its extensions; None without one.
        queries: to a teacher that is a black box.
        budget: of time, and what became of it; None without one, or for a run that was extended.
        unrelated_pictures: pictures that have nothing to do with the task and whose crops the student has seen; they
            are no real images of the task.
        estimate: of the accuracy, without test data; None where there is some, or real images took part.
        advice: what the curves of the run advise, a line each.
    """

    job: str = "distill"
    seconds: float | None = None
    real_images_used: int | None = None
    teacher: ModelResult | None = None
    student: StudentResult = field(default_factory=StudentResult)
    data: DataDescription = field(default_factory=DataDescription)
    cost: RunCost = field(default_factory=RunCost)
    alarms: tuple[RaisedAlarm, ...] | None = None
    evaluations: Evaluations | None = None
    teachers: tuple[TeamTeacher, ...] | None = field(default=None, metadata=OMITTED)
    peers: tuple[ModelResult, ...] | None = field(default=None, metadata=OMITTED)
    ratio: Ratio | None = field(default=None, metadata=OMITTED)
    scores: RunningScoresResult | None = field(default=None, metadata=OMITTED)
    before: tuple[EarlierResult, ...] | None = field(default=None, metadata=OMITTED)
    queries: Queries | None = field(default=None, metadata=OMITTED)
    budget: BudgetResult | None = field(default=None, metadata=OMITTED)
    unrelated_pictures: int | None = field(default=None, metadata=OMITTED)
    estimate: AccuracyEstimate | None = field(default=None, metadata=OMITTED)
    advice: tuple[str, ...] | None = field(default=None, metadata=OMITTED)


@dataclass(frozen=True)
class Spread:
    """A number over runs that differ by their seed.

    Attributes:
        mean: of the runs.
        deviation: standard deviation of one run, with n - 1.
        low, high: the smallest and the largest.
        n: number of runs.
    """

    mean: float
    deviation: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Spread | None:
        """The spread of two or more numbers; None if one of them is missing."""
        numbers = [value for value in values if value is not None]
        if len(numbers) < len(values):
            return None
        return cls(fmean(numbers), stdev(numbers), min(numbers), max(numbers), len(numbers))


@dataclass(frozen=True)
class SeedRun:
    """One of the runs that differ by their seed.

    Attributes:
        folder: of its run, in that of all.
        seed: of the run.
        seconds: wall time of all its stages.
        student: as it finished.
        teacher: likewise; None without one.
        budget: of time, and what became of it; None without one.
        estimate: of how good it is, without test data; None where there is some, or real images took part.
        alarms: that it raised; None without one.
        advice: what its curves advise, a line each; None without any.
    """

    folder: str
    seed: int
    seconds: float | None = None
    student: StudentResult = field(default_factory=StudentResult)
    teacher: ModelResult | None = None
    budget: BudgetResult | None = field(default=None, metadata=OMITTED)
    estimate: AccuracyEstimate | None = field(default=None, metadata=OMITTED)
    alarms: tuple[RaisedAlarm, ...] | None = field(default=None, metadata=OMITTED)
    advice: tuple[str, ...] | None = field(default=None, metadata=OMITTED)


@dataclass(frozen=True, kw_only=True)
class SeedsResult(JobResult):
    """The result of `distill` with several seeds.

    Attributes:
        seconds: wall time of all runs.
        accuracy: of the students on test data; None without any.
        agreement: of the students with their teachers; None where it was not measured.
        runs: each of them, the one whose student is handed over first.
        cost: what all of them took.
        estimate: of the values that were estimated without test data, see `AccuracyEstimate.value`; None without one.
    """

    job: str = "distill_seeds"
    seconds: float | None = None
    accuracy: Spread | None = None
    agreement: Spread | None = None
    runs: tuple[SeedRun, ...] = ()
    cost: RunCost = field(default_factory=RunCost)
    estimate: Spread | None = field(default=None, metadata=OMITTED)


@dataclass(frozen=True, kw_only=True)
class ReleaseResult(JobResult):
    """The result of a private generator's run inside `compress`.

    Attributes:
        dp: the claim of differential privacy, as `synthkd.privacy.accounting.claimed` writes it.
        real_images_used: private images that were read.
        cost: what it took.
    """

    job: str = "release"
    dp: Mapping[str, Any] | None = None
    real_images_used: int | None = None
    cost: RunCost = field(default_factory=RunCost)
