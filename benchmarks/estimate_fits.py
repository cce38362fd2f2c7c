"""Estimates of the agreement on test images, and their errors; see `estimate.py`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from scipy import stats

from benchmarks.common import Row
from benchmarks.estimate_runs import NOISY
from synthkd.metrics.untested import BY_FOUR, BY_LEARNED, Logits, Range, estimated_accuracy, share

Values = dict[str, float]
CONFIDENCE = 0.9
DATASETS = {"digits": "digits", "lenet": "Fashion-MNIST", "fashion": "Fashion-MNIST", "cifar10": "CIFAR-10"}


def _mean(*names: str) -> Callable[[Values], float]:
    return lambda values: statistics.mean(values[name] for name in names)


def _by(rule: Callable[[Logits, Logits], float]) -> Callable[[Values], float]:
    def estimate(values: Values) -> float:
        fresh, learned = ((values[name], values[f"{name}, surer half"]) for name in ("fresh", "learned"))
        agreement = rule(fresh, learned)
        return math.log(agreement / (1.0 - agreement))

    return estimate


ESTIMATES = {
    "new images": _mean("fresh"),
    "new images, surer half": _mean("fresh, surer half"),
    "learned images": _mean("learned"),
    "learned images, surer half": _mean("learned, surer half"),
    "1 - (1 - a)^1.5 of these": _by(BY_LEARNED.rule),
    "the four": _by(BY_FOUR.rule),
    "drawn pictures": _mean("drawn"),
    "drawn pictures, surer half": _mean("drawn, surer half"),
    "crops of photographs": _mean("photographs"),
    "crops of photographs, surer half": _mean("photographs, surer half"),
    "student's mean confidence on new images": _mean("confidence"),
}
"""Name of an estimate -> its logit by the values of a cell."""
SHIPPED = {
    "by_four": ("the four", ("recipe", "default")),
    "by_learned": ("1 - (1 - a)^1.5 of these", NOISY),
}
"""Name of a calibration, in capitals in `synthkd.metrics.untested` -> its estimate, and the images of its runs."""
DRAWN = "drawn"
"""Images that no teacher had a part in: no run of them is estimated, and none moves an estimate."""


@dataclass(frozen=True)
class Point:
    """A run.

    Attributes:
        data: its dataset.
        truth: logit of the agreement on test images.
        value: logit of the estimate.
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
    value = ESTIMATES[estimate]
    return [Point(DATASETS[one["data"]], one["agreement"], value(one["values"])) for one in cells]


def runs_of(cells: Iterable[Row], calibration: str) -> list[Row]:
    """The cells with images of the generators of a calibration."""
    _, images = SHIPPED[calibration]
    return [one for one in cells if one["images"] in images]


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
    for name, (estimate, _) in SHIPPED.items():
        runs = points(chosen := runs_of(cells, name), estimate)
        if {run.data for run in runs} != set(DATASETS.values()):
            continue
        intervals = [Range(*one) for one in ranges(runs)]
        held = [one.low <= share(run.truth) <= one.high for run, one in zip(runs, intervals, strict=True)]
        right = [estimated_accuracy(one, run["teacher"]) for run, one in zip(chosen, intervals, strict=True)]
        of_accuracy = [one.low <= run["accuracy"] <= one.high for run, one in zip(chosen, right, strict=True)]
        found[name] = {
            "error": round(errors(runs)[0], 3),
            "naive_error": round(errors(points(chosen, "new images"))[0], 3),
            "deviation": round(deviation(runs), 3),
            "quantile": round(quantile(runs), 2),
            "runs": len(runs),
            "covered": sum(held),
            "covered_accuracy": sum(of_accuracy),
        }
    return found
