"""Kernel distance: the squared maximum mean discrepancy under (x.y / D + 1)^3, the KID of Binkowski et al. (2018).

It is the unbiased U-statistic, which leaves out the pair of each sample with itself. Its expectation is 0 for equal
distributions, so values below 0 are correct and are not clipped.

The kernel matrix is computed tile by tile, each pair once, and never stored. Products of a tile with 0/1 indicators of
subsets give the distance of every subset. Sums over a tile's rows, columns and squares give the distance of all samples
and its standard error.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from synthkd.errors import ConfigError, DataError
from synthkd.metrics.arrays import Array, pair
from synthkd.metrics.distances import slices
from synthkd.rng import stream
from synthkd.system.shares import ALONE, Shares

_BLOCK = 1024  # rows and columns of the largest tile, 8 MiB
_ELEMENTWISE = 200  # approximate cost of cubing an entry, in multiply-adds of a matrix product
_Tile = tuple[slice, slice, bool]  # rows and columns of the tile in the whole kernel; whether it is on the diagonal


@dataclass(frozen=True)
class KernelDistance:
    """Kernel distance over random subsets.

    Attributes:
        mean: mean over the subsets.
        std: standard deviation over the subsets with ddof 0; 0 for one subset. It is the spread of distances of
            `subset_size` samples, not the error of the mean.
        subsets: number of subsets.
        subset_size: samples of each side in a subset.
    """

    mean: float
    std: float
    subsets: int
    subset_size: int


@dataclass(frozen=True)
class KernelDistances:
    """Kernel distance of all samples with its standard error, and that of random subsets.

    Attributes:
        value: as from `kernel_distance`.
        standard_error: of `value`, over draws of both sides. For equal distributions its median is right and its mean
            too large. With few samples of heavy tails, which the cube makes heavier, it is often too small.
        spread: as from `kernel_distance_subsets`.
    """

    value: float
    standard_error: float
    spread: KernelDistance


def kernel_distances(
    a: Array, b: Array, subsets: int = 100, subset_size: int = 1000, seed: int = 0, shares: Shares = ALONE
) -> KernelDistances:
    """`kernel_distance` with its standard error and `kernel_distance_subsets`, from one pass over all pairs.

    It takes little more time than the exact distance alone.

    Args:
        a, b, subsets, subset_size, seed: as for `kernel_distance_subsets`.
        shares: the processes, all of which have all features; each takes some of the tiles.

    Raises:
        ConfigError, DataError: as for `kernel_distance_subsets`.
    """
    first, second = pair(a, b, least=2)
    left, right = _subsets(len(first), len(second), subsets, subset_size, seed)
    u, v = _indicators(len(first), left), _indicators(len(second), right)
    own, other = (_sums(x, x, _within(len(x)), w, w, shares) for x, w in ((first, u), (second, v)))
    across = _sums(first, second, _across(len(first), len(second)), u, v, shares)
    total = _unbiased(own.rows.sum(), other.rows.sum(), across.rows.sum(), len(first), len(second))
    of_subsets = _unbiased(own.weighted, other.weighted, across.weighted, subset_size, subset_size)
    return KernelDistances(float(total), _standard_error(own, other, across), _spread(of_subsets, subset_size))


def kernel_distance(a: Array, b: Array) -> float:
    """Unbiased kernel distance of all samples, in bounded memory.

    Its variance is smaller than that of a mean over subsets, which show the spread.

    Args:
        a, b: features `[N, D]` and `[M, D]`, any real dtype, at least 2 rows each.

    Raises:
        DataError: too few rows, different widths, or values that are not finite.
    """
    return _distance(*pair(a, b, least=2))


def kernel_distance_subsets(
    a: Array, b: Array, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> KernelDistance:
    """Mean and spread of the kernel distance over random subsets, drawn from each side without replacement.

    Args:
        a, b: features `[N, D]` and `[M, D]`, any real dtype, at least `subset_size` rows each.
        subsets: number of subsets, at least 1.
        subset_size: samples of each side in a subset, at least 2.
        seed: of the draws.

    Raises:
        ConfigError: `subsets` or `subset_size` is too small.
        DataError: fewer samples than `subset_size`, different widths, or values that are not finite.
    """
    first, second = pair(a, b, least=2)
    left, right = _subsets(len(first), len(second), subsets, subset_size, seed)
    # Two ways give the same result, and the cheaper one is taken. By indicators, each pair of the whole sets is cubed
    # once and then weighted for every subset. By subset, only pairs within a subset are cubed, but again in each.
    cubing = first.shape[1] + _ELEMENTWISE
    whole = (len(first) + len(second)) ** 2 * (cubing + subsets)
    apart = (2 * subset_size) ** 2 * subsets * cubing
    values = (_by_indicators if whole < apart else _by_subset)(first, second, left, right)
    return _spread(values, subset_size)


def _subsets(n_a: int, n_b: int, subsets: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Row numbers of every subset, int64 `[S, size]` for each side."""
    if subsets < 1 or size < 2:
        raise ConfigError(f"kernel distance: need subsets >= 1 and subset_size >= 2, got {subsets} and {size}")
    fewest = min(n_a, n_b)
    if fewest < size:
        raise DataError(
            f"kernel distance: subset_size {size} is more than the {fewest} samples of one side; set it to "
            f"{fewest} or less, or use kernel_distance, which takes all samples"
        )
    left, right = zip(*(_draw(n_a, n_b, size, seed, subset) for subset in range(subsets)), strict=True)
    return torch.stack(left), torch.stack(right)


