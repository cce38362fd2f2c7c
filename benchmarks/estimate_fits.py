"""Estimates of the agreement on test images, and their errors; see `estimate.py`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scipy import stats

from benchmarks.common import Row

CONFIDENCE = 0.9
DATASETS = {"digits": "digits", "lenet": "Fashion-MNIST", "fashion": "Fashion-MNIST", "cifar10": "CIFAR-10"}
ESTIMATES: dict[str, tuple[str, ...]] = {
    "new images": ("fresh",),
    "new images, surer half": ("fresh, surer half",),
    "learned images": ("learned",),
    "learned images, surer half": ("learned, surer half",),
    "the four": ("fresh", "fresh, surer half", "learned", "learned, surer half"),
    "drawn pictures": ("drawn",),
    "drawn pictures, surer half": ("drawn, surer half",),
    "crops of photographs": ("photographs",),
    "crops of photographs, surer half": ("photographs, surer half",),
    "student's mean confidence on new images": ("confidence",),
}
"""Name of an estimate -> the values of a cell whose mean it is."""
SHIPPED = "the four"
DRAWN = "drawn"
"""Images that no teacher had a part in: no run of them is estimated, and none moves an estimate."""


@dataclass(frozen=True)
class Point:
    """A run.

    Attributes:
        data: its dataset.
        truth: logit of the agreement on test images.
        value: mean of the logits that an estimate takes.
    """

    data: str
    truth: float
    value: float

    @property
    def difference(self) -> float:
        """What the estimate would have to be moved by."""
        return self.truth - self.value


def points(cells: Iterable[Row], estimate: str) -> list[Point]:
    """The cells as an estimate sees them."""
    names = ESTIMATES[estimate]
    return [
        Point(DATASETS[one["data"]], one["agreement"], statistics.mean(one["values"][name] for name in names))
        for one in cells
    ]


def by_teacher(cells: Iterable[Row]) -> list[Row]:
    """The cells whose images come of the teacher."""
    return [one for one in cells if one["images"] != DRAWN]


def offset(runs: Iterable[Point]) -> float:
    """The constant that runs give."""
    return statistics.mean(run.difference for run in runs)


def others(runs: Sequence[Point], left_out: Point) -> list[Point]:
    """The runs of other datasets."""
    return [run for run in runs if run.data != left_out.data]


def deviation(runs: Sequence[Point]) -> float:
    """Root mean square error of the estimate as it is, as a share of the images."""
    return math.sqrt(statistics.mean((share(run.value) - share(run.truth)) ** 2 for run in runs))


def quantile(runs: Sequence[Point]) -> float:
    """Of the t distribution. Runs of a dataset err alike, so datasets count, not runs, for its degrees of freedom."""
    return float(stats.t.ppf(0.5 + CONFIDENCE / 2, len({run.data for run in runs}) - 1))


def ranges(runs: Sequence[Point]) -> list[tuple[float, float, float]]:
    """The estimate of each run as it is, with the low and high end that the errors on other datasets give."""
    result = []
    for run in runs:
        rest, value = others(runs, run), share(run.value)
        half = quantile(runs) * deviation(rest)
        result.append((value, max(0.0, value - half), min(1.0, value + half)))
    return result


def error(runs: Sequence[Point], offsets: Sequence[float]) -> float:
    """Mean absolute error of the agreement, each run moved by its offset."""
    return statistics.mean(
        abs(share(run.value + moved) - share(run.truth)) for run, moved in zip(runs, offsets, strict=True)
    )


def errors(runs: Sequence[Point]) -> tuple[float, float, float]:
    """Errors as it is, moved by all other runs, and moved by those of other datasets."""
    by_run = [offset(other for other in runs if other is not run) for run in runs]
    return (
        error(runs, [0.0] * len(runs)),
        error(runs, by_run),
        error(runs, [offset(others(runs, run)) for run in runs]),
    )


def calibration(cells: Sequence[Row]) -> Row:
    """What `synthkd.metrics.untested.CALIBRATION` holds; empty while a dataset has no run."""
    runs = points(by_teacher(cells), SHIPPED)
    if {run.data for run in runs} != set(DATASETS.values()):
        return {}
    held = [low <= share(run.truth) <= high for run, (_, low, high) in zip(runs, ranges(runs), strict=True)]
    return {
        "error": round(errors(runs)[0], 3),
        "naive_error": round(errors(points(by_teacher(cells), "new images"))[0], 3),
        "deviation": round(deviation(runs), 3),
        "quantile": round(quantile(runs), 2),
        "runs": len(runs),
        "covered": sum(held),
    }


def share(logit: float) -> float:
    """The share of which it is the logit."""
    return 1.0 / (1.0 + math.exp(-logit))
