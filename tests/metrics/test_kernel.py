"""Kernel distance against rational arithmetic, against itself computed otherwise, and against peers."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from oracles import exact_kernel_distance

from synthkd.errors import ConfigError, DataError
from synthkd.metrics import kernel
from synthkd.metrics.kernel import kernel_distance, kernel_distance_subsets, kernel_distances


def draws(n: int, width: int, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).standard_normal((n, width))


def rotation(width: int) -> NDArray[np.float64]:
    return np.linalg.qr(draws(width, width, 9))[0]


def test_two_pairs_by_hand() -> None:
    # one dimension: k(0, 1) = 1, k(2, 3) = 343, across k = 1, 1, 27, 64
    assert kernel_distance([[0], [1]], [[2], [3]]) == pytest.approx(1 + 343 - 2 * 93 / 4)  # type: ignore[arg-type]


@pytest.mark.parametrize(("n_a", "n_b", "width"), [(2, 2, 1), (5, 5, 3), (7, 4, 2), (3, 9, 6)])
def test_toys_equal_rational_arithmetic(n_a: int, n_b: int, width: int) -> None:
    rng = np.random.default_rng(n_a)
    a, b = rng.integers(-4, 5, (n_a, width)), rng.integers(-4, 5, (n_b, width))
    exact = float(exact_kernel_distance(a.tolist(), b.tolist()))
    assert kernel_distance(a, b) == pytest.approx(exact, rel=1e-12, abs=1e-12)
    a_real, b_real = draws(n_a, width, 1), draws(n_b, width, 2) + 1.0
    exact = float(exact_kernel_distance(a_real.tolist(), b_real.tolist()))
    assert kernel_distance(a_real, b_real) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("block", [2, 3, 8, 100])
def test_blocks_do_not_change_the_value(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = draws(17, 4, 1), draws(8, 4, 2) + 0.3
    exact = float(exact_kernel_distance(a.tolist(), b.tolist()))
    monkeypatch.setattr(kernel, "_BLOCK", block)
    assert kernel_distance(a, b) == pytest.approx(exact, rel=1e-12)


def test_all_subsets_average_to_the_whole() -> None:
    """What makes the statistic unbiased: every pair of samples is in equally many subsets, and none with itself."""
    a, b = torch.from_numpy(draws(5, 3, 1)), torch.from_numpy(draws(4, 3, 2))
    values = [
        kernel_distance(a[list(one)], b[list(other)])
        for one in combinations(range(5), 2)
        for other in combinations(range(4), 2)
    ]
    assert float(np.mean(values)) == pytest.approx(kernel_distance(a, b), rel=1e-11)


def test_values_below_zero_are_kept() -> None:
    values = [kernel_distance(draws(20, 5, seed), draws(20, 5, 100 + seed)) for seed in range(30)]
    assert min(values) < 0.0 < max(values)
    assert abs(np.mean(values)) < 3 * np.std(values) / 30**0.5


def test_rotation_and_order_of_sides_and_rows() -> None:
    a, b = draws(30, 6, 1), draws(20, 6, 2) + 0.5
    value = kernel_distance(a, b)
    q = rotation(6)
    assert kernel_distance(a @ q, b @ q) == pytest.approx(value, rel=1e-11)
    assert kernel_distance(b, a) == pytest.approx(value, rel=1e-11)
    assert kernel_distance(a[::-1].copy(), b) == pytest.approx(value, rel=1e-11)
    assert kernel_distance(a + 1.0, b + 1.0) != pytest.approx(value, rel=1e-3)  # the kernel is not blind to shifts


def test_farther_is_more() -> None:
    a, b = draws(100, 4, 1), draws(100, 4, 2)
    values = [kernel_distance(a, b + shift) for shift in (0.0, 0.5, 1.0, 2.0)]
    assert values == sorted(values)


def test_both_ways_of_taking_subsets_give_the_same_numbers() -> None:
    a, b = torch.from_numpy(draws(40, 5, 1)), torch.from_numpy(draws(30, 5, 2) + 0.4)
    chosen = [kernel._draw(40, 30, 12, 0, subset) for subset in range(9)]
    left, right = (torch.stack(side) for side in zip(*chosen, strict=True))
    one, other = kernel._by_indicators(a, b, left, right), kernel._by_subset(a, b, left, right)
    assert torch.allclose(one, other, rtol=1e-11, atol=1e-13)
    assert len(set(one.tolist())) == 9
    slow = [float(exact_kernel_distance(a[i].tolist(), b[j].tolist())) for i, j in chosen]
    assert one.tolist() == pytest.approx(slow, rel=1e-11)


@pytest.mark.parametrize(("n", "subsets", "size", "way"), [(40, 50, 20, "_by_indicators"), (400, 3, 10, "_by_subset")])
def test_mean_and_deviation_are_those_of_the_subsets(
    n: int, subsets: int, size: int, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[torch.Tensor] = []
    original = getattr(kernel, way)

    def record(*arguments: torch.Tensor) -> torch.Tensor:
        taken.append(original(*arguments))
        return taken[-1]

    monkeypatch.setattr(kernel, way, record)
    result = kernel_distance_subsets(draws(n, 30, 1), draws(n, 30, 2), subsets, size, seed=5)
    (values,) = taken
    assert (result.subsets, result.subset_size) == (subsets, size) == (len(values), size)
    assert result.mean == pytest.approx(float(np.mean(values.numpy())), rel=1e-12)
    assert result.std == pytest.approx(float(np.std(values.numpy())), rel=1e-12)


def test_subsets_of_everything_are_the_whole() -> None:
    a, b = draws(25, 4, 1), draws(25, 4, 2) + 0.3
    result = kernel_distance_subsets(a, b, subsets=3, subset_size=25)
    assert result.mean == pytest.approx(kernel_distance(a, b), rel=1e-11)
    assert result.std == pytest.approx(0.0, abs=1e-12)
    assert kernel_distance_subsets(a, b, subsets=1, subset_size=10).std == 0.0


def test_subsets_are_a_function_of_the_seed() -> None:
    a, b = draws(50, 4, 1), draws(60, 4, 2)
    one = kernel_distance_subsets(a, b, 5, 10, seed=1)
    assert one == kernel_distance_subsets(a, b, 5, 10, seed=1)
    assert one.mean != kernel_distance_subsets(a, b, 5, 10, seed=2).mean


def test_subsets_repeat_no_sample_and_reach_all() -> None:
    left, right = zip(*(kernel._draw(6, 9, 4, 0, subset) for subset in range(40)), strict=True)
    assert all(len(set(rows.tolist())) == 4 for rows in (*left, *right))
    assert {int(row) for rows in left for row in rows} == set(range(6))
    assert {int(row) for rows in right for row in rows} == set(range(9))


def test_what_cannot_be_drawn_is_refused() -> None:
    a, b = draws(10, 3), draws(8, 3)
    with pytest.raises(DataError, match=r"subset_size 9 is more than the 8 samples of one side; set it to 8"):
        kernel_distance_subsets(a, b, subset_size=9)
    for subsets, size in [(0, 5), (5, 1)]:
        with pytest.raises(ConfigError, match="subsets >= 1 and subset_size >= 2"):
            kernel_distance_subsets(a, b, subsets, size)
    with pytest.raises(DataError, match="at least 2"):
        kernel_distance(a[:1], b)
    with pytest.raises(DataError, match="3 and 4 dimensions"):
        kernel_distance(a, draws(8, 4))


@pytest.mark.parametrize("block", [4, 7, 1024])
def test_one_pass_gives_what_each_function_gives(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "_BLOCK", block)
    a, b = draws(31, 5, 1), draws(24, 5, 2) + 0.4
    result = kernel_distances(a, b, 6, 9, seed=3)
    apart = kernel_distance_subsets(a, b, 6, 9, seed=3)
    assert result.value == pytest.approx(kernel_distance(a, b), rel=1e-11)
    assert result.spread.mean == pytest.approx(apart.mean, rel=1e-11)
    assert result.spread.std == pytest.approx(apart.std, rel=1e-11)
    assert (result.spread.subsets, result.spread.subset_size) == (6, 9)
    swapped = kernel_distances(b, a, 6, 9)
    assert (swapped.value, swapped.standard_error) == pytest.approx((result.value, result.standard_error), rel=1e-10)
    with pytest.raises(DataError, match="subset_size 25 is more than the 24"):
        kernel_distances(a, b, 6, 25)


def repeated(n: int, m: int, shift: float, wide: float) -> tuple[float, NDArray[np.float64]]:
    """Deviation of the distance over 400 draws of bounded features, and the standard error that each draw claims."""
    rng = np.random.default_rng(0)
    scale = np.array([3.0, 1.0, 1.0, 0.5])
    sides = (
        (rng.uniform(-1, 1, (n, 4)) * scale, rng.uniform(-1, 1, (m, 4)) * scale * wide + shift) for _ in range(400)
    )
    found = [kernel_distances(a, b, 1, 2) for a, b in sides]
    return float(np.std([one.value for one in found], ddof=1)), np.array([one.standard_error for one in found])


@pytest.mark.parametrize(("n", "m", "shift", "wide"), [(150, 150, 1.0, 1.0), (120, 60, 0.6, 1.0), (60, 150, 0.1, 1.4)])
def test_standard_error_is_the_spread_of_repeated_draws(n: int, m: int, shift: float, wide: float) -> None:
    spread, claimed = repeated(n, m, shift, wide)
    assert float(np.sqrt((claimed**2).mean())) == pytest.approx(spread, rel=0.15)


@pytest.mark.parametrize(("n", "m"), [(120, 120), (60, 200)])
def test_standard_error_of_no_difference_is_about_right_and_never_near_nothing(n: int, m: int) -> None:
    """The first order alone claims as little as a fifth here."""
    spread, claimed = repeated(n, m, 0.0, 1.0)
    assert float(np.median(claimed)) == pytest.approx(spread, rel=0.2)
    assert claimed.min() > 0.5 * spread
    assert float(np.sqrt((claimed**2).mean())) < 1.6 * spread


class Legacy:
    """Subsets as torch-fidelity draws them."""

    def __init__(self) -> None:
        self.rng = np.random.RandomState(2020)

    def choice(self, n: int, size: int) -> torch.Tensor:
        return torch.from_numpy(self.rng.choice(n, size, replace=False))


def test_subsets_agree_with_torch_fidelity_on_its_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    metric: Any = pytest.importorskip("torch_fidelity.metric_kid")
    a, b = (torch.from_numpy(draws(n, 16, n)).float() + 0.5 for n in (60, 80))
    theirs = metric.kid_features_to_metric(a, b, kid_subsets=20, kid_subset_size=30, rng_seed=2020, verbose=False)
    legacy = Legacy()
    monkeypatch.setattr(
        kernel, "_draw", lambda n_a, n_b, size, *_: (legacy.choice(n_a, size), legacy.choice(n_b, size))
    )
    ours = kernel_distance_subsets(a, b, 20, 30)
    assert ours.mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4, abs=1e-6)
    assert ours.std == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-4, abs=1e-6)


def test_the_whole_agrees_with_torchmetrics() -> None:
    metric: Any = pytest.importorskip("torchmetrics.image.kid")
    a, b = torch.from_numpy(draws(40, 6, 1)), torch.from_numpy(draws(40, 6, 2) + 1.0)
    assert kernel_distance(a, b) == pytest.approx(float(metric.poly_mmd(a, b)), rel=1e-10)
