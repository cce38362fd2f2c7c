"""The configuration of `synthkd distill`, and of the distillation inside `synthkd compress`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from synthkd.generators.settings import PythonGenerator
from synthkd.pipelines.config.base import require_terms
from synthkd.pipelines.config.black_box import require_answers_alone
from synthkd.pipelines.config.budget import BudgetedConfig
from synthkd.pipelines.config.image_defaults import for_colour, of_labels_alone, without_real_images
from synthkd.pipelines.config.judged import Judged
from synthkd.pipelines.config.old_form import refuse_sources_outside
from synthkd.pipelines.config.transfer_set import (
    AnySet,
    GeneratedSet,
    RealSet,
    StoredSet,
    TransferSetSettings,
    sources_of,
)
from synthkd.settings import (
    ContrastTerm,
    Count,
    DistillSettings,
    ExitsTerm,
    Joint,
    LabelsTeacher,
    Listed,
    MixSettings,
    ModelOrGiven,
    OnlineSettings,
    PhaseSettings,
    Pregenerate,
    Refine,
    ScoreSettings,
    Settings,
    StreamData,
    TeacherOrGiven,
    TeacherSettings,
    TeamSettings,
    TestSettings,
    UnlabelledData,
    ViewTerm,
    Whole,
    WidthSettings,
)

COMPARES_FEATURES = (ContrastTerm, ViewTerm, ExitsTerm)
"""Terms that need features of the student, in addition to those of `DistillSettings.features`."""
NO_TEACHER = (
    "a teacher is missing: set teacher, or learn from a dataset that has its soft labels (transfer_set.kind=stored), "
    "or from labelled images and peers (transfer_set.kind=real, online)"
)
"""The refusal of a configuration without a teacher."""
BESIDE_A_GENERATOR = (Joint(kind="joint", steps=4000, every=10), Refine(kind="refine", steps=500))
"""Default phases if images are generated."""


def _default_phases(fields: Mapping[str, object]) -> tuple[PhaseSettings, ...]:
    """The phases of a configuration that has none, by its fields that are validated already."""
    sources = fields.get("transfer_set", GeneratedSet())
    if any(isinstance(one, GeneratedSet) for one in (sources if isinstance(sources, tuple) else (sources,))):
        return BESIDE_A_GENERATOR
    return (Refine(kind="refine", steps=4500),)


class Distillation(Settings):
    """How a student is distilled: its transfer set, losses, phases and peers."""

    transfer_set: TransferSetSettings = GeneratedSet()
    """The images that the student learns from: one source or a list of them. Kind generated needs no real image unless
    it has `data`."""
    mix: MixSettings = MixSettings()
    distill: DistillSettings = DistillSettings()
    phases: Annotated[tuple[PhaseSettings, ...], Listed] = Field(
        default_factory=_default_phases,
        # An override such as phases.0.steps=10 starts from this default if a recipe has no phases.
        json_schema_extra={"default": [phase.model_dump() for phase in BESIDE_A_GENERATOR]},
    )
    """Default: joint 4000 steps with a round every 10, and refine 500 if images are generated, else refine 4500. Beside
    `noisy_label`: 6 rounds of pregenerate, joint 4000 with a round every 25, and refine 500."""
    online: OnlineSettings | None = None
    """Networks that learn together with the student, and from each other."""
    inherit: bool | Literal["merged"] | None = None
    """Start a fresh student from the teacher's weights that fit it: evenly spaced channels, or similar ones merged.
    None: only without real images and stored data (never in compress: weights may hold what the teacher memorised), and
    not for a network of a function of yours, whose own weights true overwrites."""
    width: WidthSettings | None = None
    """Let the student's width change while it trains, between its own and `most` times its own. At the end it is cut to
    its last width."""
    publish_every: Count | None = None
    """Steps between saves of the present student (of the average of its weights, if there is one) to `<run>/student`,
    so that it can be served while it learns; None: it is saved at the end only."""
    evaluate_every: Count = 250
    """Steps between evaluations on `test`, if set."""
    grid_every: Count = 50
    """Generator rounds between sample grids. A grid costs about as much as two rounds."""

    @property
    def sources(self) -> tuple[AnySet, ...]:
        """The sources of the transfer set, one or several."""
        return sources_of(self.transfer_set)

    def key_of(self, source: AnySet) -> str:
        """The key of one of the sources: `transfer_set`, or `transfer_set.N` of a list."""
        return f"transfer_set.{self.sources.index(source)}" if isinstance(self.transfer_set, tuple) else "transfer_set"

    @property
    def generated(self) -> GeneratedSet | None:
        """The source of generated images, or None."""
        return next((source for source in self.sources if isinstance(source, GeneratedSet)), None)

    @property
    def stored(self) -> StoredSet | None:
        """The stored dataset, or None."""
        return next((source for source in self.sources if isinstance(source, StoredSet)), None)

    @property
    def real(self) -> RealSet | None:
        """The source of real images, or None."""
        return next((source for source in self.sources if isinstance(source, RealSet)), None)

    @property
    def real_images(self) -> str | None:
        """Kind of the real images that the student or the generator learns from; None without real images."""
        data = [one.data for one in (self.real, self.generated) if one is not None and one.data is not None]
        return data[0].kind if data else None

    @property
    def needs_gradients(self) -> bool:
        """Whether the generator takes gradients of the teacher's logits to its images; False where it does not tell."""
        if self.generated is None or isinstance(self.generated.generator, PythonGenerator):
            return False
        return "gradients" in self.generated.needs

    @property
    def inherits(self) -> bool:
        """Whether a fresh student starts from weights of the teacher."""
        if self.inherit is not None:
            return bool(self.inherit)
        return self.width is None and not any(isinstance(one, StoredSet | RealSet) for one in self.sources)

    def alone(self) -> str:
        """The key of the first phase that trains the generator without a student; empty if there is none."""
        alone = (n for n, phase in enumerate(self.phases) if isinstance(phase, Pregenerate) and phase.rounds)
        return next((f"phases.{n}" for n in alone), "")

    @classmethod
    def refuse_old_form(cls, recipe: Mapping[str, object]) -> None:
        """Refuse `generator`, `data`, `difficulty`, `bank`, `mix.real` and `mix.live`, which are keys of sources."""
        refuse_sources_outside(recipe)

    @classmethod
    def defaults_for(cls, recipe: Mapping[str, object]) -> Mapping[str, object]:
        """Those of images which show nothing real (`without_real_images`), or of a black box that answers by labels."""
        return of_labels_alone(recipe) or without_real_images(recipe)

    @model_validator(mode="after")
    def _fits_its_sources(self) -> Distillation:
        """The sources share a batch, and the phases need no source that is missing."""
        if self.generated is None and not all(isinstance(phase, Refine) for phase in self.phases):
            raise ValueError("phases: nothing is generated, so a student has refine phases only")
        if self.generated is not None:
            require_terms(self.generated.generator, self.alone())
        return self

    @model_validator(mode="after")
    def _fits_its_terms(self) -> Distillation:
        """Losses, averages of weights and a changing width have what they need."""
        distill, compared = self.distill, self.compared
        if compared - {"exits"} and self.mix.logits == "stored":
            terms = " and ".join(sorted(compared - {"exits"}))
            raise ValueError(f"distill: {terms} compares features of the images at hand: set mix.logits to fresh")
        if self.width is not None and (self.inherits or compared):
            raise ValueError(
                "width: no weight or feature of the teacher fits a student whose width changes: set inherit to false, "
                "and leave out the terms of distill that compare features"
            )
        if self.width is not None and self.width.measure == "features" and self.mix.logits == "stored":
            raise ValueError(
                "width.measure: features of the teacher are those of the images at hand: set mix.logits to fresh, or "
                "measure to agreement"
            )
        if self.online is not None and self.width is not None:
            raise ValueError("online: peers need a student of fixed width: leave width out, or online")
        default = DistillSettings.model_fields["temperature"].default
        if distill.adapt.temperature is not None and distill.temperature != default:
            raise ValueError(
                "distill.temperature is moved by distill.adapt.temperature, which has its own start: leave one of them "
                "out"
            )
        optimizers = [distill.optimizer]
        optimizers += [] if self.online is None else [peer.optimizer or distill.optimizer for peer in self.online.peers]
        averages = distill.average != 0.0 or (self.online is not None and self.online.averaged)
        if averages and not all(optimizer.ema > 0.0 for optimizer in optimizers):
            raise ValueError(
                "distill.average and online.averaged need an average of weights, and there is none: set "
                "distill.optimizer.ema, and that of each peer with an optimizer of its own, to 0.99"
            )
        return self

    @property
    def compared(self) -> set[str]:
        """Kinds of the loss terms that need features of the student."""
        terms = (*self.distill.features, *self.distill.transfer)
        return {term.kind for term in terms if term in self.distill.features or isinstance(term, COMPARES_FEATURES)}


