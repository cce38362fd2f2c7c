"""Folders of Hugging Face: saved datasets and parquet shards, in one part or in two."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from synthkd.data.read.folder import read_folder
from synthkd.data.read.samples import open_samples
from synthkd.data.read.unlabelled import read_unlabelled
from synthkd.errors import DataError
from synthkd.settings import UnlabelledData
from synthkd.types import ImageSpec

datasets = pytest.importorskip("datasets")
NAMES = ["dog", "cat", "bird"]


def part(first: int, count: int, names: list[str] = NAMES) -> Any:
    """Images of the levels from `first` on, labelled with the level modulo the classes."""

    def png(level: int) -> bytes:
        file = io.BytesIO()
        Image.fromarray(np.full((4, 4, 3), level, dtype=np.uint8)).save(file, "PNG")
        return file.getvalue()

    levels = range(first, first + count)
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    rows = {"image": [{"bytes": png(n), "path": None} for n in levels], "label": [n % len(names) for n in levels]}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def save(top: Path, form: str, parts: dict[str, Any]) -> Path:
    if form == "saved":
        datasets.DatasetDict(parts).save_to_disk(str(top))
    else:
        for name, one in parts.items():
            for shard in range(2):
                path = top / "data" / f"{name}-0000{shard}-of-00002.parquet"
                path.parent.mkdir(parents=True, exist_ok=True)
                one.shard(2, shard, contiguous=True).to_parquet(str(path))
    return top


@pytest.mark.parametrize("form", ["saved", "parquet"])
def test_two_parts(tmp_path: Path, form: str) -> None:
    # The test part numbers the same classes in another order.
    parts = {"train": part(0, 6), "test": part(6, 3, ["bird", "cat", "dog"]), "validation": part(9, 2)}
    top = save(tmp_path / "set", form, parts)
    found = read_folder(top)
    assert found.images[:, 0, 0, 0].tolist() == list(range(9))
    assert (found.class_names, found.train) == (tuple(NAMES), 6)
    assert found.labels.tolist() == [0, 1, 2, 0, 1, 2, 2, 1, 0]
    test = open_samples(top, split="test")
    assert (test.count, test.labels.tolist()) == (3, [2, 1, 0])  # type: ignore[union-attr]
    assert open_samples(top, split="train").count == 6
    with pytest.raises(DataError, match="is divided into parts; choose one of them as its split: train or test"):
        open_samples(top)
    settings = UnlabelledData(kind="unlabelled", path=str(top), holdout=0.0)
    assert len(read_unlabelled(settings, ImageSpec(3, 4, 4, 3), ()).train) == 6


@pytest.mark.parametrize("form", ["saved", "parquet"])
def test_one_part_is_the_whole_set(tmp_path: Path, form: str) -> None:
    if form == "saved":
        part(0, 6).save_to_disk(str(tmp_path / "set"))
    else:
        save(tmp_path / "set", form, {"train": part(0, 6)})
    found = read_folder(tmp_path / "set")
    assert (found.labels.tolist(), found.train, found.class_names) == ([0, 1, 2, 0, 1, 2], None, tuple(NAMES))
    assert open_samples(tmp_path / "set").count == 6


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    strange = part(0, 3, ["dog", "cat", "fish"])
    with pytest.raises(DataError, match=r"test has classes that train does not have: fish;"):
        read_folder(save(tmp_path / "a", "saved", {"train": part(0, 3), "test": strange}))
    with pytest.raises(DataError, match=r"has the parts one, two; name one `train`"):
        read_folder(save(tmp_path / "b", "saved", {"one": part(0, 3), "two": part(0, 3)}))
    with pytest.raises(DataError, match=r"has no column image, only picture, label"):
        read_folder(save(tmp_path / "c", "saved", {"train": part(0, 3).rename_column("image", "picture")}))
    top = save(tmp_path / "d", "saved", {"train": part(0, 3), "test": part(0, 3)})
    (next((top / "train").glob("*.arrow"))).write_bytes(b"damaged")
    with pytest.raises(DataError, match="is no readable folder of save_to_disk"):
        read_folder(top)
