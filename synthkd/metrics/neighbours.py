"""Exact nearest neighbours of any number of points in bounded memory: float32 finds, float64 decides.

One float32 product of centred rows gives every squared distance up to a rounding error that has a bound. Whatever that
bound leaves open, and every distance that is handed out, is computed in float64 as `sum((x - y)**2)`. So the results
are those of float64 differences: never negative, exactly zero between equal rows and equal for equal pairs (points that
are tied stay tied), and they depend neither on the size of the tiles nor on the number of threads.

Beside the results, memory is one tile of distances and one float32 copy of one side, whatever the numbers of points.
Exact copies cost no time; masses of copies that differ by rounding do, since float64 has to decide about all pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from synthkd.errors import DataError
from synthkd.metrics.arrays import Array, rows, same_width

_TILE = 1448  # rows and columns of a tile: two million distances
_COORDINATES = 1 << 17  # how many are taken to float64 at a time: they stay in the cache
_TINY = 1e-30  # what underflow can take from a float32 product of numbers below 1, with much to spare


@dataclass(frozen=True)
class Neighbours:
    """The k nearest points of each query, nearest first; of equally near ones the lower index comes first.

    Attributes:
        squared: float64 `[M, k]`, squared Euclidean distances, 0 or more.
        indices: int64 `[M, k]`, rows of the base. Where more than k points equal the query, any k of them.
    """

    squared: Tensor
    indices: Tensor


@dataclass(frozen=True)
class BallCounts:
    """How many balls hold each point, and how many points each ball; a point on the surface is inside.

    Attributes:
        balls_per_point: int64, one count for each point of the other set.
        points_per_ball: int64, one count for each ball.
    """

    balls_per_point: Tensor
    points_per_ball: Tensor

    @classmethod
    def none(cls, points: int, balls: int) -> BallCounts:
        """Zero counts."""
        return cls(torch.zeros(points, dtype=torch.int64), torch.zeros(balls, dtype=torch.int64))

    def add(self, points: slice, point: Tensor, balls: slice, ball: Tensor) -> None:
        """Count pairs of a point and a ball that holds it, numbered from the start of each slice."""
        self.balls_per_point[points] += point.bincount(minlength=points.stop - points.start)
        self.points_per_ball[balls] += ball.bincount(minlength=balls.stop - balls.start)


@dataclass(frozen=True)
class MutualBalls:
    """Balls around the points of two sets, and what they hold of the other set.

    Attributes:
        first: the balls around the first set, the points of the second.
        second: the balls around the second set, the points of the first.
    """

    first: BallCounts
    second: BallCounts


def points(values: Array, name: str, least: int = 1) -> Tensor:
    """`rows(values, name, least)`, except that float32 `[N, D]` stays float32.

    Every block is made float64 when it is needed; a copy of all would be the largest thing in memory.
    """
    given = values.detach() if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))
    usable = given.dtype == torch.float32 and given.dim() == 2 and given.shape[1] > 0 and len(given) >= least > 0
    if usable and bool(torch.stack(given.aminmax()).isfinite().all()):
        return given.cpu()
    return rows(values, name, least)


def nearest(queries: Tensor, base: Tensor, k: int) -> Neighbours:
    """The k points of the base that are nearest to each query.

    Args:
        queries: `[M, D]` from `points`.
        base: `[N, D]` from `points`.
        k: 1 to N.

    Raises:
        DataError: different D, or fewer than k points.
    """
    same_width(queries, base, "queries and base")
    _check(k, len(base))
    return _search(queries, base, torch.full((len(queries),), -1), k)


def nearest_others(base: Tensor, k: int, of: Tensor | None = None) -> Neighbours:
    """The k nearest other points of points of the base; itself is left out by its index, copies of it are not.

    Args:
        base: `[N, D]` from `points`.
        k: 1 to N - 1.
        of: int64 `[M]`, the rows that are asked about, or None for all.

    Raises:
        DataError: fewer than k other points.
    """
    _check(k, len(base) - 1)
    if of is not None:
        return _search(base[of], base, of, k)
    screen = _Screen(base, base)
    cloud, own = screen.see(base), torch.arange(len(base))
    found = _Smallest(len(base), k + 1, screen.dtype)
    for part in _tiles(len(base)):
        for other in _tiles(len(base), part.start):
            # distances are symmetric: a tile beside the diagonal serves its rows and its columns
            lower = cloud[part].lower(cloud[other])
            _leave_out(lower, own[part], other.start)
            found.offer(part, lower, other.start)
            if other != part:
                found.offer(other, lower.T.contiguous(), part.start)
    return _decide(found, screen, cloud, base, own)


def mutual_balls(first: Tensor, first_radii: Tensor, second: Tensor, second_radii: Tensor) -> MutualBalls:
    """Count which points of each set lie in the balls around the points of the other, in one pass.

    Args:
        first: `[N, D]` from `points`, centres and points.
        first_radii: float64 `[N]`, squared radii of the balls around them.
        second: `[M, D]` from `points`.
        second_radii: float64 `[M]`, squared.

    Raises:
        DataError: different D.
    """
    same_width(first, second, "the two sets")
    screen = _Screen(first, second)
    cloud = screen.see(first)
    in_first, in_second = BallCounts.none(len(second), len(first)), BallCounts.none(len(first), len(second))
    for part in _tiles(len(second)):
        seen = screen.see(second[part])
        for other in _tiles(len(first)):
            lower = seen.lower(cloud[other])
            point, ball = _inside(seen, cloud[other], lower, first_radii[None, other])
            in_first.add(part, point, other, ball)
            ball, point = _inside(seen, cloud[other], lower, second_radii[part, None])
            in_second.add(other, point, part, ball)
    return MutualBalls(in_first, in_second)


@dataclass(frozen=True)
class _Cloud:
    """Points, and what is needed for bounds of their distances.

    Attributes:
        points: `[N, D]` as given.
        small: float32 `[N, D]`, centred and scaled.
        below: float32 `[N]`, squared norm of each less its part of the error.
        room: float64 `[N]`, its part of the distance between lower and upper bound.
        scale: of `small`.
    """

    points: Tensor
    small: Tensor
    below: Tensor
    room: Tensor
    scale: float

    def __getitem__(self, part: slice) -> _Cloud:
        return _Cloud(self.points[part], self.small[part], self.below[part], self.room[part], self.scale)

    def lower(self, other: _Cloud) -> Tensor:
        """Bounds `[N, M]` from below of the scaled squared distances to other points."""
        return torch.addmm(other.below, self.small, other.small.T, alpha=-2).add_(self.below[:, None])

    def scaled(self, squared: Tensor) -> Tensor:
        """Squared distances in the scale of the bounds."""
        return squared * self.scale * self.scale


class _Screen:
    """How points are seen: from one centre and in one scale, so that float32 products bound their distances.

    With centred `x`, `y` and `|x|^2` from float64, the error of `|x|^2 + |y|^2 - 2 x.y` is at most
    `error * (|x|^2 + |y|^2)`: rounding of the rows, the norms and the limits that bounds are compared with takes a few
    units, a sum of D products at most D in whatever order (Higham 2002, Accuracy and Stability of Numerical Algorithms,
    section 3.1). The scale, a power of two that brings coordinates below 1, keeps squares from overflow.
    """

    def __init__(self, base: Tensor, queries: Tensor) -> None:
        parts = _slices(len(base), _COORDINATES // base.shape[1])
        self.centre = torch.stack([base[part].double().sum(dim=0) for part in parts]).sum(dim=0) / len(base)
        low, high = torch.stack([torch.stack(side.aminmax()).double() for side in (base, queries)], dim=1)
        reach = float(high.max() - low.min())
        self.scale = math.ldexp(1.0, -max(-1000, min(1000, math.frexp(reach)[1])))
        self.dtype = torch.float32 if _float32_is_kept() else torch.float64
        self.error = (base.shape[1] + 32) * torch.finfo(self.dtype).eps

    def see(self, values: Tensor) -> _Cloud:
        """The points `[N, D]` as a cloud."""
        small = torch.empty(values.shape, dtype=self.dtype)
        norms = torch.empty(len(values), dtype=torch.float64)
        for part in _slices(len(values), _COORDINATES // values.shape[1]):
            moved = (values[part].double() - self.centre).mul_(self.scale)
            small[part] = moved
            norms[part] = moved.square_().sum(dim=1)
        below = ((1 - self.error) * norms - _TINY).to(self.dtype)
        return _Cloud(values, small, below, 2 * self.error * norms + 2 * _TINY, self.scale)


class _Smallest:
    """The few smallest bounds of every query among the tiles offered so far, ascending."""

    def __init__(self, queries: int, count: int, dtype: torch.dtype) -> None:
        self.bounds = torch.full((queries, count), torch.inf, dtype=dtype)
        self.indices = torch.zeros((queries, count), dtype=torch.int64)

    def offer(self, part: slice, lower: Tensor, first: int) -> None:
        """Take in bounds of the queries `part` to the points of the base from `first` on."""
        count = self.bounds.shape[1]
        values, places = lower.topk(min(count, lower.shape[1]), largest=False)
        values = torch.cat([self.bounds[part], values], dim=1)
        places = torch.cat([self.indices[part], places + first], dim=1)
        self.bounds[part], chosen = values.topk(count, largest=False)
        self.indices[part] = places.gather(1, chosen)


def _search(queries: Tensor, base: Tensor, own: Tensor, k: int) -> Neighbours:
    """The k nearest points of the base, but for the one at index `own` (-1: none) of each query."""
    screen = _Screen(base, queries)
    cloud = screen.see(base)
    found = _Smallest(len(queries), k + 1, screen.dtype)
    for part in _tiles(len(queries)):
        seen = screen.see(queries[part])
        for other in _tiles(len(base)):
            lower = seen.lower(cloud[other])
            _leave_out(lower, own[part], other.start)
            found.offer(part, lower, other.start)
    return _decide(found, screen, cloud, queries, own)


def _leave_out(lower: Tensor, own: Tensor, first: int) -> None:
    """Put the bound of each query to its own index out of reach, in a tile whose columns begin at `first`."""
    row = ((own >= first) & (own < first + lower.shape[1])).nonzero().flatten()
    lower[row, own[row] - first] = torch.inf


def _decide(found: _Smallest, screen: _Screen, cloud: _Cloud, queries: Tensor, own: Tensor) -> Neighbours:
    """The k nearest in float64, from the k + 1 smallest lower bounds of each query.

    The first k are real points, so the largest of their distances is no less than the k-th smallest of all. All points
    outside have a lower bound of at least the (k + 1)-th: where that is above, the k are the nearest. Elsewhere every
    point whose lower bound does not exceed it is looked at, unless it is 0, below which there is nothing.
    """
    k = found.bounds.shape[1] - 1
    indices = found.indices[:, :k].sort(dim=1).values
    query = torch.arange(len(queries)).repeat_interleave(k)
    squared, order = _squared(queries, cloud.points, query, indices.flatten()).view(-1, k).sort(dim=1, stable=True)
    indices = indices.gather(1, order)

    limits = cloud.scaled(squared[:, -1])
    contested = ((limits > 0) & (found.bounds[:, k] <= limits)).nonzero().flatten()
    for part in _tiles(len(contested)):
        asked = contested[part]
        seen = screen.see(queries[asked])
        pairs = []
        for other in _tiles(len(cloud.points)):
            lower = seen.lower(cloud[other])
            _leave_out(lower, own[asked], other.start)
            found_in = (lower <= limits[asked, None].to(lower.dtype)).nonzero()
            pairs.append(found_in + torch.tensor([0, other.start]))
        row, column = torch.cat(pairs).unbind(dim=1)
        exact = _squared(seen.points, cloud.points, row, column)
        order = exact.argsort(stable=True)
        order = order[row[order].argsort(stable=True)]
        counts = row.bincount(minlength=len(asked))
        chosen = order[(counts.cumsum(0) - counts)[:, None] + torch.arange(k)]
        squared[asked], indices[asked] = exact[chosen], column[chosen]
    return Neighbours(squared, indices)


def _inside(seen: _Cloud, cloud: _Cloud, lower: Tensor, radii: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of the pairs of a tile whose squared distance is at most the radius, `[N, 1]` or `[1, M]`."""
    row, column = (lower <= cloud.scaled(radii).to(lower.dtype)).nonzero(as_tuple=True)
    limits = radii.expand(lower.shape)[row, column]
    inside = lower[row, column] + seen.room[row] + cloud.room[column] <= cloud.scaled(limits)
    left = (~inside).nonzero().flatten()
    inside[left] = _squared(seen.points, cloud.points, row[left], column[left]) <= limits[left]
    return row[inside], column[inside]


def _squared(queries: Tensor, base: Tensor, query: Tensor, index: Tensor) -> Tensor:
    """`sum((queries[query] - base[index])**2)` in float64 `[P]`, pair by pair."""
    result = torch.empty(len(query), dtype=torch.float64)
    for part in _slices(len(query), _COORDINATES // base.shape[1]):
        difference = queries[query[part]].double() - base[index[part]].double()
        result[part] = difference.square_().sum(dim=1)
    return result


def _float32_is_kept() -> bool:
    """False where float32 products are computed in a shorter format: by a setting of torch, or under autocast."""
    precision = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    return precision in ("none", "ieee") and not torch.is_autocast_enabled("cpu")


def _tiles(count: int, start: int = 0) -> Iterator[slice]:
    return _slices(count, _TILE, start)


def _slices(count: int, step: int, start: int = 0) -> Iterator[slice]:
    step = max(1, step)
    return (slice(first, min(first + step, count)) for first in range(start, count, step))


def _check(k: int, available: int) -> None:
    if not 1 <= k <= available:
        raise DataError(
            f"k={k} nearest neighbours among {available} points: take 1 <= k <= {available}, or more points"
        )
