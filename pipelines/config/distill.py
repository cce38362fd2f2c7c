"""The configuration of each job: one frozen model, `kind:` choosing among generators, data and phases."""

from __future__ import annotations

from typing import Annotated

from pydantic import model_validator

from synthkd.generators.settings import (
    FROM_REAL,
    DatasetSettings,
    GeneratorSettings,
    InversionSettings,
    NoGenerator,
)
from synthkd.pipelines.config.base import TrainingConfig, require_terms
from synthkd.settings import (
    BankSettings,
    ContrastTerm,
    Count,
    DataOrStream,
    DataSettings,
    DifficultySettings,
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
    StreamData,
    TeacherSettings,
    TeamSettings,
    ViewTerm,
    WidthSettings,
)

LOOKS_INSIDE = (ContrastTerm, ViewTerm, ExitsTerm)


class DistillConfig(TrainingConfig):
    """Distill a student from a teacher without its data, or with a little of it."""

    teacher: TeacherSettings | None = None
    """None where a dataset with soft labels takes its place (generator.kind=dataset), or where networks learn from
    labelled images and from each other (generator.kind=none)."""
    teachers: Annotated[tuple[TeacherSettings, ...], Listed] = ()
    """Further teachers that label beside `teacher`, which alone a generator is trained against and whose features
    alone are compared."""
    team: TeamSettings = TeamSettings()
    """How several teachers label as one."""
    student: ModelSettings
    online: OnlineSettings | None = None
    """Networks that learn together with the student, and from each other."""
    inherit: bool = True
    """Start a fresh student from the part of the teacher's weights that fits it, where the architectures agree."""
    width: WidthSettings | None = None
    """Let the student's width change while it trains, between its own and `most` times it; it is cut to the width that
    it ends with."""
    generator: GeneratorSettings = InversionSettings()
    data: DataOrStream | None = None
    """Real images: what cgan and diffusion learn from, and what may be mixed in (`mix.real`). None: data-free."""
    publish_every: Count | None = None
    """Steps between saves of the student as it is at that moment (the average of its weights, where there is one) to
    `<run>/student`, for whoever serves it while it learns; None: it is saved at the end."""
    test: DataSettings | None = None
    """Real test data to report on; it never selects anything."""
    difficulty: DifficultySettings = DifficultySettings()
    bank: BankSettings = BankSettings()
    mix: MixSettings = MixSettings()
    distill: DistillSettings = DistillSettings()
    phases: Annotated[tuple[PhaseSettings, ...], Listed] = (
        Joint(kind="joint", steps=4000, every=15),
        Refine(kind="refine", steps=500),
    )
    evaluate_every: Count = 250
    """Steps between evaluations on `test`, where there is one."""
    grid_every: Count = 50
    """Generator rounds between sample grids; 1 draws one a round, and costs about as much as two rounds."""

    @model_validator(mode="after")
    def _of_a_dataset(self) -> DistillConfig:
        """Where nothing is generated, one phase is all there can be; nor need a dataset's soft labels be asked for."""
        stored = isinstance(self.generator, DatasetSettings)
        if (stored or isinstance(self.generator, NoGenerator)) and "phases" not in self.model_fields_set:
            self.__dict__["phases"] = (Refine(kind="refine", steps=4500),)
        if stored and self.teacher is None and "logits" not in self.mix.model_fields_set:
            self.__dict__["mix"] = self.mix.model_copy(update={"logits": "stored"})
        return self

    def _learns_from_data(self) -> bool:
        return isinstance(self.generator, FROM_REAL)

    @property
    def every_teacher(self) -> tuple[TeacherSettings, ...]:
        """`teacher`, where there is one, and the further ones."""
        return (*(() if self.teacher is None else (self.teacher,)), *self.teachers)

    def _needs_no_teacher(self) -> None:
        """Refuse terms that need a teacher where there is none."""
        distill = self.distill
        needs: list[str] = [
            term.kind for term in (*distill.features, *distill.transfer) if not isinstance(term, ExitsTerm)
        ]
        needs += ["logit_match"] if distill.logit_match != 0.0 else []
        needs += [f"adapt.{name}" for name in ("weights", "strength") if getattr(distill.adapt, name) is not None]
        needs += [] if self.width is None else ["width"]
        soft = distill.alpha != 1.0 if distill.soft is None else distill.soft != 0.0
        if soft and (self.online is None or self.online.swap is None):
            needs.append("soft labels (distill.alpha below 1)" if distill.soft is None else "soft")
        if needs:
            asked = " and ".join(dict.fromkeys(needs))
            raise ValueError(f"a teacher is missing for {asked}: set teacher, or leave them out and distill.alpha at 1")
        if self.mix.mixup or self.mix.cutmix:
            raise ValueError("nobody labels mixtures without a teacher: set mix.mixup and mix.cutmix to 0")
        if self.mix.logits == "stored":
            raise ValueError("real images have no stored logits without a teacher: set mix.logits to fresh")

    def _without_student(self) -> str:
        """The key by which the generator works before there is a student; empty where it never does."""
        alone = [n for n, phase in enumerate(self.phases) if isinstance(phase, Pregenerate) and phase.rounds]
        return f"phases.{alone[0]}" if alone else ""

    @model_validator(mode="after")
    def _consistent(self) -> DistillConfig:
        stored, learns = isinstance(self.generator, DatasetSettings), self._learns_from_data()
        none = isinstance(self.generator, NoGenerator)
        if self.data is None and self.mix.real != 0.0:
            raise ValueError("mix.real needs real images: set data, or mix.real to 0")
        if self.data is None and learns:
            raise ValueError(f"generator.kind: {self.generator.kind} learns from real images: set data")
        if self.data is not None and self.mix.real == 0.0 and not learns:
            raise ValueError("data is set but mix.real is 0, so no real image would be used: set mix.real, or no data")
        labelled = self.mix.logits == "stored" and self.mix.real == 0.0
        inside = (*self.distill.features, *(term for term in self.distill.transfer if isinstance(term, LOOKS_INSIDE)))
        compared = " and ".join(dict.fromkeys(term.kind for term in inside))
        theirs = " and ".join(dict.fromkeys(term.kind for term in inside if not isinstance(term, ExitsTerm)))
        if theirs and self.mix.logits == "stored":
            raise ValueError(f"distill: {theirs} compares features of the images at hand: set mix.logits to fresh")
        if self.width is not None and (self.inherit or compared):
            raise ValueError(
                "width: a student whose width changes has no layer that a weight or feature of the teacher fits: set "
                "inherit to false, and leave out the terms of distill that compare features"
            )
        if isinstance(self.data, StreamData) and learns:
            raise ValueError(f"generator.kind: {self.generator.kind} learns from a fixed dataset: set data to one")
        if isinstance(self.data, StreamData) and self.teacher is None:
            raise ValueError("data.kind: a stream says neither size nor classes and may lack labels: set teacher")
        if none and (self.mix.real != 1.0 or not all(isinstance(phase, Refine) for phase in self.phases)):
            raise ValueError(
                "generator.kind: none leaves real images alone: set mix.real to 1, and phases to refine ones only"
            )
        if self.teacher is None and not none and not (stored and labelled):
            raise ValueError(
                "a teacher is missing: set teacher, or learn from a dataset that has its soft labels "
                "(generator.kind=dataset, mix.logits=stored, mix.real=0), or from labelled images and peers "
                "(generator.kind=none, online)"
            )
        if self.teacher is None and none:
            self._needs_no_teacher()
        if not self.teachers and self.team != TeamSettings():
            raise ValueError("team says how several teachers label, and there is one: set teachers, or leave team out")
        constant = DistillSettings.model_fields["temperature"].default
        if self.distill.adapt.temperature is not None and self.distill.temperature != constant:
            raise ValueError(
                "distill.temperature is moved by distill.adapt.temperature, which has its own start: leave one of them "
                "out"
            )
        if self.teachers and (self.teacher is None or self.mix.logits == "stored"):
            raise ValueError("teachers label beside `teacher` what is at hand: set teacher, and mix.logits to fresh")
        asked = [None] if self.online is None else [None, *(peer.optimizer for peer in self.online.peers)]
        ema = all((self.distill.optimizer if one is None else one).ema > 0.0 for one in asked)
        if not ema and (self.distill.average != 0.0 or (self.online is not None and self.online.averaged)):
            raise ValueError(
                "an average of weights is to teach, and there is none: set distill.optimizer.ema, and that of each "
                "peer with an optimizer of its own, to 0.99"
            )
        if self.online is not None and self.width is not None:
            raise ValueError("online: peers learn beside a student of fixed width: leave width out, or online")
        if self.online is not None and self.teacher is None and any(p.model is None for p in self.online.peers):
            raise ValueError("online.peers: a peer without a model is a copy of the teacher: set its model, or teacher")
        require_terms(self.generator, self._without_student())
        if stored and (self.mix.live != 0.0 or not all(isinstance(phase, Refine) for phase in self.phases)):
            raise ValueError("a dataset is fixed: its student has refine phases only, and mix.live is 0")
        return self
