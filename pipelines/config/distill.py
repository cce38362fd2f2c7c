"""The configuration of `synthkd distill`, and of the distillation inside `synthkd compress`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, model_validator

from synthkd.pipelines.config.base import TrainingConfig, require_terms
from synthkd.pipelines.config.transfer_set import (
    GeneratedSet,
    RealSet,
    StoredSet,
    TransferSetSettings,
    refuse_sources_outside,
    require_data,
    sources_of,
)
from synthkd.settings import (
    ContrastTerm,
    Count,
    DataSettings,
    DistillSettings,
    ExitsTerm,
    Joint,
    Listed,
    MixSettings,
    ModelSettings,
    OnlineSettings,
    PhaseSettings,
    Pregenerate,
    Refine,
    Settings,
    StreamData,
    TeacherSettings,
    TeamSettings,
    ViewTerm,
    WidthSettings,
)

COMPARES_FEATURES = (ContrastTerm, ViewTerm, ExitsTerm)
"""Terms beside those of `DistillSettings.features` that need features of the student."""
NO_TEACHER = (
    "a teacher is missing: set teacher, or learn from a dataset that has its soft labels (transfer_set.kind=stored), "
    "or from labelled images and peers (transfer_set.kind=real, online)"
)


BESIDE_A_GENERATOR = (Joint(kind="joint", steps=4000, every=15), Refine(kind="refine", steps=500))
"""Default phases where images are generated."""


def _default_phases(fields: dict[str, Any]) -> tuple[PhaseSettings, ...]:
    """Rounds of the generator beside the student's steps where images are generated, else steps alone."""
    sources = fields.get("transfer_set", GeneratedSet())
    if any(isinstance(one, GeneratedSet) for one in (sources if isinstance(sources, tuple) else (sources,))):
        return BESIDE_A_GENERATOR
    return (Refine(kind="refine", steps=4500),)


class Distillation(Settings):
    """How a student is distilled: what it learns from, by which losses, in which phases and beside whom."""

    transfer_set: TransferSetSettings = GeneratedSet()
    """What the student learns from: one source or a list of them. Kind generated is data-free unless it has `data`."""
    mix: MixSettings = MixSettings()
    distill: DistillSettings = DistillSettings()
    phases: Annotated[tuple[PhaseSettings, ...], Listed] = Field(
        default_factory=_default_phases,
        # What an override such as phases.0.steps=10 starts from, where a recipe has no phases.
        json_schema_extra={"default": [phase.model_dump() for phase in BESIDE_A_GENERATOR]},
    )
    """joint 4000 steps and refine 500 where images are generated, else refine 4500, if not set."""
    online: OnlineSettings | None = None
    """Networks that learn together with the student, and from each other."""
    inherit: bool | None = None
    """Start a fresh student from the part of the teacher's weights that fits it, where the architectures agree. None:
    only where all images are generated (and never in compress: weights may carry what the teacher memorised)."""
    width: WidthSettings | None = None
    """Let the student's width change while it trains, between its own and `most` times it; it is cut to the width that
    it ends with."""
    publish_every: Count | None = None
    """Steps between saves of the student as it is at that moment (the average of its weights, where there is one) to
    `<run>/student`, for whoever serves it while it learns; None: it is saved at the end."""
    evaluate_every: Count = 250
    """Steps between evaluations on `test`, where there is one."""
    grid_every: Count = 50
    """Generator rounds between sample grids; 1 draws one a round, and costs about as much as two rounds."""

    @property
    def sources(self) -> tuple[GeneratedSet | StoredSet | RealSet, ...]:
        """The sources of the transfer set, one or several."""
        return sources_of(self.transfer_set)

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
        """Kind of the real images that the student or the generator learns from; None where there are none."""
        data = [one.data for one in (self.real, self.generated) if one is not None and one.data is not None]
        return data[0].kind if data else None

    @property
    def inherits(self) -> bool:
        """Whether a fresh student starts from weights of its teacher."""
        if self.inherit is not None:
            return self.inherit
        return self.width is None and len(self.sources) == 1 and self.generated is not None

    def alone(self) -> str:
        """The key by which the generator works before there is a student; empty where it never does."""
        alone = [n for n, phase in enumerate(self.phases) if isinstance(phase, Pregenerate) and phase.rounds]
        return f"phases.{alone[0]}" if alone else ""

    @classmethod
    def refuse_old_form(cls, recipe: Mapping[str, Any]) -> None:
        """Refuse `generator`, `data`, `difficulty`, `bank`, `mix.real` and `mix.live`, which sources have now."""
        refuse_sources_outside(recipe)

    @model_validator(mode="after")
    def _fits_its_sources(self) -> Distillation:
        """The sources share a batch, and the phases use what there is."""
        if self.generated is None and not all(isinstance(phase, Refine) for phase in self.phases):
            raise ValueError("phases: nothing is generated, so a student has refine phases only")
        if self.generated is not None:
            require_terms(self.generated.generator, self.alone())
        return self

    @model_validator(mode="after")
    def _fits_its_terms(self) -> Distillation:
        """Losses, averages and a changing width need things that other settings take away."""
        distill, compared = self.distill, self.compared
        if compared - {"exits"} and self.mix.logits == "stored":
            terms = " and ".join(sorted(compared - {"exits"}))
            raise ValueError(f"distill: {terms} compares features of the images at hand: set mix.logits to fresh")
        if self.width is not None and (self.inherits or compared):
            raise ValueError(
                "width: a student whose width changes has no layer that a weight or feature of the teacher fits: set "
                "inherit to false, and leave out the terms of distill that compare features"
            )
        if self.online is not None and self.width is not None:
            raise ValueError("online: peers learn beside a student of fixed width: leave width out, or online")
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
                "an average of weights is to teach, and there is none: set distill.optimizer.ema, and that of each "
                "peer with an optimizer of its own, to 0.99"
            )
        return self

    @property
    def compared(self) -> set[str]:
        """Kinds of the loss terms that need features of the student."""
        terms = (*self.distill.features, *self.distill.transfer)
        return {term.kind for term in terms if term in self.distill.features or isinstance(term, COMPARES_FEATURES)}


