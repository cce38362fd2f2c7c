"""Slow, obvious versions of what synthkd computes fast; exact where the arithmetic allows it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import mpmath
import numpy as np
from numpy.typing import NDArray

Rows = Sequence[Sequence[float]]


def exact_moments(values: Rows) -> tuple[list[Fraction], list[list[Fraction]]]:
    """Mean and unbiased covariance in rational arithmetic: no rounding at all."""
    table = [[Fraction(x) for x in row] for row in values]
    n, width = len(table), len(table[0])
    mean = [sum(row[i] for row in table) / n for i in range(width)]
    centred = [[x - m for x, m in zip(row, mean, strict=True)] for row in table]
    covariance = [[sum(row[i] * row[j] for row in centred) / (n - 1) for j in range(width)] for i in range(width)]
    return mean, covariance


def exact_frechet(mean_a: Sequence[Fraction], cov_a: Rows, mean_b: Sequence[Fraction], cov_b: Rows) -> float:
    """Frechet distance by symmetric square roots with 60 digits, enough for singular covariances."""
    with mpmath.workdps(60):
        first, second = _matrix(cov_a), _matrix(cov_b)
        values, vectors = mpmath.eigsy(first)
        root = vectors * mpmath.diag([mpmath.sqrt(max(value, 0)) for value in values]) * vectors.T
        product = root * second * root
        cross = sum(mpmath.sqrt(max(value, 0)) for value in mpmath.eigsy((product + product.T) / 2, eigvals_only=True))
        gap = sum((_number(a) - _number(b)) ** 2 for a, b in zip(mean_a, mean_b, strict=True))
        traces = sum(first[i, i] + second[i, i] for i in range(first.rows))
        return float(gap + traces - 2 * cross)


def exact_frechet_of_features(a: Rows, b: Rows) -> float:
    """The same of two sets of features, whose moments are taken without rounding."""
    return exact_frechet(*exact_moments(a), *exact_moments(b))


def exact_kernel_distance(a: Rows, b: Rows) -> Fraction:
    """Unbiased MMD^2 under (x.y / D + 1)^3, pair by pair, in rational arithmetic."""
    first, second = ([[Fraction(x) for x in row] for row in side] for side in (a, b))

    def kernel(x: list[Fraction], y: list[Fraction]) -> Fraction:
        return (sum(p * q for p, q in zip(x, y, strict=True)) / len(x) + 1) ** 3

    def within(side: list[list[Fraction]]) -> Fraction:
        pairs = [kernel(x, y) for i, x in enumerate(side) for j, y in enumerate(side) if i != j]
        return sum(pairs, Fraction(0)) / len(pairs)

    across = [kernel(x, y) for x in first for y in second]
    return within(first) + within(second) - 2 * sum(across, Fraction(0)) / len(across)


def slow_inception_scores(probabilities: Rows, splits: int) -> list[float]:
    """Inception score of each part: KL divergences one by one, from the definition."""
    n = len(probabilities)
    scores = []
    for part in range(splits):
        rows = probabilities[part * n // splits : (part + 1) * n // splits]
        marginal = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        divergences = [
            sum(p * (math.log(p) - math.log(q)) for p, q in zip(row, marginal, strict=True) if p > 0) for row in rows
        ]
        scores.append(math.exp(sum(divergences) / len(rows)))
    return scores


def optimal_transport_pair(
    n: int, width: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], float, Callable[[NDArray[np.float64]], NDArray[np.float64]]]:
    """Features a, their image b under a linear optimal transport map, the exact Frechet distance, and the map.

    A symmetric positive definite map is the gradient of a convex function, so moving each sample there is optimal
    (Brenier), and the covariances are S and T S T whatever their rank: the squared distance is the mean squared move,
    here with n - 1 for the centred part as in the covariances.
    """
    rng = np.random.default_rng(seed)
    root = np.eye(width) + 0.3 * rng.standard_normal((width, width)) / width**0.5
    matrix, shift = root @ root.T, rng.standard_normal(width)

    def transport(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return x @ matrix + shift

    a = rng.standard_normal((n, width)) / np.arange(1, width + 1) ** 0.5
    b = transport(a)
    move = b - a
    gap = move.mean(0)
    exact = float(gap @ gap + ((move - gap) ** 2).sum() / (n - 1))
    return a, b, exact, transport


def _matrix(values: Rows) -> mpmath.matrix:
    return mpmath.matrix([[_number(x) for x in row] for row in values])


def _number(value: float | Fraction) -> mpmath.mpf:
    exact = Fraction(value)
    return mpmath.mpf(exact.numerator) / mpmath.mpf(exact.denominator)
