"""Exact neighbours: against all pairs in whole numbers, with ties, copies, near copies and any size of tile."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from synthkd.errors import DataError
from synthkd.metrics import distances, neighbours
from synthkd.metrics.neighbours import mutual_balls, nearest, nearest_others, points


def normal(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def all_pairs(queries: Tensor, base: Tensor) -> Tensor:
    """Every squared distance in float64, from differences."""
    return (queries.double()[:, None] - base.double()[None]).square().sum(dim=2)


def slow_nearest(squared: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k smallest of each row; `sort` is stable, so the lower index comes first."""
    values, indices = squared.sort(dim=1, stable=True)
    return values[:, :k], indices[:, :k]


def set_tile(patch: pytest.MonkeyPatch, size: int) -> None:
    patch.setattr(neighbours, "_TILE", size)
    patch.setattr(distances, "_COORDINATES", 40)


grids = st.lists(st.tuples(st.integers(-2, 2), st.integers(-2, 2)), min_size=5, max_size=40)


@settings(max_examples=60, deadline=None)
@given(base=grids, queries=grids, k=st.integers(1, 4), tile=st.sampled_from([3, 7, 1448]))
def test_points_on_a_grid_full_of_ties_and_copies(base, queries, k, tile):
    base, queries = torch.tensor(base, dtype=torch.float64), torch.tensor(queries, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        set_tile(patch, tile)
        found, others = nearest(queries, base, k), nearest_others(base, k)
        some = torch.tensor([3, 0])
        of_some = nearest_others(base, k, some)
    squared = all_pairs(queries, base)
    values, indices = slow_nearest(squared, k)
    assert torch.equal(found.squared, values)
    sure = values[:, -1] > 0  # else more than k copies may share the places
    assert torch.equal(found.indices[sure], indices[sure])
    assert torch.equal(squared.gather(1, found.indices), values)

    among = all_pairs(base, base).fill_diagonal_(torch.inf)
    values, indices = slow_nearest(among, k)
    for result, rows in ((others, torch.arange(len(base))), (of_some, some)):
        assert torch.equal(result.squared, values[rows])
        assert torch.equal(among[rows].gather(1, result.indices), values[rows])
        assert not (result.indices == rows[:, None]).any()


@settings(max_examples=40, deadline=None)
@given(first=grids, second=grids, reach=st.integers(0, 9), tile=st.sampled_from([3, 7, 1448]))
def test_balls_on_a_grid_hold_their_surface(first, second, reach, tile):
    first, second = torch.tensor(first, dtype=torch.float64), torch.tensor(second, dtype=torch.float64)
    first_radii = torch.arange(len(first)).remainder(reach + 1).double()  # squared, so some equal a distance exactly
    second_radii = torch.arange(len(second)).remainder(5).double()
    with pytest.MonkeyPatch.context() as patch:
        set_tile(patch, tile)
        balls = mutual_balls(first, first_radii, second, second_radii)
    squared = all_pairs(first, second)
    in_first, in_second = squared <= first_radii[:, None], squared <= second_radii
    assert torch.equal(balls.first.balls_per_point, in_first.sum(dim=0))
    assert torch.equal(balls.first.points_per_ball, in_first.sum(dim=1))
    assert torch.equal(balls.second.balls_per_point, in_second.sum(dim=1))
    assert torch.equal(balls.second.points_per_ball, in_second.sum(dim=0))


@pytest.mark.parametrize(("n", "d"), [(300, 3), (200, 64), (80, 1000)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_random_points_equal_all_pairs(n, d, dtype):
    base, queries = normal(n, d).to(dtype), normal(70, d, 1).to(dtype)
    found, others = nearest(queries, base, 5), nearest_others(base, 5)
    values, indices = slow_nearest(all_pairs(queries, base), 5)
    torch.testing.assert_close(found.squared, values, rtol=1e-13, atol=0)
    assert torch.equal(found.indices, indices)
    values, indices = slow_nearest(all_pairs(base, base).fill_diagonal_(torch.inf), 5)
    torch.testing.assert_close(others.squared, values, rtol=1e-13, atol=0)
    assert torch.equal(others.indices, indices)


def test_distances_that_float32_cannot_tell_apart_are_ordered():
    """A shell around the query whose radii differ by 1e-10 of themselves."""
    directions = normal(400, 50)
    order = torch.randperm(400, generator=torch.Generator().manual_seed(2))
    base = directions / directions.norm(dim=1, keepdim=True) * (1 + 1e-10 * order.double())[:, None]
    found = nearest(torch.zeros(1, 50, dtype=torch.float64), base, 7)
    assert order[found.indices[0]].tolist() == list(range(7))


def test_near_copies_far_from_the_mean_keep_their_distances():
    """Two clusters 2000 apart, each of points 1e-6 apart: a float32 or float64 product sees all of them as equal."""
    steps = torch.arange(30, dtype=torch.float64)[:, None] ** 2 * 1e-6
    base = torch.cat([1000 + steps, -1000 - steps]) * torch.ones(1, 4, dtype=torch.float64)
    found = nearest_others(base, 2)
    values, indices = slow_nearest(all_pairs(base, base).fill_diagonal_(torch.inf), 2)
    assert torch.equal(found.indices, indices)
    torch.testing.assert_close(found.squared, values, rtol=1e-13, atol=0)
    assert float(found.squared[0, 0]) == pytest.approx(4e-12, rel=1e-6)


def test_more_copies_than_neighbours_are_at_distance_zero():
    base = normal(3, 600).repeat(20, 1) + 1e3
    found = nearest_others(base, 5)
    assert not found.squared.any()
    assert torch.equal(base[found.indices], base[:, None].expand(-1, 5, -1))
    assert (found.indices != torch.arange(60)[:, None]).all()
    assert all(len(set(row)) == 5 for row in found.indices.tolist())


def test_tiles_do_not_change_a_bit(monkeypatch):
    base, queries = normal(150, 20), normal(60, 20, 1)
    base[100:] = base[:50]
    radii, query_radii = nearest_others(base, 3).squared[:, -1], nearest_others(queries, 3).squared[:, -1]

    def results() -> list[Tensor]:
        found, others = nearest(queries, base, 3), nearest_others(base, 3)
        balls = mutual_balls(base, radii, queries, query_radii)
        counts = [(side.balls_per_point, side.points_per_ball) for side in (balls.first, balls.second)]
        return [found.squared, found.indices, others.squared, others.indices, *counts[0], *counts[1]]

    whole = results()
    set_tile(monkeypatch, 11)
    assert all(value.any() for value in whole)
    assert all(torch.equal(one, other) for one, other in zip(whole, results(), strict=True))


@pytest.mark.parametrize("scale", [1e-140, 1e-25, 1e25, 1e140])
def test_any_scale(scale):
    base, queries = normal(50, 8), normal(20, 8, 1)
    found, scaled = nearest(queries, base, 4), nearest(queries * scale, base * scale, 4)
    assert torch.equal(found.indices, scaled.indices)
    torch.testing.assert_close(scaled.squared.sqrt() / scale, found.squared.sqrt(), rtol=1e-12, atol=0)


def test_all_points_equal():
    base = torch.full((7, 3), 2.5, dtype=torch.float64)
    assert not nearest_others(base, 6).squared.any()
    balls = mutual_balls(base, torch.zeros(7, dtype=torch.float64), base[:4], torch.zeros(4, dtype=torch.float64))
    assert balls.first.balls_per_point.tolist() == [7] * 4
    assert balls.second.balls_per_point.tolist() == [4] * 7


@pytest.mark.parametrize("shorter", ["medium", "autocast"])
def test_shorter_float_formats_asked_of_torch_do_not_reach_the_distances(shorter):
    base, queries = normal(400, 300), normal(90, 300, 1)
    expected = nearest(queries, base, 5)
    before = torch.get_float32_matmul_precision()
    try:
        if shorter == "medium":
            torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", torch.bfloat16, enabled=shorter == "autocast"):
            found = nearest(queries, base, 5)
            switched = distances.Frame(base, queries).dtype  # what shows where the processor has no such format
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(found.squared, expected.squared)
    assert torch.equal(found.indices, expected.indices)
    assert switched == torch.float64


def test_points_keep_float32_and_convert_the_rest():
    values = normal(4, 3)
    assert points(values.float(), "real").dtype == torch.float32
    assert points(values.float().numpy(), "real").dtype == torch.float32
    for other in (values, values.half(), np.arange(6).reshape(2, 3)):
        assert points(other, "real").dtype == torch.float64


@pytest.mark.parametrize("bad", [torch.tensor([[1.0, torch.nan]]), torch.tensor([[torch.inf, 0.0]]), torch.zeros(3)])
def test_points_refuse_what_rows_refuse(bad):
    with pytest.raises(DataError, match="real: "):
        points(bad, "real")


def test_too_few_points_and_other_widths():
    base = normal(4, 2)
    with pytest.raises(DataError, match="k=4 nearest neighbours among 3 points: take 1 <= k <= 3, or more points"):
        nearest_others(base, 4)
    with pytest.raises(DataError, match="k=0"):
        nearest(base, base, 0)
    with pytest.raises(DataError, match="2 and 3 dimensions"):
        nearest(base, normal(4, 3), 1)
