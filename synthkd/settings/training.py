"""Optimizers, supervised training, differential privacy, and teachers. Nothing here imports torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from synthkd.settings.base import Batch, Count, Fraction, Noise, NonNegative, Positive, Seed, Settings
from synthkd.settings.data import AugmentSettings, DataSettings
from synthkd.settings.models import LoadedModel, ModelSettings

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
