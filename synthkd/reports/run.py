"""The report of a run: one HTML page that needs nothing but itself, made from the files of the run directory alone."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from synthkd.errors import CheckpointError
from synthkd.reports.page import count, number, percent, picture, render
from synthkd.system.files import write_atomically
from synthkd.system.text import parse_json
from synthkd.training.monitor import FILE_NAME, read_rows, series

MOST_GRIDS = 6
MOST_EVENTS = 200
ONE_CLASS = "one class"
"""The alarm that belongs into the headline; `synthkd.distillation.alarms` raises it."""


@dataclass(frozen=True)
class RunFiles:
    """What a run directory holds so far.

    Attributes:
        directory: the run directory.
        config_text: `config.yaml` as it stands, or None.
        config: the same, parsed; empty where there is none.
        rows: rows of the log.
        result: `result.json`, or None while the run is not finished.
        samples: (step, PNG file) of each sample grid, by step.
    """

    directory: Path
    config_text: str | None
    config: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    result: Mapping[str, Any] | None
    samples: Sequence[tuple[int, Path]]

    @property
    def is_distillation(self) -> bool:
        """Whether the run makes a student (else it trains a teacher)."""
        job = (self.result or {}).get("job")
        return job == "distill" if job else "student" in self.config

    @property
    def has_real_images_alone(self) -> bool:
        """Whether the student learns from real images alone, which earlier versions wrote as generator.kind none."""
        sources = self.config.get("transfer_set")
        kinds = {_get(source, "kind") for source in (sources if isinstance(sources, list) else [sources])}
        return kinds == {"real"} or _get(self.config, "generator", "kind") == "none"

    @property
    def total_steps(self) -> int | None:
        """Steps the configuration asks for, where it says."""
        phases = [phase for phase in self.config.get("phases") or () if isinstance(phase, dict)]
        steps = [n for phase in phases if isinstance(n := phase.get("steps", phase.get("rounds")), int)]
        training = self.config.get("training")
        if not phases and isinstance(training, dict) and isinstance(training.get("steps"), int):
            steps = [training["steps"]]
        return sum(steps) or None

    @property
    def looks(self) -> Mapping[str, Any]:
        """What the looks at the students came to, or what the configuration says of them while the run goes on."""
        if isinstance(found := (self.result or {}).get("evaluations"), dict):
            return found
        return {"gap": {"threshold": _get(self.config, "distill", "adapt", "strength", "threshold")}}

    @property
    def lacks_test_data(self) -> bool:
        """Whether the accuracy of what the run makes is unknown because there is no real test data."""
        model = (self.result or {}).get("student" if self.is_distillation else "teacher")
        if number(_get(model, "accuracy")) is not None or series(self.rows, "test/accuracy")[0]:
            return False
        known = self.result is not None or (self.is_distillation and bool(self.config))
        return known and self.config.get("test") is None


def read_run(run: Path) -> RunFiles:
    """Read a run directory. Raises `CheckpointError` when it is none, or when a file in it cannot be read."""
    config_path, rows_path, result_path = run / "config.yaml", run / FILE_NAME, run / "result.json"
    if not any(path.is_file() for path in (config_path, rows_path, result_path)):
        raise CheckpointError(
            f"{run} is not a run directory: it has no config.yaml, {FILE_NAME} or result.json; "
            "name the directory that a job printed as its output"
        )
    config_text = config_path.read_text(encoding="utf-8") if config_path.is_file() else None
    try:
        config = yaml.safe_load(config_text or "")
        result = _parse(result_path.read_text(encoding="utf-8")) if result_path.is_file() else None
    except (yaml.YAMLError, ValueError) as error:
        where = config_path if isinstance(error, yaml.YAMLError) else result_path
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{where} cannot be read: {reason}; restore the file or run the job again") from error
    found = [(re.fullmatch(r"step_(\d+)\.png", path.name), path) for path in (run / "samples").glob("step_*.png")]
    samples = sorted((int(match[1]), path) for match, path in found if match)
    is_map = isinstance(config, dict)
    return RunFiles(run, config_text, config if is_map else {}, read_rows(rows_path), result, samples)


def write_report(run: Path) -> Path:
    """Write `run/report.html` from the files in `run`, finished or not, and return its path.

    The page is self-contained: no script, no network. Raises `CheckpointError` when `run` is not a run directory.
    """
    from synthkd.reports.curves import draw_groups, find_marks  # brings matplotlib

    found = read_run(Path(run))
    result = found.result or {}
    name = str(result.get("name") or found.config.get("name") or found.directory.resolve().name)
    accuracy = number(_get(result.get("teacher"), "accuracy"))
    events = [row for row in found.rows if "event" in row]
    page = render(
        "run.html.jinja",
        name=name,
        headline=headline(found),
        run=found,
        result=result,
        load_path=json.dumps(_shown_path(found.directory)),
        is_finished=found.result is not None,
        alarms=find_alarms(found),
        ratio=lambda key: _times(_ratio(result, key)),
        intervals=interval_chart(result),
        groups=draw_groups(
            found.rows,
            {"test/accuracy": ("the teacher", accuracy)} if accuracy and found.is_distillation else {},
            found.looks,
        ),
        marks=find_marks(found.rows),
        grids=[(step, picture(path)) for step, path in spread(found.samples, MOST_GRIDS)],
        events=events[-MOST_EVENTS:],
        events_left_out=max(0, len(events) - MOST_EVENTS),
    )  # fmt: skip
    path = found.directory / "report.html"
    write_atomically(path, page)
    return path


def headline(run: RunFiles) -> str:
    """The outcome in one or two sentences, no stronger than what was measured."""
    if any(alarm.get("name") == ONE_CLASS for alarm in find_alarms(run) or ()):
        return f"{_outcome(run)} Whatever it is shown, it answers one class, or hardly any other."
    return _outcome(run)


def _outcome(run: RunFiles) -> str:
    if run.result is None:
        done = max((row["step"] for row in run.rows), default=0)
        planned = f" of {count(run.total_steps)}" if run.total_steps else ""
        text = f"This run is not finished: {count(done)}{planned} steps so far."
        accuracies = series(run.rows, "test/accuracy")[1]
        return text + (f" The latest test accuracy is {percent(accuracies[-1])}." if accuracies else "")
    teacher, student = run.result.get("teacher"), run.result.get("student")
    if not run.is_distillation:
        accuracy = number(_get(teacher, "accuracy"))
        if accuracy is None:
            return "The teacher is trained; its accuracy was not measured."
        return f"The teacher reaches {percent(accuracy)} accuracy on test data it never trained on."

    if teacher is None and run.config and run.config.get("teacher") is None:
        return _without_teacher(run, student)
    teachers = run.result.get("teachers")
    one = not isinstance(teachers, list) or len(teachers) < 2
    who, whose = ("teacher", "teacher’s") if one else ("teachers", "teachers’")
    kept, share = _ratio(run.result, "accuracy"), _ratio(run.result, "parameters") if one else None
    agreement = number(_get(student, "agreement"))
    parts = [] if share is None else [f"has {percent(share)} of its {whose} parameters"]
    if kept is not None:
        at_size = "" if share is None else f" at {percent(share)} of its parameters"
        parts = [f"keeps {percent(kept)} of its {whose} accuracy{at_size}"]
    elif agreement is not None:
        where = "test images" if _get(student, "agreement_on") == "test" else _get(student, "agreement_on")
        parts.insert(0, f"agrees with its {who} on {percent(agreement)} of {where or 'the images compared'}")
    else:
        parts.append("was not compared with it" if parts else f"was not compared with its {who}")
    return _listed(parts + _saw(run.result))


def _without_teacher(run: RunFiles, student: Any) -> str:
    accuracy, agreement = number(_get(student, "accuracy")), number(_get(student, "agreement"))
    is_real = run.has_real_images_alone
    parts = ["learned from the soft labels of a dataset"]
    if is_real:
        images, peers = number(_get(run.result, "real_images_used")), len(_get(run.result, "peers") or ())
        beside = f" together with {peers} peer{'' if peers == 1 else 's'}" if peers else ""
        parts = [f"learned from {'' if images is None else count(images) + ' '}labelled real images{beside}"]
    if accuracy is not None:
        parts.append(f"reaches {percent(accuracy)} accuracy on test data")
    if agreement is not None:
        parts.append(
            f"agrees with the labels of {percent(agreement)} of {_get(student, 'agreement_on') or 'the images'}"
        )
    return _listed(parts if is_real else parts + _saw(run.result or {}))


def _listed(parts: Sequence[str]) -> str:
    return f"The student {' and '.join(filter(None, [', '.join(parts[:-1]), parts[-1]]))}."


def find_alarms(run: RunFiles) -> list[Mapping[str, Any]] | None:
    """The alarms of the result, or those logged so far; None where a finished run does not say."""
    if run.result is None:
        logged = [row for row in run.rows if row.get("kind") == "alarm"]
        return [{"name": row.get("name", "alarm"), "message": f"{row['event']} (step {row['step']})"} for row in logged]
    alarms = run.result.get("alarms")
    return [alarm for alarm in alarms if isinstance(alarm, dict)] if isinstance(alarms, list) else None


def interval_chart(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """Positions, in percent of one common axis, of each model's accuracy and its interval; None if one is missing."""
    models = []
    for who in ("teacher", "student"):
        accuracy = number(_get(result.get(who), "accuracy"))
        bounds = _get(result.get(who), "accuracy_interval")
        ends = [number(bound) for bound in bounds] if isinstance(bounds, list) else []
        if accuracy is None or len(ends) != 2 or ends[0] is None or ends[1] is None:
            return None
        models.append((who, accuracy, ends[0], ends[1]))
    lowest, highest = min(model[2] for model in models), max(model[3] for model in models)
    step = next((step for step in (0.005, 0.01, 0.02, 0.05, 0.1) if (highest - lowest) / step <= 5), 0.2)
    last = math.ceil(highest / step)
    first = min(math.floor(lowest / step), last - 1)
    span = (last - first) * step
    place = {who: [(value - first * step) / span * 100 for value in values] for who, *values in models}
    ticks = [((tick - first) * step / span * 100, tick * step) for tick in range(first, last + 1)]
    return {"models": place, "ticks": ticks}


