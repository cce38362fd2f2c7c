"""The accuracies of teacher and student with their intervals, on one axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from synthkd.reports.results import ModelResult


@dataclass(frozen=True)
class IntervalChart:
    """Positions on a common axis, in percent of its length.

    Attributes:
        models: "teacher", "student" -> positions of the accuracy and of the lower and upper end of its interval.
        ticks: (position, accuracy) of each tick.
    """

    models: Mapping[str, tuple[float, float, float]]
    ticks: Sequence[tuple[float, float]]


def interval_chart(teacher: ModelResult | None, student: ModelResult | None) -> IntervalChart | None:
    """The chart of two models; None unless both have an accuracy with an interval."""
    values: dict[str, tuple[float, float, float]] = {}
    for who, model in (("teacher", teacher), ("student", student)):
        if model is None or model.accuracy is None or model.accuracy_interval is None:
            return None
        values[who] = (model.accuracy, *model.accuracy_interval)
    lowest, highest = min(low for _, low, _ in values.values()), max(high for _, _, high in values.values())
    # The finest round step with at most 5 ticks; the axis ends at the ticks around all intervals.
    step = next((step for step in (0.005, 0.01, 0.02, 0.05, 0.1) if (highest - lowest) / step <= 5), 0.2)
    last = math.ceil(highest / step)
    first = min(math.floor(lowest / step), last - 1)

    def place(value: float) -> float:
        return (value / step - first) / (last - first) * 100

    models = {who: (place(at), place(low), place(high)) for who, (at, low, high) in values.items()}
    return IntervalChart(models, [(place(tick * step), tick * step) for tick in range(first, last + 1)])
