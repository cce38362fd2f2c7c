"""The configuration of the parts every job shares, as frozen pydantic models. Nothing here imports torch.

A field is documented where it stands; `synthkd config schema` prints the same text as a JSON schema. The configuration
of a whole job is in `synthkd.pipelines.config.distill`, that of a generator in `synthkd.generators.settings`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator


class Settings(BaseModel):
    """Base of all configuration: frozen, unknown keys forbidden, values never coerced between kinds."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


def by_kind(default: str) -> Discriminator:
    """Discriminator on `kind` for a union in which an absent `kind` means `default`."""

    def tag(value: Any) -> str:
        kind = value.get("kind", default) if isinstance(value, dict) else getattr(value, "kind", default)
        return str(kind)

    return Discriminator(tag)


# Bounds lie far beyond any use and well before what makes a library hang, overflow or die. Several settings inside them
# can together still ask for more than a machine has: a network's size is counted before it is built
# (`synthkd.models.size`), and for the rest memory says no.

LARGE = 1e9
"""Of any factor, weight or rate: its square times another square is finite in float32."""

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0, le=LARGE)]
NonNegative = Annotated[float, Field(ge=0.0, le=LARGE)]
Number = Annotated[float, Field(ge=-LARGE, le=LARGE)]
Count = Annotated[int, Field(ge=1, le=10**9)]
"""Of what takes time and no memory: steps, rounds. A step a millisecond makes that eleven days."""
Whole = Annotated[int, Field(ge=0, le=10**9)]
Images = Annotated[int, Field(ge=1, le=10**8)]
"""Of images that are kept: seven times ImageNet-21k."""
Batch = Annotated[int, Field(ge=1, le=2**16)]
"""Of images that are in the works at once."""
Units = Annotated[int, Field(ge=1, le=2**16)]
"""Of a layer, a space or a sketch of features; 53,248 is the widest layer of Llama 3.1 405B."""
Depth = Annotated[int, Field(ge=1, le=1202)]
"""Of a network: He et al. (2015) stopped at 1,202 layers."""
Side = Annotated[int, Field(ge=1, le=2**13)]
"""Of an image in pixels; its square is about the most that an image file may have (`LARGEST` in
`synthkd.data.read.decode`)."""
Shift = Annotated[int, Field(ge=0, le=2**8)]
"""Of an image in pixels; a batch is padded by so much on each side."""
Classes = Annotated[int, Field(ge=1, le=100_000)]
Channels = Annotated[int, Field(ge=1, le=2**10)]
"""Of an image; hyperspectral ones have some hundreds."""
Threads = Annotated[int, Field(ge=1, le=2**9)]
"""More make no small network faster, and OpenMP ends the process where the system starts no more threads."""
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
"""What fits a signed word, as torch, numpy and files take it."""

MOST_ITEMS = 1000
"""In a list that somebody writes by hand: phases, teachers, peers, places, sets."""
MOST_CLASSES = 100_000
Listed = Field(max_length=MOST_ITEMS)
PerClass = Field(max_length=MOST_CLASSES)


def _is_noise(multiplier: float) -> float:
    if 0.0 < multiplier < LEAST_NOISE:
        raise ValueError(f"must be 0, which is no noise at all, or at least {LEAST_NOISE:g}")
    return multiplier


LEAST_NOISE = 0.01
"""Over the sensitivity; epsilon is in the thousands there, and a little below no accountant's tables fit a memory."""
Noise = Annotated[NonNegative, AfterValidator(_is_noise)]


# --- schedules ------------------------------------------------------------------------------------------------------


class Curve(Settings):
    """A value that moves from `start` to `end` over the run; a plain number stands for a constant."""

    kind: Literal["linear", "cosine", "step"]
    start: float
    end: float
    begin: Fraction = 0.0
    """Fraction of the run at which the value leaves `start`."""
    until: Fraction = 1.0
    """Fraction of the run at which the value reaches `end`."""

    @model_validator(mode="after")
    def _ordered(self) -> Curve:
        if self.begin > self.until:
            raise ValueError("begin must not be after until")
        if self.kind == "step" and self.begin:
            raise ValueError("a step jumps from start to end at until; leave begin out")
        return self


