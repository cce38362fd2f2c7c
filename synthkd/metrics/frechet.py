"""Frechet distance of two sets of features, each taken as a Gaussian (Dowson and Landau 1982; Heusel et al. 2017).

    |mean_a - mean_b|^2 + tr S_a + tr S_b - 2 tr (S_a S_b)^(1/2)

`synthkd.metrics.covariance` computes the three traces from factors of the covariances S.
"""

from __future__ import annotations

import logging
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from synthkd.errors import DataError
from synthkd.metrics.arrays import Array, one_thread, pair, rows, same_width, subsample
from synthkd.metrics.covariance import (
    Factor,
    checked_factor,
    eigh,
    factor_of_centred,
    factor_of_covariance,
    factor_of_features,
    trace_term,
)
from synthkd.metrics.statistics import FeatureStatistics
from synthkd.rng import stream
from synthkd.system.shares import ALONE, Shares

LOG = logging.getLogger(__name__)

_POINTS = 15  # points of the line of `frechet_distance_infinity`
_LINE = 1e-5  # tolerance of these points, whose scatter is far larger
_WORKERS = 4  # threads that compute them; more would need more memory, for a subset and a few matrices [D, D] each
_ASYMMETRY = 1e-5  # accepted asymmetry over the largest entry; covariances computed in float32 stay far below


@dataclass(frozen=True)
class FrechetInfinity:
    """The distance extrapolated to infinitely many samples, with the points of the line.

    Attributes:
        value: intercept of the line through the distances against 1 / size. It may be negative if the truth is near 0.
        standard_error: of the intercept, from the scatter of the points about the line. All points are subsets of one
            sample, so the error does not include the chance in drawing that sample.
        slope: of the line; the bias of a distance of n generated samples is about slope / n.
        sizes: generated samples in each subset, increasing; the last is all of them.
        distances: Frechet distance of each subset.
    """

    value: float
    standard_error: float
    slope: float
    sizes: tuple[int, ...]
    distances: tuple[float, ...]


def frechet_distance(mean_a: Array, cov_a: Array, mean_b: Array, cov_b: Array, *, tolerance: float = 1e-9) -> float:
    """Frechet distance of two Gaussians, exact for singular covariances too.

    Nothing is added to the covariances. Their eigenvalues below D times the rounding of the largest count as 0.

    Args:
        mean_a, mean_b: `[D]`.
        cov_a, cov_b: `[D, D]`, symmetric and positive semidefinite. Give float64: in float32, singular covariances have
            noise in place of zero eigenvalues.
        tolerance: relative error that rounding may leave. With 1e-5, ill-conditioned covariances take less time.

    Returns:
        0 or more.

    Raises:
        DataError: shapes that do not fit, values that are not finite, or a matrix that is no covariance.
    """
    first_mean, first = _moments(mean_a, cov_a, "a")
    second_mean, second = _moments(mean_b, cov_b, "b")
    same_width(first, second, "a and b")
    with one_thread():
        traces = trace_term(checked_factor(first, "a"), checked_factor(second, "b"), tolerance)
    return float((first_mean - second_mean).square().sum()) + traces


def frechet_distance_from_features(
    a: Array, b: Array, *, tolerance: float = 1e-9, warn: bool = True, shares: Shares = ALONE
) -> float:
    """Frechet distance of two sets of features, with unbiased covariances.

    The distance of finite samples is biased upwards; with fewer than 2 D samples on a side a warning is logged.

    Args:
        a, b: features `[N, D]` and `[M, D]`, any real dtype, at least 2 rows each.
        tolerance: as for `frechet_distance`.
        warn: False if the caller shows the text of `few_samples` itself.
        shares: the processes, all of which have all features.

    Raises:
        DataError: too few rows, different widths, or values that are not finite.
    """
    first, second = pair(a, b, least=2)
    if warn:
        _warn_of_few(first, second)
    with one_thread():
        return _from_features(first, second, tolerance, shares)


