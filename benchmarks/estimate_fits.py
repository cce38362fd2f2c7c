"""Estimates of the agreement on test images, and their errors; see `estimate.py`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scipy import stats

from benchmarks.common import Row
from synthkd.metrics.untested import harder_images, share

CONFIDENCE = 0.9
DATASETS = {"digits": "digits", "lenet": "Fashion-MNIST", "fashion": "Fashion-MNIST", "cifar10": "CIFAR-10"}
FOUR = ("fresh", "fresh, surer half", "learned", "learned, surer half")
ESTIMATES: dict[str, tuple[str, ...]] = {
    "new images": ("fresh",),
    "new images, surer half": ("fresh, surer half",),
    "learned images": ("learned",),
    "learned images, surer half": ("learned, surer half",),
    "the four": FOUR,
    "drawn pictures": ("drawn",),
    "drawn pictures, surer half": ("drawn, surer half",),
    "crops of photographs": ("photographs",),
    "crops of photographs, surer half": ("photographs, surer half",),
    "student's mean confidence on new images": ("confidence",),
}
"""Name of an estimate -> the values of a cell whose mean it is."""
RULES = {"learned images, surer half, as harder ones": harder_images}
"""Name of an estimate -> the rule that makes it of the four."""
SHIPPED = {"by_four": "the four", "by_harder": "learned images, surer half, as harder ones"}
"""Name of a calibration in `synthkd.metrics.untested`, in capitals there -> its estimate."""
DRAWN, NOISY = "drawn", "noisy"
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
    return [Point(DATASETS[one["data"]], one["agreement"], _value(one["values"], estimate)) for one in cells]


def _value(values: dict[str, float], estimate: str) -> float:
    if estimate in ESTIMATES:
        return statistics.mean(values[name] for name in ESTIMATES[estimate])
    fresh, fresh_surer, learned, learned_surer = (values[name] for name in FOUR)
    agreement = RULES[estimate]((fresh, fresh_surer), (learned, learned_surer))
    return math.log(agreement / (1.0 - agreement))


def by_teacher(cells: Iterable[Row], calibration: str) -> list[Row]:
    """The cells whose images come of the teacher and are of the generators of a calibration."""
    noisy = calibration == "by_harder"
    return [one for one in cells if one["images"] != DRAWN and (one["images"] == NOISY) == noisy]


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


def calibrations(cells: Sequence[Row]) -> dict[str, Row]:
    """What the calibrations of `synthkd.metrics.untested` hold; those that have a run of every dataset."""
    found = {}
    for name, estimate in SHIPPED.items():
        runs = points(chosen := by_teacher(cells, name), estimate)
        if {run.data for run in runs} != set(DATASETS.values()):
            continue
        held = [low <= share(run.truth) <= high for run, (_, low, high) in zip(runs, ranges(runs), strict=True)]
        found[name] = {
            "error": round(errors(runs)[0], 3),
            "naive_error": round(errors(points(chosen, "new images"))[0], 3),
            "deviation": round(deviation(runs), 3),
            "quantile": round(quantile(runs), 2),
            "runs": len(runs),
            "covered": sum(held),
        }
    return found
