"""The configuration of `synthkd compress`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from synthkd.generators.method_settings import BatchwiseSettings, ContinuousSettings
from synthkd.generators.settings import (
    FROM_REAL,
    ChosenByTeacher,
    GeneratorOrAuto,
    InversionSettings,
    MerfSettings,
    PipelineSettings,
    PixelSettings,
    ProceduralSettings,
)
from synthkd.pipelines.config.base import TrainingConfig, require_terms
from synthkd.pipelines.config.distill import Distillation
from synthkd.pipelines.config.old_form import refuse_flat_form, section
from synthkd.pipelines.config.transfer_set import CollageSet, GeneratedSet, PicturesSet
from synthkd.settings import (
    Count,
    Delta,
    Flow,
    Images,
    Listed,
    ModelSettings,
    PathText,
    SearchSettings,
    Settings,
    TeacherSettings,
    TestSettings,
    TrainedTeacher,
)

LEAST_CANARIES = 80
"""Fewer show too little, whatever the pipeline leaks."""


class AuditSettings(Settings):
    """The attack on a pipeline, which is run again with canaries among the private images, and without them."""

    canaries: Annotated[Images, Field(ge=LEAST_CANARIES)] = 500
    """Images that are included or left out at random, half of them with a wrong label; at most half of the private
    images."""
    references: Annotated[int, Field(ge=1, le=4)] = 2
    """Runs of the whole pipeline without the canaries. Their models show the outputs for images not learned from."""
    guesses: Annotated[Images, Field(ge=2)] | None = None
    """Number of guesses about canaries of each half, even and fixed beforehand; None: a fifth."""
    delta: Delta = 1e-5
    """Delta of the lower bounds of epsilon; that of the flow's claim if it is larger, since a bound at a smaller delta
    could not refute the claim."""


class ExportSettings(Settings):
    """The forms in which the student is handed over."""

    formats: Annotated[tuple[Literal["onnx", "int8", "program"], ...], Listed] = ("onnx", "int8", "program")
    """onnx and int8: for ONNX Runtime; program: torch.export."""
    calibration: Images = 512
    """Number of synthetic images that int8 ranges are measured on."""


NOISY_TEACHER, NOISY_GENERATOR = ("dp_teacher", "dp_both"), ("dp_generator", "dp_both")
"""Flows with a differentially private teacher, and with a differentially private generator."""


class SyntheticSettings(Settings):
    """Training and images of a differentially private generator (generator.kind=merf; flows dp_generator, dp_both)."""

    rounds: Count = 100
    """Rounds of training on one noisy release of the private images; more rounds cost time, not privacy."""
    per_class: Images = 1000
    """Images of each class that the teacher of flow dp_generator is trained on."""


UNTAUGHT = (ProceduralSettings, PipelineSettings)
"""Settings of the generators that take nothing from the teacher."""
LEARNS_FROM_TEACHER = (
    ChosenByTeacher,
    InversionSettings,
    PixelSettings,
    ContinuousSettings,
    BatchwiseSettings,
    ProceduralSettings,
)
"""Settings of the generators that learn from the teacher alone, or from nothing, and so from no private image."""
KIND = "distillation.transfer_set.generator.kind"
"""The key of the generator's kind in a compression."""
COUNTED = frozenset(
    {
        "transfer_set", "mix", "distill", "phases", "online", "inherit", "width", "publish_every", "evaluate_every",
        "grid_every",
    }
)  # fmt: skip
"""Keys of a distillation that can be set in a compression, because every flow accounts for them. Only the generator of
`transfer_set` may use private images, as the flow says; its sources of kind procedural, and of kind pictures without a
root, and the other keys never use any."""


