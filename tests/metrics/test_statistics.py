"""Streaming moments against rational arithmetic, and every way of cutting a stream against the whole."""

import numpy as np
import pytest
import torch
from oracles import exact_moments

from synthkd.errors import DataError
from synthkd.metrics.statistics import FeatureStatistics


def draws(n: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def assert_same(one: FeatureStatistics, other: FeatureStatistics, tolerance: float = 1e-10) -> None:
    assert one.n == other.n
    assert torch.allclose(one.mean, other.mean, rtol=tolerance, atol=tolerance)
    assert torch.allclose(one.covariance, other.covariance, rtol=tolerance, atol=tolerance)


def test_moments_equal_rational_arithmetic() -> None:
    values = draws(7, 3)
    mean, covariance = exact_moments(values.tolist())
    result = FeatureStatistics().update(values[:4]).update(values[4:])
    assert result.n == 7
    assert result.mean.tolist() == pytest.approx([float(x) for x in mean], rel=1e-13)
    for row, exact in zip(result.covariance.tolist(), covariance, strict=True):
        assert row == pytest.approx([float(x) for x in exact], rel=1e-12)


@pytest.mark.parametrize("sizes", [[100], [1] * 100, [1, 0, 60, 0, 39], [99, 1]])
def test_any_cut_into_batches_equals_numpy(sizes: list[int]) -> None:
    values = draws(100, 5)
    result = FeatureStatistics()
    for batch in values.split(sizes):
        result.update(batch)
    assert np.allclose(result.mean, values.numpy().mean(0), rtol=0, atol=1e-14)
    assert np.allclose(result.covariance, np.cov(values.numpy(), rowvar=False), rtol=0, atol=1e-13)


def test_float32_stream_with_a_large_mean_keeps_its_covariance() -> None:
    values = (draws(3000, 4) + 1e4).float()
    result = FeatureStatistics()
    for batch in values.split(64):
        result.update(batch)
    assert np.allclose(result.mean, values.double().numpy().mean(0), rtol=1e-14)
    assert np.allclose(result.covariance, np.cov(values.double().numpy(), rowvar=False), rtol=1e-9, atol=1e-11)


def test_mean_of_a_hundred_million_deviations_does_not_swamp_the_covariance() -> None:
    # sums of raw squares are 1e16 here, where float64 counts in steps of 2
    values = draws(500, 3).round(decimals=2)
    near, far = (
        FeatureStatistics().update((values + shift)[:200]).update((values + shift)[200:]) for shift in (0, 1e8)
    )
    assert torch.allclose(near.covariance, far.covariance, rtol=0, atol=1e-7)


@pytest.mark.parametrize("share", [0, 1, 40, 79, 80])
def test_statistics_without_a_part_are_those_of_the_rest(share: int) -> None:
    values = draws(80, 3) * 5.0 + 100.0
    whole, part = FeatureStatistics().update(values), FeatureStatistics().update(values[:share])
    before = whole.covariance
    rest = whole.without(part)
    assert rest.n == 80 - share
    if rest.n > 1:
        assert_same(rest, FeatureStatistics().update(values[share:]))
    assert torch.equal(whole.covariance, before)
    assert_same(rest.update(values[:share]), whole)


def test_more_cannot_be_taken_away_than_there_is() -> None:
    small, large = FeatureStatistics().update(draws(4, 3)), FeatureStatistics().update(draws(5, 3))
    with pytest.raises(DataError, match="5 samples cannot be removed from 4"):
        small.without(large)
    with pytest.raises(DataError, match="3 and 2 dimensions"):
        large.without(FeatureStatistics().update(draws(3, 2)))


def test_what_was_read_does_not_change_later() -> None:
    result = FeatureStatistics().update(draws(10, 2))
    mean, covariance = result.mean, result.covariance
    copy = covariance.clone()
    result.update(draws(10, 2, 1))
    mean += 1.0
    assert torch.equal(covariance, copy)
    assert not torch.equal(result.mean, mean)


def test_memory_does_not_grow_with_the_stream() -> None:
    result = FeatureStatistics()
    for seed in range(20):
        result.update(draws(50, 3, seed))
    assert sum(value.numel() for value in vars(result).values() if isinstance(value, torch.Tensor)) == 3 + 9


def test_a_refused_batch_changes_nothing() -> None:
    result = FeatureStatistics().update(draws(5, 3))
    before = result.covariance
    for batch in (draws(5, 4), torch.full((2, 3), float("nan")), torch.zeros(3)):
        with pytest.raises(DataError):
            result.update(batch)
    with pytest.raises(DataError, match="3 and 4 dimensions"):
        result.update(draws(5, 4))
    assert result.n == 5
    assert torch.equal(result.covariance, before)


def test_too_few_samples_say_so() -> None:
    with pytest.raises(DataError, match="got 0"):
        _ = FeatureStatistics().mean
    with pytest.raises(DataError, match="got 1"):
        _ = FeatureStatistics().update(draws(1, 3)).covariance