Schedule = float | Curve


def _within(low: float, high: float) -> AfterValidator:
    def check(schedule: Schedule) -> Schedule:
        ends = (schedule.start, schedule.end) if isinstance(schedule, Curve) else (schedule,)
        if not all(low <= value <= high for value in ends):
            raise ValueError(f"must be from {low:g} to {high:g}, at both ends of a curve")
        return schedule

    return AfterValidator(check)


Share = Annotated[Schedule, _within(0.0, 1.0)]
Weight = Annotated[Schedule, _within(0.0, LARGE)]
Temperature = Annotated[Schedule, _within(0.01, LARGE)]


# --- data -----------------------------------------------------------------------------------------------------------


class _Data(Settings):
    holdout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Fraction of the training split set aside, stratified; nothing ever trains on it."""
    split_seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] = 0
    """Seed of the split, separate from the run's seed so that all runs share one split."""
    per_class: Images | None = None
    """Use at most this many training images of each class, drawn by the split's seed; None: all."""


class DigitsData(_Data):
    """scikit-learn's 1,797 handwritten digits, 8x8, inside its wheel. A fifth is the test split."""

    kind: Literal["digits"]


class NamedData(_Data):
    """A dataset of torchvision by name. Fashion-MNIST may also be the folder of Debian's `dataset-fashion-mnist`."""

    kind: Literal["mnist", "fashion_mnist", "cifar10", "cifar100"]
    root: str
    """Folder that holds the files (or receives them, with `download`)."""
    download: bool = False
    """Fetch the files when they are missing; never done unasked."""


class FolderData(_Data):
    """An image folder, one directory per class. With `train/` and `test/` inside they are the splits."""

    kind: Literal["folder"]
    root: str
    channels: Literal[1, 3] = 3
    size: Side | None = None
    """Images are resized (shorter side, then centre crop) to this many pixels; needed where sizes differ."""
    test: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2
    """Fraction used as test split when the folder has no `test/`."""
    skip_bad: bool = False
    """Leave unreadable files out, counted in the log, instead of refusing the folder."""


class NpzData(_Data):
    """A .npz file with `images` (uint8 or float in [0, 1]; NHW, NHWC or NCHW) and `labels`.

    With `test_images` and `test_labels` inside they are the test split.
    """

    kind: Literal["npz"]
    path: str
    test: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2
    """Fraction used as test split when the file has no `test_images`."""


DataSettings = Annotated[DigitsData | NamedData | FolderData | NpzData, Field(discriminator="kind")]


class StreamData(Settings):
    """Real images that arrive while a student learns: .npz files that somebody puts into a folder, one after another.

    A file has `images` as of kind npz, and `labels`, numbers of the teacher's classes, or none. New files are taken in
    the order of their names (as text: 002 comes before 010), and no file changes later. While one is being written its
    name begins with a dot or ends in .tmp or .partial, with or without .npz after that.
    """

    kind: Literal["stream"]
    path: str
    """The folder, which exists; files may come later."""
    window: Images = 10_000
    """Batches draw from so many images, the newest of those that are not held out."""
    poll: Positive = 1.0
    """Seconds, at least, between two looks for new files."""
    patience: NonNegative = 60.0
    """Seconds that a run waits for its first image before it gives up; later it goes on with what it has."""
    holdout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Share of the images that nothing trains on, drawn for each by the name of its file and its row alone."""


DataOrStream = Annotated[
    DigitsData | NamedData | FolderData | NpzData | StreamData,
    Field(discriminator="kind"),
]
"""What a student may learn from. A stream has no parts to train and to test on, so all else takes `DataSettings`."""


# --- models ---------------------------------------------------------------------------------------------------------


Architecture = Literal["mlp", "lenet5", "convnet", "resnet", "wide_resnet", "slim", "vit"]


class ZooModel(Settings):
    """A network of the built-in zoo, freshly initialised for the images and classes at hand."""

    kind: Literal["zoo"] = "zoo"
    arch: Architecture
    width: Units | None = None
    """Base width; None takes the architecture's own default."""
    depth: Depth | None = None
    """Depth in the architecture's own unit (see `synthkd.models.zoo`); None takes its default."""
    norm: Literal["batch", "group"] = "batch"
    """group: GroupNorm in the place of every BatchNorm, so that no image sees the others of its batch (needed for
    DP-SGD)."""
    activation: Literal["relu", "tanh"] = "relu"
    """tanh in the place of every ReLU: bounded activations lose less to the noise of DP-SGD (Papernot et al. 2021)."""


