"""Pictures for crops: any form, any size, labels left aside, bounded in memory."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from synthkd.data.read import pictures
from synthkd.data.read.pictures import read_pictures
from synthkd.errors import ConfigError, DataError


def save(path: Path, height: int, width: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)


def test_without_a_root_they_are_the_two_photographs_of_scikit_learn() -> None:
    found = read_pictures(None, 3)
    assert [tuple(image.shape) for image in found.images] == [(3, 427, 640)] * 2
    assert found.name == "scikit-learn"
    assert all(image.dtype == torch.uint8 for image in found.images)


def test_a_folder_may_have_pictures_of_any_size_at_any_depth(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path / "a" / "b" / "1.png", 5, 9)
    save(tmp_path / "2.png", 20, 10)
    (tmp_path / "3.png").write_bytes(b"no picture")
    found = read_pictures(str(tmp_path), 1)
    assert sorted(tuple(image.shape) for image in found.images) == [(1, 5, 9), (1, 20, 10)]
    assert "1 unreadable files left out: 3.png" in caplog.text


def test_arrays_and_a_folder_without_a_readable_picture(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((4, 3, 6, 8), dtype=np.uint8))
    assert [tuple(image.shape) for image in read_pictures(str(tmp_path / "a.npz"), 3).images] == [(3, 6, 8)] * 4
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "3.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="bad: none of the files is a readable image"):
        read_pictures(str(tmp_path / "bad"), 3)
    with pytest.raises(DataError, match=r"does not exist|check the path"):
        read_pictures(str(tmp_path / "none"), 3)


def test_other_channels_than_those_of_pictures_are_refused() -> None:
    with pytest.raises(ConfigError, match="the teacher takes 4 channels; take kind=procedural"):
        read_pictures(None, 4)


def test_many_or_large_pictures_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.arange(10, dtype=np.uint8)[:, None, None, None] * np.ones((1, 3, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images)
    monkeypatch.setattr(pictures, "MOST", 5)
    found = read_pictures(str(tmp_path / "a.npz"), 3)
    assert [int(image[0, 0, 0]) for image in found.images] == [0, 2, 4, 6, 8]
    monkeypatch.setattr(pictures, "LARGEST_BYTES", 5 * 3 * 16)
    found = read_pictures(str(tmp_path / "a.npz"), 3)
    assert [tuple(image.shape) for image in found.images] == [(3, 4, 4)] * 5
    assert [int(image.max()) for image in found.images] == [0, 2, 4, 6, 8]