def frechet_standard_error(a: Array, b: Array, shares: Shares = ALONE, counts: tuple[int, int] | None = None) -> float:
    """Standard error of `frechet_distance_from_features(a, b)`, to first order in the influence of each sample.

    It does not include the bias. In simulations with 16 to 256 dimensions and 130 to 2,000 samples, some with fewer
    samples than dimensions, it was 0.87 to 1.15 times the true standard deviation. For two samples of one distribution
    it is 1.2 to 1.6 times too large: there the distance is all bias, and its first-order term is 0.

    Args:
        a, b: features `[N, D]` and `[M, D]`, any real dtype, at least 2 rows each.
        shares: the processes, all of which have all features.
        counts: numbers of samples of the distance, of which a and b are some; None: a and b are all.

    Raises:
        DataError: too few rows, different widths, or values that are not finite.
    """
    first, second = pair(a, b, least=2)
    gap = first.mean(dim=0) - second.mean(dim=0)
    first, second = first - first.mean(dim=0), second - second.mean(dim=0)
    with one_thread():
        one, other = factor_of_centred(first, shares), factor_of_centred(second, shares)
        product = one.matrix @ other.matrix.T
        variance = 0.0
        # A centred sample x of a changes the distance by (2 (mean_a - mean_b).x + |x|^2 - x^T T x) / n, less the mean
        # of that over a. T is the optimal transport map from a to b: a change dS of S_a changes the trace of
        # (S_a^(1/2) S_b S_a^(1/2))^(1/2) by tr(T dS) / 2. Only the weights of the samples change, never their span, so
        # this holds for covariances of any rank.
        n, m = counts or (len(first), len(second))
        for centred, factor, forth, way, count in ((first, one, product, gap, n), (second, other, product.T, -gap, m)):
            influence = 2.0 * (centred @ way) + centred.square().sum(dim=1)
            influence -= _transported(centred, factor, forth, shares)
            variance += float(influence.var()) / count
    return math.sqrt(variance)


def frechet_distance_infinity(
    real: Array, generated: Array, seed: int = 0, *, warn: bool = True, shares: Shares = ALONE
) -> FrechetInfinity:
    """The distance without its bias of finite samples: FD_infinity of Chong and Forsyth (2020).

    It is the value at 0 of a line through the distances of random subsets of 15 sizes against 1 / size. Sizes go from a
    tenth of the samples (or 2 D if that is more, but half at most) to all. The paper subsamples the generated side
    only; here a subset has the same share of both sides, so that the bias of both vanishes. The bias is linear in 1 / n
    only for n well above D: with fewer than 2 D samples a warning is logged, and the value is not to be trusted.

    Args:
        real, generated: features `[N, D]` and `[M, D]`, any real dtype, at least 30 rows each.
        seed: of the subsets.
        warn: False if the caller shows the text of `few_samples` itself.
        shares: the processes, all of which have all features; each takes some of the subsets.

    Raises:
        DataError: too few rows, different widths, or values that are not finite.
    """
    from scipy.stats import linregress

    first, second = pair(real, generated, ("real", "generated"), 2 * _POINTS)
    if warn:
        _warn_of_few(first, second)
    fewest, width = min(len(first), len(second)), first.shape[1]
    # With fewer than 2 D samples the bias is not linear in 1 / n, so such subsets are avoided as far as possible.
    of_all = np.linspace(max(0.1, min(2 * width / fewest, 0.5)), 1.0, _POINTS)

    def point(index: int) -> tuple[int, int, float]:
        # A stream of its own for each point: the points run in parallel, in any order.
        rng = stream(seed, "frechet infinity", index)
        counts = [round(of_all[index] * len(x)) for x in (first, second)]
        if min(counts) > width:
            sides = zip((first, second), wholes, counts, strict=True)
            one, other = (_of_some(*side, rng) for side in sides)
            return index, counts[1], _from_statistics(one, other, _LINE)
        one_part, other_part = (subsample(x, count, rng) for x, count in zip((first, second), counts, strict=True))
        return index, counts[1], _from_features(one_part, other_part, _LINE)

    # Points run in parallel, each on one thread, since a factorisation gains little from more threads.
    workers = min(torch.get_num_threads(), _WORKERS)
    with one_thread(), ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        wholes = [FeatureStatistics.shared(x, shares) for x in (first, second)] if fewest > width else []
        mine = list(pool.map(point, shares.turns(range(_POINTS))))
        _, sizes, distances = zip(*sorted(chain.from_iterable(shares.values(mine))), strict=True)
    line = linregress(1.0 / np.array(sizes), distances)
    return FrechetInfinity(
        value=float(line.intercept),
        # For equal distances scipy returns NaN, but the line fits them without error.
        standard_error=float(line.intercept_stderr) if len(set(distances)) > 1 else 0.0,
        slope=float(line.slope),
        sizes=sizes,
        distances=distances,
    )