class LoadedModel(Settings):
    """A model from elsewhere.

    `model` is a directory that synthkd saved, `torchvision:NAME`, `timm:NAME` or `package.module:function`.
    """

    kind: Literal["load"]
    model: str
    weights: str | None = None
    """A local .safetensors file, or a .pt/.pth state dict that loads with `weights_only=True`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the factory."""
    channels: Channels | None = None
    """Channels of its images; None: as the job or the saved directory has them, else 3."""
    size: Side | tuple[Side, Side] | None = None
    """Height and width of its images; needed for anything but a directory that synthkd saved."""
    classes: Classes | None = None
    """Number of classes; needed for anything but a directory that synthkd saved."""
    mean: Annotated[tuple[Number, ...], Listed] | None = None
    """Per-channel mean that the network expects to be subtracted from images in [0, 1]; None: it normalises itself."""
    std: Annotated[tuple[Number, ...], Listed] | None = None
    class_names: Annotated[tuple[str, ...], PerClass] | None = None


ModelSettings = Annotated[Annotated[ZooModel, Tag("zoo")] | Annotated[LoadedModel, Tag("load")], by_kind("zoo")]


# --- training -------------------------------------------------------------------------------------------------------


MOST_DECAY = 0.02
"""Share of the weights, at most, that a step may decay; some thousand steps of more leave nothing that was learned."""


class OptimizerSettings(Settings):
    """An optimiser, its learning-rate curve and clipping."""

    kind: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: Positive = 2e-3
    """Peak learning rate."""
    weight_decay: NonNegative = 0.0
    momentum: Fraction = 0.9
    """Momentum of sgd, first beta of adam."""
    schedule: Literal["constant", "cosine", "one_cycle"] = "cosine"
    """cosine falls from the peak to `final`; one_cycle rises linearly during `warmup` first."""
    warmup: Fraction = 0.0
    """Fraction of the steps spent rising linearly to the peak (one_cycle: 0 means 0.1)."""
    final: Fraction = 0.0
    """Last learning rate as a fraction of the peak."""
    clip: Positive | None = None
    """Largest norm of the gradient; None does not clip."""
    ema: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Decay of the exponential moving average of the weights, which is then what is evaluated and saved; 0: none."""

    @model_validator(mode="after")
    def _alive(self) -> OptimizerSettings:
        shrunk = self.lr * self.weight_decay
        if shrunk > MOST_DECAY:
            raise ValueError(
                f"lr {self.lr:g} with weight_decay {self.weight_decay:g} would take {shrunk:.0%} off the weights in "
                "each step: set weight_decay, which another optimiser may have left here, to 0 or little"
            )
        return self


class AugmentSettings(Settings):
    """Augmentation of real images while a teacher trains; per sample."""

    shift: Shift = 0
    """Largest shift in pixels, both ways; vacated pixels are zero."""
    flip: bool = False
    """Horizontal flip with probability one half."""
    erase: Fraction = 0.0
    """Probability of erasing one random rectangle."""


Flow = Literal["f1", "f2", "f3", "f4"]
"""How a pipeline touches private images; see `CompressConfig.flow`."""


class DPSettings(Settings):
    """DP-SGD: each image's gradient is clipped, their sum gets noise, batches are drawn by independent coins."""

    epsilon: Positive | None = None
    """Budget for the planned steps, from which the noise is calibrated; adding or removing one image."""
    noise_multiplier: Noise | None = None
    """The noise itself, over `clip`, in place of a budget."""
    delta: Annotated[float, Field(gt=0.0, lt=1.0)] = 1e-5
    """Must be below 1 / images."""
    clip: Positive = 1.0
    """Largest norm of an image's gradient."""
    physical_batch: Batch = 256
    """Images whose gradients are held at a time; it changes memory only."""
    test_seed: Seed | None = None
    """For tests: noise that can be drawn again, whose run is stamped NOT DP. None: from the operating system."""

    @model_validator(mode="after")
    def _one(self) -> DPSettings:
        if (self.epsilon is None) == (self.noise_multiplier is None):
            raise ValueError("set epsilon or noise_multiplier, one of the two")
        return self


