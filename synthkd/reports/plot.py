"""One curve as SVG for use inside a page, drawn by matplotlib.

Colours in the SVG are CSS variables of the page (`--line`, `--muted`, `--grid`, `--mark`), so that a figure follows the
page from light to dark, and its text takes the font of the page.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from synthkd.reports.marks import Marks

# Drawn in these colours by matplotlib, then replaced by the CSS variable of the same role.
ROLES = {"line": "#a10001", "muted": "#a10002", "grid": "#a10003", "mark": "#a10004"}
MOST_POINTS = 1200
SMOOTH_WINDOW = 0.05
"""Share of the points over which the running median is taken."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Plot:
    """What is drawn.

    Attributes:
        name: logged name; it keeps ids in the SVG apart from those of other figures.
        steps, values: of the curve; values that are not finite leave a gap.
        is_log: whether the y axis is logarithmic.
        is_noisy: whether a running median is drawn over the pale curve.
        is_stepped: whether a value holds until the next one.
        names: value -> name of a choice, written at the y axis; None for numbers.
        reference: value of a horizontal line to compare with, or None.
        fitted: steps and values of a fitted curve, beside which the values are dots; or None.
    """

    name: str
    steps: Sequence[float]
    values: Sequence[float]
    is_log: bool = False
    is_noisy: bool = False
    is_stepped: bool = False
    names: Callable[[int], str] | None = None
    reference: float | None = None
    fitted: tuple[Sequence[float], Sequence[float]] | None = None


def draw(plot: Plot, marks: Marks) -> str:
    """The `<svg>` element, the same for the same plot."""
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": plot.name, "font.size": 8.0}):
        figure = Figure(figsize=(3.3, 1.6))
        figure.subplots_adjust(left=0.125 if plot.names is None else 0.18, right=0.965, bottom=0.15, top=0.95)
        axes = figure.add_subplot()
        if plot.is_log:
            axes.set_yscale("log")
        _draw_marks(axes, marks)
        _draw_curves(axes, plot)
        axes.set_xlim(0, max(marks.last_step, 1))
        _style(axes, plot)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _inline(buffer.getvalue())


def _draw_marks(axes: Axes, marks: Marks) -> None:
    for _, step in marks.phases:
        if step > marks.phases[0][1]:
            axes.axvline(step, color=ROLES["muted"], linewidth=0.8, linestyle=(0, (4, 3)))
    for step in marks.resumes:
        axes.axvline(step, color=ROLES["mark"], linewidth=1.0, linestyle=(0, (1, 2)))


def _draw_curves(axes: Axes, plot: Plot) -> None:
    x, y = np.asarray(plot.steps, dtype=float), np.asarray(plot.values, dtype=float)
    y = np.where(np.isfinite(y), y, np.nan)
    if plot.reference is not None:
        axes.axhline(plot.reference, color=ROLES["muted"], linewidth=1.0)
    axes.plot(
        *_thin(x, y),
        color=ROLES["line"],
        linewidth=0.8 if plot.is_noisy else 1.5,
        alpha=0.4 if plot.is_noisy else 1.0,
        marker="" if len(y) > 30 and plot.fitted is None else "o",
        markersize=2.4,
        clip_on=False,
        linestyle="-" if plot.fitted is None else "",
        drawstyle="steps-post" if plot.is_stepped else "default",
    )
    if plot.fitted is not None:
        axes.plot(*plot.fitted, color=ROLES["line"], linewidth=1.2)
    if plot.is_noisy:
        axes.plot(*_running_median(x, y), color=ROLES["line"], linewidth=1.5, clip_on=False)


def _style(axes: Axes, plot: Plot) -> None:
    """Few ticks, horizontal grid lines, and no frame but the x axis."""
    names = plot.names
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
    if names is not None:
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: names(round(value))))
    elif plot.is_log:
        axes.yaxis.set_major_locator(LogLocator(numticks=4))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.grid(axis="y", color=ROLES["grid"], linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, colors=ROLES["muted"], labelsize=7.5, pad=3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(ROLES["grid"])
    axes.patch.set_visible(False)


def _thin(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """At most about MOST_POINTS points with the same outline: the lowest and the highest of every run of points."""
    size = math.ceil(len(y) / MOST_POINTS) * 2
    if size <= 2:
        return x, y
    whole = len(y) // size * size
    blocks = np.nan_to_num(y[:whole].reshape(-1, size), nan=float(np.nanmedian(y)))
    places = np.sort(np.stack([blocks.argmin(1), blocks.argmax(1)], axis=1), axis=1)
    rows = np.append((places + np.arange(0, whole, size)[:, None]).ravel(), np.arange(whole, len(y)))
    return x[rows], y[rows]


def _running_median(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Median of the values around each, so that single spikes do not bend the curve; of blocks in a long log."""
    size = math.ceil(len(y) / MOST_POINTS)
    whole = len(y) // size * size
    filled = np.where(np.isnan(y), np.nanmedian(y), y)[:whole].reshape(-1, size)
    blocks = np.median(filled, axis=1)
    half = max(1, round(len(blocks) * SMOOTH_WINDOW / 2))
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(blocks, half, mode="edge"), 2 * half + 1)
    return x[:whole].reshape(-1, size).mean(axis=1), np.median(windows, axis=1)


def _short(value: float) -> str:
    """12000 -> 12k."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


def _inline(svg: str) -> str:
    """Only the `<svg>` element, for use inside HTML: no prolog, no addresses, no ids twice, the page's own style."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<(metadata|style).*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"| id="[a-z0-9.]+_\d+"| font-family: [^;]*;', "", svg)
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', svg, count=1)
    for role, colour in ROLES.items():
        svg = svg.replace(colour, f"var(--{role})")
    return svg
