"""Factors reproduce their covariance at any rank, and the trace term is that of the eigenvalues."""

import math

import pytest
import torch
from torch import Tensor

from synthkd.errors import DataError
from synthkd.metrics.covariance import (
    checked_factor,
    eigh,
    factor_of_centred,
    factor_of_covariance,
    factor_of_features,
    trace_term,
)


def features(n: int, width: int, rank: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(shape, generator=rng, dtype=torch.float64) for shape in ((n, rank), (rank, width)))
    return left @ right + 3.0


def assert_factor(factor: Tensor, covariance: Tensor) -> None:
    torch.testing.assert_close(factor.T @ factor, covariance, atol=1e-12 * float(covariance.norm()), rtol=0)


@pytest.mark.parametrize(("n", "width", "rank"), [(40, 6, 6), (40, 6, 3), (5, 8, 8), (7, 6, 6), (30, 6, 1)])
def test_every_factor_gives_the_covariance_back(n: int, width: int, rank: int) -> None:
    x = features(n, width, rank)
    covariance = torch.cov(x.T)
    assert_factor(factor_of_features(x), covariance)
    assert_factor(checked_factor(covariance, "a"), covariance)
    for factor in (factor_of_covariance(covariance), factor_of_centred(x - x.mean(dim=0))):
        assert_factor(factor.matrix, covariance)
        if factor.lead is not None:
            assert len(factor.matrix) == min(rank, n - 1)
            assert torch.equal(factor.matrix[:, factor.lead], factor.matrix[:, factor.lead].triu())


def test_a_matrix_with_a_negative_eigenvalue_is_refused_but_rounding_is_not() -> None:
    x = features(40, 6, 3)
    covariance = torch.cov(x.T)
    single = covariance.float().double()
    factor = checked_factor(single, "a")
    torch.testing.assert_close(factor.T @ factor, single, atol=1e-6 * float(single.norm()), rtol=0)
    values, vectors = eigh(covariance)
    values[0] = -0.01 * values[-1]
    with pytest.raises(DataError, match=r"^a covariance: its eigenvalues go from -.*compute it in float64"):
        checked_factor(vectors * values @ vectors.T, "a")


@pytest.mark.parametrize("tolerance", [1e-9, 1e-5])
def test_the_trace_term_of_diagonal_covariances_has_a_closed_form(tolerance: float) -> None:
    first, second = torch.tensor([4.0, 1.0, 9.0, 0.0]).double(), torch.tensor([1.0, 25.0, 0.0, 0.0]).double()
    expected = float((first.sqrt() - second.sqrt()).square().sum())
    factors = [side.sqrt().diag() for side in (first, second)]
    assert trace_term(factors[0], factors[1], tolerance) == pytest.approx(expected, rel=tolerance)
    assert trace_term(factors[1], factors[0], tolerance) == pytest.approx(expected, rel=tolerance)


def test_the_trace_term_of_equal_sides_and_of_rank_0() -> None:
    factor = factor_of_features(features(40, 6, 6))
    turned = torch.linalg.qr(features(6, 6, 6, seed=1)).Q @ factor
    assert 0.0 <= trace_term(factor, turned, 1e-9) < 1e-12 * float(factor.square().sum())
    assert trace_term(factor[:0], factor, 1e-9) == pytest.approx(float(factor.square().sum()))
    assert math.isclose(trace_term(factor[:0], factor[:0], 1e-9), 0.0)
