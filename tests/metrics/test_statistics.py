"""Streaming moments against rational arithmetic, and every way of cutting a stream against the whole."""

import io

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


@pytest.mark.parametrize("seed", range(5))
def test_merged_shards_equal_the_whole(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((400, 6)) * rng.uniform(0.1, 10, 6) + rng.uniform(-1e3, 1e3, 6)
    shards = np.split(values, np.sort(rng.integers(0, 400, 5)))
    merged = FeatureStatistics()
    for shard in shards:
        merged.merge(FeatureStatistics().update(shard))
    assert_same(merged, FeatureStatistics().update(values))


def test_classes_merge_to_the_total_in_any_order() -> None:
    values = draws(300, 4)
    labels = torch.arange(300) % 3
    values[:, 0] += 50.0 * labels
    classes = [FeatureStatistics().update(values[labels == label]) for label in range(3)]
    total = FeatureStatistics().update(values)
    for order in ([0, 1, 2], [2, 0, 1]):
        merged = FeatureStatistics()
        for label in order:
            merged.merge(classes[label])
        assert_same(merged, total)


@pytest.mark.parametrize("share", [0, 1, 40, 79, 80])
def test_what_is_taken_away_is_the_inverse_of_merging(share: int) -> None:
    values = draws(80, 3) * 5.0 + 100.0
    whole, part = FeatureStatistics().update(values), FeatureStatistics().update(values[:share])
    before = whole.state_dict()
    rest = whole.without(part)
    assert rest.n == 80 - share
    if rest.n > 1:
        assert_same(rest, FeatureStatistics().update(values[share:]))
    assert torch.equal(whole.state_dict()["scatter"], before["scatter"])
    assert_same(rest.merge(part), whole)


def test_more_cannot_be_taken_away_than_there_is() -> None:
    small, large = FeatureStatistics().update(draws(4, 3)), FeatureStatistics().update(draws(5, 3))
    with pytest.raises(DataError, match="5 samples cannot be removed from 4"):
        small.without(large)
    with pytest.raises(DataError, match="3 and 2 dimensions"):
        large.without(FeatureStatistics().update(draws(3, 2)))


def test_merging_leaves_the_other_as_it_was() -> None:
    one, other = FeatureStatistics().update(draws(10, 3, 1)), FeatureStatistics().update(draws(9, 3, 2))
    empty = FeatureStatistics()
    assert empty.merge(other) is empty
    before = other.covariance
    empty.merge(one).update(draws(5, 3, 3))
    assert other.n == 9
    assert torch.equal(other.covariance, before)
    assert empty.n == 24


def test_merging_with_itself_counts_everything_twice() -> None:
    values = draws(10, 3)
    twice = FeatureStatistics().update(values)
    assert_same(twice.merge(twice), FeatureStatistics().update(torch.cat([values, values])))


def test_what_was_read_does_not_change_later() -> None:
    result = FeatureStatistics().update(draws(10, 2))
    mean, covariance, state = result.mean, result.covariance, result.state_dict()
    copies = mean.clone(), covariance.clone(), state["scatter"].clone()
    result.update(draws(10, 2, 1))
    mean += 1.0
    assert torch.equal(covariance, copies[1])
    assert torch.equal(state["scatter"], copies[2])
    assert not torch.equal(result.mean, mean)


def test_memory_does_not_grow_with_the_stream() -> None:
    result = FeatureStatistics()
    for seed in range(20):
        result.update(draws(50, 3, seed))
    assert sum(value.numel() for value in result.state_dict().values() if isinstance(value, torch.Tensor)) == 3 + 9


def test_state_survives_a_file_and_goes_on() -> None:
    values = draws(40, 3)
    file = io.BytesIO()
    torch.save(FeatureStatistics().update(values[:25]).state_dict(), file)
    file.seek(0)
    resumed = FeatureStatistics.from_state(torch.load(file, weights_only=True)).update(values[25:])
    assert_same(resumed, FeatureStatistics().update(values))


def test_an_empty_state_is_empty_again() -> None:
    fresh = FeatureStatistics.from_state(FeatureStatistics().state_dict())
    assert fresh.update(draws(4, 2)).n == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scatter": torch.zeros(2, 3)}, "do not fit together"),
        ({"n": 0}, "do not fit together"),
        ({"mean": torch.tensor([0.0, float("nan"), 0.0])}, "NaN"),
        ({"scatter": -torch.eye(3)}, "negative variance"),
    ],
)
def test_a_damaged_state_is_refused(change: dict[str, object], message: str) -> None:
    state = FeatureStatistics().update(draws(5, 3)).state_dict()
    with pytest.raises(DataError, match=message):
        FeatureStatistics.from_state({**state, **change})


def test_a_state_without_scatter_is_refused() -> None:
    with pytest.raises(DataError, match="lacks scatter"):
        FeatureStatistics.from_state({"n": 1, "mean": torch.zeros(1)})


def test_a_refused_batch_changes_nothing() -> None:
    result = FeatureStatistics().update(draws(5, 3))
    before = result.state_dict()
    for batch in (draws(5, 4), torch.full((2, 3), float("nan")), torch.zeros(3)):
        with pytest.raises(DataError):
            result.update(batch)
    with pytest.raises(DataError, match="3 and 4 dimensions"):
        result.merge(FeatureStatistics().update(draws(5, 4)))
    after = result.state_dict()
    assert after["n"] == 5
    assert torch.equal(before["scatter"], after["scatter"])


def test_too_few_samples_say_so() -> None:
    with pytest.raises(DataError, match="got 0"):
        _ = FeatureStatistics().mean
    with pytest.raises(DataError, match="got 1"):
        _ = FeatureStatistics().update(draws(1, 3)).covariance
