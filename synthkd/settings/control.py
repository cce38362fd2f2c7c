"""Controllers that follow the student: difficulty, temperature, weights, roles. Nothing here imports torch."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from synthkd.settings.base import (
    LARGE,
    Count,
    Fraction,
    Images,
    NonNegative,
    Number,
    Positive,
    Settings,
)


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


class TemperatureSettings(Settings):
    """The controller of the temperature: down when the student's loss is small, up when it is large."""

    start: Positive = 5.0
    low: Positive = 1.0
    high: Positive = 10.0
    lower_below: NonNegative = 0.1
    raise_above: NonNegative = 0.5
    down: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9
    up: Annotated[float, Field(ge=1.0, le=LARGE)] = 1.1

    @model_validator(mode="after")
    def _ordered(self) -> TemperatureSettings:
        if not self.low <= self.start <= self.high:
            raise ValueError("must hold: low <= start <= high")
        if self.lower_below > self.raise_above:
            raise ValueError("lower_below must not be above raise_above")
        return self


class WeightSettings(Settings):
    """The controller of two weights that add up to 1."""

    start: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """First weight, before any capacity is known."""
    rate: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """How far an update goes towards the new weight; 1 goes all the way."""


class StrengthSettings(Settings):
    """The controller of the strength of distillation by capacity."""

    beta: Number | None = 1.0
    """Gain of the capacity in the strength; None leaves capacity out of it, and only the gap counts."""
    threshold: Positive = 0.05
    """Gap, as a share of the teacher's capacity, above which distillation is strengthened."""
    boost: Annotated[float, Field(ge=1.0, le=LARGE)] = 1.5
    """Factor of the strength while the gap is above the threshold; 1 leaves the gap out."""


class AdaptSettings(Settings):
    """What is looked at while the student learns, and what follows from it."""

    every: Count = 100
    """Student steps between two evaluations on held-out images (see `images`)."""
    images: Images = 500
    """So many: held-out real images where there are any, else the newest of the bank."""
    temperature: TemperatureSettings | None = None
    """Let the temperature follow the student's loss on them, in the place of `distill.temperature`."""
    weights: WeightSettings | None = None
    """Weigh what the teacher answers against all else, by twice the two adaptive weights."""
    strength: StrengthSettings | None = None
    """Weight the losses that come from the teacher by the student's capacity."""

    @model_validator(mode="before")
    @classmethod
    def _without_balance(cls, values: Any) -> Any:
        """Drop `balance: null`, which the config.yaml of earlier runs holds, so that they can be resumed."""
        if isinstance(values, dict) and values.get("balance", 0) is None:
            return {key: value for key, value in values.items() if key != "balance"}
        return values


class SelectionSettings(Settings):
    """Which of several teachers teaches until the next evaluation (`distill.adapt.every`), by a linear bandit over the
    student's accuracy, its divergence from each teacher and what a teacher's answer costs."""

    accuracy: NonNegative = 10.0
    """Weight of the gain in accuracy in the reward; between two evaluations it is a hundredth or less."""
    divergence: NonNegative = 0.1
    """Weight of the divergence KL(teacher || student) in the reward."""
    cost: NonNegative = 0.1
    """Weight of the cost in the reward: multiply-accumulates of the teacher over those of the largest."""
    exploration: NonNegative = 1.0
    """Standard errors that are added to what a teacher is expected to be worth."""
    forget: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.02
    """Share of what was learned that each choice forgets: what helps a student changes while it learns."""


class SwapSettings(Settings):
    """When the roles of teacher and learner are swapped among networks that learn together."""

    above: Positive = 0.95
    """A learner teaches once its accuracy on held-out images exceeds this share of the teaching network's."""
    again_below: Positive = 0.9
    """After a swap the roles stay until the best learner falls below this share of the teaching network, or the
    teaching network below this share of the best learner, so that the roles do not alternate."""

    @model_validator(mode="after")
    def _ordered(self) -> SwapSettings:
        if self.again_below > self.above:
            raise ValueError("again_below must not be above `above`, or roles would change to and fro")
        return self
