"""The configuration of each job: one frozen model, `kind:` choosing among generators, data and phases."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from synthkd.generators.settings import (
    ALONE,
    FROM_REAL,
    DatasetSettings,
    GeneratorSettings,
    InversionSettings,
    MerfSettings,
    NoGenerator,
    PixelSettings,
)
from synthkd.settings.base import (
    MOST_ITEMS,
    BankSettings,
    Batch,
    Count,
    DataOrStream,
    DataSettings,
    DifficultySettings,
    Flow,
    Fraction,
    Images,
    Listed,
    LoadedModel,
    MixSettings,
    ModelSettings,
    PerClass,
    SearchSettings,
    Seed,
    Settings,
    StreamData,
    TeacherSettings,
    TeachTraining,
    Threads,
    TrainedTeacher,
    Whole,
    WidthSettings,
)
from synthkd.settings.distillation import (
    ContrastTerm,
    DistillSettings,
    ExitsTerm,
    Joint,
    OnlineSettings,
    PhaseSettings,
    Pregenerate,
    Refine,
    TeamSettings,
    ViewTerm,
)
from synthkd.settings.features import ExtractorSettings


def _require_terms(generator: GeneratorSettings, alone: str) -> None:
    """Refuse a generator whose every term needs a student where the key `alone` has it work without one."""
    if alone and isinstance(generator, InversionSettings) and generator.needs_student:
        raise ValueError(
            f"{alone}: the generator works without a student there, and all its terms compare with one: set any of "
            f"generator.{ALONE}"
        )


class JobConfig(Settings):
    """What every job has."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "run"
    """Names the run directory `runs/<job>/<name>`."""
    out: str | None = None
    """The run directory itself; the same command on it resumes. None: `runs/<job>/<name>`, numbered when taken."""
    seed: Seed = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Threads | None = None
    """CPU threads of torch; None leaves torch's own choice."""
    trust: str | tuple[str, ...] = ()
    """Folders, one or a list, whose files may name code that runs: own functions that built a model or a generator in
    them. Without it what is read is data, and only this recipe may name code."""


class TrainingConfig(JobConfig):
    """What every job that trains has."""

    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision; bf16 made small convolutional networks slower on CPUs where it was measured."""
    adapt_batch_size: bool = False
    """Reduce the batch size until a training step fits the memory, instead of failing."""
    checkpoint_every: Count = 500
    """Steps between checkpoints."""
    keep_checkpoints: Count = 2
    log_every: Count = 20
    """Steps between log rows."""
    track: Annotated[tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...], Listed] = ()
    """Experiment trackers beside the JSON lines that are always written."""


class TeachConfig(TrainingConfig):
    """Train a teacher on real data."""

    data: DataSettings
    model: ModelSettings
    training: TeachTraining = TeachTraining()
    evaluate_every: Count = 500
    """Steps between evaluations on the test split, which are only reported."""


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
        if self.width is not None and self.distill.adapt.balance is not None:
            raise ValueError("width: its penalty cannot be balanced with losses: leave distill.adapt.balance out")
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
        _require_terms(self.generator, self._without_student())
        if stored and (self.mix.live != 0.0 or not all(isinstance(phase, Refine) for phase in self.phases)):
            raise ValueError("a dataset is fixed: its student has refine phases only, and mix.live is 0")
        return self


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


NOISY_TEACHER, NOISY_GENERATOR = ("f2", "f4"), ("f3", "f4")
"""Flows by the part of them that looks at private images with noise."""


class SyntheticSettings(Settings):
    """What is made of private images by a differentially private generator (generator.kind=merf; flows f3 and f4)."""

    rounds: Count = 100
    """Rounds that the generator is trained, on one noisy look at the private images; more cost time, not privacy."""
    per_class: Images = 1000
    """Images of each class that the teacher of flow f3 is trained on."""


class CompressConfig(DistillConfig):
    """Make a small student to hand over, its export, its cost, and a report of what it leaks."""

    flow: Flow = "f1"
    """How private images, those of `teacher.data`, are touched. f1: by a teacher, without noise. f2: by a teacher that
    is trained with differential privacy. f3: by a differentially private generator, of whose images teacher and student
    learn. f4: by a teacher as in f2 and a generator as in f3, whose costs add up."""
    synthetic: SyntheticSettings = SyntheticSettings()
    """Of flows f3 and f4."""
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
            raise ValueError(f"flow {flow} has no teacher.training.dp: leave it out, or choose f2 or f4")
        if flow in NOISY_TEACHER and not noisy:
            raise ValueError(f"flow {flow} has a teacher trained with differential privacy: set teacher.training.dp")
        if flow in NOISY_GENERATOR and not isinstance(generator, MerfSettings):
            raise ValueError(
                f"flow {flow} has a differentially private generator: set generator.kind to merf, and its epsilon"
            )
        if flow in NOISY_GENERATOR and not isinstance(teacher, TrainedTeacher):
            raise ValueError(f"flow {flow} trains its teacher: set teacher.kind to train, teacher.data to the images")
        if isinstance(generator, MerfSettings) and flow not in NOISY_GENERATOR:
            raise ValueError("generator.kind: merf looks at the private images: choose flow f3 or f4")
        if flow == "f2" and not isinstance(generator, InversionSettings | PixelSettings):
            raise ValueError(
                f"generator.kind: what {generator.kind} learned from is not accounted for in flow f2; take inversion "
                "or pixels, which learn from the teacher alone, or merf in flow f4"
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


class FilterSettings(Settings):
    """Which generated images are left out; others of their class are made in their place."""

    confidence: Fraction | None = None
    """Least probability that the teacher gives the asked label."""
    near_duplicates: Fraction | None = None
    """An image is left out when it differs from an earlier one of its class by at most this, as the root mean square
    of the pixels' differences; 0 leaves out exact duplicates."""
    copies: Fraction | None = None
    """The same against the training images of `data`: what is that near to a real image is left out."""


