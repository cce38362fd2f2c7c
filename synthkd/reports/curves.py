"""The curves of a report: one small SVG per logged name, all in one style and on one step axis.

Colours in the SVG are CSS variables of the page (`--line`, `--muted`, `--grid`, `--mark`), so that a figure follows it
from light to dark, and text takes the font of the page.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from synthkd.reports.results import Evaluations, FittedGap
from synthkd.training.monitor import RESERVED, series

# Drawn in these colours by matplotlib, then replaced by the CSS variable of the same role.
ROLES = {"line": "#a10001", "muted": "#a10002", "grid": "#a10003", "mark": "#a10004"}
MOST_POINTS = 1200
SMOOTH_FROM = 60
SMOOTH_WINDOW = 0.05
LOG_SCALE_FROM = 100.0
FULL_NAMES = {
    "lr": "learning rate",
    "evaluation/transfer_efficiency": "transfer efficiency η",
    "adapt/gap": "capacity gap",
    "adapt/strength": "strength of distillation",
    "adapt/teaching": "who teaches",
}
NOTES = {
    "evaluation/transfer_efficiency": "I(p_T; p_S) / H(p_T)",
    "adapt/gap": "share of the teacher’s accuracy still missing",
    "adapt/weight_of_answers": "α: terms of answers count 2α, all others 2(1 − α)",
}
LOOKS, ADAPTS = "Looks at the students", "What adapts"
OUTCOME = "Outcome and difficulty"
GROUPS = [OUTCOME, LOOKS, ADAPTS, "Student", "Peer", "Generator", "Teacher", "Run"]
GROUP_NOTES = {
    LOOKS: "At held-out images, from which nobody learns; without such images, at the newest generated ones. Accuracy "
    "goes by annotated labels, or by the teacher’s answers where there are none."
}
GAP, FITTED = "adapt/gap", "adapt/gap_fitted"
# Numbers that stand for somebody, by who it is.
CHOICES: Mapping[str, Callable[[int], str]] = {
    "adapt/teaching": lambda number: f"peer {number}" if number else "student",
    "adapt/selected_teacher": lambda number: f"teacher {number + 1}",
}


@dataclass(frozen=True)
class Marks:
    """Steps to mark on every panel: where phases start, by name, and where the run was resumed."""

    phases: tuple[tuple[str, int], ...]
    resumes: tuple[int, ...]
    last_step: int


@dataclass(frozen=True)
class Panel:
    """One curve: its caption, a remark under that, the last value as text, the SVG and what is said below it."""

    title: str
    note: str
    last: str
    svg: str
    below: str = ""


@dataclass(frozen=True)
class Group:
    """Curves that belong together; `role` picks their colour, `note` is a remark on all of them."""

    title: str
    role: str
    panels: tuple[Panel, ...]
    note: str = ""


def find_marks(rows: Sequence[Mapping[str, Any]]) -> Marks:
    """Where phases start and where the run was resumed, from the rows of its log."""
    phases: list[tuple[str, int]] = []
    for row in rows:
        phase = row.get("phase")
        if phase is not None and (not phases or phases[-1][0] != phase):
            phases.append((str(phase), row["step"]))
    resumes = sorted({row["step"] for row in rows if row.get("kind") == "resume"})
    return Marks(tuple(phases), tuple(resumes), max((row["step"] for row in rows), default=0))


def draw_groups(
    rows: Sequence[Mapping[str, Any]],
    references: Mapping[str, tuple[str, float]],
    evaluations: Evaluations | None = None,
) -> list[Group]:
    """Every logged name with at least two values as a panel, grouped by the part before its `/`.

    Args:
        rows: rows of the log.
        references: logged name -> (label, value) of a horizontal line to compare with.
        evaluations: of result.json; without the numbers of its `gap` the curve of the capacity gap is the logged one.
    """
    marks = find_marks(rows)
    gap = (evaluations or Evaluations()).gap or FittedGap()
    hidden = RESERVED | {"watching", FITTED}  # a clock, no outcome; a curve in the panel of what it is fitted to
    names = sorted({name for row in rows if "event" not in row for name in row if name not in hidden}, key=_order)
    if gap.threshold is not None:
        references = {GAP: (f"threshold {gap.threshold:.4g}", gap.threshold), **references}
    members: dict[str, list[Panel]] = {}
    for name in names:
        steps, values = _values(rows, name)
        if sum(map(math.isfinite, values)) < 2:
            continue
        group = _group(name)
        note = "reported only, never used to choose anything" if name.startswith("test/") else NOTES.get(name, "")
        fitted, below = _fitted(rows, steps[-1], gap, marks) if name == GAP else (None, "")
        is_share = name.startswith(("evaluation/accuracy", "evaluation/transfer_efficiency"))
        is_plain = name in CHOICES or is_share or fitted is not None
        is_log, is_noisy = not is_plain and _wants_log(values), not is_plain and _is_noisy(values)
        label, reference = references.get(name, ("", None))
        notes = [note] * bool(note) + ["log scale"] * is_log + ["bold: running median"] * is_noisy
        notes += ["dots: measured", "curve: fitted"] * (fitted is not None) + [f"grey line: {label}"] * bool(label)
        svg = _draw(name, steps, values, marks, is_log, is_noisy, reference, fitted)
        last = CHOICES[name](round(values[-1])) if name in CHOICES else f"{values[-1]:.4g}"
        members.setdefault(group, []).append(Panel(_title(name, group), "; ".join(notes), last, svg, below))
    return [
        Group(title, "generator" if title == "Generator" else "student", tuple(panels), GROUP_NOTES.get(title, ""))
        for title, panels in members.items()
    ]


def _group(name: str) -> str:
    head, _, tail = name.rpartition("/")
    if head in ("evaluation", "adapt"):
        return LOOKS if head == "evaluation" else ADAPTS
    if head == "test" or (tail in ("agreement", "difficulty") and not head.startswith("peer ")):
        return OUTCOME
    return head.split("/")[0].replace("_", " ").capitalize() or "Run"


def _order(name: str) -> tuple[int, int, int, int, str]:
    """Outcome first, then student, peers and generator; in a group what matters most."""
    group, tail = _group(name), name.rpartition("/")[2]
    kind, number = ("Peer", group.split()[-1]) if group.startswith("Peer ") else (group, "")
    first = ["accuracy", "agreement", "difficulty", "loss", "transfer_efficiency", "temperature", "weight_of_answers"]
    first += ["strength", "gap", "teaching", "selected_teacher"]
    return (
        GROUPS.index(kind) if kind in GROUPS else len(GROUPS),
        int(number) if number.isdecimal() else 0,
        first.index(tail) if tail in first else len(first),
        0 if name.startswith("test/") else 1,
        name,
    )


def _title(name: str, group: str) -> str:
    head, _, tail = name.rpartition("/")
    words = FULL_NAMES.get(name, FULL_NAMES.get(tail, tail)).replace("_", " ")
    if group == OUTCOME and head:
        words = f"{head} {words}".replace("_", " ").replace("/", " ")
    return words[:1].upper() + words[1:]


def _values(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[Sequence[float], Sequence[float]]:
    """Steps and values of a name. A look comes before its step is taken, and its row counts that step as done."""
    steps, values = series(rows, name)
    return ([step - 1 for step in steps] if name.startswith(("evaluation/", "adapt/")) else steps), values


def _fitted(
    rows: Sequence[Mapping[str, Any]], last: float, gap: FittedGap, marks: Marks
) -> tuple[tuple[Sequence[float], Sequence[float]] | None, str]:
    """Steps of the run, up to the last, and values of the curve through the gap, and what it is; None without one."""
    alpha, beta, gamma, start = gap.alpha, gap.beta, gap.gamma, gap.start
    if alpha is None or beta is None or gamma is None or start is None:
        drawn = _values(rows, FITTED)
        return (drawn if drawn[0] else None), ""
    times = [start + (last - _run_step(start, marks)) * part / 100 for part in range(101)]
    values = [alpha * math.exp(-beta * (time - start)) + gamma for time in times]
    errors = gap.errors or (None, None, None)
    numbers = [
        f"{letter} = {value:.3g}" + ("" if error is None else f" ± {error:.2g}")
        for letter, value, error in zip("αβγ", (alpha, beta, gamma), errors, strict=True)
    ]
    listed = ", ".join(number.replace(" ", "\N{NO-BREAK SPACE}").replace("-", "−") for number in numbers)
    sure = "±\N{NO-BREAK SPACE}standard error" if None not in errors else "without ±: the looks do not tell how sure"
    said = f"Curve: α e^(−β {f'(t − {start:.4g})' if start else 't'}) + γ, {listed} ({sure}); t: the student’s steps."
    if gap.threshold is not None and gap.below_from_step is not None:
        step = math.ceil(_run_step(gap.below_from_step, marks))
        after = ", after the end of the run" if step > marks.last_step else ""
        said += f" Below the threshold {gap.threshold:.4g} from step {step:,} on{after}."
    elif gap.threshold is not None:
        said += f" It stays above the threshold {gap.threshold:.4g}."
    return ([_run_step(time, marks) for time in times], values), said


def _run_step(time: float, marks: Marks) -> float:
    """Step of the run at which the student has taken `time` steps; it takes none while images are generated first."""
    ends = [start for _, start in marks.phases[1:]] + [math.inf]
    for (phase, start), end in zip(marks.phases, ends, strict=False):  # no phases: no ends
        if phase != "pregenerate":
            if time < end - start:
                return start + time
            time -= end - start
    return time


def _wants_log(values: Sequence[float]) -> bool:
    finite = [value for value in values if math.isfinite(value)]
    return min(finite) > 0 and max(finite) / min(finite) > LOG_SCALE_FROM


def _is_noisy(values: Sequence[float]) -> bool:
    """Whether the curve goes up and down by much more than its whole range; a step or a slow fall does not."""
    finite = [value for value in values if math.isfinite(value)]
    travel = sum(abs(after - before) for before, after in pairwise(finite))
    return len(finite) >= SMOOTH_FROM and travel > 1.5 * (max(finite) - min(finite))


def _draw(
    name: str,
    steps: Sequence[float],
    values: Sequence[float],
    marks: Marks,
    is_log: bool,
    is_noisy: bool,
    reference: float | None,
    fitted: tuple[Sequence[float], Sequence[float]] | None,
) -> str:
    import numpy as np
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    x, y = np.asarray(steps, dtype=float), np.asarray(values, dtype=float)
    y = np.where(np.isfinite(y), y, np.nan)
    # The salt keeps ids inside the figure apart from those of the other figures on the page, and the same every time.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 8.0}):
        figure = Figure(figsize=(3.3, 1.6))
        figure.subplots_adjust(left=0.18 if name in CHOICES else 0.125, right=0.965, bottom=0.15, top=0.95)
        axes = figure.add_subplot()
        if is_log:
            axes.set_yscale("log")
        for _, step in marks.phases:
            if step > marks.phases[0][1]:
                axes.axvline(step, color=ROLES["muted"], linewidth=0.8, linestyle=(0, (4, 3)))
        for step in marks.resumes:
            axes.axvline(step, color=ROLES["mark"], linewidth=1.0, linestyle=(0, (1, 2)))
        if reference is not None:
            axes.axhline(reference, color=ROLES["muted"], linewidth=1.0)
        axes.plot(*_thin(x, y), color=ROLES["line"], linewidth=0.8 if is_noisy else 1.5, alpha=0.4 if is_noisy else 1.0,
                  marker="" if len(y) > 30 and fitted is None else "o", markersize=2.4, clip_on=False,
                  linestyle="-" if fitted is None else "",
                  drawstyle="steps-post" if name in CHOICES or name.endswith("difficulty") else "default")  # fmt: skip
        if fitted is not None:
            axes.plot(*fitted, color=ROLES["line"], linewidth=1.2)
        if is_noisy:
            axes.plot(*_running_median(x, y), color=ROLES["line"], linewidth=1.5, clip_on=False)
        axes.set_xlim(0, max(marks.last_step, 1))
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _steps(value)))
        if is_log:
            axes.yaxis.set_major_locator(LogLocator(numticks=4))
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
        if name in CHOICES:
            axes.yaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: CHOICES[name](round(value))))
        axes.grid(axis="y", color=ROLES["grid"], linewidth=0.7)
        axes.set_axisbelow(True)
        axes.tick_params(which="both", length=0, colors=ROLES["muted"], labelsize=7.5, pad=3)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(ROLES["grid"])
        axes.patch.set_visible(False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _inline(buffer.getvalue())


def _thin(x: Any, y: Any) -> tuple[Any, Any]:
    """At most about MOST_POINTS points with the same outline: the lowest and the highest of every run of points."""
    import numpy as np

    size = math.ceil(len(y) / MOST_POINTS) * 2
    if size <= 2:
        return x, y
    whole = len(y) // size * size
    blocks = np.nan_to_num(y[:whole].reshape(-1, size), nan=float(np.nanmedian(y)))
    places = np.sort(np.stack([blocks.argmin(1), blocks.argmax(1)], axis=1), axis=1)
    keep = np.append((places + np.arange(0, whole, size)[:, None]).ravel(), np.arange(whole, len(y)))
    return x[keep], y[keep]


def _running_median(x: Any, y: Any) -> tuple[Any, Any]:
    """Median of the values around each, so that single spikes do not bend the curve; of blocks in a long log."""
    import numpy as np

    size = math.ceil(len(y) / MOST_POINTS)
    whole = len(y) // size * size
    filled = np.where(np.isnan(y), np.nanmedian(y), y)[:whole].reshape(-1, size)
    blocks = np.median(filled, axis=1)
    half = max(1, round(len(blocks) * SMOOTH_WINDOW / 2))
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(blocks, half, mode="edge"), 2 * half + 1)
    return x[:whole].reshape(-1, size).mean(axis=1), np.median(windows, axis=1)


def _steps(value: float) -> str:
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


def _inline(svg: str) -> str:
    """Only the `<svg>` element, for use inside HTML: no prolog, no addresses, no ids twice, the page's own style."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r' id="[a-z0-9.]+_\d+"', "", svg)
    svg = re.sub(r" font-family: [^;]*;", "", svg)
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', svg, count=1)
    for role, colour in ROLES.items():
        svg = svg.replace(colour, f"var(--{role})")
    return svg