class DistillConfig(Distillation, TrainingConfig):
    """Distill a student from a teacher without its data, or with a little of it."""

    teacher: TeacherSettings | None = None
    """None where a stored dataset has the soft labels, or where networks learn from labelled real images and from each
    other."""
    teachers: Annotated[tuple[TeacherSettings, ...], Listed] = ()
    """Further teachers that label beside `teacher`, which alone a generator is trained against and whose features
    alone are compared."""
    team: TeamSettings = TeamSettings()
    """How several teachers label as one."""
    student: ModelSettings
    test: DataSettings | None = None
    """Real test data to report on; it never selects anything."""

    @property
    def every_teacher(self) -> tuple[TeacherSettings, ...]:
        """`teacher`, where there is one, and the further ones."""
        return (*(() if self.teacher is None else (self.teacher,)), *self.teachers)

    @property
    def logits(self) -> str:
        """Whether the teacher labels images afresh ("fresh") or logits stored with them count ("stored")."""
        return self.mix.logits or ("stored" if self.teacher is None else "fresh")

    @model_validator(mode="after")
    def _fits_its_teacher(self) -> DistillConfig:
        require_data(self.sources)
        if not self.teachers and self.team != TeamSettings():
            raise ValueError("team says how several teachers label, and there is one: set teachers, or leave team out")
        if self.teachers and (self.teacher is None or self.logits == "stored"):
            raise ValueError("teachers label beside `teacher` what is at hand: set teacher, and mix.logits to fresh")
        if self.teacher is not None:
            return self
        if self.real is not None and isinstance(self.real.data, StreamData):
            raise ValueError("data.kind: a stream says neither size nor classes and may lack labels: set teacher")
        has_labels = len(self.sources) == 1 and not self.sources[0].needs_teacher
        if not has_labels or (self.stored is not None and self.mix.logits == "fresh"):
            raise ValueError(NO_TEACHER)
        if self.real is not None:
            self._needs_no_teacher()
        if self.mix.cutmix or (self.mix.mixup and self.real is not None):
            raise ValueError("nobody labels mixtures without a teacher: set mix.mixup and mix.cutmix to 0")
        if self.online is not None and any(peer.model is None for peer in self.online.peers):
            raise ValueError("online.peers: a peer without a model is a copy of the teacher: set its model, or teacher")
        return self

    def _needs_no_teacher(self) -> None:
        """Refuse terms that need a teacher, of a student that has annotated labels alone."""
        distill = self.distill
        terms: list[str] = [
            term.kind for term in (*distill.features, *distill.transfer) if not isinstance(term, ExitsTerm)
        ]
        terms += ["logit_match"] if distill.logit_match != 0.0 else []
        terms += [f"adapt.{name}" for name in ("weights", "strength") if getattr(distill.adapt, name) is not None]
        terms += [] if self.width is None else ["width"]
        soft = distill.alpha != 1.0 if distill.soft is None else distill.soft != 0.0
        if soft and (self.online is None or self.online.swap is None):
            terms.append("soft labels (distill.alpha below 1)" if distill.soft is None else "soft")
        if terms:
            listed = " and ".join(dict.fromkeys(terms))
            raise ValueError(
                f"a teacher is missing for {listed}: set teacher, or leave them out and distill.alpha at 1"
            )
        if self.mix.logits == "stored":
            raise ValueError("real images have no stored logits without a teacher: set mix.logits to fresh")
