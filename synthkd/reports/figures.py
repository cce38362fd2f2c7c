"""What the figures of the pages show: charts with two axes, and the flow of private images.

The macros of `templates/figures.html.jinja` draw them. That named `chart` takes the width and height of the figure and
the size of its text, both axes, the series from the lowest to the top, what the chart shows in words, and more SVG.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from synthkd.privacy.report import Touch
from synthkd.reports.page import SPACE, draw, percent
from synthkd.reports.results import ModelResult

MARGIN = 0.05
"""Share of an axis that stays free on each side of the values."""
ROUND_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
"""Steps between ticks, up to a power of 10."""
INTERVAL_STEPS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
"""Steps between ticks of accuracies."""
PLACES = {"private images": (200, 34), "teacher": (70, 146), "generator": (330, 146), "student": (200, 258)}
"""The centres of the boxes of a flow."""
HALF_BOX = (66.0, 22.0)


@dataclass(frozen=True)
class Axis:
    """One axis of a chart.

    Attributes:
        start, end: places of its ends in the figure.
        low, high: the values at these ends.
        ticks: (value, label) of each tick.
        name: what the values are, in words.
        is_log: whether it is logarithmic.
        has_grid: whether a line goes through the chart at each tick.
    """

    start: float
    end: float
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    name: str = ""
    is_log: bool = False
    has_grid: bool = True

    def place(self, value: float) -> float:
        """Place of a value in the figure, to a tenth."""
        low, high, at = (math.log(one) if self.is_log else one for one in (self.low, self.high, value))
        return round(self.start + (self.end - self.start) * (at - low) / (high - low), 1)


@dataclass(frozen=True)
class Series:
    """A curve, dots, or both.

    Attributes:
        x, y: values; where y is not finite, the curve has a gap.
        colour: a CSS variable of the page.
        width: of the curve; 0 for dots alone.
        dots: diameter of the dots; 0 for none.
        shape: of the dots.
        opacity: of both.
        dashes: of the curve, as SVG has them.
        is_stepped: whether a value holds until the next one.
        name: shown where the pointer rests.
    """

    x: Sequence[float]
    y: Sequence[float]
    colour: str
    width: float = 1.5
    dots: float = 0.0
    shape: Literal["round", "square"] = "round"
    opacity: float = 1.0
    dashes: str = "none"
    is_stepped: bool = False
    name: str = ""

    def curve(self, x: Axis, y: Axis) -> str:
        """The curve as an SVG path."""
        path, before = list[str](), None
        for across, up in zip(self.x, self.y, strict=True):
            place = (x.place(across), y.place(up)) if math.isfinite(up) else None
            if place and before and self.is_stepped:
                path.append(f"L {place[0]} {before[1]}")
            if place:
                path.append(f"{'L' if before else 'M'} {place[0]} {place[1]}")
            before = place
        return " ".join(path)

    def points(self, x: Axis, y: Axis) -> str:
        """The dots as an SVG path of lines without length, which are drawn as their caps."""
        pairs = zip(self.x, self.y, strict=True)
        return " ".join(f"M {x.place(across)} {y.place(up)} h0" for across, up in pairs if math.isfinite(up))


@dataclass(frozen=True)
class Arrow:
    """An arrow of the flow, from the edge of one box to that of another.

    Attributes:
        noisy: whether noise protects it; None where it reads nothing private.
        start: where it starts.
        length, angle: to its tip; the angle in degrees, clockwise from the right.
        middle: between the boxes.
    """

    noisy: bool | None
    start: tuple[float, float]
    length: float
    angle: float
    middle: tuple[float, float]


def axis_around(values: Sequence[float], start: float, end: float, is_log: bool = False) -> Axis:
    """An axis with room for all values that are finite, and round ticks."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite), max(finite)
    if is_log:
        low, high = low * (low / high) ** MARGIN, high * (high / low) ** MARGIN
        first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
        powers = range(first, last + 1, (last - first) // 4 + 1)
        return Axis(start, end, low, high, labelled([10.0**power for power in powers]), is_log=True)
    margin = MARGIN * ((high - low) or abs(high) or 1.0)
    low, high = low - margin, high + margin
    return Axis(start, end, low, high, labelled(round_ticks(low, high)))


def labelled(ticks: Sequence[float]) -> list[tuple[float, str]]:
    """Ticks with their values as labels."""
    return [(tick, f"{tick:.4g}") for tick in ticks]


def round_ticks(low: float, high: float, least_step: float = 0.0) -> list[float]:
    """Multiples of a round step from `low` to `high`: of the finest step that gives at most 5."""
    power = 10.0 ** math.floor(math.log10((high - low) / 5))
    for step in (max(least_step, one * power) for one in ROUND_STEPS):
        ticks = [place * step for place in range(math.ceil(low / step), math.floor(high / step) + 1)]
        if len(ticks) <= 5:
            break
    return ticks


def interval_chart(teacher: ModelResult | None, student: ModelResult | None, name: str = "Teacher") -> Markup | None:
    """The accuracies of both on one axis, each with its interval; None unless both have one.

    Args:
        teacher, student: the models.
        name: of the teacher, or of several teachers together.
    """
    rows, ends = list[tuple[str, str, list[float]]](), list[float]()
    for title, colour, model in ((name, "teacher", teacher), ("Student", "student", student)):
        if model is None or model.accuracy is None or model.accuracy_interval is None:
            return None
        rows.append((title, colour, [model.accuracy, *model.accuracy_interval]))
        ends += model.accuracy_interval
    # The finest round step with at most 5 ticks; the axis ends at the ticks around all intervals.
    step = next((step for step in INTERVAL_STEPS if (max(ends) - min(ends)) / step <= 5), INTERVAL_STEPS[-1])
    last = math.ceil(max(ends) / step)
    first = min(math.floor(min(ends) / step), last - 1)
    x = Axis(0.0, 100.0, first * step, last * step, [(n * step, percent(n * step)) for n in range(first, last + 1)])
    return draw("intervals", x, rows)


def scatter_chart(across: str, up: str, top: float, points: Sequence[tuple[str, str, Mapping[str, float]]]) -> Markup:
    """A quality of generated sets over another.

    Args:
        across, up: the qualities, of which the first tells variety and the second fidelity.
        top: value of `up` at the top; larger ones are drawn there.
        points: (name, colour, quality -> value) of each set.
    """
    quarters = [0.0, 0.25, 0.5, 0.75, 1.0]
    x = Axis(40.0, 310.0, 0.0, 1.0, labelled(quarters), f"{across} (variety)", has_grid=False)
    y = Axis(210.0, 10.0, 0.0, top, labelled([top * share for share in quarters]), f"{up} (fidelity)")
    dots = []
    for name, colour, one in points:
        numbers = f"{name}: {across} {one[across]:.3f}, {up} {one[up]:.3f}"
        dots.append(Series([one[across]], [min(one[up], top)], colour, width=0.0, dots=12.0, name=numbers))
    return draw("chart", 320, 250, 11, x, y, dots, f"{up} against {across}")


def roc_chart(curves: Mapping[str, Sequence[tuple[float, float]]], n: int) -> Markup:
    """ROC curves on logarithmic axes from 1/n to 1, every point drawn; a rate of 0 has no logarithm and stands outside.

    Args:
        curves: "teacher", "student" -> false-positive and true-positive rates of an attack on the same images.
        n: number of images of the larger side.
    """
    outside = n ** -(1 + 32 / 240)  # from 1/n to 1 the axes are 240 long; 32 more are beside them
    decades = [0.1**power for power in range(math.ceil(math.log10(n)))]
    labels = [(rate, f"{100 * rate:.4g}{SPACE}%") for rate in decades if rate * n >= 2]  # nearer, they would overlap
    ticks = [(outside, "0"), (1 / n, f"1/{n:,}"), *reversed(labels)]
    x = Axis(56.0, 328.0, outside, 1.0, ticks, "false-positive rate", is_log=True)
    y = Axis(286.0, 14.0, outside, 1.0, ticks, "true-positive rate", is_log=True)
    series = [Series((1 / n, 1.0), (1 / n, 1.0), "muted", 1.0, dashes="4 4")]
    for who, rates in curves.items():
        false, true = ([max(point[side], outside) for point in rates] for side in (0, 1))
        if who == "student":
            series.append(Series(false, true, who, 1.6, 4.5, is_stepped=True))
        else:
            series.append(Series(false, true, who, 1.6, 4.5, "square", dashes="5 2", is_stepped=True))
    guessing = Markup('<text transform="translate(212 158) rotate(-45)">guessing</text>')
    label = "ROC curves of the headline attacks on logarithmic axes"
    return draw("chart", 350, 340, 11, x, y, series, label, guessing)


def flow_figure(touches: Sequence[Touch], released: Collection[str]) -> Markup:
    """How private images flow into what is released: boxes, and an arrow for each touch.

    Args:
        touches: of the flow.
        released: boxes that are handed over.
    """
    return draw("flow", arrows(touches), PLACES, released)


def arrows(touches: Sequence[Touch]) -> list[Arrow]:
    """The touches of private images and of what was learned from them, as arrows between their boxes."""
    result = []
    for touch in touches:
        (x1, y1), (x2, y2) = PLACES[touch.source], PLACES[touch.target]
        dx, dy = x2 - x1, y2 - y1
        inside = min(half / abs(way) for half, way in zip(HALF_BOX, (dx, dy), strict=True) if way)
        start, length = (x1 + inside * dx, y1 + inside * dy), (1 - 2 * inside) * math.hypot(dx, dy)
        angle = math.degrees(math.atan2(dy, dx))
        result.append(Arrow(touch.noisy, start, length, angle, ((x1 + x2) / 2, (y1 + y2) / 2)))
    return result
