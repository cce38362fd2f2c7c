"""The page of a finished `synthkd compress`: the student beside its teacher, its files, and the verdict of its privacy.

What the student leaks has a page of its own, `privacy_report.html`, which this one only points to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthkd.reports.page import SPACE, percent, render
from synthkd.reports.run import interval_chart
from synthkd.system.files import write_atomically

KINDS = {"onnx": "ONNX, float32", "int8": "ONNX, int8", "program": "torch.export program"}
REPORT = "report.html"


@dataclass(frozen=True)
class Export:
    """An exported file beside the student in PyTorch.

    Attributes:
        kind: in words.
        values: its entry in `handover.files` of result.json.
        smaller: how many times smaller it is than the float32 ONNX file; None without one.
        faster: how many times faster than PyTorch; None where `unlike` says why they cannot be compared.
        unlike: what differs, or that nothing was timed; else empty.
        change: its accuracy less that of the student in PyTorch; None without test images.
    """

    kind: str
    values: Mapping[str, Any]
    smaller: float | None
    faster: float | None
    unlike: str
    change: float | None


def write_compress_report(run: Path, result: Mapping[str, Any]) -> Path:
    """Write `run/report.html` and return its path.

    Args:
        run: the run directory, with its `config.yaml` and the runs inside it.
        result: the content of `result.json`, which may be written later.
    """
    page = render(
        "compression.html.jinja",
        name=result["name"],
        headline=headline(result),
        result=result,
        models={who: result["handover"]["cost"][who] for who in ("teacher", "student")},
        exports=exports(result["handover"]),
        intervals=interval_chart(result),
        inside=nested(run),
        config_text=(run / "config.yaml").read_text(encoding="utf-8"),
    )
    path = run / REPORT
    write_atomically(path, page)
    return path


def headline(result: Mapping[str, Any]) -> str:
    """Size, speed and accuracy of the student next to its teacher's, in one sentence."""
    teacher, student = (result["handover"]["cost"][who] for who in ("teacher", "student"))
    size = f"has {percent(student['parameters'] / teacher['parameters'])} of its teacher’s parameters"
    speed = f"is {teacher['latency']['median_ms'] / student['latency']['median_ms']:.1f} times as fast"
    right, before = result["student"].get("accuracy"), result["teacher"].get("accuracy")
    if right is None or before is None:
        return f"The student {size} and {speed}; its accuracy was not measured."
    return (
        f"The student {size}, {speed}, and gets {percent(right)} of test images right; its teacher {percent(before)}."
    )


def exports(handover: Mapping[str, Any]) -> list[Export]:
    """The exported files, each held against the float32 ONNX file and the student in PyTorch."""
    files, student = handover["files"], handover["cost"]["student"]
    before = handover["student"]["accuracy"]
    rows = []
    for kind, file in files.items():
        latency, after = file.get("latency"), file.get("accuracy")
        unlike = _unlike(latency, student["latency"])
        rows.append(
            Export(
                kind=KINDS[kind],
                values=file,
                smaller=files["onnx"]["bytes"] / file["bytes"] if "onnx" in files else None,
                faster=None if unlike or latency is None else student["latency"]["median_ms"] / latency["median_ms"],
                unlike=unlike,
                change=None if before is None or after is None else after["value"] - before["value"],
            )
        )
    return rows


def _unlike(latency: Mapping[str, Any] | None, other: Mapping[str, Any]) -> str:
    if latency is None:
        return "not measured"
    differs = [key.replace("_", " ") for key in ("device", "threads", "batch_size") if latency[key] != other[key]]
    return f"not compared: other {', '.join(differs)}" if differs else ""


def nested(run: Path) -> list[tuple[str, str]]:
    """(name, address relative to the page) of each report of a run inside this one, in the order they were made."""
    found = sorted((path.relative_to(run) for path in run.glob("*/**/report.html")), key=_order)
    return [(f"{SPACE}/ ".join(path.parts[:-1]), path.as_posix()) for path in found]


def _order(path: Path) -> tuple[int, tuple[str, ...]]:
    first = ("release", "teach", "distill", "audit")
    return first.index(path.parts[0]) if path.parts[0] in first else len(first), path.parts
