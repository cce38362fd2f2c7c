"""The fitted curve of the capacity gap: its points in steps of the run, and its numbers in words."""

from __future__ import annotations

import math

from synthkd.reports.marks import Marks
from synthkd.reports.page import SPACE
from synthkd.reports.results import FittedGap

POINTS = 101


def gap_curve(gap: FittedGap, last: float, marks: Marks) -> tuple[list[float], list[float]] | None:
    """Steps of the run, up to `last`, and the fitted gap at them; None where no curve was fitted."""
    alpha, beta, gamma, start = gap.alpha, gap.beta, gap.gamma, gap.start
    if alpha is None or beta is None or gamma is None or start is None:
        return None
    times = [start + (last - marks.run_step(start)) * point / (POINTS - 1) for point in range(POINTS)]
    return [marks.run_step(time) for time in times], [
        alpha * math.exp(-beta * (time - start)) + gamma for time in times
    ]


def gap_words(gap: FittedGap, marks: Marks) -> str:
    """The numbers of the curve, and from which step it stays below the threshold; empty where no curve was fitted."""
    numbers = (gap.alpha, gap.beta, gap.gamma)
    if None in numbers or gap.start is None:
        return ""
    errors = gap.errors or (None, None, None)
    parts = [
        f"{letter} = {value:.3g}" + ("" if error is None else f" ± {error:.2g}")
        for letter, value, error in zip("αβγ", numbers, errors, strict=True)
    ]
    listed = ", ".join(parts).replace(" = ", f"{SPACE}={SPACE}").replace(" ± ", f"{SPACE}±{SPACE}").replace("-", "−")
    precision = f"±{SPACE}standard error" if None not in errors else "without ±: the evaluations do not determine it"
    time = f"(t − {gap.start:.4g})" if gap.start else "t"
    words = f"Curve: α e^(−β {time}) + γ, {listed} ({precision}); t: the student’s steps."
    if gap.threshold is None:
        return words
    if gap.below_from_step is None:
        return f"{words} It stays above the threshold {gap.threshold:.4g}."
    step = math.ceil(marks.run_step(gap.below_from_step))
    after = ", after the end of the run" if step > marks.last_step else ""
    return f"{words} Below the threshold {gap.threshold:.4g} from step {step:,} on{after}."