class TeachTraining(Settings):
    """How a model is trained on real, labelled images."""

    steps: Count = 2000
    batch_size: Batch = 128
    optimizer: OptimizerSettings = OptimizerSettings(kind="adamw", lr=3e-3, weight_decay=0.05, schedule="one_cycle")
    label_smoothing: Fraction = 0.0
    augment: AugmentSettings = AugmentSettings()
    dp: DPSettings | None = None
    """Train with differential privacy; `batch_size` is then the expected one. None: without."""


class TrainedTeacher(Settings):
    """A teacher that is trained on real data first, before the distillation that sees none of it."""

    kind: Literal["train"]
    data: DataSettings
    model: ModelSettings
    training: TeachTraining = TeachTraining()


TeacherSettings = Annotated[TrainedTeacher | LoadedModel, Field(discriminator="kind")]


# --- difficulty, bank, mixing ---------------------------------------------------------------------------------------


class DifficultySettings(Settings):
    """The controller of difficulty: up when the student agrees with its teacher on fresh samples, down when not."""

    start: Fraction = 0.3
    low: Fraction = 0.1
    high: Fraction = 0.9
    raise_above: Fraction = 0.85
    lower_below: Fraction = 0.7
    up: Annotated[float, Field(ge=1.0, le=LARGE)] = 1.2
    down: Annotated[float, Field(gt=0.0, le=1.0)] = 0.8
    augment: bool = True
    """Also drive the augmentation of what the student sees (erasing above 0.5, jitter above 0.7)."""

    @model_validator(mode="after")
    def _ordered(self) -> DifficultySettings:
        if not self.low <= self.start <= self.high:
            raise ValueError("must hold: low <= start <= high")
        if self.lower_below > self.raise_above:
            raise ValueError("lower_below must not be above raise_above")
        return self


class BankSettings(Settings):
    """The memory bank of generated images."""

    capacity: Images = 20_000
    policy: Literal["fifo", "prioritized", "class_balanced"] = "fifo"
    """How images are drawn: uniformly, in proportion to priority, or each class equally often."""
    storage: Literal["ram", "disk"] = "ram"
    """disk keeps the arrays in memory-mapped files inside the run directory."""
    priority_exponent: Fraction = 0.4
    """Exponent of the priority in the probability of a draw (prioritized)."""
    importance_exponent: Fraction = 1.0
    """Exponent of the importance weights that undo the bias of prioritized draws; 1 undoes it wholly.

    They count in every term that is a mean over images; relations between images and distances of distributions are
    those of the batch as it was drawn."""


class MixSettings(Settings):
    """What a student batch is made of and how its images are varied."""

    real: Share = 0.0
    """Share of real images in a batch (needs `data`)."""
    live: Share = 0.0
    """Share of fresh generator samples, made for this batch and not stored; the rest is drawn from the bank."""
    logits: Literal["fresh", "stored"] = "fresh"
    """fresh: the teacher sees the very images the student sees. stored: the logits that were stored with the images, no
    teacher pass; flips and shifts keep them, mixup mixes them."""
    mixup: Fraction = 0.5
    """Share of the batch replaced by convex mixtures of two of its images."""
    cutmix: Fraction = 0.0
    """Share of the batch in which a rectangle of another image is pasted (fresh logits only)."""
    flip: bool = False
    """Horizontal flips."""
    shift: Shift = 0
    """Largest shift in pixels."""

    @model_validator(mode="after")
    def _possible(self) -> MixSettings:
        if self.logits == "stored" and self.cutmix:
            raise ValueError("stored logits do not say what a pasted rectangle shows: set cutmix to 0, or logits fresh")
        if self.mixup + self.cutmix > 1.0:
            raise ValueError("mixup + cutmix must not exceed 1")
        return self


