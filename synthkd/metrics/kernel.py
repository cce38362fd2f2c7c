"""Kernel distance: the squared maximum mean discrepancy under (x.y / D + 1)^3, the KID of Binkowski et al. (2018).

It is the unbiased U-statistic: pairs within a side leave out each sample's pair with itself. Its expectation is 0 for
equal distributions, so values below 0 are right and are not clipped.

The kernel of all pairs is made tile by tile and never stored, each pair once. Products of a tile with 0/1 indicators of
subsets give the distance of every subset; sums over its rows, columns and squares give that of all samples and its
standard error.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from synthkd.errors import ConfigError, DataError
from synthkd.metrics.arrays import Array, rows, same_width
from synthkd.rng import stream

_BLOCK = 1024  # rows and columns of the largest part of the kernel that is ever held
_ELEMENTWISE = 200  # what cubing an entry costs, in multiplications of a matrix product, about
_Tile = tuple[slice, slice, Tensor]  # rows and columns of the whole kernel, and its entries there


@dataclass(frozen=True)
class KernelDistance:
    """Kernel distance over random subsets.

    Attributes:
        mean: of the subsets.
        std: over the subsets, divided by their number (ddof 0); 0 for one subset. It is the spread of a distance of
            `subset_size` samples, not the error of the mean.
        subsets: how many.
        subset_size: samples of each side in each.
    """

    mean: float
    std: float
    subsets: int
    subset_size: int


@dataclass(frozen=True)
class KernelDistances:
    """Kernel distance of all samples, how sure it is, and that of random subsets.

    Attributes:
        value: as `kernel_distance`.
        standard_error: of `value`, for draws of both sides. Hoeffding's decomposition of the U-statistic is exact here:
            `4 / n` times the variance of `E k(x, own side) - E k(x, other side)` over each side, and of second order
            the variances of what no single sample explains of `k`. Without the second order, equal distributions, whose
            first order vanishes, would get an error that can be far too small; with it the error is right in the middle
            there and rather too large on average. With few samples of heavy tails, which the cube makes heavier, it is
            often too small.
        spread: as `kernel_distance_subsets`.
    """

    value: float
    standard_error: float
    spread: KernelDistance


def kernel_distances(a: Array, b: Array, subsets: int = 100, subset_size: int = 1000, seed: int = 0) -> KernelDistances:
    """`kernel_distance` with its standard error and `kernel_distance_subsets`, from one pass over all pairs.

    It costs little more than the exact distance alone.

    Args:
        a, b, subsets, subset_size, seed: as for `kernel_distance_subsets`.

    Raises:
        ConfigError, DataError: as `kernel_distance_subsets`.
    """
    first, second = _pair(a, b)
    left, right = _subsets(len(first), len(second), subsets, subset_size, seed)
    u, v = _indicators(len(first), left), _indicators(len(second), right)
    own, other = _sums(_within(first), u, u), _sums(_within(second), v, v)
    across = _sums(_across(first, second), u, v)
    total = _unbiased(own.rows.sum(), other.rows.sum(), across.rows.sum(), len(first), len(second))
    of_subsets = _unbiased(own.weighted, other.weighted, across.weighted, subset_size, subset_size)
    return KernelDistances(float(total), _standard_error(own, other, across), _spread(of_subsets, subset_size))


def kernel_distance(a: Array, b: Array) -> float:
    """Exact, unbiased kernel distance of all samples: every pair once, in blocks, so memory stays bounded.

    This has the least variance; subsets add noise and are there for the spread.

    Args:
        a, b: `[N, D]`, any real dtype, at least 2 rows each; N may differ.

    Raises:
        DataError: too few rows, different widths, or values that are not finite.
    """
    return _distance(*_pair(a, b))


def kernel_distance_subsets(
    a: Array, b: Array, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> KernelDistance:
    """Kernel distance of random subsets, drawn from each side without replacement: its mean and spread.

    Args:
        a, b: `[N, D]`, any real dtype, at least `subset_size` rows each; N may differ.
        subsets: how many, at least 1.
        subset_size: samples of each side in a subset, at least 2.
        seed: of the draws; the same seed gives the same result.

    Raises:
        ConfigError: `subsets` or `subset_size` too small.
        DataError: fewer samples than `subset_size`, different widths, or values that are not finite.
    """
    first, second = _pair(a, b)
    left, right = _subsets(len(first), len(second), subsets, subset_size, seed)
    # Each pair of the whole sets is cubed once and then weighted for every subset; each pair within a subset is only
    # cubed, but again in every subset.
    cubing = first.shape[1] + _ELEMENTWISE
    whole = (len(first) + len(second)) ** 2 * (cubing + subsets)
    apart = (2 * subset_size) ** 2 * subsets * cubing
    values = (_by_indicators if whole < apart else _by_subset)(first, second, left, right)
    return _spread(values, subset_size)


def _pair(a: Array, b: Array) -> tuple[Tensor, Tensor]:
    first, second = rows(a, "a", 2), rows(b, "b", 2)
    same_width(first, second, "a and b")
    return first, second


def _subsets(n_a: int, n_b: int, subsets: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """The rows of each side in every subset, int64 `[S, size]`."""
    if subsets < 1 or size < 2:
        raise ConfigError(f"kernel distance: need subsets >= 1 and subset_size >= 2, got {subsets} and {size}")
    fewest = min(n_a, n_b)
    if fewest < size:
        raise DataError(
            f"kernel distance: subset_size {size} is more than the {fewest} samples of one side; set it to "
            f"{fewest} or less, or use kernel_distance, which takes all samples"
        )
    drawn = [_draw(n_a, n_b, size, seed, subset) for subset in range(subsets)]
    return torch.stack([one for one, _ in drawn]), torch.stack([other for _, other in drawn])


def _draw(n_a: int, n_b: int, size: int, seed: int, subset: int) -> tuple[Tensor, Tensor]:
    rng = stream(seed, "kernel distance subsets", subset)
    return torch.randperm(n_a, generator=rng)[:size], torch.randperm(n_b, generator=rng)[:size]


def _indicators(n: int, chosen: Tensor) -> Tensor:
    """1 where the row is in the subset, float64 `[n, S]`."""
    return torch.zeros(n, len(chosen), dtype=torch.float64).scatter_(0, chosen.T, 1.0)


def _by_subset(a: Tensor, b: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Distances `[S]` of the subsets with rows `left`, `right` int64 `[S, m]`, one after the other."""
    values = [_distance(a[one], b[other]) for one, other in zip(left, right, strict=True)]
    return torch.tensor(values, dtype=torch.float64)