def _draw(n_a: int, n_b: int, size: int, seed: int, subset: int) -> tuple[Tensor, Tensor]:
    # A stream for each subset: the first subsets do not depend on how many there are.
    rng = stream(seed, "kernel distance subsets", subset)
    return torch.randperm(n_a, generator=rng)[:size], torch.randperm(n_b, generator=rng)[:size]


def _indicators(n: int, subsets: Tensor) -> Tensor:
    """float64 `[n, S]`, 1 where the row is in the subset; from row numbers int64 `[S, size]`."""
    return torch.zeros(n, len(subsets), dtype=torch.float64).scatter_(0, subsets.T, 1.0)


def _by_subset(a: Tensor, b: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Distances `[S]` of the subsets with rows `left` and `right`, int64 `[S, size]`, one subset at a time."""
    values = [_distance(a[one], b[other]) for one, other in zip(left, right, strict=True)]
    return torch.tensor(values, dtype=torch.float64)


def _by_indicators(a: Tensor, b: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """The same as `_by_subset`, from one pass over all pairs."""
    size = left.shape[1]
    return _of_columns(a, b, _indicators(len(a), left), _indicators(len(b), right), size, size)


def _distance(a: Tensor, b: Tensor) -> float:
    return float(_of_columns(a, b, a.new_ones(len(a), 1), b.new_ones(len(b), 1), len(a), len(b)))


def _of_columns(a: Tensor, b: Tensor, u: Tensor, v: Tensor, n: int, m: int) -> Tensor:
    """Distances `[S]` of the n and m samples that each column of the indicators u `[N, S]` and v `[M, S]` selects."""
    within = _weighted(a, a, _within(len(a)), u, u), _weighted(b, b, _within(len(b)), v, v)
    return _unbiased(*within, _weighted(a, b, _across(len(a), len(b)), u, v), n, m)


def _unbiased(a: Tensor, b: Tensor, across: Tensor, n: int, m: int) -> Tensor:
    """The distance from sums of the kernel over the pairs within either side, each pair once, and across sides."""
    # mean within a + mean within b - 2 mean across; a side of n samples has n (n - 1) / 2 pairs
    return 2.0 * (a / (n * (n - 1)) + b / (m * (m - 1)) - across / (n * m))


def _spread(values: Tensor, size: int) -> KernelDistance:
    return KernelDistance(float(values.mean()), float(values.std(correction=0)), len(values), size)


@dataclass(frozen=True)
class _Sums:
    """Sums of the kernel over pairs of a left and a right sample, within one side (each pair once) or across sides.

    Attributes:
        rows: `[N]`, over the pairs of each left sample.
        columns: `[M]`, over the pairs of each right sample.
        squares: sum of the squared kernel over all pairs.
        weighted: `[S]`, over the pairs in each subset.
    """

    rows: Tensor
    columns: Tensor
    squares: float
    weighted: Tensor


def _sums(x: Tensor, y: Tensor, tiles: Iterator[_Tile], u: Tensor, v: Tensor, shares: Shares) -> _Sums:
    """All sums in one pass; columns of the indicators u `[N, S]` and v `[M, S]` select the subsets."""
    rows, columns, squares, weighted = u.new_zeros(len(u)), v.new_zeros(len(v)), 0.0, u.new_zeros(u.shape[1])
    for row, column, kernel in _kernels(x, y, shares.turns(tiles)):
        rows[row] += kernel.sum(dim=1)
        columns[column] += kernel.sum(dim=0)
        squares += float(torch.linalg.vector_norm(kernel)) ** 2
        weighted += _weigh(kernel, u[row], v[column])
    total = shares.sum(torch.tensor([squares], dtype=torch.float64))
    return _Sums(shares.sum(rows), shares.sum(columns), float(total), shares.sum(weighted))


def _weighted(x: Tensor, y: Tensor, tiles: Iterator[_Tile], u: Tensor, v: Tensor) -> Tensor:
    """The sum `weighted` alone."""
    total = u.new_zeros(u.shape[1])
    for row, column, kernel in _kernels(x, y, tiles):
        total += _weigh(kernel, u[row], v[column])
    return total


def _weigh(kernel: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """u^T K v of each pair of columns, `[S]`."""
    return (u * (kernel @ v)).sum(dim=0)


def _standard_error(a: _Sums, b: _Sums, across: _Sums) -> float:
    """Standard error of the distance of all samples, by Hoeffding's decomposition of the U-statistic in two orders."""
    n, m = len(a.rows), len(b.rows)
    # mean kernel of each sample with the others of its side, and with the other side
    mean_a, mean_b = (a.rows + a.columns) / (n - 1), (b.rows + b.columns) / (m - 1)
    to_b, to_a = across.rows / m, across.columns / n
    # Second order: the variance of the part of the kernel that no single sample explains. For equal distributions the
    # first order is 0, and without the second the error would be far too small.
    rest_a = _unexplained(2 * a.squares / (n * (n - 1)), mean_a, mean_a)
    rest_b = _unexplained(2 * b.squares / (m * (m - 1)), mean_b, mean_b)
    rest_across = _unexplained(across.squares / (n * m), to_b, to_a)
    # First order: the variance of E k(x, own side) - E k(x, other side) over each side. The means are over finitely
    # many samples, which adds to that variance and is subtracted.
    first_a = max(0.0, float((mean_a - to_b).var()) - rest_a / (n - 1) - rest_across / m)
    first_b = max(0.0, float((mean_b - to_a).var()) - rest_b / (m - 1) - rest_across / n)
    second = 2 * rest_a / (n * (n - 1)) + 2 * rest_b / (m * (m - 1)) + 4 * rest_across / (n * m)
    return math.sqrt(4 * first_a / n + 4 * first_b / m + second)


def _unexplained(mean_square: float, left: Tensor, right: Tensor) -> float:
    """Variance of the kernel after subtracting the mean of each left and of each right sample."""
    return max(0.0, mean_square - float(left.mean()) ** 2 - float(left.var()) - float(right.var()))


def _within(count: int, start: int = 0) -> Iterator[_Tile]:
    """Tiles of one side with itself, for each pair of its rows from `start` on one entry above the diagonal."""
    # Zeros cost time too. Halving leaves them to the few small tiles on the diagonal.
    if count <= _BLOCK // 2:
        own = slice(start, start + count)
        yield own, own, True
        return
    half = count // 2
    yield from _within(half, start)
    yield from _within(count - half, start + half)
    yield from _across(half, count - half, start, start + half)


def _across(count: int, others: int, start: int = 0, other: int = 0) -> Iterator[_Tile]:
    """Tiles of two sets, whose rows are numbered from `start` and from `other`."""
    for left in slices(start + count, _BLOCK, start):
        for right in slices(other + others, _BLOCK, other):
            yield left, right, False


def _kernels(x: Tensor, y: Tensor, tiles: Iterator[_Tile]) -> Iterator[tuple[slice, slice, Tensor]]:
    """Tiles with their entries (x.y / D + 1)^3; of a tile on the diagonal those above it, and 0 for the others."""
    for row, column, diagonal in tiles:
        kernel = (x[row] @ y[column].T).div_(x.shape[1]).add_(1.0).pow_(3)
        yield row, column, kernel.triu_(1) if diagonal else kernel
