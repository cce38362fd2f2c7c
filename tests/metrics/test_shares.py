"""Scores whose work several processes share are those of one process; threads stand for the processes here."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor

from synthkd.errors import DataError
from synthkd.metrics import kernel, neighbours
from synthkd.metrics.diversity import vendi_with_error
from synthkd.metrics.features import Features, extract
from synthkd.metrics.frechet import frechet_distance_infinity, frechet_standard_error
from synthkd.metrics.kernel import kernel_distances
from synthkd.metrics.manifold import precision_recall_density_coverage
from synthkd.metrics.memorization import copying
from synthkd.metrics.named_scores import SuiteOptions
from synthkd.metrics.neighbours import nearest, nearest_others
from synthkd.metrics.score import ScoredSet
from synthkd.metrics.statistics import FeatureStatistics
from synthkd.metrics.suite import measure
from synthkd.system.shares import ALONE, Shares

T = TypeVar("T")
WORLD = 3


@dataclass(frozen=True)
class Threads(Shares):
    """Processes that are threads: they exchange through a list."""

    board: list[Any] = field(default_factory=list)
    barrier: threading.Barrier = field(default_factory=lambda: threading.Barrier(1))
    group: Any = "threads"

    def values(self, mine: T) -> list[T]:
        self.board[self.rank] = mine
        self.barrier.wait(20)
        found = list(self.board)
        self.barrier.wait(20)
        return found

    def gather(self, mine: Tensor) -> list[Tensor]:
        return self.values(mine)

    def sum(self, mine: Tensor) -> Tensor:
        return torch.stack(self.values(mine)).sum(dim=0)

    def first(self, work: Callable[[], T]) -> T:
        return self.values(work() if self.is_first else None)[0]  # type: ignore[return-value]


def together(work: Callable[[Shares], T], world: int = WORLD) -> list[T | Exception]:
    """What each of some processes returns or raises."""
    board, barrier, found = [None] * world, threading.Barrier(world), {}

    def run(rank: int) -> None:
        try:
            found[rank] = work(Threads(rank, world, board=board, barrier=barrier))
        except Exception as error:
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [found[rank] for rank in range(world)]


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)).relu()


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_TILE", 7)
    monkeypatch.setattr(kernel, "_BLOCK", 8)


def test_what_processes_get_is_everything_once() -> None:
    for count in (0, 1, 2, 3, 10, 11):
        shares = [Shares(rank, WORLD) for rank in range(WORLD)]
        rows = list(range(count))
        assert [row for one in shares for row in rows[one.span(count)]] == rows
        sizes = [len(rows[one.span(count)]) for one in shares]
        assert sizes == [len([*one.turns(rows)]) for one in shares], "as if the rows went to them in turn"
        assert sorted(row for one in shares for row in one.turns(rows)) == rows


def test_exact_scores_are_the_same_to_the_bit() -> None:
    one, other, third = normal(50, 6, 0), normal(41, 6, 1), normal(20, 6, 2)
    one[30:] = one[:20]  # ties and distances of 0

    def scores(shares: Shares) -> object:
        few = nearest(other[:2], one, 3, shares)  # fewer queries than processes
        others = nearest_others(one, 2, shares=shares)
        manifold = precision_recall_density_coverage(one, other, 5, shares)
        copies = copying(one, third, other, 0, shares)
        return [
            few.squared.tolist(), others.squared.tolist(), manifold, copies.authenticity, copies.statistic,
            copies.ratios.nearer_to_train, frechet_distance_infinity(one[:, :2], other[:, :2], warn=False).value,
        ]  # fmt: skip

    alone = scores(ALONE)
    assert together(scores) == [alone] * WORLD


def test_sums_are_the_same_up_to_rounding() -> None:
    one, other = normal(50, 6, 0) + 1, normal(41, 6, 1) + 1

    def scores(shares: Shares) -> Tensor:
        statistics = FeatureStatistics.shared(one.double(), shares)
        distances = kernel_distances(one, other, 4, 20, 0, shares)
        infinity, vendi = (
            frechet_distance_infinity(one, other, warn=False, shares=shares),
            vendi_with_error(one, shares),
        )
        wide = vendi_with_error(one.T, shares)  # fewer rows than columns
        numbers = [
            distances.value, distances.standard_error, distances.spread.mean, distances.spread.std, infinity.value,
            infinity.standard_error, vendi.value, vendi.standard_error, wide.value, wide.standard_error,
            frechet_standard_error(one, other, shares), frechet_standard_error(one[:41].T, other.T, shares),
        ]  # fmt: skip
        return torch.cat([statistics.mean, statistics.covariance.flatten(), torch.tensor(numbers).double()])

    alone, shared = scores(ALONE), together(scores)
    for found in shared:
        assert isinstance(found, Tensor), found
        torch.testing.assert_close(found, alone, rtol=1e-6, atol=1e-9)
        assert torch.equal(found, shared[0]), "every process has the same"  # type: ignore[arg-type]
    few = together(lambda shares: FeatureStatistics.shared(one[:2].double(), shares).covariance)
    assert all(torch.allclose(found, one[:2].T.cov().double()) for found in few)  # type: ignore[arg-type]


@pytest.mark.parametrize("judged", [True, False])
def test_the_whole_suite(judged: bool) -> None:
    def scored(n: int, seed: int) -> ScoredSet:
        features = Features(normal(n, 5, seed) + 0.1, normal(n, 3, seed + 10) if judged else None, "net", "d", "none")
        return ScoredSet("set", features, torch.arange(n) % 3 if judged else None, features if judged else None)

    sets = scored(60, 0), scored(50, 1), SuiteOptions(subsets=3, subset_size=10, splits=2), scored(40, 2), scored(30, 3)
    alone = measure(*sets)
    for found in together(lambda shares: measure(*sets, shares=shares)):
        assert not isinstance(found, Exception), found
        for mine, theirs in zip(found.scores, alone.scores, strict=True):
            assert (mine.name, mine.note, mine.n) == (theirs.name, theirs.note, theirs.n)
            assert mine.value == (None if theirs.value is None else pytest.approx(theirs.value, rel=1e-9, abs=1e-9))
            assert mine.interval == theirs.interval


def test_images_are_passed_in_the_same_batches_and_an_error_is_told_once() -> None:
    batches = [torch.arange(start, start + 5, dtype=torch.uint8).reshape(5, 1, 1, 1) for start in (0, 5, 10, 15)]
    seen: list[list[int]] = []

    class Network:
        name, digest, resize = "net", "d", "none"

        def __call__(self, images: Tensor) -> object:
            numbers = images.flatten().tolist()
            seen.append(numbers)
            if 12 in numbers and failing:
                raise DataError("image 12 is bad")
            return type("Found", (), {"features": images.flatten(1).float(), "logits": None})

    failing = False
    alone = extract(batches, Network(), 3)  # type: ignore[arg-type]
    chunks, seen[:] = sorted(seen), []

    def shared(shares: Shares) -> Features:
        return extract(batches[shares.span(len(batches))], Network(), 3, shares)  # type: ignore[arg-type]

    for found in together(shared):
        assert isinstance(found, Features), found
        assert torch.equal(found.values, alone.values)
    assert sorted(seen) == chunks, "each once, whatever the number of processes"
    failing = True
    errors = together(shared)
    assert [str(error) for error in errors] == ["process 1: image 12 is bad"] * WORLD
    failing = False
    few = together(lambda shares: extract(batches[: shares.is_first], Network(), 3, shares))  # type: ignore[arg-type]
    assert all(torch.equal(found.values, alone.values[:5]) for found in few if isinstance(found, Features))
    none = together(lambda shares: extract([], Network(), 3, shares))  # type: ignore[arg-type]
    assert [str(error)[:30] for error in none] == ["no images to take features of;"] * WORLD
