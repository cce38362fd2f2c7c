"""The page of a training run, finished or not: outcome, models, alarms, curves, samples, cost, configuration."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from synthkd.reports.curves import FRESH, NEWEST, draw_groups
from synthkd.reports.figures import interval_chart
from synthkd.reports.files import RunFiles
from synthkd.reports.headline import find_alarms, headline, ratio
from synthkd.reports.marks import find_marks
from synthkd.reports.page import count, duration, picture, render
from synthkd.reports.results import DistillResult, Evaluations, FittedGap

REFRESH_SECONDS = 10
"""The page of a run that goes on reloads itself at this interval."""
MOST_GRIDS = 6
MOST_EVENTS = 200


def run_page(run: RunFiles) -> bytes:
    """The page of a run of `teach`, `distill` or `release`, as UTF-8."""
    result = run.result if isinstance(run.result, DistillResult) else None
    teacher = None if result is None else result.teacher
    references = {"test/accuracy": ("the teacher", teacher.accuracy)} if teacher and teacher.accuracy else {}
    name = "Teachers" if result and len(result.teachers or ()) > 1 else "Teacher"
    is_distillation = run.job == "distill"
    events = [row for row in run.rows if "event" in row]
    return render(
        "run.html.jinja",
        name=run.name,
        headline=headline(run),
        run=run,
        result=run.result,
        is_distillation=is_distillation,
        is_finished=run.result is not None,
        refresh=REFRESH_SECONDS if run.result is None else None,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        load_path=json.dumps(_relative(run.directory)),
        alarms=find_alarms(run),
        ratio=lambda key: None if result is None else ratio(result, key),
        intervals=None if result is None else interval_chart(teacher, result.student, name),
        groups=draw_groups(run.rows, references, _evaluations(run), NEWEST if is_distillation else FRESH),
        marks=find_marks(run.rows),
        grids=[(f"Step {step:,}", picture(path)) for step, path in spread(run.samples, MOST_GRIDS)],
        events=[(count(row["step"]), duration(row.get("seconds")), row["event"]) for row in events[-MOST_EVENTS:]],
        events_left_out=max(0, len(events) - MOST_EVENTS),
    )


def spread(items: Sequence[tuple[int, Path]], most: int) -> list[tuple[int, Path]]:
    """At most `most` of the items: the first, the last and evenly between."""
    if len(items) <= most:
        return list(items)
    return [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)]


def _evaluations(run: RunFiles) -> Evaluations | None:
    """Of the result; while the run goes on, only the threshold of the gap, which the configuration names."""
    if isinstance(run.result, DistillResult) and run.result.evaluations is not None:
        return run.result.evaluations
    threshold = run.config
    for key in ("distill", "adapt", "strength", "threshold"):
        threshold = threshold.get(key) if isinstance(threshold, dict) else None  # type: ignore[assignment]
    return Evaluations(gap=FittedGap(threshold=threshold)) if isinstance(threshold, int | float) else None


def _relative(directory: Path) -> str:
    """Relative to where the command ran if it is below, so that a shared report does not tell a home directory."""
    relative = os.path.relpath(directory)
    return str(directory) if relative.startswith("..") else relative
