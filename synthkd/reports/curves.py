"""The curves of a log: one small panel for each logged name, in sections by what they are about."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from synthkd.reports.figures import Axis, Series, axis_around, round_ticks
from synthkd.reports.gap import gap_curve, gap_words
from synthkd.reports.marks import Marks, find_marks
from synthkd.reports.page import draw
from synthkd.reports.results import Evaluations, FittedGap
from synthkd.training.monitor import RESERVED, Row, series

SMOOTH_FROM = 60
"""Values from which on a noisy curve gets a running median."""
SMOOTH_WINDOW = 0.05
"""Share of the points over which the running median is taken."""
DOTS_UP_TO = 30
"""Values up to which each has a dot."""
MOST_POINTS = 1200
LOG_SCALE_FROM = 100.0
"""Ratio of the largest to the smallest value from which on the y axis is logarithmic."""
FULL_NAMES = {
    "lr": "learning rate",
    "evaluation/transfer_efficiency": "transfer efficiency η",
    "adapt/gap": "capacity gap",
    "adapt/strength": "strength of distillation",
    "adapt/teaching": "who teaches",
}
UNUSED = "reported only, never used to choose anything"
NOTES = {
    "evaluation/transfer_efficiency": "I(p_T; p_S) / H(p_T)",
    "adapt/gap": "share of the teacher’s accuracy still missing",
    "adapt/weight_of_answers": "α: terms of answers count 2α, all others 2(1 − α)",
}
OUTCOME, SCORES = "Outcome and difficulty", "Scores of the generated images"
EVALUATIONS, ADAPTS = "Evaluations of the students", "What adapts"
GROUPS = [OUTCOME, SCORES, EVALUATIONS, ADAPTS, "Student", "Peer", "Generator", "Teacher", "Run"]
FIRST = [
    "accuracy", "agreement", "difficulty", "loss", "transfer_efficiency", "temperature", "weight_of_answers",
    "strength", "gap", "teaching", "selected_teacher",
]  # fmt: skip
"""What stands first in a group, by the last part of its logged name."""
GROUP_NOTES = {
    SCORES: "Of {}. A name ends with the network of its features; only Inception’s "
    "distance is called FID. No score chooses anything.",
    EVALUATIONS: "On held-out images, which nobody learns from; without such images, on the newest generated ones. "
    "Accuracy is measured by annotated labels, or by the teacher’s answers where there are none.",
}
NEWEST = "the newest images of the memory bank"
FRESH = "images that were sampled for the scores alone and then dropped"
"""What is scored while a student is distilled, and while a generator is trained on its own."""
GAP, FITTED = "adapt/gap", "adapt/gap_fitted"
CHOICES: Mapping[str, Callable[[int], str]] = {
    "adapt/teaching": lambda number: f"peer {number}" if number else "student",
    "adapt/selected_teacher": lambda number: f"teacher {number + 1}",
}
"""Logged numbers that stand for a network, and its name."""

# The figure of a panel: its width, height and text, and the ends of its axes. Names need more room than numbers.
SIZE = (238.0, 115.0, 7.5)
LEFT, LEFT_OF_NAMES, RIGHT, TOP, BOTTOM = 30.0, 43.0, 229.0, 7.0, 98.0

Points = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True)
class Panel:
    """One curve: its caption, a remark below that, the last value as text, the SVG and the text below it."""

    title: str
    note: str
    last: str
    svg: Markup
    below: str = ""


@dataclass(frozen=True)
class Group:
    """Curves that belong together; `role` picks their colour, `note` is a remark on all of them."""

    title: str
    role: str
    panels: tuple[Panel, ...]
    note: str = ""


def draw_groups(
    rows: Sequence[Row],
    references: Mapping[str, tuple[str, float]],
    evaluations: Evaluations | None = None,
    scored: str = NEWEST,
) -> list[Group]:
    """Every logged name with at least two values as a panel, grouped by the part before its `/`.

    Args:
        rows: rows of the log.
        references: logged name -> (label, value) of a horizontal line to compare with.
        evaluations: of result.json; without a fitted `gap` the curve of the capacity gap is the logged one.
        scored: the images of the logged scores, in words.
    """
    marks = find_marks(rows)
    gap = (evaluations or Evaluations()).gap or FittedGap()
    if gap.threshold is not None:
        references = {GAP: (f"threshold {gap.threshold:.4g}", gap.threshold), **references}
    # The first two are times, which the table of costs has; the fitted gap is drawn in the panel of the gap.
    hidden = RESERVED | {"watching", "score/seconds", FITTED}
    names = sorted({name for row in rows if "event" not in row for name in row if name not in hidden}, key=_order)
    members: dict[str, list[Panel]] = {}
    for name in names:
        if sum(map(math.isfinite, series(rows, name)[1])) >= 2:
            members.setdefault(_group(name), []).append(_panel(name, rows, references.get(name), gap, marks))
    notes = {title: note.format(scored) for title, note in GROUP_NOTES.items()}
    return [
        Group(title, "generator" if title == "Generator" else "student", tuple(panels), notes.get(title, ""))
        for title, panels in members.items()
    ]


def _panel(name: str, rows: Sequence[Row], reference: tuple[str, float] | None, gap: FittedGap, marks: Marks) -> Panel:
    steps, values = _values(rows, name)
    fitted = (gap_curve(gap, steps[-1], marks) or _values(rows, FITTED)) if name == GAP else ([], [])
    is_share = name.startswith(("evaluation/accuracy", "evaluation/transfer_efficiency"))
    is_plain = bool(name in CHOICES or is_share or fitted[0])
    finite = [value for value in values if math.isfinite(value)]
    is_log, is_noisy = not is_plain and _wants_log(finite), not is_plain and _is_noisy(finite)
    notes = [UNUSED if name.startswith("test/") else NOTES.get(name, ""), "log scale" * is_log]
    notes += ["bold: running median" * is_noisy, "dots: measured; curve: fitted" * bool(fitted[0])]
    notes += [f"grey line: {reference[0]}"] if reference else []
    is_stepped = name in CHOICES or name.endswith("difficulty")
    return Panel(
        _title(name),
        "; ".join(filter(None, notes)),
        CHOICES[name](round(values[-1])) if name in CHOICES else f"{values[-1]:.4g}",
        _draw(name, _curves(steps, values, fitted, is_noisy, is_stepped), marks, reference, is_log),
        gap_words(gap, marks) if name == GAP else "",
    )


def _curves(
    steps: Sequence[float], values: Sequence[float], fitted: Points, is_noisy: bool, is_stepped: bool
) -> list[Series]:
    """The values: pale under their running median where they are noisy, as dots where a curve is fitted to them."""
    measured = Series(*_thin(steps, values), "line", is_stepped=is_stepped, dots=3.0 * (len(values) <= DOTS_UP_TO))
    if fitted[0]:
        return [replace(measured, width=0.0, dots=3.0), Series(*fitted, "line", 1.2)]
    if is_noisy:
        return [replace(measured, width=0.8, opacity=0.4), Series(*_running_median(steps, values), "line")]
    return [measured]


def _draw(
    name: str, curves: Sequence[Series], marks: Marks, reference: tuple[str, float] | None, is_log: bool
) -> Markup:
    """The curves over the steps of the run, with a line where a phase starts, at a resume, and at the reference."""
    last, levels = float(max(marks.last_step, 1)), [] if reference is None else [reference[1]]
    y = axis_around([*levels, *(value for curve in curves for value in curve.y)], BOTTOM, TOP, is_log)
    if name in CHOICES:
        y = replace(y, ticks=[(at, CHOICES[name](round(at))) for at in round_ticks(y.low, y.high, least_step=1.0)])
    ticks = [(step, _short(step)) for step in round_ticks(0.0, last, least_step=1.0)]
    x = Axis(LEFT_OF_NAMES if name in CHOICES else LEFT, RIGHT, 0.0, last, ticks, has_grid=False)
    later = [step for _, step in marks.phases if step > marks.phases[0][1]]
    lines = [Series([0.0, last], [y.low, y.low], "grid", 0.7)]
    lines += [Series([step, step], [y.low, y.high], "muted", 0.8, dashes="3.2 2.4") for step in later]
    lines += [Series([step, step], [y.low, y.high], "mark", 1.0, dashes="1 2") for step in marks.resumes]
    lines += [Series([0.0, last], [level, level], "muted", 1.0) for level in levels]
    return draw("chart", *SIZE, x, y, [*lines, *curves], "the values over the steps of the run")


def _group(name: str) -> str:
    head, _, tail = name.rpartition("/")
    if head in (kinds := {"evaluation": EVALUATIONS, "adapt": ADAPTS, "score": SCORES}):
        return kinds[head]
    if head == "test" or (tail in ("agreement", "difficulty") and not head.startswith("peer ")):
        return OUTCOME
    return head.split("/")[0].replace("_", " ").capitalize() or "Run"


def _order(name: str) -> tuple[int, int, int, int, str]:
    """Outcome first, then student, peers and generator; in a group what matters most."""
    group, tail = _group(name), name.rpartition("/")[2]
    kind, number = ("Peer", group.split()[-1]) if group.startswith("Peer ") else (group, "")
    return (
        GROUPS.index(kind) if kind in GROUPS else len(GROUPS),
        int(number) if number.isdecimal() else 0,
        FIRST.index(tail) if tail in FIRST else len(FIRST),
        0 if name.startswith("test/") else 1,
        name,
    )


def _title(name: str) -> str:
    head, _, tail = name.rpartition("/")
    words = FULL_NAMES.get(name, FULL_NAMES.get(tail, tail))
    if _group(name) == OUTCOME and head:
        words = f"{head.replace('/', ' ')} {words}"
    words = words.replace("_", " ")
    return words[:1].upper() + words[1:]


def _values(rows: Sequence[Row], name: str) -> Points:
    """Steps and values of a name. An evaluation comes before its step is taken, and its row counts the step as done."""
    steps, values = series(rows, name)
    return ([step - 1 for step in steps] if name.startswith(("evaluation/", "adapt/")) else steps), values


def _wants_log(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) > LOG_SCALE_FROM


def _is_noisy(values: Sequence[float]) -> bool:
    """Whether the curve goes up and down by much more than its whole range; a step or a slow fall does not."""
    travel = sum(abs(after - before) for before, after in pairwise(values))
    return len(values) >= SMOOTH_FROM and travel > 1.5 * (max(values) - min(values))


def _thin(steps: Sequence[float], values: Sequence[float]) -> Points:
    """At most about MOST_POINTS points with the same outline: the lowest and the highest of every run of points."""
    size = math.ceil(len(values) / MOST_POINTS) * 2
    if size <= 2:
        return steps, values
    blocks, first = _blocks(values, size), np.arange(0, len(values) - size + 1, size)[:, None]
    places = np.sort(np.stack([blocks.argmin(1), blocks.argmax(1)], axis=1), axis=1) + first
    rows = [*places.ravel().tolist(), *range(blocks.size, len(values))]
    return [steps[row] for row in rows], [values[row] for row in rows]


def _running_median(steps: Sequence[float], values: Sequence[float]) -> Points:
    """Median of the values around each, so that single spikes do not bend the curve; of blocks in a long log."""
    size = math.ceil(len(values) / MOST_POINTS)
    blocks = np.median(_blocks(values, size), axis=1)
    half = max(1, round(len(blocks) * SMOOTH_WINDOW / 2))
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(blocks, half, mode="edge"), 2 * half + 1)
    return _blocks(steps, size).mean(axis=1).tolist(), np.median(windows, axis=1).tolist()


def _blocks(values: Sequence[float], size: int) -> NDArray[np.float64]:
    """The values, `size` a row, without those that fill no row; the median of all stands for what is not finite."""
    y = np.asarray(values, dtype=np.float64)
    y = np.where(np.isfinite(y), y, np.median(y[np.isfinite(y)]))
    return y[: len(y) // size * size].reshape(-1, size)


def _short(value: float) -> str:
    """12000 -> 12k."""
    size, unit = next(((size, unit) for size, unit in ((1e6, "M"), (1e3, "k")) if value >= size), (1.0, ""))
    return f"{value / size:.4g}{unit}"
