"""The pool of earlier images."""

from pathlib import Path

import pytest
import torch

from synthkd.errors import ModelError
from synthkd.generators import pool as pools
from synthkd.generators.pool import Pool
from synthkd.rng import Rows
from synthkd.types import ImageSpec, balanced_labels

SPEC = ImageSpec(1, 2, 2, 3)


def filled() -> Pool:
    """Two images of class 0 (grey levels 0 and 3) and of class 1 (1 and 4), none of class 2."""
    pool = Pool(SPEC)
    levels = torch.tensor([0, 1, 3, 4]) / 255
    pool.add(levels.view(4, 1, 1, 1).expand(4, 1, 2, 2), torch.tensor([0, 1, 0, 1]))
    return pool


def levels(images: torch.Tensor) -> list[int]:
    return (255 * images[:, 0, 0, 0]).round().int().tolist()


def test_labels_in_turn_get_each_image_of_their_class_once_before_any_twice() -> None:
    labels = torch.arange(9) % 3
    given = levels(filled().sample(labels, Rows(0, "x")))
    assert [level for level, label in zip(given, labels.tolist(), strict=True) if label == 0] == [0, 3, 0]
    assert [level for level, label in zip(given, labels.tolist(), strict=True) if label == 1] == [1, 4, 1]


def test_an_image_is_a_function_of_its_label_and_row() -> None:
    pool, labels = filled(), torch.arange(12) % 3
    together = pool.sample(labels, Rows(0, "x"))
    apart = torch.cat([pool.sample(labels[i : i + 4], Rows(0, "x", i)) for i in range(0, 12, 4)])
    assert torch.equal(together, apart)
    assert 0.0 <= float(together.min()) <= float(together.max()) <= 1.0
    noise = together[labels == 2]
    assert len(noise.unique()) == noise.numel(), "a class without images gets noise"


def test_the_oldest_images_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "MOST_IMAGES", 3)
    pool = filled()
    assert len(pool) == 3
    assert levels(pool.sample(torch.zeros(3, dtype=torch.long), Rows(0, "x"))) == [3, 3, 3]


def test_a_full_pool_takes_the_bytes_that_it_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "MOST_BYTES", 3 * 4)
    pool = filled()
    assert len(pool) == 3
    assert pool.most_bytes == pool.state_dict()["images"].nbytes


def test_saved_and_restored(tmp_path: Path) -> None:
    pool, other = filled(), Pool(SPEC)
    pool.save(tmp_path)
    other.restore(tmp_path)
    labels = torch.arange(6) % 3
    assert torch.equal(other.sample(labels, Rows(0, "x")), pool.sample(labels, Rows(0, "x")))
    with pytest.raises(ModelError, match="does not hold labelled 1x3x3 images"):
        Pool(ImageSpec(1, 3, 3, 3)).restore(tmp_path)


def test_a_full_pool_keeps_images_of_every_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "MOST_IMAGES", 3)
    pool = Pool(SPEC)
    for label, level in ((2, 9), (0, 0), (0, 1), (0, 2), (1, 5)):
        pool.add(torch.full((1, 1, 2, 2), level / 255), torch.tensor([label]))
    assert levels(pool.sample(torch.arange(3), Rows(0, "x"))) == [2, 5, 9]


def test_labels_of_one_class_get_each_of_its_images() -> None:
    given = levels(filled().sample(torch.ones(6, dtype=torch.long), Rows(0, "x")))
    assert {given.count(1), given.count(4)} <= {2, 3, 4}


def test_of_many_classes_each_image_of_a_class_is_given() -> None:
    pool = Pool(ImageSpec(1, 2, 2, 200))
    levels = (torch.arange(800) // 200).view(-1, 1, 1, 1).expand(-1, 1, 2, 2) / 255
    pool.add(levels, torch.arange(800) % 200)
    labels = balanced_labels(800, 0, 200)
    given = (255 * pool.sample(labels, Rows(0, "x"))[labels == 7, 0, 0, 0]).round().int().tolist()
    assert sorted(given) == [0, 1, 2, 3]


@pytest.mark.parametrize(("asked", "least"), [(range(10), 50), (range(2), 40), (range(1), 40)])
def test_few_images_of_a_class_are_given_twice_before_all_are_given_once(asked: range, least: int) -> None:
    pool = Pool(ImageSpec(1, 2, 2, 10))
    pool.add((torch.arange(500) // 10).view(-1, 1, 1, 1).expand(-1, 1, 2, 2) / 255, torch.arange(500) % 10)
    labels = torch.arange(50 * len(asked)) % len(asked)
    for start in (0, 32, 64):  # with all classes in turn, from the first or not
        given = pool.sample(labels, Rows(0, "x", start))
        assert all(len(set(levels(given[labels == label]))) >= least for label in asked)
