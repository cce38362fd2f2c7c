"""Students and their scores: which of them no other beats in everything, and how much better a set of them is.

All objectives are minimised.
"""

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
    """What is known of a candidate.

    Attributes:
        accuracy: the proxy of its accuracy, in [0, 1].
        latency_ms: milliseconds for an image, > 0.
        bytes: of its weights, > 0.
        joules: for an image; None where nothing counts it.
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
        """What is minimised, in the order asked for.

        Raises:
            ConfigError: energy, where it was not measured.
        """
        if "energy" in objectives and self.joules is None:
            raise ConfigError("search: energy is an objective and was not measured here; put bytes in its place")
        energy = math.nan if self.joules is None else self.joules
        known = {"error": 1.0 - self.accuracy, "latency": self.latency_ms, "bytes": self.bytes, "energy": energy}
        return tuple(float(known[name]) for name in objectives)


@dataclass(frozen=True)
class Candidate:
    """A student and its scores."""

    model: ZooModel
    scores: Scores


@dataclass(frozen=True)
class Front:
    """What a search found.

    Attributes:
        candidates: all that were scored, in that order.
        objectives: what is minimised, M of them.
        reference: M numbers, the corner that the hypervolume is measured to; of `search`, the worst of all candidates.
            To compare two searches put the same into both, with `dataclasses.replace`.
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
        """Those that no other is better than in one objective and not worse in all, the most accurate first."""
        kept = [c for c, good in zip(self.candidates, _undominated(self.points), strict=True) if good]
        return tuple(sorted(kept, key=lambda c: (-c.scores.accuracy, *c.scores.values(self.objectives))))

    @property
    def hypervolume(self) -> float:
        """Share of the box between 0 and the reference that some candidate dominates, in [0, 1]."""
        return hypervolume(self.points, self.reference)

    def table(self) -> tuple[str, ...]:
        """The candidates of `best`, numbered as in `draw`, as lines of text under their titles."""
        rows = [("", "arch", "width", "depth", "proxy", "latency", "bytes", "energy")]
        for number, one in enumerate(self.best, 1):
            model, s = one.model, one.scores
            shape = (str(number), model.arch, str(model.width), "-" if model.depth is None else str(model.depth))
            energy = "-" if s.joules is None else f"{s.joules:.3g} J"
            rows.append((*shape, f"{s.accuracy:.1%}", f"{s.latency_ms:.3g} ms", f"{s.bytes:,}", energy))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return tuple("  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)


def hypervolume(points: NDArray[np.float64], reference: Sequence[float]) -> float:
    """Share of the box from 0 to the reference that is worse than some point in every objective, exact.

    By slices along the last objective (HSO, While et al. 2006), each a hypervolume of one objective less.

    Args:
        points: float64 `[N, M]`, >= 0, to be minimised; those beyond the reference count for nothing.
        reference: M numbers > 0.

    Raises:
        DataError: numbers of another shape or sign.
    """
    scale = np.asarray(reference, dtype=np.float64)
    if points.ndim != 2 or points.shape[1:] != scale.shape or not (scale > 0).all() or not (points >= 0).all():
        raise DataError(
            f"hypervolume needs points [N, M] >= 0 and M numbers > 0 as reference, got {points.shape} and {reference}"
        )
    return _dominated(points[(points < scale).all(axis=1)] / scale)


def crowded_order(points: NDArray[np.float64]) -> list[int]:
    """Rows of float64 `[N, M]`, minimised, from best to worst.

    By the number of fronts to take off before, then by crowding distance (Deb et al. 2002, sections III-A and B).
    """
    left, order = np.arange(len(points)), list[int]()
    while len(left):
        good = _undominated(points[left])
        front, left = left[good], left[~good]
        distance = np.zeros(len(front))
        for values in points[front].T:
            at = values.argsort(kind="stable")
            distance[at[[0, -1]]] = np.inf
            distance[at[1:-1]] += (values[at[2:]] - values[at[:-2]]) / ((values[at[-1]] - values[at[0]]) or 1.0)
        order += front[(-distance).argsort(kind="stable")].tolist()
    return order


def draw(front: Front) -> str:
    """The accuracy proxy over the latency of all candidates, `best` numbered and a disc as large as its bytes, as SVG.

    Its colours are variables of the page (`--student`, `--muted`, `--grid`).
    """
    best, scores = front.best, [c.scores for c in front.candidates]
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
    for one in sorted(front.candidates, key=lambda c: c in best):
        (x, y), colour = place(one.scores.latency_ms, one.scores.accuracy), "student" if one in best else "muted"
        disc = f'cx="{x:.1f}" cy="{y:.1f}" r="{2.5 + 6.0 * math.sqrt(one.scores.bytes / largest):.1f}"'
        parts.append(f'<circle {disc} fill="var(--{colour})" fill-opacity="0.35" stroke="var(--{colour})"/>')
    for number, one in enumerate(best, 1):
        x, y = place(one.scores.latency_ms, one.scores.accuracy)
        parts.append(text(x, y + 4, str(number), colour="currentColor"))
    return "".join([*parts, "</svg>"])


def _undominated(points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which rows no other row is better than in one place and not worse in all, bool `[N]`."""
    worse = [bool(((points <= p).all(axis=1) & (points < p).any(axis=1)).any()) for p in points]
    return ~np.array(worse, dtype=np.bool_)


def _dominated(points: NDArray[np.float64]) -> float:
    """Volume of what some point of the unit cube dominates in it."""
    if len(points) == 0:
        return 0.0
    if points.shape[1] == 1:
        return 1.0 - float(points.min())
    rows = points[points[:, -1].argsort()]
    edges = np.append(rows[:, -1], 1.0)
    return sum(float(edges[i + 1] - edges[i]) * _dominated(rows[: i + 1, :-1]) for i in range(len(rows)))
