"""Kernel distance: the squared maximum mean discrepancy under (x.y / D + 1)^3, the KID of Binkowski et al. (2018).

It is the unbiased U-statistic: pairs within a side leave out each sample's pair with itself. Its expectation is 0 for
equal distributions, so values below 0 are right and are not clipped.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from synthkd.errors import ConfigError, DataError
from synthkd.metrics.arrays import Array, rows, same_width
from synthkd.rng import stream

_BLOCK = 1024  # rows and columns of the largest part of the kernel that is ever held
_ELEMENTWISE = 200  # what cubing an entry costs, in multiplications of a matrix product, about


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


def kernel_distance(a: Array, b: Array) -> float:
    """Exact, unbiased kernel distance of all samples: every pair once, in blocks, so memory stays bounded.

    This has the least variance; subsets add noise and are there for the spread.

    Args:
        a, b: `[N, D]`, any real dtype, at least 2 rows each; N may differ.

    Raises:
        DataError: too few rows, different widths, or values that are not finite.
    """
    first, second = _pair(a, b)
    return _distance(first, second)


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
    if subsets < 1 or subset_size < 2:
        raise ConfigError(f"kernel distance: need subsets >= 1 and subset_size >= 2, got {subsets} and {subset_size}")
    first, second = _pair(a, b)
    fewest = min(len(first), len(second))
    if fewest < subset_size:
        raise DataError(
            f"kernel distance: subset_size {subset_size} is more than the {fewest} samples of one side; set it to "
            f"{fewest} or less, or use kernel_distance, which takes all samples"
        )
    drawn = [_draw(len(first), len(second), subset_size, seed, subset) for subset in range(subsets)]
    left, right = torch.stack([one for one, _ in drawn]), torch.stack([other for _, other in drawn])
    # Each pair of the whole sets is cubed once and then weighted for every subset; each pair within a subset is only
    # cubed, but again in every subset.
    cubing = first.shape[1] + _ELEMENTWISE
    whole = (len(first) + len(second)) ** 2 * (cubing + subsets)
    apart = (2 * subset_size) ** 2 * subsets * cubing
    values = (_by_indicators if whole < apart else _by_subset)(first, second, left, right)
    return KernelDistance(float(values.mean()), float(values.std(correction=0)), subsets, subset_size)


def _pair(a: Array, b: Array) -> tuple[Tensor, Tensor]:
    first, second = rows(a, "a", 2), rows(b, "b", 2)
    same_width(first, second, "a and b")
    return first, second


def _draw(n_a: int, n_b: int, size: int, seed: int, subset: int) -> tuple[Tensor, Tensor]:
    rng = stream(seed, "kernel distance subsets", subset)
    return torch.randperm(n_a, generator=rng)[:size], torch.randperm(n_b, generator=rng)[:size]


def _by_subset(a: Tensor, b: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Distances `[S]` of the subsets with rows `left`, `right` int64 `[S, m]`, one after the other."""
    values = [_distance(a[one], b[other]) for one, other in zip(left, right, strict=True)]
    return torch.tensor(values, dtype=torch.float64)


def _by_indicators(a: Tensor, b: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """The same from one pass over all pairs: the sum over a subset's pairs is u^T K v with its 0/1 indicators u, v."""
    u, v = (
        torch.zeros(len(side), len(chosen), dtype=torch.float64).scatter_(0, chosen.T, 1.0)
        for side, chosen in ((a, left), (b, right))
    )
    return _weighted(a, b, u, v)


def _distance(a: Tensor, b: Tensor) -> float:
    return float(_weighted(a, b, a.new_ones(len(a), 1), b.new_ones(len(b), 1)))


def _weighted(a: Tensor, b: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Unbiased distances `[S]` of the subsets that the columns of u `[N_a, S]` and v `[N_b, S]` pick."""
    m, n = u.sum(dim=0), v.sum(dim=0)
    within = _within(a, u) / (m * (m - 1)) + _within(b, v) / (n * (n - 1))
    return within - 2.0 * _across(a, u, b, v) / (m * n)


def _within(x: Tensor, u: Tensor) -> Tensor:
    """u^T K u for each column of u, `[S]`, with 0 on the diagonal of K; K is symmetric, so about half is computed."""
    if len(x) <= _BLOCK // 2:
        return (u * (_kernel(x, x).fill_diagonal_(0.0) @ u)).sum(dim=0)
    half = len(x) // 2
    across = _across(x[:half], u[:half], x[half:], u[half:])
    return _within(x[:half], u[:half]) + _within(x[half:], u[half:]) + 2.0 * across


def _across(x: Tensor, u: Tensor, y: Tensor, v: Tensor) -> Tensor:
    """u^T K v for each pair of columns, `[S]`."""
    total = u.new_zeros(u.shape[1])
    for x_block, u_block in zip(x.split(_BLOCK), u.split(_BLOCK), strict=True):
        for y_block, v_block in zip(y.split(_BLOCK), v.split(_BLOCK), strict=True):
            total += (u_block * (_kernel(x_block, y_block) @ v_block)).sum(dim=0)
    return total


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T).div_(x.shape[1]).add_(1.0).pow_(3)