def spread(items: Sequence[tuple[int, Path]], most: int) -> list[tuple[int, Path]]:
    """At most `most` of the items: the first, the last and evenly between."""
    if len(items) <= most:
        return list(items)
    return [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)]


def _parse(text: str) -> Any:
    return parse_json(text, parse_constant=lambda _: None)  # NaN, which is no JSON, is a number nobody has


def _get(part: Any, *keys: str) -> Any:
    for key in keys:
        part = part.get(key) if isinstance(part, dict) else None
    return part


def _ratio(result: Mapping[str, Any], key: str) -> float | None:
    """Student over teacher: as measured, or from the two numbers."""
    ratio = number(_get(result.get("ratio"), key))
    if ratio is not None:
        return ratio
    of, by = number(_get(result.get("student"), key)), number(_get(result.get("teacher"), key))
    return of / by if of is not None and by else None


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.3g} ×"


def _saw(result: Mapping[str, Any]) -> list[str]:
    """What the headline says of real images; nothing of a result that does not mention them."""
    if "real_images_used" not in result:
        return []
    images = number(result["real_images_used"])
    if images is None:
        return ["saw an unknown number of real images"]
    return ["never saw a real image" if images == 0 else f"saw {count(images)} real image{'' if images == 1 else 's'}"]


def _shown_path(directory: Path) -> str:
    """Relative to where the command ran if it is below, so that a shared report does not tell a home directory."""
    relative = os.path.relpath(directory)
    return str(directory) if relative.startswith("..") else relative
