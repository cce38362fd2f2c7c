"""Settings of the controllers that follow the student: difficulty, temperature, weights, selection, roles.

Nothing here imports torch.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from synthkd.settings.base import LARGE, Count, Fraction, Images, NonNegative, Number, Positive, Settings


class ThresholdSettings(Settings):
    """The controller of a value that is raised while a measure is high and lowered while it is low."""

    start: float
    low: float
    high: float
    raise_above: float
    lower_below: float
    up: Annotated[float, Field(ge=1.0, le=LARGE)] = 1.2
    """Factor that raises."""
    down: Annotated[float, Field(gt=0.0, le=1.0)] = 0.8
    """Factor that lowers."""

    @model_validator(mode="after")
    def _ordered(self) -> ThresholdSettings:
        if not self.low <= self.start <= self.high:
            raise ValueError("must hold: low <= start <= high")
        if self.start == 0 < self.high:
            raise ValueError("start: 0 times any factor stays 0: set start above 0, or high to 0")
        if self.lower_below > self.raise_above:
            raise ValueError("lower_below must not be above raise_above")
        return self


class DifficultySettings(ThresholdSettings):
    """The controller of the difficulty, which follows the agreement of student and teacher on fresh samples."""

    start: Fraction = 0.3
    """First difficulty."""
    low: Fraction = 0.1
    """Smallest difficulty."""
    high: Fraction = 0.9
    """Largest difficulty."""
    raise_above: Fraction = 0.85
    """Agreement above which the difficulty is raised."""
    lower_below: Fraction = 0.7
    """Agreement below which the difficulty is lowered."""
    augment: bool = True
    """Let the difficulty also drive the augmentation of the student's images (erasing above 0.5, jitter above 0.7)."""


class TemperatureSettings(ThresholdSettings):
    """The controller of the temperature, which follows the student's loss on held-out images."""

    start: Positive = 5.0
    """First temperature."""
    low: Positive = 1.0
    """Smallest temperature."""
    high: Positive = 10.0
    """Largest temperature."""
    raise_above: NonNegative = 0.5
    """Loss above which the temperature is raised."""
    lower_below: NonNegative = 0.1
    """Loss below which the temperature is lowered."""
    up: Annotated[float, Field(ge=1.0, le=LARGE)] = 1.1
    """Factor that raises."""
    down: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9
    """Factor that lowers."""


class WeightSettings(Settings):
    """The controller of two weights that add up to 1."""

    start: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """Weight of the terms of the teacher's logits before the first evaluation."""
    rate: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """Share of the way to the new weight that an update goes."""


class StrengthSettings(Settings):
    """The controller of the strength of distillation, which follows the student's capacity (its accuracy)."""

    RETIRED: ClassVar = {"boost": 1.5}

    beta: Number | None = 1.0
    """Gain of the capacity; None: the strength depends on the gap only."""
    threshold: Positive = 0.05
    """Gap, as a share of the teacher's capacity, above which distillation is strengthened."""


class AdaptSettings(Settings):
    """Periodic evaluation of the student on held-out images, and the controllers driven by it."""

    RETIRED: ClassVar = {"balance": None}

    every: Count = 100
    """Student steps between two evaluations."""
    images: Images = 500
    """Largest number of images of an evaluation: held-out real ones if there are any, else the newest of the bank."""
    temperature: TemperatureSettings | None = None
    """Let the temperature follow the student's loss, in place of `distill.temperature`."""
    weights: WeightSettings | None = None
    """Multiply the weights of the terms of the teacher's logits, and of all others, by twice two adaptive weights."""
    strength: StrengthSettings | None = None
    """Multiply the weights of all terms that come from the teacher by a strength that follows the capacity."""


class SelectionSettings(Settings):
    """Selection of the one of several teachers that labels until the next evaluation (`distill.adapt.every`).

    A linear bandit selects by the student's accuracy, its divergence from each teacher, and the cost of each teacher.
    """

    RETIRED: ClassVar = {"exploration": 1.0, "forget": 0.02}

    accuracy: NonNegative = 10.0
    """Weight of the gain in accuracy in the reward. Between two evaluations that gain is 0.01 or less."""
    divergence: NonNegative = 0.1
    """Weight of the divergence KL(teacher || student) in the reward."""
    cost: NonNegative = 0.1
    """Weight of the cost in the reward: multiply-accumulates of the teacher as a share of the largest one's."""


class SwapSettings(Settings):
    """The rule that swaps the roles of teacher and learner among networks that learn together."""

    above: Positive = 0.95
    """A learner teaches once its accuracy on held-out images exceeds this share of the teaching network's."""
    again_below: Positive = 0.9
    """After a swap the roles stay until the best learner falls below this share of the teaching network's accuracy, or
    the teaching network below this share of the best learner's, so that the roles do not alternate."""

    @model_validator(mode="after")
    def _ordered(self) -> SwapSettings:
        if self.again_below > self.above:
            raise ValueError("again_below must not be above `above`, or the roles would alternate")
        return self
