"""The configuration of `synthkd compress`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from synthkd.generators.settings import (
    FROM_REAL,
    GeneratorSettings,
    InversionSettings,
    MerfSettings,
    PixelSettings,
)
from synthkd.pipelines.config.base import TrainingConfig, require_terms
from synthkd.pipelines.config.distill import Distillation
from synthkd.pipelines.config.transfer_set import GeneratedSet, refuse_flat_form, section
from synthkd.settings import (
    Count,
    DataSettings,
    Flow,
    Images,
    Listed,
    ModelSettings,
    SearchSettings,
    Settings,
    TeacherSettings,
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


COUNTED = frozenset(
    {
        "transfer_set", "mix", "distill", "phases", "online", "inherit", "width", "publish_every", "evaluate_every",
        "grid_every",
    }
)  # fmt: skip
"""Keys of a distillation that every flow accounts for: of `transfer_set` the generator alone may touch private images,
as the flow says, and the others never do. A key that is not named here cannot be set in a compression."""


class CompressConfig(TrainingConfig):
    """Make a small student to hand over, its export, its cost, and a report of what it leaks."""

    flow: Flow = "plain"
    """How private images, those of `teacher.data`, are touched. plain: by a teacher, without noise. dp_teacher: by a
    teacher that is trained with differential privacy. dp_generator: by a differentially private generator, of whose
    images teacher and student learn. dp_both: by such a teacher and such a generator, whose costs add up."""
    teacher: TeacherSettings
    student: ModelSettings | None = None
    """As in distill; None where it is searched."""
    search: SearchSettings | None = None
    """Choose the student among networks of the zoo; a given `student` is not searched."""
    distillation: Distillation = Distillation()
    """As in distill, with generated images alone."""
    test: DataSettings | None = None
    """Real test data to report on; it never selects anything."""
    synthetic: SyntheticSettings = SyntheticSettings()
    """Of flows dp_generator and dp_both."""
    audit: AuditSettings | None = None
    """Measure what the pipeline leaks; it is run `references + 1` times more. None: not measured."""
    export: ExportSettings = ExportSettings()

    @property
    def generated(self) -> GeneratedSet:
        """The generated images that the student learns from."""
        generated = self.distillation.generated
        assert generated is not None
        return generated

    @classmethod
    def refuse_old_form(cls, recipe: Mapping[str, Any]) -> None:
        """Refuse keys of a distillation beside the section `distillation`."""
        refuse_flat_form(recipe, set(Distillation.model_fields))
        Distillation.refuse_old_form(section(recipe, "distillation"))

    @model_validator(mode="after")
    def _touches_private_images_as_the_flow_says(self) -> CompressConfig:
        """Only what is named here, and counted by the flow, comes near private images."""
        default = Distillation()
        for key in sorted(set(Distillation.model_fields) - COUNTED):
            if getattr(self.distillation, key) != getattr(default, key):  # load_config may write defaults out
                raise ValueError(f"distillation.{key}: no flow accounts for it: leave it out")
        generated, flow = self.distillation.generated, self.flow
        if len(self.distillation.sources) > 1 or generated is None:
            raise ValueError(
                "distillation.transfer_set: real images and stored datasets show the student what no flow counts: take "
                "one source of kind generated"
            )
        if generated.data is not None:
            raise ValueError(
                f"distillation.transfer_set.data: the private images of flow {flow} are teacher.data: leave data out"
            )
        self._require_generator(generated.generator)
        self._require_teacher()
        if (self.student is None) == (self.search is None):
            raise ValueError("set student, or search to have one chosen, one of the two")
        if self.search is not None:
            require_terms(generated.generator, "search")
        return self

    def _require_generator(self, generator: GeneratorSettings) -> None:
        """The generator learns from the teacher alone, or with noise where the flow has it so."""
        flow = self.flow
        if flow in NOISY_GENERATOR and not isinstance(generator, MerfSettings):
            raise ValueError(
                f"flow {flow} has a differentially private generator: set distillation.transfer_set.generator.kind to "
                "merf, and its epsilon"
            )
        if isinstance(generator, MerfSettings) and flow not in NOISY_GENERATOR:
            raise ValueError("generator.kind: merf looks at the private images: choose flow dp_generator or dp_both")
        if isinstance(generator, FROM_REAL) and not isinstance(generator, MerfSettings):
            raise ValueError(
                f"generator.kind: {generator.kind} learns from real images, which no flow counts: take inversion or "
                "pixels, which learn from the teacher alone"
            )
        if flow == "dp_teacher" and not isinstance(generator, InversionSettings | PixelSettings):
            raise ValueError(
                f"generator.kind: what {generator.kind} learned from is not accounted for in flow dp_teacher; take "
                "inversion or pixels, which learn from the teacher alone, or merf in flow dp_both"
            )

    def _require_teacher(self) -> None:
        """The teacher is trained with noise where the flow has it so, and here where it must be trained again."""
        teacher, flow = self.teacher, self.flow
        is_noisy = isinstance(teacher, TrainedTeacher) and teacher.training.dp is not None
        if is_noisy and flow not in NOISY_TEACHER:
            raise ValueError(f"flow {flow} has no teacher.training.dp: leave it out, or choose dp_teacher or dp_both")
        if flow in NOISY_TEACHER and not is_noisy:
            raise ValueError(f"flow {flow} has a teacher trained with differential privacy: set teacher.training.dp")
        if flow in NOISY_GENERATOR and not isinstance(teacher, TrainedTeacher):
            raise ValueError(f"flow {flow} trains its teacher: set teacher.kind to train, teacher.data to the images")
        if self.audit is not None and not isinstance(teacher, TrainedTeacher):
            raise ValueError(
                "audit runs the pipeline again, which a given teacher does not allow: leave audit out, and attack the "
                "finished models with lists of members and non-members (synthkd audit)"
            )
