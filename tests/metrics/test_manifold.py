"""Precision, recall, density and coverage: by hand, against all pairs, and against prdc."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synthkd.errors import DataError
from synthkd.metrics.manifold import PrecisionRecall, precision_recall_density_coverage

FOUR = ("precision", "recall", "density", "coverage")


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def normal(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def four(result: PrecisionRecall) -> tuple[float, ...]:
    return tuple(getattr(result, name) for name in FOUR)


def slow(real: np.ndarray, generated: np.ndarray, k: int) -> tuple[float, ...]:
    """The definitions, written out."""

    def squared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return ((a[:, None] - b[None]) ** 2).sum(axis=2)

    def radii(values: np.ndarray) -> np.ndarray:
        own = squared(values, values)
        return np.array([sorted(np.delete(own[i], i))[k - 1] for i in range(len(values))])

    cross = squared(real, generated)
    in_real, in_generated = cross <= radii(real)[:, None], cross <= radii(generated)
    return (
        in_real.any(axis=0).mean(),
        in_generated.any(axis=1).mean(),
        in_real.sum() / (k * len(generated)),
        in_real.any(axis=1).mean(),
    )


def test_by_hand_with_an_outlier_on_the_real_side():
    """k = 1. Real 0, 1, 10 have radii 1, 1, 9; generated 2, 4, 20, 21 have radii 2, 2, 1, 1.

    Real balls [-1, 1], [0, 2], [1, 19] hold 2 twice and 4 once. Generated balls [0, 4], [2, 6], ... hold 0 and 1.
    """
    result = precision_recall_density_coverage(column(0, 1, 10), column(2, 4, 20, 21), k=1)
    assert four(result) == (2 / 4, 2 / 3, 3 / 4, 2 / 3)
    assert (result.k, result.n_real, result.n_generated, result.dimension) == (1, 3, 4, 1)
    # balls for each generated sample: 2, 1, 0, 0
    assert result.density_error == pytest.approx(np.std([2, 1, 0, 0], ddof=1) / 2)


def test_by_hand_the_other_way_round():
    result = precision_recall_density_coverage(column(2, 4, 20, 21), column(0, 1, 10), k=1)
    assert four(result) == (2 / 3, 2 / 4, 2 / 3, 1 / 4)


@settings(max_examples=60, deadline=None)
@given(
    real=st.lists(st.tuples(*[st.integers(-2, 2)] * 3), min_size=4, max_size=25),
    generated=st.lists(st.tuples(*[st.integers(-2, 2)] * 3), min_size=4, max_size=25),
    k=st.integers(1, 3),
)
def test_on_a_grid_full_of_ties_the_definitions_hold(real, generated, k):
    real, generated = np.array(real, dtype=float), np.array(generated, dtype=float)
    assert four(precision_recall_density_coverage(real, generated, k)) == pytest.approx(slow(real, generated, k))


@pytest.mark.parametrize(("n", "m", "d", "k"), [(400, 300, 8, 5), (220, 260, 100, 3)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_random_features_equal_prdc(n, m, d, k, dtype):
    prdc = pytest.importorskip("prdc")
    real, generated = normal(n, d).numpy().astype(dtype), (normal(m, d, 1) * 0.97 + 0.05).numpy().astype(dtype)
    expected = prdc.compute_prdc(real.astype(np.float64), generated.astype(np.float64), k)
    result = precision_recall_density_coverage(real, generated, k)
    assert four(result) == pytest.approx(tuple(expected[name] for name in FOUR), abs=1e-12)
    assert all(0.05 < value < 0.99 for value in (result.precision, result.recall, result.coverage))


def test_a_set_of_copies_compared_with_itself_is_covered():
    bank = normal(20, 6).repeat(8, 1)
    result = precision_recall_density_coverage(bank, bank, k=3)
    assert four(result) == (1.0, 1.0, 8 / 3, 1.0)


def test_copies_of_few_real_samples_are_precise_but_do_not_cover():
    real = normal(200, 4)
    result = precision_recall_density_coverage(real, real[:2].repeat(100, 1), k=5)
    assert result.precision == 1.0
    assert result.recall == 0.01
    assert result.coverage < 0.2


def test_moving_turning_and_scaling_change_nothing():
    real, generated = normal(150, 5), normal(130, 5, 1) * 1.2
    turn = torch.linalg.qr(normal(5, 5, 2)).Q
    expected = four(precision_recall_density_coverage(real, generated))
    for change in (lambda x: x @ turn, lambda x: x + 1e3, lambda x: x * 1e-3):
        assert four(precision_recall_density_coverage(change(real), change(generated))) == expected
    assert expected != four(precision_recall_density_coverage(real * 1.1, generated))


def test_far_apart_sets_score_zero():
    assert four(precision_recall_density_coverage(normal(30, 3), normal(40, 3, 1) + 100)) == (0, 0, 0, 0)


@pytest.mark.parametrize(("n", "m", "k"), [(3, 2, 1), (3, 3, 2), (4, 2, 1)])
def test_expected_coverage_counts_the_orders(n, m, k):
    """From a real point, n - 1 real and m generated others in all orders: covered unless the first k are real."""
    orders = list(itertools.permutations("r" * (n - 1) + "g" * m))
    covered = sum("g" in order[:k] for order in orders) / len(orders)
    result = PrecisionRecall(0, 0, 0, 0, 0, k=k, n_real=n, n_generated=m, dimension=1)
    assert result.expected_coverage == pytest.approx(covered)


def test_one_distribution_reaches_the_expected_coverage_and_density():
    result = precision_recall_density_coverage(normal(1500, 6), normal(1500, 6, 1), k=3)
    assert result.coverage == pytest.approx(result.expected_coverage, abs=0.03)
    assert result.density == pytest.approx(1.0, abs=4 * result.density_error)


def test_intervals_hold_the_shares():
    result = precision_recall_density_coverage(normal(60, 3), normal(90, 3, 1) + 0.7, k=3)
    assert {name: share.n for name, share in result.intervals.items()} == {
        "precision": 90,
        "recall": 60,
        "coverage": 60,
    }
    for name, share in result.intervals.items():
        assert share.value == pytest.approx(getattr(result, name))
        assert share.low < share.value < share.high


@pytest.mark.parametrize(
    ("real", "generated", "k", "message"),
    [
        (
            5,
            9,
            5,
            "real: the neighbour number k=5 of a sample needs at least 6 samples, got 5; take more samples or a sm",
        ),
        (9, 5, 5, "generated: the neighbour number k=5"),
        (9, 9, 0, "k must be at least 1, got 0"),
    ],
)
def test_numbers_that_do_not_fit(real, generated, k, message):
    with pytest.raises(DataError, match=message):
        precision_recall_density_coverage(normal(real, 2), normal(generated, 2), k)


def test_features_of_two_extractors():
    with pytest.raises(DataError, match="real and generated: features of 2 and 3 dimensions"):
        precision_recall_density_coverage(normal(9, 2), normal(9, 3))
