"""Bounds hold the exact distances, and exact distances are sums of squared differences."""

import pytest
import torch

from synthkd.metrics import distances
from synthkd.metrics.distances import Frame, slices, squared_distances


@pytest.mark.parametrize("scale", [1.0, 1e-140, 1e140])
@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_bounds_hold_the_exact_distances(scale: float, shift: float) -> None:
    rng = torch.Generator().manual_seed(0)
    base, queries = (torch.randn(n, 30, generator=rng, dtype=torch.float64) + shift for n in (40, 25))
    base, queries = torch.cat([base, queries[:5]]) * scale, queries * scale
    frame = Frame(base, queries)
    left, right = frame.cloud(queries), frame.cloud(base)
    lower = left.lower(right).double()
    exact = ((queries * frame.scale)[:, None] - (base * frame.scale)[None]).square().sum(dim=2)
    assert (lower <= exact).all()
    assert (exact <= lower + left.slack[:, None] + right.slack).all()
    assert float(left.coordinates.abs().max()) < 1.0


def test_a_part_of_a_cloud_has_the_bounds_of_the_whole() -> None:
    points = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    cloud = Frame(points, points).cloud(points)
    assert torch.equal(cloud[4:9].points, points[4:9])
    torch.testing.assert_close(cloud[4:9].lower(cloud[2:7]), cloud.lower(cloud)[4:9, 2:7], atol=1e-6, rtol=0)


def test_distances_of_pairs_do_not_depend_on_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = torch.Generator().manual_seed(0)
    queries, base = torch.randn(9, 4, generator=rng), torch.randn(7, 4, generator=rng)
    query, index = torch.tensor([0, 8, 8, 3]), torch.tensor([6, 0, 0, 2])
    expected = (queries[query].double() - base[index].double()).square().sum(dim=1)
    assert torch.equal(squared_distances(queries, base, query, index), expected)
    monkeypatch.setattr(distances, "_COORDINATES", 5)
    assert torch.equal(squared_distances(queries, base, query, index), expected)


def test_slices_cover_the_range_once() -> None:
    assert [(part.start, part.stop) for part in slices(7, 3, 2)] == [(2, 5), (5, 7)]
    assert len(list(slices(3, 0))) == 3
    assert list(slices(0, 3)) == []