def few_samples(n: int, width: int) -> str:
    """A note if a covariance of `width` dimensions is estimated from fewer than twice as many samples, else ""."""
    if n >= 2 * width:
        return ""
    enough = f"compare equal n only, or use at least {2 * width:,}"
    return f"{n:,} samples in {width:,} dimensions are few: biased upwards, {enough}"


def _warn_of_few(first: Tensor, second: Tensor) -> None:
    if few := few_samples(min(len(first), len(second)), first.shape[1]):
        LOG.warning("Frechet distance: %s; the kernel distance has no such bias", few)


def _from_features(first: Tensor, second: Tensor, tolerance: float, shares: Shares = ALONE) -> float:
    if min(len(first), len(second)) > first.shape[1]:
        one, other = (FeatureStatistics.shared(side, shares) for side in (first, second))
        return _from_statistics(one, other, tolerance)
    # With no more samples than dimensions the samples are the smaller factor. It is exact, and many times faster than
    # the D x D covariance, which would be singular.
    gap = first.mean(dim=0) - second.mean(dim=0)
    traces = trace_term(factor_of_features(first), factor_of_features(second), tolerance)
    return float(gap.square().sum()) + traces


def _from_statistics(one: FeatureStatistics, other: FeatureStatistics, tolerance: float) -> float:
    gap = one.mean - other.mean
    first, second = (factor_of_covariance(side.covariance).matrix for side in (one, other))
    return float(gap.square().sum()) + trace_term(first, second, tolerance)


def _of_some(features: Tensor, whole: FeatureStatistics, count: int, rng: torch.Generator) -> FeatureStatistics:
    """Statistics of `count` random rows of the features, whose statistics are `whole`."""
    if 2 * count <= len(features):
        return FeatureStatistics().update(subsample(features, count, rng))
    # Most of the time goes into the sum of outer products, which is shorter over the rows that are left out.
    return whole.without(FeatureStatistics().update(subsample(features, len(features) - count, rng)))


def _transported(centred: Tensor, factor: Factor, product: Tensor, shares: Shares) -> Tensor:
    """x^T T x of each row, `[N]`, where T is the optimal transport map to the other side.

    Args:
        centred: rows x of this side, float64 `[N, D]`.
        factor: F of this side.
        product: F G^T, with G the factor of the other side.
        shares: the processes, all of which have all rows.
    """
    # With x = F^T q it is q^T (F G^T G F^T)^(1/2) q = |R^T q|^2, with R the fourth root of that matrix.
    values, vectors = eigh(product @ product.T)
    root = vectors * values.clamp_min(0.0) ** 0.25
    # If F consists of the rows over sqrt(n - 1), q is sqrt(n - 1) times a unit vector.
    if factor.lead is None:
        return (len(centred) - 1) * root.square().sum(dim=1)
    # Otherwise the triangular columns of F give q. They are solved for R once, and not for every row x.
    whitened = root.new_zeros(centred.shape[1], len(root))
    whitened[factor.lead] = torch.linalg.solve_triangular(factor.matrix[:, factor.lead], root, upper=True)
    return shares.rows((centred[shares.span(len(centred))] @ whitened).square_().sum(dim=1))


def _moments(mean: Array, covariance: Array, name: str) -> tuple[Tensor, Tensor]:
    """Mean `[D]` and covariance `[D, D]` as float64; their shapes must fit, and the covariance must be symmetric."""
    matrix = rows(covariance, f"{name} covariance")
    centre = rows(torch.as_tensor(mean)[None], f"{name} mean")[0]
    if matrix.shape != (len(centre), len(centre)):
        raise DataError(
            f"{name}: mean {list(centre.shape)} and covariance {list(matrix.shape)} do not fit; give [D] and [D, D]"
        )
    if float((matrix - matrix.T).abs_().max()) > _ASYMMETRY * float(matrix.diagonal().abs().max()):
        raise DataError(f"{name} covariance: it is not symmetric; give the covariance of the features' columns")
    return centre, matrix
