"""Splits, channel statistics and the dispatch on settings; on scikit-learn's digits where real data is wanted."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor

from synthkd.data.read.real import RealData, Splits, channel_statistics, load_splits
from synthkd.data.read.splits import Source, split
from synthkd.errors import DataError
from synthkd.settings import DigitsData, FolderData, NpzData
from synthkd.types import ImageSpec


def numbered(labels: list[int], classes: int, train: int | None = None) -> Source:
    """A source whose images carry their row number in two pixels."""
    rows = torch.arange(len(labels))
    images = torch.stack([rows // 256, rows % 256], dim=1).to(torch.uint8).view(-1, 1, 1, 2)
    return Source(images, torch.tensor(labels), tuple(f"c{i}" for i in range(classes)), train)


def rows(data: RealData) -> list[int]:
    return [int(high) * 256 + int(low) for high, low in data.images.flatten(1)]


def parts(splits: Splits) -> tuple[RealData, RealData, RealData]:
    return splits.train, splits.holdout, splits.test


def test_digits_are_scikit_learns_scaled_to_bytes() -> None:
    splits = load_splits(DigitsData(kind="digits"))
    assert splits.train.spec == ImageSpec(1, 8, 8, 10)
    assert splits.train.class_names == tuple("0123456789")
    assert splits.train.name == "digits"
    assert [len(part) for part in parts(splits)] == [1294, 144, 359]
    assert all(part.images.dtype == torch.uint8 and part.labels.dtype == torch.int64 for part in parts(splits))
    digits = load_digits()
    expected = {(image.tobytes(), int(label)) for image, label in zip(digits.images, digits.target, strict=True)}
    sixteenths = torch.cat([part.images for part in parts(splits)])[:, 0].double().mul(16 / 255).round().numpy()
    labels = torch.cat([part.labels for part in parts(splits)])
    assert {(image.tobytes(), int(label)) for image, label in zip(sixteenths, labels, strict=True)} == expected
    assert splits.train.images.max() == 255
    for part in parts(splits):
        share = torch.bincount(part.labels, minlength=10) / len(part)
        assert (share - 0.1).abs().max() < 0.011


def test_a_split_seed_decides_the_split() -> None:
    first, again, other = (load_splits(DigitsData(kind="digits", split_seed=seed)) for seed in (0, 0, -3))
    for one, same, different in zip(parts(first), parts(again), parts(other), strict=True):
        assert torch.equal(one.images, same.images)
        assert torch.equal(one.labels, same.labels)
        assert not torch.equal(one.images, different.images)


def test_the_holdout_comes_from_the_training_part_alone() -> None:
    with_holdout, without = (load_splits(DigitsData(kind="digits", holdout=share)) for share in (0.3, 0.0))
    assert torch.equal(with_holdout.test.images, without.test.images)
    assert without.holdout.images.shape == (0, 1, 8, 8)
    assert len(with_holdout.train) + len(with_holdout.holdout) == len(without.train) == 1438


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 40), min_size=2, max_size=12),
    test=st.floats(0, 0.95),
    holdout=st.floats(0, 0.95),
    seed=st.integers(-5, 5),
    given_test=st.booleans(),
)
def test_parts_are_disjoint_complete_and_stratified(
    counts: list[int], test: float, holdout: float, seed: int, given_test: bool
) -> None:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    classes = len(counts)
    source = numbered(labels + [0] * 7 if given_test else labels, classes, len(labels) if given_test else None)
    splits = split(source, "numbers", test, holdout, seed)
    all_rows = [row for part in parts(splits) for row in rows(part)]
    assert sorted(all_rows) == list(range(len(source.labels)))
    for part in parts(splits):
        assert torch.equal(part.labels, source.labels[rows(part)])
    if given_test:
        assert rows(splits.test) == list(range(len(labels), len(labels) + 7))
    else:
        taken = torch.bincount(splits.test.labels, minlength=classes)
        for label, count in enumerate(counts):
            assert min(test * count - 1, count - 1) <= int(taken[label]) <= min(test * count + 1, count - 1)
    assert len(splits.train.labels.unique()) == classes


def test_the_unseen_are_the_holdout_then_the_test_part_with_their_labels() -> None:
    splits = split(numbered([0, 1, 2] * 40, 3), "numbers", 0.2, 0.25, seed=0)
    assert rows(splits.unseen) == rows(splits.holdout) + rows(splits.test)
    assert splits.unseen.labels.tolist() == [row % 3 for row in rows(splits.unseen)]
    assert len(splits.unseen) == 120 - len(splits.train) == 24 + 24
    assert len(split(numbered([0, 1] * 5, 2), "numbers", 0.0, 0.2, seed=0).unseen) == 2
    assert len(split(numbered([0, 1] * 5, 2), "numbers", 0.0, 0.0, seed=0).unseen) == 0


def test_many_small_classes_lose_as_much_as_one_big_one() -> None:
    labels = [row % 50 for row in range(200)]  # 4 images a class: a tenth of each rounds to none
    assert len(split(numbered(labels, 50), "small", 0.0, 0.1, 0).holdout) == 20


def test_a_few_of_each_class_are_a_part_of_more() -> None:
    whole, ten, three = (load_splits(DigitsData(kind="digits", per_class=n)) for n in (None, 10, 3))
    assert torch.equal(ten.train.labels.bincount(), torch.full((10,), 10))
    assert torch.equal(three.train.labels.bincount(), torch.full((10,), 3))
    more = {image.numpy().tobytes() for image in ten.train.images}
    assert {image.numpy().tobytes() for image in three.train.images} <= more
    for part in ("holdout", "test"):
        assert torch.equal(getattr(ten, part).images, getattr(whole, part).images)


@settings(max_examples=20, deadline=None)
@given(
    labels=st.lists(st.integers(0, 2), min_size=40, max_size=80),
    seeds=st.tuples(st.integers(0, 9), st.integers(0, 9)),
)
def test_the_halves_share_no_image_whatever_the_seeds(labels: list[int], seeds: tuple[int, int]) -> None:
    labels = [*labels, *[0, 1, 2] * 4]
    source = numbered([*labels, 0, 1, 2], 3, train=len(labels))
    first, second = (
        split(source, "x", 0.0, 0.25, seed, half=half) for seed, half in zip(seeds, ("first", "second"), strict=True)
    )
    ours, theirs = ({*rows(one.train), *rows(one.holdout)} for one in (first, second))
    assert not ours & theirs
    assert ours | theirs == set(range(len(labels)))
    assert rows(first.test) == rows(second.test) == [len(labels) + i for i in range(3)]
    for label in range(3):
        counts = [sum(labels[row] == label for row in half) for half in (ours, theirs)]
        assert abs(counts[0] - counts[1]) <= 2


def test_the_halves_share_no_image_whatever_the_test_splits() -> None:
    source = numbered([0, 1, 2] * 40, 3)
    for share, seed in ((0.2, 0), (0.2, 1), (0.5, 0), (0.0, 0)):
        first = split(source, "x", 0.2, 0.25, 0, half="first")
        second = split(source, "x", share, 0.25, seed, half="second")
        ours, theirs = ({*rows(one.train), *rows(one.holdout)} for one in (first, second))
        assert not ours & theirs
        assert not ours & {*rows(first.test)}
        assert not theirs & {*rows(second.test)}
        assert len(ours) + len(theirs) >= 120 * (1 - 0.2 - share)
    assert len(theirs) == 60, "without a test split all of them"


def test_class_counts_and_labels_are_checked() -> None:
    with pytest.raises(DataError, match=r"x: every class needs a training image, none is of c1, c3; add"):
        split(numbered([0, 2, 2, 1], 4, train=3), "x", 0.0, 0.0, 0)
    with pytest.raises(DataError, match=r"x: labels must be in 0\.\.1, got 0\.\.2"):
        split(numbered([0, 1, 2], 2), "x", 0.0, 0.0, 0)
    with pytest.raises(DataError, match="x: a classifier needs at least two classes, got 1"):
        split(numbered([0, 0], 1), "x", 0.0, 0.0, 0)
    with pytest.raises(DataError, match=r"c19 and 10 more; add"):
        split(numbered([*range(10), 29], 30, train=10), "x", 0.0, 0.0, 0)


def test_channel_statistics_are_the_moments_of_the_pixels() -> None:
    images = torch.randint(0, 256, (50, 3, 7, 5), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    images[:, 1] //= 10
    images[:, 2] = 51
    mean, std = channel_statistics(images)
    pixels = images.double() / 255
    assert mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=1e-12)
    assert std[:2] == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist()[:2], abs=1e-12)
    assert std[2] == 1.0


@pytest.mark.parametrize("images", [torch.zeros(0, 1, 4, 4, dtype=torch.uint8), torch.zeros(3, 1, 4, 4)])
def test_channel_statistics_need_bytes(images: Tensor) -> None:
    with pytest.raises(DataError, match="at least one uint8 image"):
        channel_statistics(images)


def test_folders_and_npz_files_are_split_by_their_own_fraction(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 6, 5, 3), dtype=np.uint8)
    labels = np.repeat([0, 1], 10)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        (tmp_path / "set" / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "set" / str(label) / f"{index:02}.png")
    np.savez(tmp_path / "set.npz", images=images, labels=labels)
    (tmp_path / "set" / "readme.txt").write_text("not an image")
    folder = load_splits(FolderData(kind="folder", root=str(tmp_path / "set"), test=0.5, holdout=0.2))
    npz = load_splits(NpzData(kind="npz", path=str(tmp_path / "set.npz"), test=0.5, holdout=0.2))
    assert [len(part) for part in parts(folder)] == [8, 2, 10]
    for one, other in zip(parts(folder), parts(npz), strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
    assert (folder.train.name, npz.train.name) == ("set", "set.npz")
    assert len(folder.notes) == 1
    assert "readme.txt" in folder.notes[0]
