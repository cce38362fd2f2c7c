"""The page of a finished `synthkd compress`: the student beside its teacher, its files, and the verdict of its privacy.

What the student leaks has a page of its own, `privacy_report.html`, to which this one links.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from synthkd.models.latency import Latency
from synthkd.reports.figures import interval_chart
from synthkd.reports.files import REPORT, RunFiles
from synthkd.reports.page import SPACE, percent, render
from synthkd.reports.results import CompressResult, ExportedFile, Handover, MeasuredFile

KINDS = {"onnx": "ONNX, float32", "int8": "ONNX, int8", "program": "torch.export program"}
NESTED = ("release", "teach", "distill", "audit")
"""Runs inside that of `compress`, in the order in which they are made."""


@dataclass(frozen=True)
class Export:
    """An exported file beside the student in PyTorch.

    Attributes:
        kind: in words.
        file: its name, size and measurements.
        smaller: how many times smaller it is than the float32 ONNX file; None without one.
        faster: how many times faster than PyTorch; None where `unlike` says why they cannot be compared.
        unlike: what differs, or that nothing was timed; else empty.
        change: its accuracy minus that of the student in PyTorch; None without test images.
    """

    kind: str
    file: ExportedFile
    smaller: float | None
    faster: float | None
    unlike: str
    change: float | None


def compression_page(run: RunFiles, result: CompressResult) -> bytes:
    """The page as UTF-8, with links to the reports of the runs inside this one."""
    cost = result.handover.cost
    return render(
        "compression.html.jinja",
        name=run.name,
        headline=headline(result),
        result=result,
        costs={"teacher": cost.teacher, "student": cost.student},
        exports=exports(result.handover),
        intervals=interval_chart(result.teacher, result.student),
        nested=nested(run.directory),
        config_text=run.config_text,
    )


def headline(result: CompressResult) -> str:
    """Size, speed and accuracy of the student next to its teacher's, in one sentence."""
    teacher, student = result.handover.cost.teacher, result.handover.cost.student
    size = f"has {percent(student.parameters / teacher.parameters)} of its teacher’s parameters"
    speed = f"is {teacher.latency.median_ms / student.latency.median_ms:.1f} times as fast"
    ours, theirs = result.student.accuracy, result.teacher.accuracy
    if ours is None or theirs is None:
        return f"The student {size} and {speed}; its accuracy was not measured."
    return f"The student {size}, {speed}, and gets {percent(ours)} of test images right; its teacher {percent(theirs)}."


def exports(handover: Handover) -> list[Export]:
    """The exported files, each compared with the float32 ONNX file and with the student in PyTorch."""
    files, latency = handover.files, handover.cost.student.latency
    before = handover.student.accuracy
    rows = []
    for kind, file in files.items():
        faster, unlike, change = None, "not measured", None
        if isinstance(file, MeasuredFile):
            unlike = _unlike(file.latency, latency)
            faster = None if unlike else latency.median_ms / file.latency.median_ms
            if before is not None and file.accuracy is not None:
                change = file.accuracy.value - before.value
        smaller = files["onnx"].bytes / file.bytes if "onnx" in files else None
        rows.append(Export(KINDS[kind], file, smaller, faster, unlike, change))
    return rows


def _unlike(one: Latency, other: Latency) -> str:
    keys = ("device", "threads", "batch_size")
    differing = [key.replace("_", " ") for key in keys if getattr(one, key) != getattr(other, key)]
    return f"not compared: other {', '.join(differing)}" if differing else ""


def nested(run: Path) -> list[tuple[str, str]]:
    """(name, address relative to the page) of each report of a run inside this one, in the order they were made."""
    order = {name: place for place, name in enumerate(NESTED)}
    reports = [path.relative_to(run) for path in run.glob(f"*/**/{REPORT}")]
    reports.sort(key=lambda path: (order.get(path.parts[0], len(order)), path.parts))
    return [(f"{SPACE}/ ".join(path.parts[:-1]), path.as_posix()) for path in reports]
