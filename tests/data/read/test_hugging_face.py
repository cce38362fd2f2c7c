"""Folders of Hugging Face: saved datasets and parquet shards, in one part or in two."""

import io
import tarfile
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
@pytest.mark.parametrize("hidden", [-1, None])
def test_a_test_part_without_labels_is_left_aside(tmp_path: Path, form: str, hidden: int | None) -> None:
    unlabelled = part(6, 4).map(lambda _: {"label": hidden})
    parts = {"train": part(0, 6), "validation": part(10, 2), "test": unlabelled}
    top = save(tmp_path / "set", form, parts)
    found = read_folder(top)
    assert (found.train, found.class_names) == (6, tuple(NAMES))
    assert found.labels.tolist() == [0, 1, 2, 0, 1, 2, 1, 2]
    assert any("part test" in note for note in found.notes)
    del parts["validation"]
    alone = read_folder(save(tmp_path / "alone", form, parts))
    assert (alone.train, len(alone.images)) == (None, 6)


def test_an_image_of_no_class_is_unreadable_among_others(tmp_path: Path) -> None:
    some = part(0, 6).map(lambda row, place: {"label": -1 if place == 2 else row["label"]}, with_indices=True)
    with pytest.raises(DataError, match=r"1 of 6 files cannot be read .*no label, though others have one"):
        read_folder(save(tmp_path / "set", "saved", {"train": some}))


def test_a_table_beside_images_is_no_set(tmp_path: Path) -> None:
    table = datasets.Dataset.from_dict({"url": ["a", "b"], "embedding": [[0.1], [0.2]]})
    top = tmp_path / "set"
    for level, name in enumerate(("cat", "dog")):
        (top / name).mkdir(parents=True)
        Image.fromarray(np.full((4, 4, 3), level, dtype=np.uint8)).save(top / name / "0.png")
    table.to_parquet(str(top / "00000.parquet"))
    assert read_folder(top).class_names == ("cat", "dog")

    shards = tmp_path / "shards"
    shards.mkdir()
    with tarfile.open(shards / "00000.tar", "w") as tar:
        for level, name in enumerate(("cat", "dog")):
            tar.add(top / name / "0.png", f"{level}.png")
            (tmp_path / "class").write_text(name)
            tar.add(tmp_path / "class", f"{level}.cls")
    table.to_parquet(str(shards / "00000.parquet"))
    assert read_folder(shards).class_names == ("cat", "dog")

    both = save(tmp_path / "both", "parquet", {"train": part(0, 6)})
    table.to_parquet(str(both / "embeddings.parquet"))
    assert read_folder(both).class_names == tuple(NAMES)

    (tmp_path / "alone").mkdir()
    table.to_parquet(str(tmp_path / "alone/00000.parquet"))
    with pytest.raises(DataError, match="has no column image, only url, embedding"):
        read_folder(tmp_path / "alone")


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


def test_numbers_that_are_floats_are_labels_of_a_saved_dataset(tmp_path: Path) -> None:
    images = part(0, 4).remove_columns("label")
    images.add_column("label", [0.0, 1.0, 1.0, 0.0]).save_to_disk(str(tmp_path / "set"))
    found = read_folder(tmp_path / "set")
    assert (found.labels.tolist(), found.class_names) == ([0, 1, 1, 0], ("0", "1"))
