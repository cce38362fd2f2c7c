"""Frechet distance of two sets of features, each taken as a Gaussian (Dowson and Landau 1982; Heusel et al. 2017).

    |mean_a - mean_b|^2 + tr S_a + tr S_b - 2 tr (S_a S_b)^(1/2)

With S = F^T F on each side the last trace is the nuclear norm of M = F_a F_b^T. F may come from the samples themselves,
so that singular covariances, and fewer samples than dimensions, need no special care: the three traces together are
the smallest |F_a - Q F_b|^2 over rotations Q, which rounding alone can make negative. Where every singular value of M
is well above rounding they are found faster as roots of the eigenvalues of M M^T.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from scipy.stats import linregress
from torch import Tensor

from synthkd.errors import DataError
from synthkd.metrics.arrays import Array, one_thread, rows, same_width
from synthkd.metrics.statistics import FeatureStatistics
from synthkd.rng import stream

LOG = logging.getLogger(__name__)

_EPS = torch.finfo(torch.float64).eps
_POINTS = 15  # of the line that frechet_distance_infinity draws
_ASYMMETRY = 1e-5  # of the largest entry; covariances made in float32 stay far below
_NEGATIVE = 1e-4  # of the largest eigenvalue, likewise
_DOUBT = 1e-9  # of the result; the rounding that the fast way may leave in it
_BLOCK = 256  # rows of M M^T made at a time


@dataclass(frozen=True)
class FrechetInfinity:
    """The distance extrapolated to infinitely many samples, with the points of the line.

    Attributes:
        value: intercept of the line through distance against 1 / size. May be negative where the truth is near 0.
        standard_error: of the intercept, from the scatter of the points about the line. The points are subsets of one
            sample, so this does not hold the chance in having drawn that sample.
        slope: the bias of a distance of n generated samples is about slope / n.
        sizes: generated samples in each subset, increasing; the last is all of them.
        distances: the Frechet distance of each subset.
    """

    value: float
    standard_error: float
    slope: float
    sizes: tuple[int, ...]
    distances: tuple[float, ...]


def frechet_distance(mean_a: Array, cov_a: Array, mean_b: Array, cov_b: Array) -> float:
    """Frechet distance of two Gaussians, exact for singular covariances too; nothing is added to them.

    Eigenvalues below D times the rounding of the largest count as 0. The result is never negative: what rounding
    leaves below 0 is 0, and what is not a covariance is refused.

    Args:
        mean_a, mean_b: `[D]`.
        cov_a, cov_b: `[D, D]`, symmetric and positive semidefinite; float64, or singular ones keep noise of their own.

    Raises:
        DataError: shapes that do not fit, values that are not finite, or a matrix that is not a covariance.
    """
    first_mean, first = _moments(mean_a, cov_a, "a")
    second_mean, second = _moments(mean_b, cov_b, "b")
    same_width(first, second, "a and b")
    with one_thread():
        spread = _spread(_factor_of_covariance(first, "a"), _factor_of_covariance(second, "b"))
    return float((first_mean - second_mean).square().sum()) + spread


def frechet_distance_from_features(a: Array, b: Array) -> float:
    """Frechet distance of two sets of features, with unbiased covariances.

    Where either side has no more samples than dimensions no covariance is formed: exact, and many times faster. The
    distance of finite samples is biased upwards; with fewer than 2 D samples on a side a warning is logged.

    Args:
        a, b: `[N, D]`, any real dtype, at least 2 rows each; N may differ.

    Raises:
        DataError: too few rows, different widths, or values that are not finite.
    """
    first, second = rows(a, "a", 2), rows(b, "b", 2)
    same_width(first, second, "a and b")
    _warn_of_few(first, second)
    return _from_features(first, second)


def frechet_distance_infinity(real: Array, generated: Array, seed: int = 0) -> FrechetInfinity:
    """The distance without its bias of finite samples: FD_infinity of Chong and Forsyth (2020).

    Random subsets of 15 sizes, a line through their distances against 1 / size, and its value at 0. The paper thins the
    generated side only; here both are thinned by the same share, so that the bias of either leaves. The sizes go from a
    tenth of the samples (from 2 D where that is more, but half at most) to all. The bias is a line in 1 / n only for n
    well above D; with fewer than 2 D samples a warning is logged and the value is not to be trusted.

    Args:
        real, generated: `[N, D]`, any real dtype, at least 30 rows each; N may differ.
        seed: of the subsets; the same seed gives the same result.

    Raises:
        DataError: too few rows, different widths, or values that are not finite.
    """
    first, second = rows(real, "real", 2 * _POINTS), rows(generated, "generated", 2 * _POINTS)
    same_width(first, second, "real and generated")
    _warn_of_few(first, second)
    fewest, width = min(len(first), len(second)), first.shape[1]
    shares = np.linspace(max(0.1, min(2 * width / fewest, 0.5)), 1.0, _POINTS)
    sizes, distances = [], []
    for point, share in enumerate(shares):
        rng = stream(seed, "frechet infinity", point)
        chosen = [torch.randperm(len(x), generator=rng)[: round(share * len(x))] for x in (first, second)]
        sizes.append(len(chosen[1]))
        distances.append(_from_features(first[chosen[0]], second[chosen[1]]))
    line = linregress(1.0 / np.array(sizes), distances)
    return FrechetInfinity(
        value=float(line.intercept),
        standard_error=float(line.intercept_stderr),
        slope=float(line.slope),
        sizes=tuple(sizes),
        distances=tuple(distances),
    )


def _from_features(first: Tensor, second: Tensor) -> float:
    if min(len(first), len(second)) > first.shape[1]:
        one, other = FeatureStatistics().update(first), FeatureStatistics().update(second)
        return frechet_distance(one.mean, one.covariance, other.mean, other.covariance)
    gap = first.mean(dim=0) - second.mean(dim=0)
    with one_thread():
        return float(gap.square().sum()) + _spread(_factor(first), _factor(second))


def _factor(features: Tensor) -> Tensor:
    """F `[min(N - 1, D), D]` with F^T F the covariance of the features, which is not formed."""
    n, width = features.shape
    centred = (features - features.mean(dim=0)) / math.sqrt(n - 1)
    # Reflecting (1, ..., 1) onto the first row empties that row, since centred columns have nothing along it.
    reflected = centred[1:] + centred[0] / (math.sqrt(n) - 1.0)
    if n - 1 <= width:
        return reflected
    factor: Tensor = torch.linalg.qr(reflected, mode="r").R
    return factor


def _factor_of_covariance(covariance: Tensor, name: str) -> Tensor:
    """F `[rank, D]` with F^T F the covariance."""
    upper = _cholesky(covariance)
    if upper is not None:
        return upper
    values, vectors = _eigh(covariance)
    if values[0] < -_NEGATIVE * values[-1].abs():
        raise DataError(
            f"{name} covariance: its eigenvalues go from {float(values[0]):.3g} to {float(values[-1]):.3g}, but none "
            "may be negative; compute it in float64 from the features"
        )
    kept = values > len(values) * _EPS * values[-1]  # the others are rounding
    factor: Tensor = values[kept].sqrt()[:, None] * vectors[:, kept].T
    return factor


def _eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and eigenvectors; by the slower QR iteration where divide and conquer gives up.

    It does give up on covariances of features that are dead or repeated, which have very many eigenvalues of 0.
    """
    try:
        values, vectors = torch.linalg.eigh(matrix)
    except RuntimeError:  # torch.linalg.LinAlgError is one
        values, vectors = (torch.from_numpy(part) for part in scipy.linalg.eigh(matrix.numpy(), driver="ev"))
    return values, vectors