class GenerateConfig(TrainingConfig):
    """Make a labelled synthetic dataset from a recipe, a finished run or a saved generator."""

    threads: Threads | None = 1
    """CPU threads of torch. The files are the same bytes whatever the number of processes as long as this is; take
    more processes rather than more threads, or set it for a long training. None leaves torch's own choice."""
    teacher: TeacherSettings | None = None
    """Labels the images; None takes the teacher of `run`."""
    generator: GeneratorSettings = InversionSettings()
    """What makes the images, unless `run` has it."""
    data: DataSettings | None = None
    """Real images: generators that learn from them do, and `filters.copies` compares with them. None: data-free."""
    rounds: Whole = 0
    """Rounds that the generator is trained before it is sampled; 0 when it comes from `run`."""
    run: str | None = None
    """A run that saved a generator, or the directory of a saved generator; it is sampled as it is."""
    per_class: Images | Annotated[dict[str, Annotated[int, Field(ge=0, le=10**8)]], PerClass]
    """Images of each class: one number for all, or class name (or number) to how many."""
    difficulty: Fraction = 0.3
    """Difficulty at which the generator is trained and sampled."""
    format: Literal["folder", "webdataset", "parquet"] = "folder"
    shard_size: Images = 10_000
    """Images of a shard (webdataset, parquet)."""
    batch_size: Batch = 512
    """Images between commits to disk, in steps of 32; it changes nothing but how much a kill loses."""
    filters: FilterSettings = FilterSettings()

    @model_validator(mode="after")
    def _consistent(self) -> GenerateConfig:
        if self.teacher is None and self.run is None:
            raise ValueError("there is nothing to label the images: set teacher, or a run that has one")
        if self.run is not None and self.rounds:
            raise ValueError("the generator of a run is sampled as it is: leave rounds out, or run")
        _require_terms(self.generator, "rounds" if self.rounds else "")
        if self.filters.copies is not None and isinstance(self.generator, MerfSettings):
            raise ValueError("filters.copies looks at every private image, which no noise covers: leave it out")
        if self.filters.copies is not None and self.data is None:
            raise ValueError("filters.copies compares with real images: set data to those it must not copy")
        if isinstance(self.per_class, dict) and not any(self.per_class.values()):
            raise ValueError("per_class asks for no image at all")
        return self


class ImageSet(Settings):
    """A set of images: a path, or a split of a real dataset. A plain path may stand for it."""

    path: str | None = None
    """An image folder (flat, or a directory per class), .zip, .npz, WebDataset .tar, an unfinished run, or the
    features that an earlier evaluation saved (.safetensors)."""
    data: DataSettings | None = None
    """A real dataset, in place of a path."""
    split: str | None = None
    """Which part of it: train, holdout or test of a dataset (None: test); a directory of that name in a folder."""

    @model_validator(mode="after")
    def _one(self) -> ImageSet:
        if (self.path is None) == (self.data is None):
            raise ValueError("give a path or a dataset (data), one of the two")
        return self


