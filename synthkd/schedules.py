"""Values that change during a run: pure curves, and controllers whose small state is checkpointed and logged."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from synthkd.errors import TrainingError
from synthkd.settings import Curve, DifficultySettings, OptimizerSettings, Schedule, TemperatureSettings

Limits = TypeVar("Limits", DifficultySettings, TemperatureSettings)


def value_at(schedule: Schedule, step: int, total: int) -> float:
    """Value of a scheduled setting at `step` of `total`.

    Args:
        schedule: a number (constant) or a curve from `start` to `end` between the fractions `begin` and `until`.
        step: current step, 0-based.
        total: number of steps of the run.
    """
    if isinstance(schedule, float | int):
        return float(schedule)
    progress = step / max(1, total - 1)
    if schedule.kind == "step":
        return schedule.end if progress >= schedule.until else schedule.start
    span = schedule.until - schedule.begin
    t = 1.0 if span == 0 and progress >= schedule.until else (progress - schedule.begin) / span if span else 0.0
    t = min(1.0, max(0.0, t))
    if schedule.kind == "cosine":
        t = 0.5 * (1.0 - math.cos(math.pi * t))
    return schedule.start + (schedule.end - schedule.start) * t


def ever(schedule: Schedule) -> bool:
    """Whether a scheduled setting is other than 0 at any time."""
    ends = (schedule.start, schedule.end) if isinstance(schedule, Curve) else (schedule,)
    return any(end != 0.0 for end in ends)


def learning_rate_factor(settings: OptimizerSettings, step: int, total: int) -> float:
    """Learning rate at `step` as a fraction of the peak: linear warm-up, then constant or a cosine to `final`.

    The cosine is that of SGDR without restarts (Loshchilov and Hutter 2017, equation 5).
    """
    warmup = settings.warmup or (0.1 if settings.schedule == "one_cycle" else 0.0)
    rising = round(warmup * total)
    if step < rising:
        return (step + 1) / rising
    if settings.schedule == "constant":
        return 1.0
    progress = (step - rising) / max(1, total - rising)
    return settings.final + (1.0 - settings.final) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


class ThresholdScheduler(Generic[Limits]):
    """A value that goes up while a measure is high and down while it is low.

    Multiplicative: `v <- clip(v * up)` when the measure is above `raise_above`, `v <- clip(v * down)` when it is below
    `lower_below`, unchanged in between; always inside `[low, high]`.

    Attributes:
        value: v.
    """

    def __init__(self, settings: Limits) -> None:
        self.settings: Limits = settings
        self.value = settings.start

    def update(self, measure: float, /) -> float:
        """Take the measure and return the new value."""
        s = self.settings
        factor = s.up if measure > s.raise_above else s.down if measure < s.lower_below else 1.0
        self.value = min(s.high, max(s.low, self.value * factor))
        return self.value

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.value = float(state["value"])


class DifficultyScheduler(ThresholdScheduler[DifficultySettings]):
    """Raises difficulty while the student keeps up with its teacher on fresh samples, lowers it when it does not."""

    def update(self, agreement: float) -> float:
        """Take the student's agreement with the teacher on fresh samples (0..1) and return the new difficulty."""
        if not 0.0 <= agreement <= 1.0:
            raise ValueError(f"agreement must be in [0, 1], got {agreement}")
        return super().update(agreement)


class TemperatureScheduler(ThresholdScheduler[TemperatureSettings]):
    """Sharpens the soft labels while the student keeps up, softens them when it does not."""

    def update(self, loss: float) -> float:
        """Take the student's loss and return the new temperature, lower for a small loss and higher for a large one.

        Take a loss that does not hold this temperature, the hard-label loss or the divergence at T = 1: T^2 KL moves
        with T, and the controller would answer itself.

        Raises:
            TrainingError: a loss that is not finite.
        """
        if not math.isfinite(loss):
            raise TrainingError(f"the temperature follows a loss that must be finite, got {loss}; lower the lr")
        return super().update(loss)