def _cholesky(covariance: Tensor) -> Tensor | None:
    """Upper triangular F with F^T F the covariance, or None where it is singular, even if rounding let it pass.

    The least eigenvalue tells; a few inverse iterations from a random start find it when it is that small.
    """
    lower, failed = torch.linalg.cholesky_ex(covariance)
    if int(failed):
        return None
    vector = torch.randn(len(lower), 1, generator=stream(0, "frechet cholesky"), dtype=lower.dtype)
    for _ in range(3):
        vector = torch.linalg.solve_triangular(lower, vector / vector.norm(), upper=False)
        vector = torch.linalg.solve_triangular(lower.T, vector, upper=True)
    regular = 1.0 / vector.norm() > len(lower) * _EPS * covariance.norm()
    return torch.as_tensor(lower.T) if regular else None


def _spread(first: Tensor, second: Tensor) -> float:
    """What the covariances add to the distance, from F_a `[j, D]` and F_b `[k, D]`."""
    product = first @ second.T if len(first) <= len(second) else second @ first.T
    traces = float(first.square().sum() + second.square().sum())
    if len(product) == 0:
        return traces
    # Each eigenvalue w of M M^T has the rounding e of the largest, which moves its root by e / 2 sqrt(w): too much
    # where w is rounding itself, or where the result nearly cancels.
    values = torch.linalg.eigvalsh(_lower_gram(product))
    if values[0] > len(values) * _EPS * values[-1]:
        roots = values.sqrt()
        spread = traces - 2.0 * float(roots.sum())
        if float((_EPS * values[-1] / (2.0 * roots)).norm()) < _DOUBT * spread:
            return spread
    return max(0.0, traces - 2.0 * float(torch.linalg.svdvals(product).sum()))


def _lower_gram(product: Tensor) -> Tensor:
    """M M^T without its upper triangle, which `eigvalsh` does not read; about half the work."""
    gram = product.new_zeros(len(product), len(product))
    for start in range(0, len(product), _BLOCK):
        end = start + _BLOCK
        gram[start:end, :end] = product[start:end] @ product[:end].T
    return gram


def _moments(mean: Array, covariance: Array, name: str) -> tuple[Tensor, Tensor]:
    """Mean `[D]` and covariance `[D, D]` as float64, checked to belong together and to be symmetric."""
    matrix = rows(covariance, f"{name} covariance")
    centre = rows(torch.as_tensor(mean)[None], f"{name} mean")[0]
    if matrix.shape != (len(centre), len(centre)):
        raise DataError(
            f"{name}: mean {list(centre.shape)} and covariance {list(matrix.shape)} do not fit; give [D] and [D, D]"
        )
    if float((matrix - matrix.T).abs_().max()) > _ASYMMETRY * float(matrix.diagonal().abs().max()):
        raise DataError(f"{name} covariance: it is not symmetric; give the covariance of the features' columns")
    return centre, matrix


def _warn_of_few(first: Tensor, second: Tensor) -> None:
    fewest, width = min(len(first), len(second)), first.shape[1]
    if fewest < 2 * width:
        LOG.warning(
            "Frechet distance of %d samples in %d dimensions is biased upwards; compare only equal numbers of samples, "
            "use at least %d, or the kernel distance, which has no bias",
            fewest,
            width,
            2 * width,
        )
