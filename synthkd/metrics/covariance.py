"""Factors of covariances, and the trace term of the Frechet distance computed from them.

A factor of a covariance S is a matrix F with S = F^T F. The centred samples, scaled, are a factor of their covariance,
so singular covariances, and fewer samples than dimensions, need no special treatment. In terms of factors the trace
term

    tr S_a + tr S_b - 2 tr (S_a S_b)^(1/2)

is the minimum of |F_a - Q F_b|^2 over orthogonal Q, so only rounding can make it negative. Its last trace is the
nuclear norm (the sum of the singular values) of M = F_a F_b^T.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from synthkd.errors import DataError
from synthkd.metrics.statistics import FeatureStatistics
from synthkd.rng import stream
from synthkd.system.shares import ALONE, Shares

_EPS = torch.finfo(torch.float64).eps
_NEGATIVE = 1e-4  # accepted negative eigenvalue over the largest; covariances computed in float32 stay far below
_ROUNDING = 4.0  # error of one computed eigenvalue, in roundings of the largest
_BLOCK = 256  # rows of M M^T computed at a time


@dataclass(frozen=True)
class Factor:
    """A factor of a covariance.

    Attributes:
        matrix: F float64 `[rank, D]`, with F^T F the covariance.
        lead: int64 `[rank]`, columns of F that form an upper triangular matrix; None if there are no such columns.
    """

    matrix: Tensor
    lead: Tensor | None


def factor_of_features(features: Tensor) -> Tensor:
    """Factor `[min(N - 1, D), D]` of the covariance of features float64 `[N, D]`, without forming the covariance."""
    n, width = features.shape
    centred = (features - features.mean(dim=0)) / math.sqrt(n - 1)
    # A Householder reflection that maps (1, ..., 1) onto the first axis keeps F^T F. The columns are centred, so the
    # first row of the result is 0 and can be left out.
    reflected = centred[1:] + centred[0] / (math.sqrt(n) - 1.0)
    if n - 1 <= width:
        return reflected
    factor: Tensor = torch.linalg.qr(reflected, mode="r").R
    return factor


def factor_of_centred(centred: Tensor, shares: Shares = ALONE) -> Factor:
    """Factor of the covariance of centred rows float64 `[N, D]`: the scaled rows themselves if N <= D.

    Args:
        centred: the rows.
        shares: the processes, all of which have all rows.
    """
    n, width = centred.shape
    if n <= width:
        return Factor(centred / math.sqrt(n - 1), None)
    return factor_of_covariance(FeatureStatistics.shared(centred, shares).covariance)


def factor_of_covariance(covariance: Tensor) -> Factor:
    """Cholesky factor of a positive semidefinite matrix float64 `[D, D]`, with pivoting.

    The factor has the rank of the covariance up to rounding.
    """
    import scipy.linalg

    # Rounding leaves pivots of this size where the exact ones are 0; taken as they are, they would add rows of noise.
    tolerance = len(covariance) * _EPS * float(covariance.norm())
    # The transpose of a symmetric matrix is itself, and has the column-major layout that LAPACK takes without a copy.
    upper, order, rank, _ = scipy.linalg.lapack.dpstrf(covariance.numpy().T, tol=tolerance)
    lead = torch.from_numpy(order).long() - 1
    matrix = covariance.new_zeros(rank, len(covariance))
    matrix[:, lead] = torch.from_numpy(upper[:rank]).triu()
    return Factor(matrix, lead[:rank])


def checked_factor(covariance: Tensor, name: str) -> Tensor:
    """Factor `[rank, D]` of a symmetric matrix float64 `[D, D]`, after a check that it is a covariance.

    Args:
        covariance: the matrix.
        name: start of the message.

    Raises:
        DataError: an eigenvalue is more negative than rounding to float32 explains.
    """
    # The three ways go from the fastest to the slowest; each takes what the one before could not prove.
    regular = _cholesky(covariance)
    if regular is not None:
        return regular
    factor = factor_of_covariance(covariance).matrix
    if len(factor) == len(covariance):
        return factor
    rounding = len(covariance) * _EPS * float(covariance.norm())
    if float((factor.T @ factor - covariance).abs_().max()) <= 2.0 * rounding:
        return factor
    # The pivots do not reproduce the matrix, so it has negative eigenvalues; rounding to float32 causes small ones.
    values, vectors = eigh(covariance)
    if values[0] < -_NEGATIVE * values[-1].abs():
        raise DataError(
            f"{name} covariance: its eigenvalues go from {float(values[0]):.3g} to {float(values[-1]):.3g}, but none "
            "may be negative; compute it in float64 from the features"
        )
    positive = values > len(values) * _EPS * values[-1]
    root: Tensor = values[positive].sqrt()[:, None] * vectors[:, positive].T
    return root


def _cholesky(covariance: Tensor) -> Tensor | None:
    """Upper triangular factor, in half the time of pivoting; None if the matrix is singular up to rounding."""
    lower, failed = torch.linalg.cholesky_ex(covariance)
    if int(failed):
        return None
    # The factorisation of a singular matrix may pass by rounding, so the smallest eigenvalue decides. If it is near 0,
    # three inverse iterations from a random start come close enough to it.
    vector = torch.randn(len(lower), 1, generator=stream(0, "frechet cholesky"), dtype=lower.dtype)
    for _ in range(3):
        vector = torch.linalg.solve_triangular(lower, vector / vector.norm(), upper=False)
        vector = torch.linalg.solve_triangular(lower.T, vector, upper=True)
    regular = 1.0 / vector.norm() > len(lower) * _EPS * covariance.norm()
    return torch.as_tensor(lower.T) if regular else None


def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues `[D]`, ascending, and eigenvectors `[D, D]` of a symmetric matrix float64 `[D, D]`."""
    try:
        values, vectors = torch.linalg.eigh(matrix)
    except RuntimeError:  # torch.linalg.LinAlgError is a subclass
        # torch's divide and conquer fails on some covariances of dead or repeated features, which have very many
        # eigenvalues of 0. The QR iteration of the driver "ev" is slower and converges there.
        import scipy.linalg

        values, vectors = (torch.from_numpy(part) for part in scipy.linalg.eigh(matrix.numpy(), driver="ev"))
    return values, vectors


