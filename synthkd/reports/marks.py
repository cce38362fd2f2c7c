"""The steps of a run that its curves share: where phases start, where it was resumed, and the student's own clock."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from synthkd.training.monitor import Row


@dataclass(frozen=True)
class Marks:
    """Steps to mark on every panel.

    Attributes:
        phases: (name, first step) of each phase, in order.
        resumes: steps from which the run was resumed.
        last_step: of the log.
    """

    phases: tuple[tuple[str, int], ...]
    resumes: tuple[int, ...]
    last_step: int

    def run_step(self, time: float) -> float:
        """Step of the run at which the student has taken `time` steps; it takes none in a `pregenerate` phase."""
        ends = [start for _, start in self.phases[1:]] + [math.inf]
        for (phase, start), end in zip(self.phases, ends, strict=False):  # no phases: no ends
            if phase != "pregenerate":
                if time < end - start:
                    return start + time
                time -= end - start
        return time


def find_marks(rows: Sequence[Row]) -> Marks:
    """The marks of a run, from the rows of its log."""
    phases: list[tuple[str, int]] = []
    for row in rows:
        phase = row.get("phase")
        if phase is not None and (not phases or phases[-1][0] != phase):
            phases.append((str(phase), row["step"]))
    resumes = sorted({row["step"] for row in rows if row.get("kind") == "resume"})
    return Marks(tuple(phases), tuple(resumes), max((row["step"] for row in rows), default=0))
