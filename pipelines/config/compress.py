"""The configuration of `synthkd compress`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from synthkd.generators.settings import (
    FROM_REAL,
    DatasetSettings,
    InversionSettings,
    MerfSettings,
    PixelSettings,
)
from synthkd.pipelines.config.distill import DistillConfig
from synthkd.settings import (
    Count,
    Flow,
    Images,
    Listed,
    ModelSettings,
    SearchSettings,
    Settings,
    TrainedTeacher,
)


class AuditSettings(Settings):
    """How a pipeline is attacked: run again with canaries among the private images, and without them for reference."""

    canaries: Annotated[Images, Field(ge=80)] = 500
    """Images that a coin puts in or leaves out, half of them with a wrong label; at most half of the private images."""
    references: Annotated[int, Field(ge=1, le=4)] = 2
    """Runs of the whole pipeline without the canaries, which tell how a model that never saw an image answers it."""
    guesses: Annotated[Images, Field(ge=2)] | None = None
    """Canaries that are guessed about in each half, an even number fixed beforehand; None: a fifth."""
    delta: Annotated[float, Field(gt=0.0, lt=1.0)] = 1e-5
    """Of the lower bounds of epsilon."""


class ExportSettings(Settings):
    """In which forms the student is handed over."""

    formats: Annotated[tuple[Literal["onnx", "int8", "program"], ...], Listed] = ("onnx", "int8", "program")
    """onnx and int8: for ONNX Runtime; program: torch.export."""
    calibration: Images = 512
    """Synthetic images that int8 ranges are measured on."""


NOISY_TEACHER, NOISY_GENERATOR = ("dp_teacher", "dp_both"), ("dp_generator", "dp_both")
"""Flows by the part of them that looks at private images with noise."""


class SyntheticSettings(Settings):
    """What a differentially private generator makes (generator.kind=merf; flows dp_generator and dp_both)."""

    rounds: Count = 100
    """Rounds that the generator is trained, on one noisy look at the private images; more cost time, not privacy."""
    per_class: Images = 1000
    """Images of each class that the teacher of flow dp_generator is trained on."""


class CompressConfig(DistillConfig):
    """Make a small student to hand over, its export, its cost, and a report of what it leaks."""

    flow: Flow = "plain"
    """How private images, those of `teacher.data`, are touched. plain: by a teacher, without noise. dp_teacher: by a
    teacher that is trained with differential privacy. dp_generator: by a differentially private generator, of whose
    images teacher and student learn. dp_both: by such a teacher and such a generator, whose costs add up."""
    synthetic: SyntheticSettings = SyntheticSettings()
    """Of flows dp_generator and dp_both."""
    student: ModelSettings | None = None  # type: ignore[assignment]
    """As in distill; None where it is searched."""
    search: SearchSettings | None = None
    """Choose the student among networks of the zoo; a given `student` is not searched."""
    inherit: bool = False
    """As in distill; copied weights may carry what the teacher memorised."""
    audit: AuditSettings | None = None
    """Measure what the pipeline leaks; it is run `references + 1` times more. None: not measured."""
    export: ExportSettings = ExportSettings()

    def _learns_from_data(self) -> bool:
        return isinstance(self.generator, FROM_REAL) and not isinstance(self.generator, MerfSettings)

    def _without_student(self) -> str:
        return super()._without_student() if self.search is None else "search"

    @model_validator(mode="after")
    def _of_the_flow(self) -> CompressConfig:
        teacher, generator, flow = self.teacher, self.generator, self.flow
        if teacher is None or isinstance(generator, DatasetSettings):
            raise ValueError("compress needs a teacher: set teacher, and a generator that makes images")
        if (self.student is None) == (self.search is None):
            raise ValueError("set student, or search to have one chosen, one of the two")
        noisy = isinstance(teacher, TrainedTeacher) and teacher.training.dp is not None
        if noisy and flow not in NOISY_TEACHER:
            raise ValueError(f"flow {flow} has no teacher.training.dp: leave it out, or choose dp_teacher or dp_both")
        if flow in NOISY_TEACHER and not noisy:
            raise ValueError(f"flow {flow} has a teacher trained with differential privacy: set teacher.training.dp")
        if flow in NOISY_GENERATOR and not isinstance(generator, MerfSettings):
            raise ValueError(
                f"flow {flow} has a differentially private generator: set generator.kind to merf, and its epsilon"
            )
        if flow in NOISY_GENERATOR and not isinstance(teacher, TrainedTeacher):
            raise ValueError(f"flow {flow} trains its teacher: set teacher.kind to train, teacher.data to the images")
        if isinstance(generator, MerfSettings) and flow not in NOISY_GENERATOR:
            raise ValueError("generator.kind: merf looks at the private images: choose flow dp_generator or dp_both")
        if flow == "dp_teacher" and not isinstance(generator, InversionSettings | PixelSettings):
            raise ValueError(
                f"generator.kind: what {generator.kind} learned from is not accounted for in flow dp_teacher; take "
                "inversion or pixels, which learn from the teacher alone, or merf in flow dp_both"
            )
        if self.teachers:
            raise ValueError("teachers: what others than `teacher` have seen is not accounted for: leave teachers out")
        if self.mix.real != 0.0:
            raise ValueError("mix.real shows the student private images, which no flow counts: set it to 0")
        if self.data is not None:
            raise ValueError(f"data: the private images of flow {flow} are teacher.data: leave data out")
        if self.audit is not None and not isinstance(teacher, TrainedTeacher):
            raise ValueError(
                "audit runs the pipeline again, which a given teacher does not allow: leave audit out, and attack the "
                "finished models with lists of members and non-members (synthkd audit)"
            )
        return self
