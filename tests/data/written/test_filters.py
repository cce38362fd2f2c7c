"""What the sieve keeps, against the slow and obvious way."""

import pytest
import torch
from sklearn.datasets import load_digits

from synthkd.data.written import filters
from synthkd.data.written.filters import Sieve, as_points, nearest_real
from synthkd.data.written.unfinished import Part


def digits(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    found = load_digits()
    images = torch.from_numpy(found.images[:count] * 15).to(torch.uint8)[:, None]
    return images, torch.from_numpy(found.target[:count]).long()


def obvious(images: torch.Tensor, labels: torch.Tensor, limit: float) -> list[bool]:
    kept: list[int] = []
    for row in range(len(labels)):
        others = [other for other in kept if labels[other] == labels[row]]
        gaps = [((images[row].double() - images[other].double()) / 255).square().mean().sqrt() for other in others]
        if all(gap > limit for gap in gaps):
            kept.append(row)
    return [row in kept for row in range(len(labels))]


@pytest.mark.parametrize("block", [7, 300])
@pytest.mark.parametrize("limit", [0.0, 0.12, 0.2])
def test_near_duplicates_go_the_same_way_in_any_blocks(block: int, limit: float) -> None:
    images, labels = digits(300)
    images[200:210], labels[200:210] = images[:10], labels[:10]
    sieve = Sieve([300] * 10, near_duplicates=limit)
    parts = [
        Part(first, images[first : first + block], labels[first : first + block], torch.zeros(300, 10)[:block])
        for first in range(0, 300, block)
    ]
    kept = torch.cat([sieve.keep(part) for part in parts])
    assert kept.tolist() == obvious(images, labels, limit)
    assert not kept[200:210].any()
    assert sieve.reasons == {"near_duplicates": int((~kept).sum())}


def test_confidence_copies_and_counts() -> None:
    images, labels = digits(6)
    labels = torch.tensor([0, 0, 0, 0, 1, 1])
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 0.0]])
    distance = torch.tensor([0.5, 0.5, 0.01, 0.5, 0.5, 0.01])
    sieve = Sieve([1, 3], confidence=0.8, copies=0.02)
    kept = sieve.keep(Part(0, images, labels, logits, distance))
    assert kept.tolist() == [True, False, False, False, True, False]
    assert sieve.lacking.tolist() == [0, 2]
    assert sieve.tried.tolist() == [1, 2], "what comes when the class is full is not tried"
    assert sieve.reasons == {"confidence": 1}


def test_a_copy_is_named_as_such() -> None:
    images, labels = digits(2)
    sieve = Sieve([5] * 10, confidence=0.1, copies=0.02)
    part = Part(0, images, labels, torch.zeros(2, 10), torch.tensor([0.0, 0.5]))
    assert sieve.keep(part).tolist() == [False, True]
    assert sieve.reasons == {"copies": 1}


def test_without_filters_everything_that_is_wanted_stays() -> None:
    images, labels = digits(100)
    sieve = Sieve(labels.bincount().tolist())
    assert sieve.keep(Part(0, images, labels, torch.zeros(100, 10))).all()
    assert not sieve.lacking.any()


def test_distance_to_the_nearest_real_image() -> None:
    images, _ = digits(50)
    real = as_points(images[:30])
    found = nearest_real(images, real)
    assert found[:30].eq(0).all(), "a copy has distance 0 exactly"
    gaps = ((images[30:, None].double() - images[None, :30].double()) / 255).square().mean((2, 3, 4)).sqrt()
    assert torch.allclose(found[30:], gaps.min(1).values.float())
    assert torch.equal(nearest_real(images, images[:30]), found)
    black, white = torch.zeros(1, 3, 4, 4, dtype=torch.uint8), torch.full((1, 3, 4, 4), 255, dtype=torch.uint8)
    assert nearest_real(white, as_points(black)).tolist() == [1.0]


def test_real_images_in_memory_become_floats_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    images, _ = digits(50)
    whole, rows = nearest_real(images, images[:30]), list[int]()
    monkeypatch.setattr(filters, "CHUNK", 8)
    monkeypatch.setattr(filters, "as_points", lambda block: rows.append(len(block)) or as_points(block))
    assert torch.equal(nearest_real(images, images[:30]), whole)
    assert rows == [50, 8, 8, 8, 6]
