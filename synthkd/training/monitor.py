"""The run log: one JSON line per row in `metrics.jsonl`, and the same numbers to experiment trackers, if any.

A row of numbers is `{"step": 40, "phase": "joint", "seconds": 3.1, "student/loss": 0.7, ...}`; an event is
`{"step": 40, "seconds": 3.1, "event": "difficulty raised", ...}`. `step` counts finished steps; `seconds` is the
working time of the run, summed over its resumes. JSON has no NaN, so values that are not finite are the strings "nan",
"inf" and "-inf"; `series` returns them as floats.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from synthkd.errors import CheckpointError
from synthkd.system.files import naming, write_atomically
from synthkd.system.text import parse_json

if TYPE_CHECKING:
    from accelerate import Accelerator

FILE_NAME = "metrics.jsonl"
RESERVED = frozenset({"step", "phase", "seconds", "event"})
"""Fields of a row that are no logged numbers."""
Row = Mapping[str, Any]
"""A row of the log, as JSON has it: numbers by name, and texts."""


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a log in the order in which they were written; none for a missing file.

    A kill may have cut the last line short; such a line is left out.

    Raises:
        CheckpointError: for any other line that is not a row.
    """
    if not path.exists():
        return []
    rows: list[dict[str, Any]] = []
    lines = [(number, line) for number, line in enumerate(path.read_bytes().split(b"\n"), start=1) if line.strip()]
    for number, line in lines:
        try:
            row = parse_json(line)
        except ValueError:  # also UnicodeDecodeError
            row = None
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
        elif number != lines[-1][0]:
            raise CheckpointError(f"{path}: line {number} is not a row of the log; remove that line")
    return rows


def series(rows: Iterable[Row], name: str) -> tuple[list[int], list[float]]:
    """`(steps, values)` of every row that has a value for `name`, in order."""
    rows = [row for row in rows if row.get(name) is not None]
    return [int(row["step"]) for row in rows], [float(row[name]) for row in rows]


class Monitor:
    """Appends rows to `directory/metrics.jsonl`; a row is in the file when the call returns.

    Every process may call every method; only the main process writes.

    Args:
        directory: the run directory; created if it is missing.
        accelerator: forwards the numbers to its trackers, and says which process is the main one. None: no trackers,
            and this process is the main one.
    """

    def __init__(self, directory: Path, accelerator: Accelerator | None = None) -> None:
        self.path = Path(directory) / FILE_NAME
        self._accelerator = accelerator
        self._writes = accelerator is None or bool(accelerator.is_main_process)
        self._started = time.monotonic()
        self._earlier = 0.0  # seconds of the last row of earlier processes
        self._ready = False  # whether the file ends with a whole line

    def log(self, step: int, values: Mapping[str, float | Tensor], phase: str | None = None) -> None:
        """Append one row of numbers, and send them to the trackers.

        Args:
            step: number of finished steps.
            values: name -> number; a tensor must hold one element. The report groups names by the part before a `/`.
            phase: name of the present phase.

        Raises:
            ValueError: a name is reserved for a field of the row.
        """
        if not self._writes:
            return
        if clash := RESERVED & values.keys():
            raise ValueError(f"a logged value cannot be named {', '.join(sorted(clash))}: the row has such a field")
        numbers = {name: _number(value) for name, value in values.items()}
        self._append({"step": step, "phase": phase}, numbers)
        if self._accelerator is not None and self._accelerator.trackers:
            self._accelerator.log(numbers, step=step)

    def picture(self, step: int, name: str, path: Path) -> None:
        """Send a PNG to the trackers that take pictures (TensorBoard, W&B); without such a tracker nothing happens.

        Args:
            step: number of finished steps.
            name: of the picture; the same name at every step.
            path: the file.
        """
        if not self._writes or self._accelerator is None:
            return
        for tracker in self._accelerator.trackers:
            if hasattr(tracker, "log_images"):
                with Image.open(path) as picture:
                    pixels = torch.from_numpy(np.array(picture.convert("RGB")))
                tracker.log_images({name: pixels.permute(2, 0, 1)[None].float() / 255.0}, step=step)

    def event(self, step: int, text: str, **fields: object) -> None:
        """Append an event in words; the field `kind` is "phase", "resume", "difficulty", "alarm" or another word."""
        if self._writes:
            self._append({"step": step}, {"event": text, **fields})

    def rewind(self, step: int) -> None:
        """Begin a training at `step`: start the clock, drop all rows after `step`, and log a resume as an event."""
        self._started = time.monotonic()
        if not self._writes or not self.path.exists():
            return
        # A phase that begins right after `step` will log its beginning again.
        rows = [row for row in self.rows() if row["step"] <= step]
        self._rewrite([row for row in rows if row["step"] < step or row.get("kind") != "phase"])
        self.event(step, f"resumed from step {step}", kind="resume")

    def rows(self) -> list[dict[str, Any]]:
        """Every row so far, also those of earlier processes of this run."""
        return read_rows(self.path)

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """`(steps, values)` of one name over the run."""
        return series(self.rows(), name)

    def _append(self, head: dict[str, Any], rest: Mapping[str, Any]) -> None:
        if not self._ready:
            self._rewrite(self.rows())  # drops a last line that a kill cut short, which would swallow this row
        seconds = round(self._earlier + time.monotonic() - self._started, 3)
        # Opened and closed for each row: after a kill every row but the one in progress is in the file.
        with naming(self.path), self.path.open("ab") as file:
            file.write(_line({**head, "seconds": seconds, **rest}))

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        content = b"".join(_line(row) for row in rows)
        # Most logs need no change, and a long log is not written again for nothing.
        if not self.path.exists() or self.path.read_bytes() != content:
            write_atomically(self.path, content)
        self._earlier = float(rows[-1].get("seconds", 0.0)) if rows else 0.0
        self._ready = True


def _number(value: float | Tensor) -> float | int:
    plain = value.item() if isinstance(value, Tensor) else value
    return plain if isinstance(plain, int) else float(plain)


def _line(row: Mapping[str, Any]) -> bytes:
    # str() of a float that is not finite is nan, inf or -inf, which float() reads.
    valid = {name: str(v) if isinstance(v, float) and not math.isfinite(v) else v for name, v in row.items()}
    return json.dumps(valid, allow_nan=False).encode() + b"\n"