# --- compression ----------------------------------------------------------------------------------------------------


Goal = Literal["error", "latency", "bytes", "energy"]

GOALS: tuple[Goal, ...] = ("error", "latency", "bytes")
POPULATION = 10


class Family(Settings):
    """Students of one architecture."""

    arch: Architecture
    width: tuple[Units, Units]
    """Smallest and largest width, in the architecture's own unit (see `synthkd.models.zoo`)."""
    depth: Annotated[tuple[Depth, ...], Listed] = ()
    """Depths to choose from; empty: the architecture's own."""

    @model_validator(mode="after")
    def _ordered(self) -> Family:
        if self.width[0] > self.width[1]:
            raise ValueError("the smallest width must not be above the largest")
        return self


class SearchSettings(Settings):
    """The search of a student among networks of the zoo."""

    families: Annotated[tuple[Family, ...], Field(min_length=1, max_length=len(get_args(Architecture)))] = (
        Family(arch="mlp", width=(16, 256), depth=(1, 2)),
        Family(arch="convnet", width=(4, 32)),
        Family(arch="resnet", width=(4, 16), depth=(8, 14)),
        Family(arch="slim", width=(4, 24), depth=(1, 2)),
    )
    """What there is to choose from; each architecture once."""
    objectives: Annotated[tuple[Goal, ...], Field(min_length=2, max_length=3)] = GOALS
    """What to make small, two or three of them; energy only where a counter measures it."""
    max_parameters: Count | None = None
    """Largest number of parameters of a candidate; None: a quarter of the teacher's."""
    candidates: Annotated[int, Field(ge=1, le=10_000)] = 60
    """How many to score."""
    population: Annotated[int, Field(ge=2, le=10_000)] = POPULATION
    """Parents are taken from so many of the best."""
    steps: Count = 60
    """Training steps of a candidate before its agreement is measured."""
    rounds: Count = 40
    """Rounds of the generator whose images the candidates learn from."""
    tolerance: Fraction = 0.02
    """The fastest is chosen whose agreement with the teacher is at most this below the best."""
    seed: Seed | None = None
    """Of the proposals and of the candidates' first weights; None: the run's."""

    @model_validator(mode="after")
    def _each_once(self) -> SearchSettings:
        for name, values in (("families", [f.arch for f in self.families]), ("objectives", list(self.objectives))):
            if len(set(values)) < len(values):
                raise ValueError(f"{name}: each may stand only once, got {', '.join(values)}")
        return self


WIDEST = 64.0
"""Of a width that grows while a student trains, over the one in its settings."""


class WidthSettings(Settings):
    """How the width of a student changes while it trains."""

    start: Annotated[float, Field(ge=1.0, le=WIDEST)] = 1.5
    """First coefficient: the width over that of the student's settings."""
    most: Annotated[float, Field(ge=1.0, le=WIDEST)] = 2.0
    """Largest coefficient."""
    gamma: NonNegative = 1.0
    """Weight of the penalty: as much loss as a whole base width must save to be kept."""
    alpha: NonNegative = 1.0
    """How much a growing gradient lessens the penalty."""
    beta: NonNegative = 10.0
    """How much a similarity below the one aimed at lessens it."""
    similarity: Fraction = 0.9
    """Similarity to the teacher that is aimed at."""
    decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """Of the short moving averages; the long one of the gradient forgets ten times as slowly."""

    @model_validator(mode="after")
    def _ordered(self) -> WidthSettings:
        if self.start > self.most:
            raise ValueError("start must not be above most")
        return self