class EvaluateConfig(JobConfig):
    """Score generated images against real ones."""

    generated: Annotated[tuple[str | ImageSet, ...], Field(min_length=1, max_length=MOST_ITEMS)]
    """One set or several, which are compared in one table."""
    real: str | ImageSet
    """What they are judged against."""
    train: str | ImageSet | None = None
    """Real images that the generator or its teacher learned from: copying is looked for among them."""
    holdout: str | ImageSet | None = None
    """Real images that it did not learn from: the yardstick of copying."""
    teacher: LoadedModel | None = None
    """Judges labels, and gives the features unless `features` says otherwise."""
    features: ExtractorSettings | None = None
    """The feature network; None: the teacher where there is one, else efficientnet_lite0."""
    k: Annotated[int, Field(ge=1, le=1000)] = 5
    """Neighbours of precision, recall, density and coverage."""
    subsets: Annotated[int, Field(ge=1, le=100_000)] = 100
    """Random subsets that give the kernel distance its spread."""
    subset_size: Annotated[Images, Field(ge=2)] = 1000
    splits: Annotated[int, Field(ge=1, le=1000)] = 10
    """Parts of the Inception score."""
    cas: bool = False
    """Also train a small classifier on each generated set and test it on real images (minutes each)."""
    skip_bad: Whole = 0
    """Unreadable files of a set that may be left out; they are listed."""
    cache: str | None = "~/.cache/synthkd/features"
    """Where features are kept between evaluations; None keeps none."""
    save_features: str | None = None
    """A .safetensors file for the features of the real set, which can stand for its images from then on."""
    show_real: bool = True
    """Show real images in the report, beside the generated ones."""
    pairs: Annotated[int, Field(ge=0, le=1000)] = 0
    """Closest pairs of generated and training images to show; real images may be private, so none unasked."""


class ReferenceModels(Settings):
    """Models for the same images and classes that were trained on neither list, best made as the audited one was."""

    teacher: Annotated[tuple[LoadedModel, ...], Listed] = ()
    student: Annotated[tuple[LoadedModel, ...], Listed] = ()


class AuditConfig(JobConfig):
    """Attack finished models with lists of images that they were trained on and of others: the average case."""

    teacher: LoadedModel | None = None
    student: LoadedModel | None = None
    """Attacked as the teacher is, and compared with it where both are given."""
    references: ReferenceModels = ReferenceModels()
    """Tell how a model that never saw an image answers it, and make attacks sharper. Each is compared with its own
    kind: teachers with the teacher, students, from teachers that saw neither list, with the student."""
    members: str | ImageSet
    """Labelled images that the teacher was trained on (or the student, where it comes alone)."""
    nonmembers: str | ImageSet
    """Labelled images that no audited model was trained on, drawn as the members were."""
    population: str | ImageSet | None = None
    """1,000 labelled images or more in no other role, for RMIA, which needs references too."""
    generated: str | ImageSet | None = None
    """Synthetic images, in which copies of members are looked for, with non-members as the yardstick."""
    delta: Annotated[float, Field(gt=0.0, lt=1.0)] = 1e-5
    """At which epsilon is estimated."""
    skip_bad: Whole = 0
    """Unreadable files of a set that may be left out; they are counted in the report."""

    @model_validator(mode="after")
    def _consistent(self) -> AuditConfig:
        if self.teacher is None and self.student is None:
            raise ValueError("there is no model to attack: set teacher, student or both")
        for who in ("teacher", "student"):
            if getattr(self.references, who) and getattr(self, who) is None:
                raise ValueError(f"references.{who} are compared with a {who}: set {who}, or leave them out")
        if self.population is not None and not (self.references.teacher or self.references.student):
            raise ValueError("population is for RMIA, which needs references: set references, or leave population out")
        for key in ("members", "nonmembers", "population"):
            one = getattr(self, key)
            if isinstance(one, ImageSet) and one.data is not None and one.split is None:
                raise ValueError(f"{key}.split: say which part of the dataset it is: train, holdout or test")
        return self
