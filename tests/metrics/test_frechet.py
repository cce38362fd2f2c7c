"""Frechet distance: closed forms, 60-digit arithmetic, invariances, and every case where peers lose digits."""

import logging
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from oracles import exact_frechet, exact_frechet_of_features, optimal_transport_pair

from synthkd.errors import DataError
from synthkd.metrics import frechet
from synthkd.metrics.arrays import subsample
from synthkd.metrics.frechet import (
    few_samples,
    frechet_distance,
    frechet_distance_from_features,
    frechet_distance_infinity,
    frechet_standard_error,
)
from synthkd.metrics.statistics import FeatureStatistics

Floats = NDArray[np.float64]


def draws(n: int, width: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal((n, width))


def moments(features: Floats) -> tuple[Floats, Floats]:
    return features.mean(0), np.cov(features, rowvar=False)


def rotation(width: int, seed: int = 9) -> Floats:
    return np.linalg.qr(draws(width, width, seed))[0]


# Closed forms


def test_one_dimension_is_means_and_deviations() -> None:
    value = frechet_distance(np.array([1.0]), np.array([[9.0]]), np.array([-1.0]), np.array([[25.0]]))
    assert value == pytest.approx(4.0 + (3.0 - 5.0) ** 2, rel=1e-14)


def test_diagonal_covariances_add_up_by_dimension() -> None:
    a, b = np.array([1.0, 4.0, 0.25]), np.array([9.0, 1.0, 0.25])
    value = frechet_distance(np.zeros(3), np.diag(a), np.full(3, 2.0), np.diag(b))
    assert value == pytest.approx(12.0 + ((a**0.5 - b**0.5) ** 2).sum(), rel=1e-13)


def test_singular_diagonals_add_up_by_dimension() -> None:
    a, b = np.array([4.0, 0.0, 1.0, 0.0]), np.array([1.0, 9.0, 0.0, 0.0])
    q = rotation(4)
    value = frechet_distance(np.zeros(4), q @ np.diag(a) @ q.T, np.zeros(4), q @ np.diag(b) @ q.T)
    assert value == pytest.approx(1.0 + 9.0 + 1.0, rel=1e-7)
    assert frechet_distance(np.zeros(4), np.diag(a), np.zeros(4), np.diag(b)) == pytest.approx(11.0, rel=1e-14)


def test_points_are_their_squared_distance_apart() -> None:
    zero = np.zeros((2, 2))
    assert frechet_distance(np.array([3.0, 0.0]), zero, np.array([0.0, 4.0]), zero) == 25.0
    assert frechet_distance_from_features([[3.0, 0.0]] * 3, [[0.0, 4.0]] * 2) == 25.0  # type: ignore[arg-type]


def test_a_point_and_a_cloud_are_the_trace_apart() -> None:
    assert frechet_distance(np.zeros(2), np.zeros((2, 2)), np.zeros(2), np.diag([2.0, 3.0])) == pytest.approx(5.0)


@pytest.mark.parametrize(("n", "width"), [(300, 8), (9, 8), (8, 8), (5, 8), (20, 100), (2, 30)])
def test_distance_to_an_optimal_transport_image_is_the_mean_move(n: int, width: int) -> None:
    a, b, exact, _ = optimal_transport_pair(n, width, n)
    assert frechet_distance_from_features(a, b) == pytest.approx(exact, rel=1e-11)
    assert frechet_distance(*moments(a), *moments(b)) == pytest.approx(exact, rel=1e-7 if n <= width else 1e-11)


# Arithmetic of 60 digits


@pytest.mark.parametrize(("n_a", "n_b"), [(30, 40), (4, 5), (4, 30), (30, 4), (6, 7)])
def test_features_equal_sixty_digit_arithmetic(n_a: int, n_b: int) -> None:
    a, b = draws(n_a, 6, 1), draws(n_b, 6, 2) * 1.5 + 0.5
    exact = exact_frechet_of_features(a.tolist(), b.tolist())
    assert frechet_distance_from_features(a, b) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize(("rank_a", "rank_b"), [(1, 1), (2, 4), (3, 6), (6, 2), (5, 5)])
def test_singular_covariances_equal_sixty_digit_arithmetic(rank_a: int, rank_b: int) -> None:
    rng = np.random.default_rng(rank_a)
    a, b = rng.integers(-5, 6, (rank_a, 6)), rng.integers(-5, 6, (rank_b, 6))  # integers: the products are exact
    first, second = (a.T @ a).astype(float), (b.T @ b).astype(float)
    exact = exact_frechet([0] * 6, first.tolist(), [0] * 6, second.tolist())  # type: ignore[list-item]
    assert frechet_distance(np.zeros(6), first, np.zeros(6), second) == pytest.approx(exact, rel=1e-12)


def test_features_with_a_dead_and_a_repeated_dimension() -> None:
    a, b = draws(50, 5, 1), draws(60, 5, 2) * 2.0
    for side in (a, b):
        side[:, 3] = 0.0
        side[:, 4] = side[:, 0]
    exact = exact_frechet_of_features(a.tolist(), b.tolist())
    assert frechet_distance_from_features(a, b) == pytest.approx(exact, rel=1e-12)


# What rounding must not do


@pytest.mark.parametrize(("n", "width"), [(5, 40), (40, 40), (41, 40), (500, 40), (2, 3), (100, 512)])
def test_features_are_at_no_distance_from_themselves(n: int, width: int) -> None:
    features = draws(n, width) * 3.0 + 10.0
    assert 0.0 <= frechet_distance_from_features(features, features) < 1e-9
    assert 0.0 <= frechet_distance_from_features(features, features[::-1].copy()) < 1e-9
    assert 0.0 <= frechet_distance(*moments(features), *moments(features)) < 1e-9


def test_repeated_samples_are_at_no_distance_from_themselves() -> None:
    features = np.tile(draws(7, 20), (10, 1))
    assert 0.0 <= frechet_distance_from_features(features, features) < 1e-9


def test_a_singular_matrix_that_cholesky_passes_by_luck_is_seen() -> None:
    # integers of rank 5 in 6 dimensions, exactly singular, yet every pivot comes out positive
    lucky = np.random.default_rng(5).integers(-5, 6, (5, 6)).astype(float)
    lucky = lucky.T @ lucky
    assert int(torch.linalg.cholesky_ex(torch.from_numpy(lucky)).info) == 0
    other = np.diag(np.arange(1.0, 7.0))
    exact = exact_frechet([0] * 6, lucky.tolist(), [0] * 6, other.tolist())  # type: ignore[list-item]
    assert frechet_distance(np.zeros(6), lucky, np.zeros(6), other) == pytest.approx(exact, rel=1e-13)


@pytest.mark.parametrize("exponent", [4, 8, 12, 14])
def test_ill_conditioned_covariances_equal_sixty_digit_arithmetic(exponent: int) -> None:
    # the eigenvalues of a product have twice the exponent: most are lost below the rounding of the largest
    sides = []
    for seed in (1, 2):
        q = rotation(12, seed)
        side = q @ np.diag(np.logspace(0, -exponent, 12)) @ q.T
        sides.append((side + side.T) / 2)
    zero = np.zeros(12)
    exact = exact_frechet([0] * 12, sides[0].tolist(), [0] * 12, sides[1].tolist())  # type: ignore[list-item]
    assert frechet_distance(zero, sides[0], zero, sides[1]) == pytest.approx(exact, rel=1e-11)
    assert frechet_distance(zero, sides[0], zero, sides[0]) < 1e-13


def test_roots_of_rounding_do_not_enter_a_large_distance() -> None:
    # one eigenvalue of the product lies below the rounding of the others, so its root would be wrong altogether
    for seed in range(10):
        q = rotation(12, seed)
        first = q @ np.diag([1.0] * 11 + [1e-9]) @ q.T
        first = (first + first.T) / 2
        exact = (100.0 - 1.0) ** 2 * first.trace()
        for tolerance in (1e-9, 1e-13):
            value = frechet_distance(np.zeros(12), first, np.zeros(12), 1e4 * first, tolerance=tolerance)
            assert value == pytest.approx(exact, rel=tolerance)


@pytest.mark.parametrize("width", [1, 2, 3, 30])
@pytest.mark.parametrize("step", [1e-4, 1e-7, 1e-10])
def test_near_neighbours_are_never_at_a_negative_distance(width: int, step: float) -> None:
    for n in (width + 1, 4 * width + 2):
        a = draws(n, width, 1)
        b = a * (1.0 + step)
        # a scaling is an optimal transport map
        gap = (a - b).mean(0)
        exact = gap @ gap + step**2 * np.atleast_2d(moments(a)[1]).trace()
        for value in (frechet_distance_from_features(a, b), frechet_distance_from_features(b, a)):
            assert value >= 0.0
            assert value == pytest.approx(exact, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(("n_a", "n_b", "width"), [(900, 1000, 300), (290, 280, 300), (2, 9, 300)])
def test_eigenvalues_agree_with_singular_values(
    n_a: int, n_b: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = draws(n_a, width, 1), draws(n_b, width, 2) * 2.0
    fast = frechet_distance_from_features(a, b)
    monkeypatch.setattr(torch.linalg, "eigvalsh", lambda _: torch.full((1,), math.nan))
    assert frechet_distance_from_features(a, b) == pytest.approx(fast, rel=1e-12)


def test_large_means_do_not_swamp_the_covariance() -> None:
    a, b, exact, _ = optimal_transport_pair(200, 5, 0)
    assert frechet_distance_from_features(a + 1e6, b + 1e6) == pytest.approx(exact, rel=1e-8)


# Invariances


@pytest.mark.parametrize(("n_a", "n_b"), [(60, 80), (7, 9), (7, 60)])
def test_rotation_shift_order_and_scale(n_a: int, n_b: int) -> None:
    a, b = draws(n_a, 10, 1), draws(n_b, 10, 2) * 1.3 + 0.2
    value = frechet_distance_from_features(a, b)
    q, shift = rotation(10), draws(1, 10, 3)
    assert frechet_distance_from_features(b, a) == pytest.approx(value, rel=1e-11)
    assert frechet_distance_from_features(a @ q, b @ q) == pytest.approx(value, rel=1e-11)
    assert frechet_distance_from_features(a + shift, b + shift) == pytest.approx(value, rel=1e-11)
    assert frechet_distance_from_features(a[::-1].copy(), b) == pytest.approx(value, rel=1e-11)
    for scale in (1e-6, 1e6):
        assert frechet_distance_from_features(a * scale, b * scale) == pytest.approx(value * scale**2, rel=1e-11)


def test_features_and_their_moments_agree_at_any_rank() -> None:
    for n_a, n_b in [(60, 80), (7, 60), (7, 9)]:
        a, b = draws(n_a, 10, 1), draws(n_b, 10, 2) + 1.0
        from_moments = frechet_distance(*moments(a), *moments(b))
        assert from_moments == pytest.approx(frechet_distance_from_features(a, b), rel=1e-7)


def test_tensors_and_arrays_of_any_real_type_are_taken_and_left_alone() -> None:
    a, b = torch.from_numpy(draws(20, 4, 1)), torch.from_numpy(draws(5, 4, 2))
    before = a.clone()
    value = frechet_distance_from_features(a.requires_grad_(), b.numpy())
    assert torch.equal(a, before)
    assert frechet_distance_from_features(a.float(), b.float()) == pytest.approx(value, rel=1e-5)
    integers = torch.arange(12).reshape(6, 2)
    assert frechet_distance_from_features(integers, integers + 1) == pytest.approx(2.0, rel=1e-12)


def test_the_callers_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    frechet_distance_from_features(draws(5, 3, 1), draws(5, 3, 2))
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("tolerance", [1e-9, 1e-5, 1e-2])
def test_a_looser_tolerance_is_kept(tolerance: float) -> None:
    # the second half of the eigenvalues of the product is lost in the rounding of the largest
    q = rotation(40)
    spectrum = np.logspace(0, -12, 40)
    sides = [q @ np.diag(spectrum * scale) @ q.T for scale in (1.0, 1.21)]
    value = frechet_distance(np.zeros(40), sides[0], np.zeros(40), sides[1], tolerance=tolerance)
    assert value == pytest.approx(0.01 * spectrum.sum(), rel=tolerance)


# Standard error


@pytest.mark.parametrize(("n_a", "n_b", "width"), [(30, 40, 4), (12, 30, 20), (30, 12, 20), (12, 40, 20)])
def test_standard_error_is_of_numeric_influences(n_a: int, n_b: int, width: int) -> None:
    """Each sample's weight moved a little, with the weighted moments as the only formula."""
    a, b = draws(n_a, width, 1), draws(n_b, width, 2) * 1.5 + 0.3
    step, variance = 1e-4, 0.0
    for thinner, other in ((a, b), (b, a)):
        n = len(thinner)
        influences = []
        for row in range(n):
            values = []
            for sign in (1.0, -1.0):
                weights = np.full(n, 1.0 / n)
                weights *= 1.0 - sign * step
                weights[row] += sign * step
                mean = weights @ thinner
                rows = (thinner - mean) * np.sqrt(weights * n / (n - 1))[:, None]
                gap = mean - other.mean(0)
                rest = (other - other.mean(0)) / math.sqrt(len(other) - 1)
                nuclear = np.linalg.svd(rows @ rest.T, compute_uv=False).sum()
                values.append(gap @ gap + (rows**2).sum() + (rest**2).sum() - 2.0 * nuclear)
            influences.append((values[0] - values[1]) / (2.0 * step))
        variance += np.var(influences, ddof=1) / n
    # influences of the unbiased covariance are n / (n - 1) of those of its sum of squares
    assert frechet_standard_error(a, b) == pytest.approx(math.sqrt(variance), rel=0.1)
    assert frechet_standard_error(b, a) == pytest.approx(frechet_standard_error(a, b), rel=1e-9)


@pytest.mark.parametrize(("n", "width"), [(120, 6), (40, 60)])
def test_standard_error_is_the_deviation_over_draws(n: int, width: int) -> None:
    pairs = [(draws(n, width, 2 * s), draws(n, width, 2 * s + 1) * 1.4 + 0.2) for s in range(120)]
    deviation = np.std([frechet_distance_from_features(a, b, warn=False) for a, b in pairs], ddof=1)
    errors = [frechet_standard_error(a, b) for a, b in pairs[:20]]
    assert np.mean(errors) == pytest.approx(deviation, rel=0.2)


def test_standard_error_of_points_and_dead_features() -> None:
    assert frechet_standard_error(np.ones((5, 3)), np.zeros((9, 3))) == 0.0
    a, b = draws(60, 4, 1), draws(70, 4, 2) * 2.0
    error = frechet_standard_error(a, b)
    wide = [np.hstack([x, np.full((len(x), 1), 7.0), x[:, :1]]) for x in (a, b)]
    twice = [np.hstack([x, x[:, :1]]) for x in (a, b)]
    assert frechet_standard_error(*wide) == pytest.approx(frechet_standard_error(*twice), rel=1e-6)
    assert frechet_standard_error(a * 10.0, b * 10.0) == pytest.approx(100.0 * error, rel=1e-9)


# Extrapolation


def test_infinity_takes_the_bias_away() -> None:
    plain, extrapolated = [], []
    for seed in range(4):
        a, b = draws(600, 20, 10 + seed), draws(900, 20, 20 + seed)
        plain.append(frechet_distance_from_features(a, b))
        extrapolated.append(frechet_distance_infinity(a, b, seed).value)
    # the same Gaussian: the truth is 0, and two samples of this size are about d (d + 1) / 4 (1/n_a + 1/n_b) apart
    assert np.mean(plain) == pytest.approx(20 * 21 / 4 * (1 / 600 + 1 / 900) + 20 * (1 / 600 + 1 / 900), rel=0.2)
    assert abs(np.mean(extrapolated)) < 0.15 * np.mean(plain)


def test_infinity_is_the_intercept_of_its_points() -> None:
    result = frechet_distance_infinity(draws(200, 4, 1), draws(150, 4, 2), 0)
    x, y = 1.0 / np.array(result.sizes), np.array(result.distances)
    slope = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
    residuals = y - y.mean() - slope * (x - x.mean())
    variance = (residuals**2).sum() / (len(x) - 2)
    error = math.sqrt(variance * (1 / len(x) + x.mean() ** 2 / ((x - x.mean()) ** 2).sum()))
    assert result.value == pytest.approx(y.mean() - slope * x.mean(), rel=1e-9)
    assert result.slope == pytest.approx(slope, rel=1e-9)
    assert result.standard_error == pytest.approx(error, rel=1e-9)


def test_infinity_has_fifteen_sizes_up_to_all_samples() -> None:
    a, b = draws(300, 4, 1), draws(150, 4, 2)
    result = frechet_distance_infinity(a, b, 3)
    assert len(result.sizes) == len(set(result.sizes)) == 15
    assert result.sizes == tuple(sorted(result.sizes))
    assert result.sizes[0] == 15
    assert result.sizes[-1] == 150
    assert result.distances[-1] == pytest.approx(frechet_distance_from_features(a, b), rel=1e-10)


def test_infinity_starts_above_twice_the_dimension_or_at_half() -> None:
    assert frechet_distance_infinity(draws(100, 20, 1), draws(100, 20, 2), 0).sizes[0] == 40
    assert frechet_distance_infinity(draws(40, 30, 1), draws(40, 30, 2), 0).sizes[0] == 20


def test_infinity_is_a_function_of_its_seed() -> None:
    a, b = draws(60, 3, 1), draws(60, 3, 2)
    assert frechet_distance_infinity(a, b, 1) == frechet_distance_infinity(a, b, 1)
    assert frechet_distance_infinity(a, b, 1).value != frechet_distance_infinity(a, b, 2).value


@pytest.mark.parametrize(("n_a", "n_b", "width"), [(200, 150, 4), (100, 90, 40), (45, 60, 40), (40, 35, 60)])
def test_points_of_infinity_are_distances_of_random_rows(
    n_a: int, n_b: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = draws(n_a, width, 1), draws(n_b, width, 2) * 1.5
    taken = frechet_distance_infinity(a, b, 5)

    def straight(features: torch.Tensor, _: FeatureStatistics, count: int, rng: torch.Generator) -> FeatureStatistics:
        if 2 * count <= len(features):
            return FeatureStatistics().update(subsample(features, count, rng))
        if count == len(features):
            return FeatureStatistics().update(features)
        left_out = set(torch.randperm(len(features), generator=rng)[: len(features) - count].tolist())
        return FeatureStatistics().update(features[[row for row in range(len(features)) if row not in left_out]])

    monkeypatch.setattr(frechet, "_of_some", straight)
    assert taken.distances == pytest.approx(frechet_distance_infinity(a, b, 5).distances, rel=1e-9)


# Warnings and refusals


@pytest.mark.parametrize("score", [frechet_distance_from_features, frechet_distance_infinity])
def test_few_samples_are_warned_of_once(
    score: Callable[[Floats, Floats], object], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        score(draws(40, 20, 1), draws(200, 20, 2))
    assert caplog.messages == []
    with caplog.at_level(logging.WARNING):
        score(draws(200, 20, 1), draws(39, 20, 2))
    assert len(caplog.messages) == 1
    assert "39 samples in 20 dimensions" in caplog.messages[0]
    assert "at least 40" in caplog.messages[0]
    score(draws(200, 20, 1), draws(39, 20, 2), warn=False)  # type: ignore[call-arg]
    assert len(caplog.messages) == 1
    assert few_samples(39, 20) in caplog.messages[0]
    assert few_samples(40, 20) == ""


def test_what_is_no_covariance_is_refused() -> None:
    mean, good = np.zeros(2), np.eye(2)
    for bad, message in [
        (np.array([[1.0, 0.5], [0.0, 1.0]]), "not symmetric"),
        (np.array([[1.0, 2.0], [2.0, 1.0]]), "none may be negative"),
        (-np.eye(2), "none may be negative"),
        (np.eye(3), "do not fit"),
        (np.full((2, 2), np.nan), "NaN"),
    ]:
        with pytest.raises(DataError, match=message):
            frechet_distance(mean, bad, mean, good)
        with pytest.raises(DataError, match=message):
            frechet_distance(mean, good, mean, bad)


def test_covariances_rounded_to_float32_are_taken() -> None:
    a, b, exact, _ = optimal_transport_pair(12, 30, 0)
    sides = [part.astype(np.float32) for side in (a, b) for part in moments(side)]
    assert frechet_distance(*sides) == pytest.approx(exact, rel=1e-2)


def test_features_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(DataError, match="4 and 5 dimensions"):
        frechet_distance_from_features(draws(9, 4), draws(9, 5))
    with pytest.raises(DataError, match="at least 2"):
        frechet_distance_from_features(draws(1, 4), draws(9, 4))
    with pytest.raises(DataError, match="generated: at least 30"):
        frechet_distance_infinity(draws(30, 4), draws(29, 4))


# Peers, where they are right


def test_full_rank_agrees_with_torch_fidelity() -> None:
    metric = pytest.importorskip("torch_fidelity.metric_fid")
    sides = [dict(zip(("mu", "sigma"), moments(draws(100, 8, seed) + seed), strict=True)) for seed in (1, 2)]
    value = metric.fid_statistics_to_metric(*sides, verbose=False)["frechet_inception_distance"]
    ours = frechet_distance(sides[0]["mu"], sides[0]["sigma"], sides[1]["mu"], sides[1]["sigma"])
    assert ours == pytest.approx(value, rel=1e-9)


def test_full_rank_agrees_with_torchmetrics() -> None:
    metric = pytest.importorskip("torchmetrics.image.fid")
    sides = [torch.from_numpy(part) for seed in (1, 2) for part in moments(draws(100, 8, seed) + seed)]
    assert frechet_distance(*sides) == pytest.approx(float(metric._compute_fid(*sides)), rel=1e-9)


def test_dead_and_repeated_features_have_a_distance_too() -> None:
    """Divide and conquer does not converge on these covariances: most eigenvalues are 0 or rounding."""
    rng = np.random.default_rng(0)
    few = rng.standard_normal((8, 400)).clip(min=0.0) * (rng.random(400) < 0.1)
    repeated = np.repeat(few, 100, axis=0).astype(np.float32)
    other = (rng.standard_normal((800, 400)).clip(min=0.0) * (rng.random(400) < 0.5)).astype(np.float32)
    a, b = ((x - x.mean(0, dtype=np.float64)) / math.sqrt(len(x) - 1) for x in (other, repeated))
    gap = other.mean(0, dtype=np.float64) - repeated.mean(0, dtype=np.float64)
    nuclear = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    expected = gap @ gap + (a**2).sum() + (b**2).sum() - 2.0 * nuclear
    assert frechet_distance_from_features(other, repeated) == pytest.approx(expected, rel=1e-6)


def test_where_divide_and_conquer_gives_up_qr_iteration_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def gives_up(_: torch.Tensor) -> None:
        raise RuntimeError("did not converge")

    covariance = np.diag([4.0, 1.0, -1e-6])  # of rounding to float32: no pivot may be negative
    expected = frechet_distance(np.zeros(3), covariance, np.zeros(3), np.eye(3))
    monkeypatch.setattr(torch.linalg, "eigh", gives_up)
    assert frechet_distance(np.zeros(3), covariance, np.zeros(3), np.eye(3)) == pytest.approx(expected, abs=1e-12)
    assert expected == pytest.approx(1.0 + 0.0 + 1.0, abs=1e-5)