def trace_term(first: Tensor, second: Tensor, tolerance: float) -> float:
    """The part of the Frechet distance that comes from the covariances; 0 or more.

    Args:
        first: factor float64 `[J, D]` of one covariance.
        second: factor float64 `[K, D]` of the other.
        tolerance: relative error that rounding may leave.
    """
    # M and M^T have the same singular values; the one with fewer rows has the smaller M M^T.
    product = first @ second.T if len(first) <= len(second) else second @ first.T
    traces = float(first.square().sum() + second.square().sum())
    if len(product) == 0:
        return traces
    # The roots of the eigenvalues of M M^T are the fast way to the singular values, but squaring M doubles the digits
    # that are lost: small singular values are off by the root of the rounding. Where that matters, take them from M.
    values = torch.linalg.eigvalsh(_lower_gram(product)).clamp_min(0.0)
    term = traces - 2.0 * float(values.sqrt().sum())
    if 2.0 * _error_of_roots(values) <= tolerance * term:
        return term
    return max(0.0, traces - 2.0 * float(torch.linalg.svdvals(product).sum()))


def _error_of_roots(values: Tensor) -> float:
    """Estimate of the rounding error in the sum of the roots of the eigenvalues w of M M^T, `[D]`, ascending."""
    # A computed eigenvalue is off by e, a few roundings of the largest, so its root is off by e / (2 sqrt(w)). The
    # errors are of either sign, so they add up like a norm.
    rounding = _ROUNDING * _EPS * float(values[-1])
    # For w near 0 that formula diverges. All the errors there have a norm of about e sqrt(D), and a root of a value
    # below it is off by the root of it at most.
    together = math.sqrt(len(values)) * rounding
    large = values[values > together]
    return float((rounding / (2.0 * large.sqrt())).norm()) + (len(values) - len(large)) * math.sqrt(together)


def _lower_gram(product: Tensor) -> Tensor:
    """M M^T without the blocks above the diagonal."""
    # `eigvalsh` does not read above the diagonal, so half of the products can be left out.
    gram = product.new_zeros(len(product), len(product))
    for start in range(0, len(product), _BLOCK):
        end = start + _BLOCK
        gram[start:end, :end] = product[start:end] @ product[:end].T
    return gram
