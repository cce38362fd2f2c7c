"""Candidates of a search: scores, Pareto front, hypervolume and a drawing. All objectives are minimised."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from synthkd.errors import ConfigError, DataError
from synthkd.settings import Goal, ZooModel


@dataclass(frozen=True)
class Scores:
    """The scores of a candidate.

    Attributes:
        accuracy: proxy of its accuracy, in [0, 1].
        latency_ms: milliseconds per image, > 0.
        bytes: size of its weights, > 0.
        joules: energy per image, > 0; None where it was not measured.

    Raises:
        DataError: a value outside its range, or not finite.
    """

    accuracy: float
    latency_ms: float
    bytes: int
    joules: float | None = None

    def __post_init__(self) -> None:
        costs = (self.latency_ms, self.bytes, 1.0 if self.joules is None else self.joules)
        if not 0.0 <= self.accuracy <= 1.0 or not all(0.0 < value < math.inf for value in costs):
            raise DataError(f"scores need an accuracy in [0, 1] and costs that are positive and finite, got {self}")

    def values(self, objectives: Sequence[Goal]) -> tuple[float, ...]:
        """The values of the objectives, to be minimised, in the order of `objectives`.

        Raises:
            ConfigError: energy is an objective and was not measured.
        """
        if "energy" in objectives and self.joules is None:
            raise ConfigError("search: energy is an objective and was not measured here; put bytes in its place")
        energy = math.nan if self.joules is None else self.joules
        by_name = {"error": 1.0 - self.accuracy, "latency": self.latency_ms, "bytes": self.bytes, "energy": energy}
        return tuple(float(by_name[name]) for name in objectives)


@dataclass(frozen=True)
class Candidate:
    """A student and its scores."""

    model: ZooModel
    scores: Scores


@dataclass(frozen=True)
class Front:
    """The result of a search.

    Attributes:
        candidates: all scored candidates, in the order of scoring.
        objectives: M names of values to minimise.
        reference: M numbers, the far corner of the hypervolume's box; after `search`, the worst value of each
            objective. Hypervolumes can be compared for the same reference only, set by `dataclasses.replace`.
    """

    candidates: tuple[Candidate, ...]
    objectives: tuple[Goal, ...]
    reference: tuple[float, ...]

    @property
    def points(self) -> NDArray[np.float64]:
        """Objectives of all candidates, float64 `[N, M]`."""
        return np.array([c.scores.values(self.objectives) for c in self.candidates], dtype=np.float64)

    @property
    def best(self) -> tuple[Candidate, ...]:
        """The Pareto front: candidates that no other dominates, the most accurate first."""
        front = [c for c, is_best in zip(self.candidates, _undominated(self.points), strict=True) if is_best]
        return tuple(sorted(front, key=lambda c: (-c.scores.accuracy, *c.scores.values(self.objectives))))

    @property
    def hypervolume(self) -> float:
        """Share of the box between 0 and the reference that some candidate dominates, in [0, 1]."""
        return hypervolume(self.points, self.reference)


def hypervolume(points: NDArray[np.float64], reference: Sequence[float]) -> float:
    """Share of the box from 0 to the reference that some point dominates, exact, in [0, 1].

    Args:
        points: float64 `[N, M]`, >= 0, to be minimised; points beyond the reference add nothing.
        reference: M numbers > 0.

    Raises:
        DataError: arrays of another shape or sign.
    """
    scale = np.asarray(reference, dtype=np.float64)
    if points.ndim != 2 or points.shape[1:] != scale.shape or not (scale > 0).all() or not (points >= 0).all():
        raise DataError(
            f"hypervolume needs points [N, M] >= 0 and M numbers > 0 as reference, got {points.shape} and {reference}"
        )
    return _dominated(points[(points < scale).all(axis=1)] / scale)


def crowded_order(points: NDArray[np.float64]) -> list[int]:
    """Indices of the rows of float64 `[N, M]`, to be minimised, from best to worst.

    By non-dominated fronts, and inside a front by crowding distance (Deb et al. 2002, sections III-A and B).
    """
    left, order = np.arange(len(points)), list[int]()
    while len(left):
        is_best = _undominated(points[left])
        front, left = left[is_best], left[~is_best]
        distance = np.zeros(len(front))
        # Crowding distance: the sum, over objectives, of the gap between both neighbours. The ends of each objective
        # come first, so that the front keeps its extent.
        for values in points[front].T:
            at = values.argsort(kind="stable")
            distance[at[[0, -1]]] = np.inf
            distance[at[1:-1]] += (values[at[2:]] - values[at[:-2]]) / ((values[at[-1]] - values[at[0]]) or 1.0)
        order += front[(-distance).argsort(kind="stable")].tolist()
    return order


def draw(front: Front) -> str:
    """SVG with the accuracy proxy over the latency of all candidates.

    The candidates of `best` are numbered; the size of a disc shows the bytes. Colours are CSS variables of the page
    (`--student`, `--muted`, `--grid`).
    """
    best, scores = front.best, [c.scores for c in front.candidates]
    # The latency is on a logarithmic axis, since candidates differ by factors.
    fast, slow = (math.log(at(s.latency_ms for s in scores)) + pad for at, pad in ((min, -0.1), (max, 0.1)))
    low, high = max(0.0, min(s.accuracy for s in scores) - 0.02), min(1.0, max(s.accuracy for s in scores) + 0.02)
    largest = max(s.bytes for s in scores)

    def place(milliseconds: float, share: float) -> tuple[float, float]:
        across, up = (math.log(milliseconds) - fast) / (slow - fast), (share - low) / (high - low)
        return 52.0 + 318.0 * across, 222.0 - 210.0 * up

    def text(x: float, y: float, words: str, anchor: str = "middle", colour: str = "var(--muted)") -> str:
        return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{words}</text>'

    parts = ['<svg viewBox="0 0 390 262" role="img" aria-label="accuracy proxy over latency" font-size="11">']
    for share in np.linspace(low, high, 4):
        y = place(math.exp(fast), share)[1]
        parts.append(f'<line x1="52" x2="370" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--grid)"/>')
        parts.append(text(46, y + 4, f"{share:.0%}", "end"))
    for milliseconds in np.geomspace(math.exp(fast), math.exp(slow), 4):
        parts.append(text(place(milliseconds, low)[0], 240, f"{milliseconds:.2g}"))
    parts.append(text(211, 257, "ms for an image"))
    # The front is drawn last, over the other candidates.
    for one in sorted(front.candidates, key=lambda c: c in best):
        (x, y), colour = place(one.scores.latency_ms, one.scores.accuracy), "student" if one in best else "muted"
        disc = f'cx="{x:.1f}" cy="{y:.1f}" r="{2.5 + 6.0 * math.sqrt(one.scores.bytes / largest):.1f}"'
        parts.append(f'<circle {disc} fill="var(--{colour})" fill-opacity="0.35" stroke="var(--{colour})"/>')
    for number, one in enumerate(best, 1):
        x, y = place(one.scores.latency_ms, one.scores.accuracy)
        parts.append(text(x, y + 4, str(number), colour="currentColor"))
    return "".join([*parts, "</svg>"])


def _undominated(points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """bool `[N]`, True for rows that no other row dominates: none is as good in all values and better in one."""
    worse = [bool(((points <= p).all(axis=1) & (points < p).any(axis=1)).any()) for p in points]
    return ~np.array(worse, dtype=np.bool_)


def _dominated(points: NDArray[np.float64]) -> float:
    """Volume of the part of the unit cube that some of the points dominates."""
    if len(points) == 0:
        return 0.0
    if points.shape[1] == 1:
        return 1.0 - float(points.min())
    # Hypervolume by slicing objectives (While et al. 2006): between two neighbouring values of the last objective the
    # cross-section is constant, and is the hypervolume of all points below in one objective less.
    rows = points[points[:, -1].argsort()]
    edges = np.append(rows[:, -1], 1.0)
    return sum(float(edges[i + 1] - edges[i]) * _dominated(rows[: i + 1, :-1]) for i in range(len(rows)))
