"""Values that change during a run: curves over the steps, and schedulers that follow a measure and have a state."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from synthkd.errors import TrainingError
from synthkd.settings import (
    Curve,
    DifficultySettings,
    OptimizerSettings,
    Schedule,
    TemperatureSettings,
    ThresholdSettings,
)


def value_at(schedule: Schedule, step: int, total: int) -> float:
    """Value of a scheduled setting at the 0-based `step` of `total` steps.

    A number is constant. A curve moves from `start` to `end` between the fractions `begin` and `until` of the run;
    one of kind step jumps at `until`.
    """
    if isinstance(schedule, float | int):
        return float(schedule)
    progress = step / max(1, total - 1)  # the last step, total - 1, is at 1
    if schedule.kind == "step":
        return schedule.end if progress >= schedule.until else schedule.start
    span = schedule.until - schedule.begin
    # A curve without length is a jump.
    t = (progress - schedule.begin) / span if span else float(progress >= schedule.until)
    t = min(1.0, max(0.0, t))
    if schedule.kind == "cosine":
        t = 0.5 * (1.0 - math.cos(math.pi * t))
    return schedule.start + (schedule.end - schedule.start) * t


def ever(schedule: Schedule) -> bool:
    """Whether a scheduled setting is other than 0 at any step."""
    return peak(schedule) != 0.0


def peak(schedule: Schedule) -> float:
    """The largest absolute value of a scheduled setting; at one end of a curve."""
    return max(abs(schedule.start), abs(schedule.end)) if isinstance(schedule, Curve) else abs(schedule)


REWARMING = 0.05
"""Part of the steps of an extension in which its learning rate rises."""


def learning_rate_factor(settings: OptimizerSettings, step: int, total: int, extensions: Sequence[int] = ()) -> float:
    """Learning rate at the 0-based `step` as a fraction of the peak.

    It rises linearly during the warm-up, and is then constant or falls to `final` by the cosine of SGDR without
    restarts (Loshchilov and Hutter 2017, equation 5). If it has fallen, each extension warms it again: it rises
    linearly from `final` to the peak, in `REWARMING` of its steps, and falls to `final` once more.

    Args:
        settings: of the optimizer.
        step: of the run, extensions included.
        total: steps before the first extension.
        extensions: steps of each.
    """
    lengths, number = (total, *extensions), 0
    while number < len(extensions) and step >= lengths[number]:
        step, number = step - lengths[number], number + 1
    if number:
        return _rewarmed_factor(settings, step, lengths[number])
    warmup = settings.warmup or (0.1 if settings.schedule == "one_cycle" else 0.0)
    rising = round(warmup * total)
    if step < rising:
        return (step + 1) / rising  # step 0 already moves, and the last step of the warm-up has the peak
    if settings.schedule == "constant":
        return 1.0
    progress = (step - rising) / max(1, total - rising)
    return settings.final + (1.0 - settings.final) * _falling(progress)


def _rewarmed_factor(settings: OptimizerSettings, step: int, length: int) -> float:
    if settings.schedule == "constant":
        return 1.0
    rising, above = max(1, round(REWARMING * length)), 1.0 - settings.final
    if step < rising:
        return settings.final + above * (step + 1) / rising
    return settings.final + above * _falling((step - rising) / max(1, length - rising))


def _falling(progress: float) -> float:
    """Half a cosine from 1 at progress 0 to 0 at progress 1 and beyond."""
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


class ThresholdScheduler:
    """A value that is raised while a measure is high and lowered while it is low.

    `v <- clip(v * up)` if the measure is above `raise_above`, `v <- clip(v * down)` if it is below `lower_below`; in
    between v stays, so that noise around one threshold does not move it both ways. v is always in `[low, high]`.

    Attributes:
        settings: thresholds, factors and bounds.
        value: v.
    """

    def __init__(self, settings: ThresholdSettings) -> None:
        self.settings = settings
        self.value = settings.start

    def update(self, measure: float, /) -> float:
        """Return the new value after one more measurement."""
        s = self.settings
        factor = s.up if measure > s.raise_above else s.down if measure < s.lower_below else 1.0
        self.value = min(s.high, max(s.low, self.value * factor))
        return self.value

    def state_dict(self) -> dict[str, Any]:
        """The present value."""
        return {"value": self.value}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.value = float(state["value"])


class DifficultyScheduler(ThresholdScheduler):
    """Raises the difficulty while student and teacher agree on fresh samples, and lowers it while they do not.

    Args:
        settings: thresholds, factors and bounds; None: the defaults.
    """

    def __init__(self, settings: DifficultySettings | None = None) -> None:
        super().__init__(settings or DifficultySettings())

    def update(self, agreement: float) -> float:
        """Return the new difficulty.

        Args:
            agreement: share of fresh samples on which student and teacher predict the same class, in [0, 1].

        Raises:
            ValueError: an agreement outside [0, 1].
        """
        if not 0.0 <= agreement <= 1.0:
            raise ValueError(f"agreement must be in [0, 1], got {agreement}")
        return super().update(agreement)


class TemperatureScheduler(ThresholdScheduler):
    """Lowers the temperature of the soft labels while the student's loss is small, and raises it while it is large.

    Args:
        settings: thresholds, factors and bounds; None: the defaults.
    """

    def __init__(self, settings: TemperatureSettings | None = None) -> None:
        super().__init__(settings or TemperatureSettings())

    def update(self, loss: float) -> float:
        """Return the new temperature.

        Args:
            loss: of the student, independent of this temperature: the hard-label loss, or the divergence at T = 1.
                T^2 KL changes with T, so the scheduler would react to its own updates.

        Raises:
            TrainingError: a loss that is not finite.
        """
        if not math.isfinite(loss):
            raise TrainingError(f"the temperature follows a loss that must be finite, got {loss}; lower the lr")
        return super().update(loss)
