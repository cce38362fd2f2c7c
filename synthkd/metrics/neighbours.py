"""Exact nearest neighbours of any number of points in bounded memory.

Points are compared by float32 bounds of their distances. What the bounds leave open, and all distances in the results,
are computed in float64. So results are those of `sum((x - y)**2)` in float64: never negative, exactly zero between
equal rows, equal for equal pairs (ties stay ties), and independent of the size of the tiles and the number of threads.

Besides the results, memory holds one tile of distances and one float32 copy of one side. Exact copies take no extra
time. Many copies that differ by rounding do, since float64 has to decide about all pairs of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

import torch
from torch import Tensor

from synthkd.errors import DataError
from synthkd.metrics.arrays import Array, rows, same_width, tensor
from synthkd.metrics.distances import Cloud, Frame, slices, squared_distances
from synthkd.system.shares import ALONE, Shares

_TILE = 1448  # rows and columns of a tile: two million distances


@dataclass(frozen=True)
class Neighbours:
    """The k nearest points of each query, nearest first; ties in order of the index.

    Attributes:
        squared: float64 `[M, k]`, squared Euclidean distances, 0 or more.
        indices: int64 `[M, k]`, rows of the base; which k is not defined if more than k points equal the query.
    """

    squared: Tensor
    indices: Tensor

    def gathered(self, shares: Shares) -> Neighbours:
        """The neighbours of the queries of all processes, in the order of the processes."""
        return Neighbours(shares.rows(self.squared), shares.rows(self.indices))


@dataclass(frozen=True)
class BallCounts:
    """Number of balls that hold each point, and number of points in each ball; the surface belongs to the ball.

    Attributes:
        balls_per_point: int64, one count per point of the other set.
        points_per_ball: int64, one count per ball.
    """

    balls_per_point: Tensor
    points_per_ball: Tensor

    @classmethod
    def none(cls, points: int, balls: int) -> BallCounts:
        """Counts of 0 for numbers of points and balls."""
        return cls(torch.zeros(points, dtype=torch.int64), torch.zeros(balls, dtype=torch.int64))

    def add(self, points: slice, point: Tensor, balls: slice, ball: Tensor) -> None:
        """Count pairs of a point and a ball that holds it.

        Args:
            points, balls: the points and balls of the pairs' tile.
            point, ball: int64 `[P]`, numbers within the slices, one entry per pair.
        """
        self.balls_per_point[points] += point.bincount(minlength=points.stop - points.start)
        self.points_per_ball[balls] += ball.bincount(minlength=balls.stop - balls.start)

    def summed(self, shares: Shares) -> BallCounts:
        """The counts of all processes together."""
        return BallCounts(shares.sum(self.balls_per_point), shares.sum(self.points_per_ball))


@dataclass(frozen=True)
class MutualBalls:
    """Contents of the balls around the points of two sets.

    Attributes:
        first: the balls around the first set, the points of the second.
        second: the balls around the second set, the points of the first.
    """

    first: BallCounts
    second: BallCounts


def points(values: Array, name: str, least: int = 1) -> Tensor:
    """Points `[N, D]` on the CPU as the functions below take them: float32 stays float32, other dtypes become float64.

    Args:
        values, name, least: as for `arrays.rows`.

    Raises:
        DataError: as `arrays.rows`.
    """
    features = tensor(values)
    # A float64 copy would be the largest object in memory. Float32 features, the usual ones, are converted block by
    # block when they are needed.
    usable = features.dtype == torch.float32 and features.dim() == 2 and features.shape[1] > 0
    if usable and len(features) >= least > 0 and bool(torch.stack(features.aminmax()).isfinite().all()):
        return features.cpu()
    return rows(features, name, least)


def nearest(queries: Tensor, base: Tensor, k: int, shares: Shares = ALONE) -> Neighbours:
    """The k points of the base nearest to each query.

    Args:
        queries: `[M, D]` from `points`.
        base: `[N, D]` from `points`.
        k: 1 to N.
        shares: the processes, all of which have all points; each takes some of the queries.

    Raises:
        DataError: different D, or fewer than k points.
    """
    same_width(queries, base, "queries and base")
    _check(k, len(base))
    return _search(queries, base, torch.full((len(queries),), -1), k, shares)


def nearest_others(base: Tensor, k: int, queries: Tensor | None = None, shares: Shares = ALONE) -> Neighbours:
    """The k nearest other points of points of the base. A point is no neighbour of itself, but its copies are.

    Args:
        base: `[N, D]` from `points`.
        k: 1 to N - 1.
        queries: int64 `[M]`, rows of the base to search for, or None for all rows.
        shares: the processes, all of which have all points; each takes some of the tiles or queries.

    Raises:
        DataError: fewer than k other points.
    """
    _check(k, len(base) - 1)
    if queries is not None:
        return _search(base[queries], base, queries, k, shares)
    frame = Frame(base, base)
    cloud, own = frame.cloud(base), torch.arange(len(base))
    smallest = _Smallest(len(base), k + 1, frame.dtype)
    pairs = ((part, other) for part in _tiles(len(base)) for other in _tiles(len(base), part.start))
    for part, other in shares.turns(pairs):
        # Distances are symmetric, so a tile off the diagonal serves its rows and its columns.
        lower = cloud[part].lower(cloud[other])
        _exclude(lower, own[part], other.start)
        smallest.offer(part, lower, other.start)
        if other != part:
            smallest.offer(other, lower.T.contiguous(), part.start)
    mine = shares.span(len(base))
    own_share = _decide(smallest.merged(shares, mine), frame, cloud, base[mine], own[mine])
    return own_share.gathered(shares)


def mutual_balls(
    first: Tensor, first_radii: Tensor, second: Tensor, second_radii: Tensor, shares: Shares = ALONE
) -> MutualBalls:
    """Count the points of each set in the balls around the points of the other set, in one pass over all pairs.

    Args:
        first: `[N, D]` from `points`.
        first_radii: float64 `[N]`, squared radii of the balls around the first set.
        second: `[M, D]` from `points`.
        second_radii: float64 `[M]`, squared radii of the balls around the second set.
        shares: the processes, all of which have all points; each takes some of the tiles.

    Raises:
        DataError: different D.
    """
    same_width(first, second, "the two sets")
    frame = Frame(first, second)
    cloud = frame.cloud(first)
    in_first, in_second = BallCounts.none(len(second), len(first)), BallCounts.none(len(first), len(second))
    tiles = ((part, other) for part in _tiles(len(second)) for other in _tiles(len(first)))
    for part, along in groupby(shares.turns(tiles), itemgetter(0)):
        rows_cloud = frame.cloud(second[part])
        for _, other in along:
            lower = rows_cloud.lower(cloud[other])
            point, ball = _inside(rows_cloud, cloud[other], lower, first_radii[None, other])
            in_first.add(part, point, other, ball)
            ball, point = _inside(rows_cloud, cloud[other], lower, second_radii[part, None])
            in_second.add(other, point, part, ball)
    return MutualBalls(in_first.summed(shares), in_second.summed(shares))


class _Smallest:
    """The `count` smallest bounds of every query among the tiles offered so far, ascending, with their indices."""

    def __init__(self, queries: int, count: int, dtype: torch.dtype) -> None:
        self.bounds = torch.full((queries, count), torch.inf, dtype=dtype)
        self.indices = torch.zeros((queries, count), dtype=torch.int64)

    def offer(self, part: slice, lower: Tensor, first: int) -> None:
        """Add a tile of bounds, of the queries `part` to the points of the base from `first` on."""
        count = self.bounds.shape[1]
        values, places = lower.topk(min(count, lower.shape[1]), largest=False)
        self._keep(part, values, places + first)

    def merged(self, shares: Shares, mine: slice) -> _Smallest:
        """The smallest bounds of the queries `mine` among the tiles that were offered in any process."""
        bounds, indices = shares.gather(self.bounds), shares.gather(self.indices)
        result = _Smallest(mine.stop - mine.start, self.bounds.shape[1], self.bounds.dtype)
        for values, places in zip(bounds, indices, strict=True):
            result._keep(slice(None), values[mine], places[mine])
        return result

    def _keep(self, part: slice, values: Tensor, places: Tensor) -> None:
        count = self.bounds.shape[1]
        values = torch.cat([self.bounds[part], values], dim=1)
        places = torch.cat([self.indices[part], places], dim=1)
        self.bounds[part], smallest = values.topk(count, largest=False)
        self.indices[part] = places.gather(1, smallest)


def _search(queries: Tensor, base: Tensor, own: Tensor, k: int, shares: Shares) -> Neighbours:
    """The k points of the base nearest to each query, except the one at its index `own` (-1: no exception)."""
    mine = shares.span(len(queries))
    return _found(queries[mine], base, own[mine], k).gathered(shares)


def _found(queries: Tensor, base: Tensor, own: Tensor, k: int) -> Neighbours:
    """What `_search` finds, by this process alone."""
    if len(queries) == 0:
        return Neighbours(torch.zeros(0, k, dtype=torch.float64), torch.zeros(0, k, dtype=torch.int64))
    frame = Frame(base, queries)
    cloud = frame.cloud(base)
    smallest = _Smallest(len(queries), k + 1, frame.dtype)
    for part in _tiles(len(queries)):
        rows_cloud = frame.cloud(queries[part])
        for other in _tiles(len(base)):
            lower = rows_cloud.lower(cloud[other])
            _exclude(lower, own[part], other.start)
            smallest.offer(part, lower, other.start)
    return _decide(smallest, frame, cloud, queries, own)


def _exclude(lower: Tensor, own: Tensor, first: int) -> None:
    """Set the bound of each query to its own index to infinity, in a tile whose columns begin at `first`."""
    row = ((own >= first) & (own < first + lower.shape[1])).nonzero().flatten()
    lower[row, own[row] - first] = torch.inf


def _decide(smallest: _Smallest, frame: Frame, cloud: Cloud, queries: Tensor, own: Tensor) -> Neighbours:
    """The k nearest points by float64 distances, from the k + 1 smallest lower bounds of each query."""
    k = smallest.bounds.shape[1] - 1
    # Sorted by index, so that the stable sorts by distance leave ties in order of the index.
    indices = smallest.indices[:, :k].sort(dim=1).values
    query = torch.arange(len(queries)).repeat_interleave(k)
    exact = squared_distances(queries, cloud.points, query, indices.flatten())
    squared, order = exact.view(-1, k).sort(dim=1, stable=True)
    indices = indices.gather(1, order)

    # The limit of a query is the largest exact distance of the k points with the smallest bounds. All other points have
    # bounds of at least the (k + 1)-th. If that is above the limit, these k are the nearest. If not, the query is
    # contested, and all points whose bound is at most the limit are compared exactly. Nothing is nearer than 0.
    limits = cloud.scaled(squared[:, -1])
    contested = ((limits > 0) & (smallest.bounds[:, k] <= limits)).nonzero().flatten()
    for part in _tiles(len(contested)):
        numbers = contested[part]
        rows_cloud = frame.cloud(queries[numbers])
        pairs = []
        for other in _tiles(len(cloud.points)):
            lower = rows_cloud.lower(cloud[other])
            _exclude(lower, own[numbers], other.start)
            candidates = (lower <= limits[numbers, None].to(lower.dtype)).nonzero()
            pairs.append(candidates + torch.tensor([0, other.start]))
        row, column = torch.cat(pairs).unbind(dim=1)
        exact = squared_distances(rows_cloud.points, cloud.points, row, column)
        # Sorted by row, then by distance, then by column: the first k of each row are its neighbours.
        order = exact.argsort(stable=True)
        order = order[row[order].argsort(stable=True)]
        counts = row.bincount(minlength=len(numbers))
        first_k = order[(counts.cumsum(0) - counts)[:, None] + torch.arange(k)]
        squared[numbers], indices[numbers] = exact[first_k], column[first_k]
    return Neighbours(squared, indices)


def _inside(rows_cloud: Cloud, cloud: Cloud, lower: Tensor, radii: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of the pairs of a tile whose squared distance is at most the radius.

    Args:
        rows_cloud, cloud: the points of the tile's rows and columns.
        lower: their bounds `[N, M]`.
        radii: squared, `[N, 1]` or `[1, M]`.
    """
    row, column = (lower <= cloud.scaled(radii).to(lower.dtype)).nonzero(as_tuple=True)
    limits = radii.expand(lower.shape)[row, column]
    # The upper bound proves most pairs to be inside; only the rest needs the slow exact distance.
    inside = lower[row, column] + rows_cloud.slack[row] + cloud.slack[column] <= cloud.scaled(limits)
    doubtful = (~inside).nonzero().flatten()
    exact = squared_distances(rows_cloud.points, cloud.points, row[doubtful], column[doubtful])
    inside[doubtful] = exact <= limits[doubtful]
    return row[inside], column[inside]


def _tiles(count: int, start: int = 0) -> Iterator[slice]:
    return slices(count, _TILE, start)


def _check(k: int, available: int) -> None:
    if not 1 <= k <= available:
        raise DataError(
            f"k={k} nearest neighbours among {available} points: take 1 <= k <= {available}, or more points"
        )