def _by_indicators(a: Tensor, b: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """The same from one pass over all pairs."""
    size = left.shape[1]
    return _of_columns(a, b, _indicators(len(a), left), _indicators(len(b), right), size, size)


def _distance(a: Tensor, b: Tensor) -> float:
    return float(_of_columns(a, b, a.new_ones(len(a), 1), b.new_ones(len(b), 1), len(a), len(b)))


def _of_columns(a: Tensor, b: Tensor, u: Tensor, v: Tensor, n: int, m: int) -> Tensor:
    """Distances `[S]` of the n and m samples that each column of u `[N_a, S]` and v `[N_b, S]` picks."""
    within = _weighted(_within(a), u, u), _weighted(_within(b), v, v)
    return _unbiased(*within, _weighted(_across(a, b), u, v), n, m)


def _unbiased(a: Tensor, b: Tensor, across: Tensor, n: int, m: int) -> Tensor:
    """The distance from the kernel's sums over the pairs within and across sides of n and m samples."""
    return 2.0 * (a / (n * (n - 1)) + b / (m * (m - 1)) - across / (n * m))


def _spread(values: Tensor, size: int) -> KernelDistance:
    return KernelDistance(float(values.mean()), float(values.std(correction=0)), len(values), size)


@dataclass(frozen=True)
class _Sums:
    """Sums over pairs, within one side (each pair in one order) or across.

    Attributes:
        rows: of the kernel of each left sample with its right ones, `[N]`.
        columns: of each right sample with its left ones, `[M]`.
        squares: of the squared kernel, of all pairs.
        weighted: of the pairs in each subset, `[S]`.
    """

    rows: Tensor
    columns: Tensor
    squares: float
    weighted: Tensor


def _sums(tiles: Iterator[_Tile], u: Tensor, v: Tensor) -> _Sums:
    """All sums over the tiles; a subset's sum is u^T K v with its indicators, columns of u `[N, S]` and v `[M, S]`."""
    rows, columns, squares = u.new_zeros(len(u)), v.new_zeros(len(v)), 0.0

    def seen() -> Iterator[_Tile]:
        nonlocal squares
        for row, column, kernel in tiles:
            rows[row] += kernel.sum(dim=1)
            columns[column] += kernel.sum(dim=0)
            squares += float(torch.linalg.vector_norm(kernel)) ** 2
            yield row, column, kernel

    weighted = _weighted(seen(), u, v)
    return _Sums(rows, columns, squares, weighted)


def _weighted(tiles: Iterator[_Tile], u: Tensor, v: Tensor) -> Tensor:
    """u^T K v of each pair of columns, `[S]`."""
    total = u.new_zeros(u.shape[1])
    for row, column, kernel in tiles:
        total += (u[row] * (kernel @ v[column])).sum(dim=0)
    return total


def _standard_error(a: _Sums, b: _Sums, across: _Sums) -> float:
    """See `KernelDistances`; the variances that the sides' finite numbers add to the first order are taken off it."""
    n, m = len(a.rows), len(b.rows)
    mean_a, mean_b = (a.rows + a.columns) / (n - 1), (b.rows + b.columns) / (m - 1)
    to_b, to_a = across.rows / m, across.columns / n
    rest_a = _unexplained(2 * a.squares / (n * (n - 1)), mean_a, mean_a)
    rest_b = _unexplained(2 * b.squares / (m * (m - 1)), mean_b, mean_b)
    rest_across = _unexplained(across.squares / (n * m), to_b, to_a)
    first_a = max(0.0, float((mean_a - to_b).var()) - rest_a / (n - 1) - rest_across / m)
    first_b = max(0.0, float((mean_b - to_a).var()) - rest_b / (m - 1) - rest_across / n)
    second = 2 * rest_a / (n * (n - 1)) + 2 * rest_b / (m * (m - 1)) + 4 * rest_across / (n * m)
    return math.sqrt(4 * first_a / n + 4 * first_b / m + second)


def _unexplained(mean_square: float, left: Tensor, right: Tensor) -> float:
    """Variance of the kernel that is left when the means of each left and of each right sample are taken off."""
    return max(0.0, mean_square - float(left.mean()) ** 2 - float(left.var()) - float(right.var()))


def _within(x: Tensor, start: int = 0) -> Iterator[_Tile]:
    """Tiles of one side with itself, with 0 on and below the diagonal; the rows of x are numbered from `start`."""
    if len(x) <= _BLOCK // 2:
        own = slice(start, start + len(x))
        yield own, own, _kernel(x, x).triu_(1)
        return
    half = len(x) // 2
    yield from _within(x[:half], start)
    yield from _within(x[half:], start + half)
    yield from _across(x[:half], x[half:], start, start + half)


def _across(x: Tensor, y: Tensor, start: int = 0, other: int = 0) -> Iterator[_Tile]:
    """Tiles of two different sets, whose rows are numbered from `start` and from `other`."""
    for left in x.split(_BLOCK):
        first = other
        for right in y.split(_BLOCK):
            yield slice(start, start + len(left)), slice(first, first + len(right)), _kernel(left, right)
            first += len(right)
        start += len(left)


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T).div_(x.shape[1]).add_(1.0).pow_(3)
