"""The .npz reader: every layout it takes, and every way of being wrong that it names."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synthkd.data.read.npz import read_npz
from synthkd.data.read.splits import Source
from synthkd.errors import DataError

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 2, 1, 0])
GOOD: dict[str, Any] = {"images": IMAGES, "labels": LABELS}


def read(folder: Path, **arrays: Any) -> Source:
    np.savez(folder / "set.npz", **arrays)
    return read_npz(folder / "set.npz")


@pytest.mark.parametrize(
    "images",
    [
        IMAGES,
        IMAGES.transpose(0, 3, 1, 2),
        IMAGES / 255.0,
        (IMAGES / 255.0).astype(np.float32),
        (IMAGES.transpose(0, 3, 1, 2) / 255.0).astype(np.float16),
    ],
)
def test_layouts_and_dtypes_of_colour_images_mean_the_same(tmp_path: Path, images: np.ndarray) -> None:
    source = read(tmp_path, images=images, labels=LABELS)
    assert np.array_equal(source.images.numpy(), IMAGES.transpose(0, 3, 1, 2))
    assert source.labels.tolist() == LABELS.tolist()
    assert source.class_names == ("0", "1", "2")
    assert source.train is None


@pytest.mark.parametrize("axis", [None, 1, 3])
def test_layouts_of_grey_images_mean_the_same(tmp_path: Path, axis: int | None) -> None:
    grey = IMAGES[..., 0]
    images = grey if axis is None else np.expand_dims(grey, axis)
    source = read(tmp_path, images=images, labels=LABELS.astype(np.uint8))
    assert np.array_equal(source.images.numpy(), grey[:, None])


def test_own_test_split_and_class_names_are_taken(tmp_path: Path) -> None:
    source = read(tmp_path, **GOOD, test_images=IMAGES[:2], test_labels=LABELS[:2], class_names=["x", "y", "z"])
    assert source.train == 6
    assert len(source.images) == 8
    assert source.labels.tolist() == [*LABELS.tolist(), 0, 1]
    assert source.class_names == ("x", "y", "z")


NAN = IMAGES.astype(np.float64) / 255
NAN[3, 2, 1, 0] = np.nan


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": None}, r"has no array \['images'\], only \['labels'\]"),
        ({"labels": None}, r"has no array \['labels'\], only \['images'\]"),
        ({"test_images": IMAGES}, r"has no array \['test_labels'\]"),
        ({"test_labels": LABELS}, r"has no array \['test_images'\]"),
        ({"images": IMAGES.astype(np.int64)}, r"images must be uint8, or float in \[0, 1\], got int64"),
        ({"images": IMAGES > 3}, "got bool"),
        ({"images": IMAGES.astype(np.float32)}, r"must be in \[0, 1\], got 0\.\.255; clean or rescale"),
        ({"images": IMAGES / 255 - 0.1}, r"must be in \[0, 1\], got -0\.1"),
        ({"images": NAN}, "got NaN"),
        ({"images": IMAGES.reshape(6, 60)}, r"must be NHW, NHWC or NCHW and not empty, got \(6, 60\)"),
        ({"images": IMAGES[..., :2]}, r"1 or 3 channels either first or last, got \(6, 5, 4, 2\)"),
        ({"images": IMAGES[:, :3]}, r"1 or 3 channels either first or last, got \(6, 3, 4, 3\)"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "not empty"),
        ({"images": IMAGES[:5]}, r"labels must be one per image, \[5\], got \[6\]"),
        ({"labels": LABELS[:, None]}, r"got \[6, 1\]"),
        ({"labels": LABELS.astype(float)}, "labels must be integers from 0, got float64"),
        ({"labels": LABELS - 1}, r"integers from 0, got -1\.\.1; renumber"),
        ({"labels": LABELS + 1}, r"without gaps, got up to 3 but none of \[0\]; renumber"),
        ({"labels": LABELS * 10**8}, r"without gaps, got up to 200000000 but none of \[1, 2, 3"),
        ({"labels": LABELS * 2**40}, "integers from 0"),
        ({"labels": np.array([2**63] * 6, dtype=np.uint64)}, "integers from 0"),
        ({"class_names": np.array(["x", "x", "y"])}, "list of different strings"),
        ({"class_names": np.arange(3)}, "list of different strings"),
        ({"class_names": np.array(["x", 1, None], dtype=object)}, "not a readable .npz of plain arrays"),
        ({"test_images": IMAGES[:, 1:], "test_labels": LABELS}, "must have one size, got 3x5x4 and 3x4x4"),
        ({"test_images": IMAGES, "test_labels": LABELS[:3]}, r"test_labels must be one per image, \[6\], got \[3\]"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    arrays = {key: value for key, value in {**GOOD, **changes}.items() if value is not None}
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path, **arrays)
    assert str(caught.value).startswith(str(tmp_path / "set.npz"))
    assert "\n" not in str(caught.value)


def test_files_that_are_no_archives_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.npz does not exist; check the path"):
        read_npz(tmp_path / "gone.npz")
    path = tmp_path / "set.npz"
    read(tmp_path, **GOOD)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[200] ^= 0xFF  # inside the pixels: the archive's checksum finds it
    for content in (b"", b"no archive", whole[: len(whole) // 2], bytes(flipped)):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"set\.npz is not a readable \.npz of plain arrays"):
            read_npz(path)
    np.save(tmp_path / "single.npy", IMAGES)
    with pytest.raises(DataError, match=r"has no array \['labels'\], only \['images'\]; put it beside"):
        read_npz(tmp_path / "single.npy")
    with pytest.raises(DataError, match=r"has no array \['images', 'labels'\], only \[\]; put it beside"):
        read_npz(tmp_path)
