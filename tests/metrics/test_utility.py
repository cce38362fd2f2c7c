"""Shares with their Wilson intervals."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from synthkd.metrics.utility import accuracy, extremes, predict, proportion


@given(n=st.integers(1, 500), data=st.data())
def test_wilson_equals_scipy(n: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, n))
    expected = binomtest(hits, n).proportion_ci(0.95, method="wilson")
    result = proportion(hits, n)
    assert result.low == pytest.approx(expected.low, abs=1e-12)
    assert result.high == pytest.approx(expected.high, abs=1e-12)
    assert result.low <= result.value <= result.high


def test_accuracy_counts_equals() -> None:
    result = accuracy(torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 1, 2]))
    assert (result.value, result.n) == (0.75, 4)


def test_predict_takes_uint8_and_float_alike() -> None:
    images = torch.randint(0, 256, (7, 1, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def model(x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)

    device = torch.device("cpu")
    assert torch.equal(predict(model, images, device, 3), predict(model, images.float() / 255, device))


@pytest.mark.parametrize(("hits", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_impossible_counts(hits: int, n: int) -> None:
    with pytest.raises(ValueError, match="0 <= hits <= n"):
        proportion(hits, n)


def test_a_table_of_many_shows_the_lowest_and_the_highest() -> None:
    values = [0.5] * 100
    values[40], values[7], values[90], values[3] = 0.1, 0.2, 0.9, 0.8
    assert extremes(values, 4) == [40, 7, 3, 90]
    assert extremes(values[:20]) == list(range(20))
    assert extremes([None] * 50 + [0.2, 0.1], 4) == [50, 51], "all that were measured"
    assert extremes([None, 0.3, None], 4) == [0, 1, 2], "few are all shown"
