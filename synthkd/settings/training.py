"""Optimizers, supervised training, differential privacy, and teachers. Nothing here imports torch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator
from pydantic.json_schema import SkipJsonSchema

from synthkd.settings.base import (
    Batch,
    BelowOne,
    Channels,
    Classes,
    Count,
    Delta,
    Fraction,
    Noise,
    NonNegative,
    PathText,
    PerClass,
    Positive,
    Seed,
    Settings,
    Side,
)
from synthkd.settings.data import AugmentSettings, DataSettings
from synthkd.settings.models import GivenModel, LoadedModel, ModelSettings

MOST_DECAY = 0.02
"""Largest share of the weights that one step may decay; with a larger one nothing learned is left after some thousand
steps."""


class OptimizerSettings(Settings):
    """An optimiser with its learning-rate curve, clipping and weight average."""

    kind: Literal["adamw", "adam", "sgd"] = "adamw"
    """The update: AdamW, Adam, or SGD with Nesterov's momentum."""
    lr: Positive = 2e-3
    """Peak learning rate."""
    weight_decay: NonNegative = 0.0
    """Rate at which weights decay, but not norms and biases."""
    momentum: BelowOne = 0.9
    """Momentum of sgd; first beta of adam and adamw."""
    schedule: Literal["constant", "cosine", "one_cycle"] = "cosine"
    """After the warm-up, if any, constant stays at the peak and cosine falls to `final`; one_cycle is cosine with a
    warm-up by default."""
    warmup: Fraction = 0.0
    """Fraction of the steps in which the rate rises linearly to the peak (one_cycle: 0 means 0.1)."""
    final: Fraction = 0.0
    """Last learning rate as a fraction of the peak."""
    clip: Positive | None = None
    """Largest norm of the gradient; None: no clipping."""
    ema: BelowOne = 0.0
    """Decay of an exponential moving average of the weights, which is evaluated and saved in their place; 0: none."""

    @model_validator(mode="after")
    def _alive(self) -> OptimizerSettings:
        shrunk = self.lr * self.weight_decay
        if shrunk > MOST_DECAY:
            raise ValueError(
                f"lr {self.lr:g} with weight_decay {self.weight_decay:g} would take {shrunk:.0%} off the weights in "
                "each step: set weight_decay to 0 or little"
            )
        return self


class PrivacySettings(Settings):
    """The noise of a differentially private mechanism."""

    epsilon: Positive | None = None
    """Privacy budget, which determines the noise."""
    noise_multiplier: Noise | None = None
    """Standard deviation of the noise over the sensitivity, in place of a budget."""
    delta: Delta = 1e-5
    """Delta of the privacy claim; must be below 1 / images."""
    test_seed: Seed | None = None
    """For tests: a seed makes the noise repeatable, and the run is marked NOT DP. None: the operating system's
    randomness."""

    @model_validator(mode="after")
    def _has_one_budget(self) -> PrivacySettings:
        if (self.epsilon is None) == (self.noise_multiplier is None):
            raise ValueError("set epsilon or noise_multiplier, one of the two")
        return self


class DPSettings(PrivacySettings):
    """DP-SGD (Abadi et al. 2016): each image's gradient is clipped, their sum gets Gaussian noise, and every image is
    in a batch with the same probability, independently.

    The budget is that of the planned steps. Neighbouring datasets differ by one image more or less, and the sensitivity
    is `clip`.
    """

    clip: Positive = 1.0
    """Largest norm of an image's gradient."""
    physical_batch: Batch = 256
    """Images whose gradients are in memory at a time; it changes memory only."""


class TeachTraining(Settings):
    """How a model is trained on real, labelled images."""

    RETIRED: ClassVar = {"label_smoothing": 0.0}

    steps: Count = 2000
    """Training steps."""
    batch_size: Batch = 128
    """Images of a step."""
    optimizer: OptimizerSettings = OptimizerSettings(kind="adamw", lr=3e-3, weight_decay=0.05, schedule="one_cycle")
    augment: AugmentSettings = AugmentSettings()
    dp: DPSettings | None = None
    """Differential privacy; `batch_size` is then the expected size of a batch. None: without."""


class TrainedTeacher(Settings):
    """A teacher that is trained on real data before the distillation, which does not use these data."""

    kind: Literal["train"]
    data: DataSettings
    """Labelled real images to train on."""
    model: ModelSettings
    """The network, of the zoo or from elsewhere."""
    training: TeachTraining = TeachTraining()


class LabelsTeacher(Settings):
    """A black box: a teacher that answers images by labels or probabilities, and shows nothing else of itself.

    One of `function`, `url` and `file` says whom to ask.
    """

    kind: Literal["labels"]
    function: str | None = None
    """`package.module:function`, which takes a uint8 array `[N, C, H, W]` and returns the answers."""
    url: Annotated[str, Field(pattern=r"^https?://[^\s]+$")] | None = None
    """An HTTP address, to which images are posted as the bytes of a .npy file; it answers in JSON."""
    file: PathText | None = None
    """An ONNX file."""
    answers: Literal["labels", "probabilities"] = "labels"
    """labels: a class for each image, or a row of scores of which the largest counts. probabilities: a row of `classes`
    numbers that sum to 1; an ONNX file may give logits."""
    queries: Count
    """Most images that the run may ask about. An image that was asked before is not asked again."""
    batch_size: Batch = 64
    """Images of one call."""
    channels: Channels = 3
    """Channels of its images: 1 is grey, 3 RGB."""
    size: Side | tuple[Side, Side]
    """Height and width of its images."""
    classes: Classes
    """Number of classes."""
    class_names: Annotated[tuple[str, ...], PerClass] | None = None
    """Names of the classes in the order of the labels, for report and student."""

    @model_validator(mode="after")
    def _asks_one(self) -> LabelsTeacher:
        given = [key for key in ("function", "url", "file") if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(f"set one of function, url and file, got {' and '.join(given) or 'none'}")
        return self


TeacherSettings = Annotated[TrainedTeacher | LoadedModel, Field(discriminator="kind")]
TeacherOrGiven = Annotated[
    TrainedTeacher | LoadedModel | LabelsTeacher | SkipJsonSchema[GivenModel], Field(discriminator="kind")
]
