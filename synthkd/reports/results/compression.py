"""The result of `compress`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from synthkd.compression.capacity import FisherTrace
from synthkd.compression.predict import Parity
from synthkd.metrics.utility import Proportion
from synthkd.models.cost import Cost
from synthkd.models.latency import Latency
from synthkd.privacy.verdict import Verdict
from synthkd.reports.results.base import JobResult, RunCost
from synthkd.reports.results.models import DataDescription, ModelResult, RaisedAlarm, Ratio, StudentResult


@dataclass(frozen=True)
class ExportedFile:
    """An exported file that cannot be measured here: its name and its size."""

    file: str
    bytes: int


@dataclass(frozen=True)
class MeasuredFile(ExportedFile):
    """An exported file that was compared with the student in PyTorch.

    Attributes:
        parity: on synthetic images.
        latency: of one image.
        accuracy: on test images; None without them.
    """

    parity: Parity
    latency: Latency
    accuracy: Proportion | None = None


@dataclass(frozen=True)
class HandoverCost:
    """What teacher and student cost in PyTorch."""

    teacher: Cost
    student: Cost


@dataclass(frozen=True)
class HandoverStudent:
    """The student in PyTorch: its accuracy on the test images, or None without them."""

    accuracy: Proportion | None = None


@dataclass(frozen=True)
class Handover:
    """What is handed over.

    Attributes:
        cost: of teacher and student.
        student: in PyTorch.
        files: format (onnx, int8, program) -> the exported file.
    """

    cost: HandoverCost
    student: HandoverStudent
    files: Mapping[str, MeasuredFile | ExportedFile]


@dataclass(frozen=True)
class CapacityOfModel:
    """Fisher trace and feature dimension of a model."""

    fisher_trace: FisherTrace
    feature_dimension: int


@dataclass(frozen=True)
class LeastCapacity:
    """A `synthkd.compression.capacity.CapacityBound` whose infinite value is None."""

    value: float | None
    mutual_information: float
    epsilon: float
    kl: float


@dataclass(frozen=True)
class Capacity:
    """Rules of thumb about teacher and student.

    Attributes:
        n: synthetic images that all but the Fisher trace is measured on.
        fisher_n: images of the Fisher trace.
        teacher, student: of each model.
        bound: least capacity of a student.
    """

    n: int
    fisher_n: int
    teacher: CapacityOfModel
    student: CapacityOfModel
    bound: LeastCapacity


@dataclass(frozen=True)
class FrontRow:
    """A candidate that no other beats, and its scores.

    Attributes:
        chosen: whether it is the student.
        arch, width, depth: of the network; depth None where the architecture has none.
        accuracy: agreement with the teacher after a short training, in [0, 1].
        latency_ms: of one image.
        bytes: size of the weights.
        joules: energy of one image, or None.
    """

    chosen: bool
    arch: str
    width: int | None
    depth: int | None
    accuracy: float
    latency_ms: float
    bytes: int
    joules: float | None = None


@dataclass(frozen=True)
class SearchResult:
    """How the student was chosen.

    Attributes:
        candidates: number of networks that were scored.
        objectives: what they were compared by.
        front: the candidates that no other beats.
        drawing: all candidates, as SVG.
    """

    candidates: int
    objectives: tuple[str, ...]
    front: tuple[FrontRow, ...]
    drawing: str


@dataclass(frozen=True, kw_only=True)
class CompressResult(JobResult):
    """The result of `compress`.

    Attributes:
        real_images_used, teacher, student, ratio, data, alarms: those of its distillation.
        search: how the student was chosen; None where the configuration names it.
        verdict: of the privacy report.
        handover: costs and exported files.
        capacity: rules of thumb.
        cost: what it took.
    """

    job: str = "compress"
    real_images_used: int | None = None
    teacher: ModelResult
    student: StudentResult
    ratio: Ratio
    data: DataDescription = field(default_factory=DataDescription)
    alarms: tuple[RaisedAlarm, ...] | None = None
    search: SearchResult | None = None
    verdict: Verdict
    handover: Handover
    capacity: Capacity
    cost: RunCost
