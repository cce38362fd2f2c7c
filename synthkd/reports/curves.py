"""The curves of a report: one small panel per logged name, grouped by what they are about."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from synthkd.reports.gap import gap_curve, gap_words
from synthkd.reports.marks import Marks, find_marks
from synthkd.reports.plot import Plot, draw
from synthkd.reports.results import Evaluations, FittedGap
from synthkd.training.monitor import RESERVED, Row, series

SMOOTH_FROM = 60
"""Values from which on a noisy curve gets a running median."""
LOG_SCALE_FROM = 100.0
"""Ratio of the largest to the smallest value from which on the y axis is logarithmic."""
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
OUTCOME, EVALUATIONS, ADAPTS = "Outcome and difficulty", "Evaluations of the students", "What adapts"
GROUPS = [OUTCOME, EVALUATIONS, ADAPTS, "Student", "Peer", "Generator", "Teacher", "Run"]
FIRST = [
    "accuracy", "agreement", "difficulty", "loss", "transfer_efficiency", "temperature", "weight_of_answers",
    "strength", "gap", "teaching", "selected_teacher",
]  # fmt: skip
"""What stands first in a group, by the last part of its logged name."""
GROUP_NOTES = {
    EVALUATIONS: "On held-out images, which nobody learns from; without such images, on the newest generated ones. "
    "Accuracy is measured by annotated labels, or by the teacher’s answers where there are none."
}
GAP, FITTED = "adapt/gap", "adapt/gap_fitted"
CHOICES: Mapping[str, Callable[[int], str]] = {
    "adapt/teaching": lambda number: f"peer {number}" if number else "student",
    "adapt/selected_teacher": lambda number: f"teacher {number + 1}",
}
"""Logged numbers that stand for a network, and its name."""


@dataclass(frozen=True)
class Panel:
    """One curve: its caption, a remark below that, the last value as text, the SVG and the text below it."""

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


def draw_groups(
    rows: Sequence[Row],
    references: Mapping[str, tuple[str, float]],
    evaluations: Evaluations | None = None,
) -> list[Group]:
    """Every logged name with at least two values as a panel, grouped by the part before its `/`.

    Args:
        rows: rows of the log.
        references: logged name -> (label, value) of a horizontal line to compare with.
        evaluations: of result.json; without a fitted `gap` the curve of the capacity gap is the logged one.
    """
    marks = find_marks(rows)
    gap = (evaluations or Evaluations()).gap or FittedGap()
    if gap.threshold is not None:
        references = {GAP: (f"threshold {gap.threshold:.4g}", gap.threshold), **references}
    # "watching" is the time spent on evaluations; the fitted gap is drawn in the panel of the gap.
    hidden = RESERVED | {"watching", FITTED}
    names = sorted({name for row in rows if "event" not in row for name in row if name not in hidden}, key=_order)
    members: dict[str, list[Panel]] = {}
    for name in names:
        if sum(map(math.isfinite, series(rows, name)[1])) >= 2:
            members.setdefault(_group(name), []).append(_panel(name, rows, references.get(name), gap, marks))
    return [
        Group(title, "generator" if title == "Generator" else "student", tuple(panels), GROUP_NOTES.get(title, ""))
        for title, panels in members.items()
    ]


def _panel(
    name: str,
    rows: Sequence[Row],
    reference: tuple[str, float] | None,
    gap: FittedGap,
    marks: Marks,
) -> Panel:
    steps, values = _values(rows, name)
    fitted = _fitted(rows, gap, steps[-1], marks) if name == GAP else None
    is_share = name.startswith(("evaluation/accuracy", "evaluation/transfer_efficiency"))
    is_plain = name in CHOICES or is_share or fitted is not None
    plot = Plot(
        name,
        steps,
        values,
        is_log=not is_plain and _wants_log(values),
        is_noisy=not is_plain and _is_noisy(values),
        is_stepped=name in CHOICES or name.endswith("difficulty"),
        names=CHOICES.get(name),
        reference=None if reference is None else reference[1],
        fitted=fitted,
    )
    note = "reported only, never used to choose anything" if name.startswith("test/") else NOTES.get(name, "")
    notes = [note] * bool(note) + ["log scale"] * plot.is_log + ["bold: running median"] * plot.is_noisy
    notes += ["dots: measured", "curve: fitted"] * (fitted is not None)
    notes += [] if reference is None else [f"grey line: {reference[0]}"]
    last = CHOICES[name](round(values[-1])) if name in CHOICES else f"{values[-1]:.4g}"
    below = gap_words(gap, marks) if name == GAP else ""
    return Panel(_title(name), "; ".join(notes), last, draw(plot, marks), below)


def _group(name: str) -> str:
    head, _, tail = name.rpartition("/")
    if head in ("evaluation", "adapt"):
        return EVALUATIONS if head == "evaluation" else ADAPTS
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


def _values(rows: Sequence[Row], name: str) -> tuple[Sequence[float], Sequence[float]]:
    """Steps and values of a name. An evaluation comes before its step is taken, and its row counts the step as done."""
    steps, values = series(rows, name)
    return ([step - 1 for step in steps] if name.startswith(("evaluation/", "adapt/")) else steps), values


def _fitted(
    rows: Sequence[Row], gap: FittedGap, last: float, marks: Marks
) -> tuple[Sequence[float], Sequence[float]] | None:
    """Steps up to `last` and values of the curve through the gap; before the end of a run, as it was logged."""
    curve = gap_curve(gap, last, marks)
    logged = _values(rows, FITTED)
    return curve or (logged if logged[0] else None)


def _wants_log(values: Sequence[float]) -> bool:
    finite = [value for value in values if math.isfinite(value)]
    return min(finite) > 0 and max(finite) / min(finite) > LOG_SCALE_FROM


def _is_noisy(values: Sequence[float]) -> bool:
    """Whether the curve goes up and down by much more than its whole range; a step or a slow fall does not."""
    finite = [value for value in values if math.isfinite(value)]
    travel = sum(abs(after - before) for before, after in pairwise(finite))
    return len(finite) >= SMOOTH_FROM and travel > 1.5 * (max(finite) - min(finite))
