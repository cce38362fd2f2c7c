"""Distances of samples against exact ones: assignments, quantiles, Gaussians with and without entropy."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import norm
from torch import Tensor

from synthkd.errors import DataError
from synthkd.losses.alignment import heterogeneous_alignment, positions, sinkhorn_wasserstein, sliced_wasserstein
from synthkd.metrics.frechet import frechet_distance
from synthkd.rng import stream


def sliced(a: Tensor, b: Tensor, projections: int = 64, seed: int = 0) -> Tensor:
    return sliced_wasserstein(a, b, stream(seed, "slices"), projections)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def exact(a: Tensor, b: Tensor) -> float:
    """W_2^2 of equally many rows: the best assignment."""
    costs = torch.cdist(a.double(), b.double()).square().numpy()
    return float(costs[linear_sum_assignment(costs)].mean())


def quantiles(count: int, mean: float, deviation: float) -> Tensor:
    """A Gaussian as equally weighted points in one dimension."""
    return torch.from_numpy(norm.ppf((np.arange(count) + 0.5) / count, mean, deviation)).unsqueeze(1)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (5, 5), (4, 6), (3, 7), (1, 5), (8, 2)])
def test_in_one_dimension_the_sliced_distance_is_exact_for_any_two_sizes(n: int, m: int) -> None:
    a, b = normal(n, 1, seed=1), 2.0 * normal(m, 1, seed=2) + 1.0
    # each row as often as makes both sides equally many: the same distributions
    expected = exact(a.repeat_interleave(m, 0), b.repeat_interleave(n, 0))
    assert float(sliced(a, b)) == pytest.approx(expected, rel=1e-5)
    assert float(sliced(b, a)) == pytest.approx(expected, rel=1e-5)


def test_slices_are_those_of_a_slow_loop() -> None:
    a, b = normal(6, 3).double(), normal(6, 3, seed=1).double() * 2
    total = 0.0
    block = torch.linalg.qr(torch.randn(1, 3, 3, generator=stream(5, "slices"))).Q[0].double()
    for direction in block.T:
        assert float(direction.norm()) == pytest.approx(1.0)
        assert float(block[:, 0] @ block[:, 1]) == pytest.approx(0.0, abs=1e-6)
        first, second = sorted((a @ direction).tolist()), sorted((b @ direction).tolist())
        total += sum((x - y) ** 2 for x, y in zip(first, second, strict=True)) / 6
    assert float(sliced(a, b, 3, seed=5)) == pytest.approx(3 * total / 3, rel=1e-6)


def test_slices_find_a_shift_exactly_and_a_common_scale_in_the_mean() -> None:
    a, shift = normal(40, 5), torch.tensor([1.0, -2.0, 0.0, 0.5, 3.0])
    assert float(sliced(a, a + shift, 5)) == pytest.approx(float(shift.square().sum()), rel=1e-4)
    # x -> 3 x is an optimal map, so W_2^2 is the mean of |2 x|^2
    assert float(sliced(a, 3.0 * a, 5)) == pytest.approx(float((2.0 * a).square().sum(1).mean()), rel=1e-4)


def test_slices_are_never_above_the_exact_distance_in_the_mean() -> None:
    a, b = normal(48, 4), normal(48, 4, seed=1) * torch.tensor([0.1, 1.0, 2.0, 4.0])
    assert 0.5 * exact(a, b) < float(sliced(a, b, 2000)) < exact(a, b)


def test_slices_are_a_function_of_the_generator() -> None:
    a, b = normal(9, 4), normal(7, 4, seed=1)
    assert torch.equal(sliced(a, b, seed=3), sliced(a, b, seed=3))
    assert not torch.equal(sliced(a, b, seed=3), sliced(a, b, seed=4))


@pytest.mark.parametrize("width", [1, 2, 8])
def test_sinkhorn_tends_to_the_best_assignment(width: int) -> None:
    a, b = normal(40, width).double(), 1.5 * normal(40, width, seed=1).double() + 1.0
    errors = [abs(float(sinkhorn_wasserstein(a, b, e, 300)) / exact(a, b) - 1.0) for e in (0.3, 0.05, 0.003)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.01


def test_sinkhorn_gives_the_distance_of_gaussians() -> None:
    mean, deviations = np.array([1.0, 0.0, -0.5]), np.array([2.0, 1.0, 0.5])
    expected = frechet_distance(np.zeros(3), np.eye(3), mean, np.diag(deviations**2))
    assert expected == pytest.approx(float(mean @ mean) + 1.0 + 0.25)
    # with the moments of the Gaussians, and a map between them that is optimal: the samples are as far apart as they
    a = normal(200, 3).double()
    a = (a - a.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(a.T, correction=0))).T
    b = a.flip(0) * torch.from_numpy(deviations) + torch.from_numpy(mean)
    assert exact(a, b) == pytest.approx(expected)
    assert float(sinkhorn_wasserstein(a, b, 0.002, 200)) == pytest.approx(expected, rel=0.01)


def test_slices_of_gaussians_are_the_mean_of_their_projections() -> None:
    generator = np.random.default_rng(0)
    mean, deviations = np.array([1.0, 0.0, -0.5]), np.array([2.0, 1.0, 0.5])
    a, b = (torch.from_numpy(generator.standard_normal((5000, 3))) for _ in range(2))
    found = sliced(a, b * torch.from_numpy(deviations) + torch.from_numpy(mean), 300)
    # of a direction u: (u.m)^2 + (sqrt(u' S u) - 1)^2
    u = generator.standard_normal((20_000, 3))
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    expected = 3.0 * float(((u @ mean) ** 2 + (np.sqrt(u**2 @ deviations**2) - 1.0) ** 2).mean())
    assert float(found) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("share", [0.2, 1.0, 5.0])
def test_sinkhorn_of_gaussians_is_the_closed_form_with_entropy(share: float) -> None:
    """Janati et al. 2020, theorem 1, in one dimension; what depends on one side only cancels in the difference."""
    a, b = quantiles(300, 0.0, 1.0), quantiles(250, 0.7, 2.0)
    half = 0.5 * share * float(torch.cdist(a, b).square().median())

    def coupled(first: float, second: float) -> float:
        root = math.sqrt(4.0 * first * second + half**2)
        return half * math.log(root + half) - root

    expected = 0.7**2 + coupled(1.0, 4.0) - 0.5 * coupled(1.0, 1.0) - 0.5 * coupled(4.0, 4.0)
    assert float(sinkhorn_wasserstein(a, b, share)) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("epsilon", [0.05, 1.0, 100.0])
def test_sinkhorn_finds_a_shift_exactly_at_any_epsilon(epsilon: float) -> None:
    a = normal(30, 4).double()
    assert float(sinkhorn_wasserstein(a, a + 2.0, epsilon, 200)) == pytest.approx(16.0, rel=1e-4)


def test_much_entropy_leaves_the_means_alone() -> None:
    a, b = normal(30, 3).double(), 5.0 * normal(20, 3, seed=1).double() + 1.0
    expected = float((a.mean(0) - b.mean(0)).square().sum())
    assert float(sinkhorn_wasserstein(a, b, 1e6)) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("distance", [sliced, partial(sinkhorn_wasserstein, iterations=100)])
def test_distances_are_symmetric_blind_to_order_and_zero_for_equals(distance) -> None:  # type: ignore[no-untyped-def]
    a, b = normal(20, 3), normal(14, 3, seed=1) + 1.0
    value = float(distance(a, b))
    assert float(distance(b, a)) == pytest.approx(value, rel=1e-3)
    assert float(distance(a.flip(0), b.roll(5, 0))) == pytest.approx(value, rel=1e-4)
    assert float(distance(10.0 * a, 10.0 * b)) == pytest.approx(100.0 * value, rel=1e-3)
    assert float(distance(a, a.flip(0))) == pytest.approx(0.0, abs=1e-3)


def test_sinkhorn_keeps_its_digits_far_from_the_origin() -> None:
    a, b = normal(20, 3), normal(14, 3, seed=1) + 1.0
    far = sinkhorn_wasserstein(a + 1000.0, b + 1000.0)
    assert float(far) == pytest.approx(float(sinkhorn_wasserstein(a, b)), rel=1e-3)


@pytest.mark.parametrize("distance", [sliced, partial(sinkhorn_wasserstein, iterations=400)])
def test_gradients_are_the_slopes(distance) -> None:  # type: ignore[no-untyped-def]
    a, b = normal(6, 2).double().requires_grad_(), (normal(5, 2, seed=1) + 0.5).double()
    (gradient,) = torch.autograd.grad(distance(a, b), a)
    move = normal(6, 2, seed=2).double() * 1e-4
    costs = torch.cdist(a.detach(), b)
    move[(costs == costs.median()).any(dim=1)] = 0.0  # the typical cost has no part in the gradient
    with torch.no_grad():
        slope = float(distance(a + move, b) - distance(a - move, b)) / 2.0
    assert float((gradient * move).sum()) == pytest.approx(slope, rel=1e-3)


@pytest.mark.parametrize("distance", [sliced, sinkhorn_wasserstein])
def test_descent_brings_a_sample_to_another(distance) -> None:  # type: ignore[no-untyped-def]
    a, b = normal(24, 2).requires_grad_(), 0.5 * normal(16, 2, seed=1) + 3.0
    optimizer = torch.optim.SGD([a], lr=0.25 * len(a))
    for _ in range(40):
        optimizer.zero_grad()
        loss = distance(a, b)
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.05
    assert a.detach().mean(0).tolist() == pytest.approx(b.mean(0).tolist(), abs=0.05)


@pytest.mark.parametrize("distance", [sliced, sinkhorn_wasserstein])
def test_degenerate_samples_are_finite(distance) -> None:  # type: ignore[no-untyped-def]
    assert float(distance(torch.zeros(1, 3), torch.tensor([[1.0, 2.0, 2.0]]))) == pytest.approx(9.0, rel=0.2)
    constant = torch.full((8, 3), 5.0, requires_grad=True)
    for target in (torch.full((4, 3), 5.0), normal(4, 3), torch.zeros(1, 3)):
        value = distance(constant, target)
        (gradient,) = torch.autograd.grad(value, constant)
        assert bool(torch.isfinite(value)), target
        assert bool(torch.isfinite(gradient).all()), target
    assert float(distance(constant.detach(), constant.detach())) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("distance", [sliced, sinkhorn_wasserstein])
def test_mixed_precision_is_left_outside(distance) -> None:  # type: ignore[no-untyped-def]
    a, b = normal(16, 4), normal(16, 4, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        inside = distance(a, b)
    assert inside.dtype == torch.float32
    assert float(inside) == pytest.approx(float(distance(a, b)), rel=1e-6)
    assert distance(a.bfloat16(), b).dtype == torch.float32


def test_positions_of_a_map_are_its_pixels_row_by_row() -> None:
    maps = torch.arange(24.0).reshape(1, 2, 3, 4)
    assert positions(maps).shape == (1, 12, 2)
    assert positions(maps)[0, 5].tolist() == [5.0, 17.0]
    assert positions(torch.ones(3, 7)).shape == (3, 1, 7)
    with pytest.raises(DataError, match=r"got \[3\]; tap a module"):
        positions(torch.ones(3))


def test_alignment_sums_the_layers_over_their_dimensions() -> None:
    teacher = [normal(6, 4, 3, 3), normal(6, 8)]
    student = [normal(6, 16, 4, seed=1), normal(6, 8, seed=2)]
    expected = 0.0
    for theirs, ours in zip(teacher, student, strict=True):
        first, second = (positions(x).flatten(0, 1) for x in (theirs, ours))
        expected += float(sinkhorn_wasserstein(first, second)) / first.shape[1]
    assert float(heterogeneous_alignment(teacher, student, sinkhorn_wasserstein)) == pytest.approx(expected, rel=1e-5)


def test_relative_alignment_is_one_for_the_mean_at_any_scale() -> None:
    teacher = 7.0 * normal(5, 6, 4, 4) + 3.0
    mean = teacher.mean((0, 2, 3)).expand(5, 9, 6).contiguous().requires_grad_()
    value = heterogeneous_alignment([teacher], [mean], partial(sliced, projections=6), relative=True)
    assert float(value.detach()) == pytest.approx(1.0, rel=1e-4)
    value.backward()
    assert mean.grad is not None


def test_many_positions_are_thinned_evenly() -> None:
    teacher, student = normal(32, 3, 8, 8), normal(32, 3, 8, 8, seed=1) + 2.0
    whole, part = (heterogeneous_alignment([teacher], [student], sliced, most=most) for most in (4096, 300))
    assert float(part) == pytest.approx(float(whole), rel=0.1)
    assert not torch.equal(whole, part)


def test_what_does_not_fit_is_told() -> None:
    with pytest.raises(DataError, match=r"got \[4, 3\] and \[4, 2\]; project both to one dimension"):
        sliced(torch.ones(4, 3), torch.ones(4, 2))
    with pytest.raises(DataError, match=r"N, M and D > 0, got \[0, 3\]"):
        sinkhorn_wasserstein(torch.ones(0, 3), torch.ones(4, 3))
    with pytest.raises(DataError, match="got 1 of the teacher and 2 of the student; pair them"):
        heterogeneous_alignment([torch.ones(4, 3)], [torch.ones(4, 3)] * 2, sliced)