class CompressConfig(TrainingConfig):
    """Make a small student to hand over, with its exports, its cost, and a report on privacy."""

    flow: Flow = "plain"
    """What uses the private images, those of `teacher.data`. plain: a teacher, without noise. dp_teacher: a teacher
    that is trained with differential privacy. dp_generator: a differentially private generator, from whose images
    teacher and student learn. dp_both: such a teacher and such a generator; their costs add up."""
    teacher: TeacherSettings | None = None
    """As in distill; None with `finished`."""
    student: ModelSettings | None = None
    """As in distill; None if it is searched, or `finished`."""
    finished: PathText | None = None
    """A finished run of `synthkd distill`, whose student is exported and measured without a step of training. Replaces
    `teacher`, `student` and `distillation`."""
    search: SearchSettings | None = None
    """Choose the student among networks of the zoo, in place of `student`."""
    distillation: Distillation = Distillation()
    """As in distill, with generated images, alone or beside procedural ones and the pictures of scikit-learn."""
    test: TestSettings | None = None
    """Real test data for the report; nothing is selected by it. All images are tested on, but of a dataset with a test
    split of its own, or that the run trains on, the test split alone."""
    synthetic: SyntheticSettings = SyntheticSettings()
    """For flows dp_generator and dp_both."""
    audit: AuditSettings | None = None
    """Measure what the pipeline leaks; it is run `references + 1` more times. None: not measured."""
    export: ExportSettings = ExportSettings()

    @property
    def generated(self) -> GeneratedSet:
        """The generated images that the student learns from."""
        generated = self.distillation.generated
        assert generated is not None
        return generated

    @property
    def claimed_delta(self) -> float | None:
        """Delta of what the flow will claim; None without differential privacy."""
        deltas = []
        if isinstance(self.teacher, TrainedTeacher) and self.teacher.training.dp is not None:
            deltas.append(self.teacher.training.dp.delta)
        if isinstance(self.generated.generator, MerfSettings):
            deltas.append(self.generated.generator.delta)
        return max(deltas, default=None)

    @property
    def audited_delta(self) -> float:
        """Delta of the lower bounds of epsilon."""
        assert self.audit is not None
        return max(self.audit.delta, self.claimed_delta or 0.0)

    @classmethod
    def refuse_old_form(cls, recipe: Mapping[str, object]) -> None:
        """Refuse keys of a distillation outside of the section `distillation`.

        Args:
            recipe: as it was read.

        Raises:
            ConfigError: with the line that says the same today.
        """
        refuse_flat_form(recipe, set(Distillation.model_fields))
        Distillation.refuse_old_form(section(recipe, "distillation"))

    @classmethod
    def defaults_for(cls, recipe: Mapping[str, object]) -> Mapping[str, object]:
        """Those of its distillation; none for a finished student, which is not distilled."""
        if "finished" in recipe:
            return {}
        teacher = {"teacher": recipe["teacher"]} if "teacher" in recipe else {}
        defaults = Distillation.defaults_for({**section(recipe, "distillation"), **teacher})
        return {"distillation": defaults} if defaults else {}

    @model_validator(mode="after")
    def _fits_its_flow(self) -> CompressConfig:
        """Only the parts that the flow accounts for may use private images."""
        default = Distillation()
        if self.finished is not None:
            self._require_nothing_else()
            return self
        for key in sorted(set(Distillation.model_fields) - COUNTED):
            # Compared with the default, because load_config may set keys to their defaults.
            if getattr(self.distillation, key) != getattr(default, key):
                raise ValueError(f"distillation.{key}: no flow accounts for it: leave it out")
        generated, flow = self.distillation.generated, self.flow
        others = [source for source in self.distillation.sources if source is not generated]
        if generated is None or not all(isinstance(source, CollageSet) for source in others):
            raise ValueError(
                "distillation.transfer_set: real images and stored datasets show the student what no flow counts: take "
                "one source of kind generated, alone or beside procedural and pictures"
            )
        if any(isinstance(source, PicturesSet) and source.root is not None for source in others):
            raise ValueError(
                "distillation.transfer_set: no flow counts pictures of a folder, which may be private: leave root out"
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

    def _require_nothing_else(self) -> None:
        """Refuse keys of what a finished student has behind it."""
        default = {"flow": "plain", "distillation": Distillation(), "synthetic": SyntheticSettings()}
        for key in ("teacher", "student", "search", "audit", *default):
            if getattr(self, key) != default.get(key):
                raise ValueError(f"{key}: nothing is trained beside `finished`: leave {key} out")

    def _require_generator(self, generator: GeneratorOrAuto) -> None:
        """The generator learns from the teacher only, or with noise if the flow says so."""
        flow = self.flow
        if flow in NOISY_GENERATOR and not isinstance(generator, MerfSettings):
            raise ValueError(f"flow {flow} has a differentially private generator: set {KIND} to merf, and its epsilon")
        if isinstance(generator, MerfSettings) and flow not in NOISY_GENERATOR:
            raise ValueError(f"{KIND}: merf learns from the private images: choose flow dp_generator or dp_both")
        if isinstance(generator, FROM_REAL) and not isinstance(generator, MerfSettings):
            raise ValueError(
                f"{KIND}: {generator.kind} learns from real images, which no flow counts: take inversion or pixels, "
                "which learn from the teacher alone"
            )
        if flow not in NOISY_GENERATOR and self.synthetic != SyntheticSettings():
            raise ValueError(
                f"synthetic: flow {flow} has no differentially private generator: leave it out, or choose dp_generator "
                "or dp_both"
            )
        if flow == "dp_teacher" and not isinstance(generator, LEARNS_FROM_TEACHER):
            raise ValueError(
                f"{KIND}: what {generator.kind} learned from is not accounted for in flow dp_teacher; take "
                "inversion, pixels, procedural or one of a published method, which see no real image, or merf in flow "
                "dp_both"
            )

    def _require_teacher(self) -> None:
        """The teacher is trained with noise if the flow says so, and by this job if it must be trained again."""
        teacher, flow = self.teacher, self.flow
        if teacher is None:
            raise ValueError("a teacher is missing: set teacher, or finished to a run that has one")
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
