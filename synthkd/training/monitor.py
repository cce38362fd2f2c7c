"""The run log: one JSON line per row in `metrics.jsonl`, and the same numbers to experiment trackers, if any.

A row of numbers is `{"step": 40, "phase": "joint", "seconds": 3.1, "student/loss": 0.7, ...}`; an event is
`{"step": 40, "seconds": 3.1, "event": "difficulty raised", ...}`. `step` counts finished steps; `seconds` counts the
time the run was worked on, over all its resumes. JSON has no NaN, so values that are not finite are the strings "nan",
"inf" and "-inf"; `series` gives them back as floats.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from synthkd.errors import CheckpointError
from synthkd.system.files import naming, write_atomically
from synthkd.system.text import parse_json

if TYPE_CHECKING:
    from accelerate import Accelerator

FILE_NAME = "metrics.jsonl"
RESERVED = frozenset({"step", "phase", "seconds", "event"})


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a log in the order written; none for a missing file.

    A last line that a kill cut short is left out. Raises `CheckpointError` for any other line that is not a row.
    """
    if not path.exists():
        return []
    rows: list[dict[str, Any]] = []
    lines = path.read_bytes().split(b"\n")
    last = max((number for number, line in enumerate(lines) if line.strip()), default=-1)
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError:  # also UnicodeDecodeError
            row = None
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
        elif number != last:
            raise CheckpointError(f"{path}: line {number + 1} is not a row of the log; remove that line")
    return rows


def series(rows: Iterable[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """`(steps, values)` of every row that holds `name`, in the order written."""
    found = [(int(row["step"]), float(row[name])) for row in rows if row.get(name) is not None]
    return [step for step, _ in found], [value for _, value in found]


class Monitor:
    """Appends rows to `directory/metrics.jsonl`; each row is on its way to the disk when the call returns.

    Every process may call every method; only the main one writes.

    Args:
        directory: the run directory; made when missing.
        accelerator: forwards numbers to its trackers and knows which process is the main one; None: this one is.
    """

    def __init__(self, directory: Path, accelerator: Accelerator | None = None) -> None:
        self.path = Path(directory) / FILE_NAME
        self._accelerator = accelerator
        self._writes = accelerator is None or bool(accelerator.is_main_process)
        self._started = time.monotonic()
        self._earlier: float | None = None

    def log(self, step: int, values: Mapping[str, float | Tensor], phase: str | None = None) -> None:
        """Append one row of numbers; a tensor must hold one element. Names with `/` group: `student/loss`."""
        if not self._writes:
            return
        if clash := RESERVED & values.keys():
            raise ValueError(f"a logged value cannot be named {', '.join(sorted(clash))}: the row has such a field")
        numbers = {name: _number(value) for name, value in values.items()}
        self._append({"step": step, "phase": phase}, numbers)
        if self._accelerator is not None and self._accelerator.trackers:
            self._accelerator.log(numbers, step=step)

    def event(self, step: int, text: str, **fields: Any) -> None:
        """Append what happened in words; `kind="phase"`, `"resume"`, `"difficulty"` or `"alarm"` says of which sort."""
        if self._writes:
            self._append({"step": step}, {"event": text, **fields})

    def rewind(self, step: int) -> None:
        """Where a training begins: drop what was logged after `step`, start the clock, log a resume as an event."""
        self._started = time.monotonic()
        if not self._writes or not self.path.exists():
            return
        # the phase that begins after this very step is about to begin again
        kept = [
            row for row in self.rows() if row["step"] < step or (row["step"] == step and row.get("kind") != "phase")
        ]
        self._rewrite(kept)
        self.event(step, f"resumed from step {step}", kind="resume")

    def rows(self) -> list[dict[str, Any]]:
        """Every row so far, of earlier processes of this run too."""
        return read_rows(self.path)

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """`(steps, values)` of one name over the run."""
        return series(self.rows(), name)

    def _append(self, head: dict[str, Any], rest: Mapping[str, Any]) -> None:
        if self._earlier is None:
            self._rewrite(self.rows())  # a line cut short by a kill must not swallow the row that comes next
        assert self._earlier is not None
        seconds = round(self._earlier + time.monotonic() - self._started, 3)
        with naming(self.path), self.path.open("ab") as file:
            file.write(_line({**head, "seconds": seconds, **rest}))

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        content = b"".join(_line(row) for row in rows)
        if not self.path.exists() or self.path.read_bytes() != content:
            write_atomically(self.path, content)
        self._earlier = float(rows[-1].get("seconds", 0.0)) if rows else 0.0


def _number(value: float | Tensor) -> float | int:
    plain = value.item() if isinstance(value, Tensor) else value
    return plain if isinstance(plain, int) else float(plain)


def _line(row: Mapping[str, Any]) -> bytes:
    valid = {name: str(v) if isinstance(v, float) and not math.isfinite(v) else v for name, v in row.items()}
    return json.dumps(valid, allow_nan=False).encode() + b"\n"