class DistillConfig(Distillation, Judged, BudgetedConfig):
    """Distill a student from a teacher, without its data or with some of it."""

    teacher: TeacherOrGiven | None = None
    """None: a stored dataset has the soft labels, or networks learn from labelled real images and from each other."""
    teachers: Annotated[tuple[TeacherSettings, ...], Listed] = ()
    """Further teachers that label images together with `teacher`. A generator is trained against `teacher` alone, and
    only its features are compared."""
    team: TeamSettings = TeamSettings()
    """How several teachers label as one."""
    student: ModelOrGiven
    """The network to train: one of the zoo by `arch`, or from elsewhere (kind load)."""
    test: TestSettings | None = None
    """Real test data for the report; nothing is selected by it. All images are tested on, but of a dataset with a test
    split of its own, or that the run trains on, the test split alone."""
    score: ScoreSettings | None = None
    """Score the newest generated images while the run goes; None: only at the end, by `synthkd evaluate RUN`."""
    keep_images: Whole | Literal["all"] = 1000
    """Images of the bank, oldest to newest, kept in `samples/bank.npz` for `synthkd evaluate RUN`; "all": the bank."""

    @classmethod
    def defaults_for(cls, recipe: Mapping[str, object]) -> Mapping[str, object]:
        """Those of its images, and of small ones in colour the precision."""
        return {**super().defaults_for(recipe), **for_colour(recipe)}

    @property
    def every_teacher(self) -> tuple[TeacherOrGiven, ...]:
        """`teacher`, if set, and the further ones."""
        return (*(() if self.teacher is None else (self.teacher,)), *self.teachers)

    @property
    def phases_and_extensions(self) -> tuple[PhaseSettings, ...]:
        """`phases`, then a phase for each extension: the last phase of the student with other steps."""
        last = [phase for phase in self.phases if isinstance(phase, Joint | Refine) and phase.steps][-1:]
        return (*self.phases, *(phase.model_copy(update={"steps": n}) for n in self.extended for phase in last))

    @property
    def black_box(self) -> LabelsTeacher | None:
        """The teacher, if it is a black box."""
        return self.teacher if isinstance(self.teacher, LabelsTeacher) else None

    @property
    def logits(self) -> str:
        """Where the teacher's logits come from: "fresh" or "stored", see `MixSettings.logits`."""
        is_stored = self.teacher is None or self.black_box is not None
        return self.mix.logits or ("stored" if is_stored else "fresh")

    @property
    def inherits(self) -> bool:
        """Whether a fresh student starts from weights of the teacher."""
        return self.black_box is None and super().inherits

    @property
    def labelled_mix(self) -> MixSettings:
        """`mix` with the logits that are used."""
        return self.mix.model_copy(update={"logits": self.logits})

    @model_validator(mode="after")
    def _asks_within_reason(self) -> DistillConfig:
        """A black box gives answers alone, and each costs a query."""
        if self.black_box is None:
            return self
        require_answers_alone(self.sources, self.mix)
        more = {
            "teachers": bool(self.teachers),
            "inherit": bool(self.inherit),
            "score": self.score is not None,
            "online.peers without a model": self.online is not None and any(p.model is None for p in self.online.peers),
            "terms of distill that compare features": bool(self.compared - {"exits"}),
            "width.measure=features": self.width is not None and self.width.measure == "features",
        }
        if keys := [key for key, is_set in more.items() if is_set]:
            raise ValueError(f"teacher: a black box gives answers alone: leave out {' and '.join(keys)}")
        return self

    @model_validator(mode="after")
    def _fits_its_teacher(self) -> DistillConfig:
        """The images have labels, and every term has the logits or features that it needs."""
        self._require_data()
        if self.score is not None and self.generated is None:
            raise ValueError("score: nothing is generated, so there is nothing to score: leave score out")
        if not self.teachers and self.team != TeamSettings():
            raise ValueError("team says how several teachers label, and there is one: set teachers, or leave team out")
        if self.teachers and (self.teacher is None or self.logits == "stored"):
            raise ValueError("teachers label beside `teacher` what is at hand: set teacher, and mix.logits to fresh")
        if self.teacher is not None:
            return self
        if self.real is not None and isinstance(self.real.data, StreamData):
            raise ValueError(
                "transfer_set: a stream does not know the size and the classes of its images and may lack labels: set "
                "teacher"
            )
        if self.real is not None and isinstance(self.real.data, UnlabelledData):
            raise ValueError("transfer_set: nobody labels the unlabelled images: set teacher")
        has_labels = len(self.sources) == 1 and not self.sources[0].needs
        if not has_labels or (self.stored is not None and self.mix.logits == "fresh"):
            raise ValueError(NO_TEACHER)
        self._needs_no_teacher()
        if self.mix.cutmix or (self.mix.mixup and self.real is not None) or (self.mix.crop < 1.0 and self.stored):
            raise ValueError("no teacher labels mixtures and crops: set mix.mixup and mix.cutmix to 0, mix.crop to 1")
        if self.online is not None and any(peer.model is None for peer in self.online.peers):
            raise ValueError("online.peers: a peer without a model is a copy of the teacher: set its model, or teacher")
        return self

    def _require_data(self) -> None:
        """Refuse a generator that learns from real images if there are none, two sets, or a stream alone."""
        generated, real = self.generated, self.real
        if generated is None or not generated.learns_from_data:
            return
        kind, key = generated.generator.kind, self.key_of(generated)
        arrives = real is not None and isinstance(real.data, StreamData)
        if real is not None and isinstance(real.data, UnlabelledData):
            raise ValueError(f"transfer_set: {kind} learns from labelled images: leave the unlabelled ones out")
        if generated.data is not None and real is not None and not arrives:
            raise ValueError(f"transfer_set: {kind} learns from the images of kind real: leave its own data out")
        if generated.data is None and real is None:
            raise ValueError(f"{key}.generator.kind: {kind} learns from real images: set {key}.data")
        if generated.data is None and arrives:
            raise ValueError(
                f"transfer_set: {kind} learns from a fixed dataset, not from a stream: set data of kind generated"
            )

    def _needs_no_teacher(self) -> None:
        """Refuse terms that need a teacher, where labels are those of the real images, or logits those of a dataset."""
        distill, is_real = self.distill, self.real is not None
        compared = (*distill.features, *distill.transfer)
        terms: list[str] = [term.kind for term in compared if not isinstance(term, ExitsTerm)]
        if is_real:
            terms += ["logit_match"] if distill.logit_match != 0.0 else []
            terms += [f"adapt.{name}" for name in ("weights", "strength") if getattr(distill.adapt, name) is not None]
            terms += [] if self.width is None else ["width"]
            soft = distill.alpha != 1.0 if distill.soft is None else distill.soft != 0.0
            if soft and (self.online is None or self.online.swap is None):
                terms.append("soft labels (distill.alpha below 1)" if distill.soft is None else "soft")
        if terms:
            listed, also = " and ".join(dict.fromkeys(terms)), " and distill.alpha at 1" if is_real else ""
            raise ValueError(f"a teacher is missing for {listed}: set teacher, or leave them out{also}")
        if is_real and self.mix.logits == "stored":
            raise ValueError("real images have no stored logits without a teacher: set mix.logits to fresh")
