"""Arrays in .npy files: `images.npy` with the others beside it, or a file of images alone."""

from pathlib import Path

import numpy as np
import pytest

from synthkd.data.read.npz import NpyFiles, read_npz
from synthkd.data.read.samples import open_samples
from synthkd.data.read.unlabelled import read_unlabelled
from synthkd.errors import DataError
from synthkd.settings import UnlabelledData
from synthkd.types import ImageSpec

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 1, 4, 4), dtype=np.uint8)
LABELS = np.arange(12) % 3


def save(top: Path, **arrays: object) -> Path:
    top.mkdir(exist_ok=True)
    for name, array in arrays.items():
        np.save(top / f"{name}.npy", np.asarray(array))
    return top


def test_files_and_a_npz_of_the_same_arrays_are_one_set(tmp_path: Path) -> None:
    arrays = {"images": IMAGES, "labels": LABELS, "test_images": IMAGES[:2], "test_labels": LABELS[:2]}
    names = {"class_names": np.array(["a", "b", "c"])}
    top = save(tmp_path / "set", **arrays, **names, strange=[1])
    np.savez(tmp_path / "set.npz", **arrays, **names)  # type: ignore[arg-type]
    expected = read_npz(tmp_path / "set.npz")
    for path in (top, top / "images.npy"):
        found = read_npz(path)
        assert found.images.tolist() == expected.images.tolist()
        assert found.labels.tolist() == expected.labels.tolist()
        assert (found.class_names, found.train) == (("a", "b", "c"), 12)
        test = open_samples(path, split="test")
        assert test.digest == open_samples(tmp_path / "set.npz", split="test").digest


def test_a_file_is_mapped_and_stays_as_it_is(tmp_path: Path) -> None:
    top = save(tmp_path / "set", images=IMAGES, labels=LABELS)
    before = (top / "images.npy").read_bytes()
    found = read_npz(top)
    assert isinstance(NpyFiles({"a": top / "images.npy"}).read("a"), np.memmap)
    found.images.zero_()
    assert (top / "images.npy").read_bytes() == before


def test_images_alone_have_no_labels(tmp_path: Path) -> None:
    path = save(tmp_path / "set", x=IMAGES, labels=LABELS) / "x.npy"
    settings = UnlabelledData(kind="unlabelled", path=str(path), channels=1, holdout=0.0)
    assert read_unlabelled(settings, ImageSpec(1, 4, 4, 3), ()).train.images.tolist() == IMAGES.tolist()
    assert open_samples(path).labels is None
    with pytest.raises(DataError, match=r"x.npy: has no array \['labels'\], only \['images'\]; put it beside"):
        read_npz(path)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    top = save(tmp_path / "set", images=IMAGES, labels=LABELS)
    (top / "images.npy").write_bytes((top / "images.npy").read_bytes()[:-1])
    with pytest.raises(DataError, match=r"is not a readable .npy of plain arrays"):
        read_npz(top)
    np.save(top / "images.npy", np.array([{}, None]), allow_pickle=True)
    with pytest.raises(DataError, match=r"is not a readable .npy of plain arrays"):
        read_npz(top)
    with pytest.raises(DataError, match=r"nowhere.npy does not exist"):
        read_npz(tmp_path / "nowhere.npy")
