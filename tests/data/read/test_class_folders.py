"""Which classes a tree of images has, in which order: the same for scores and for training."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from synthkd.data.read.folder import read_folder
from synthkd.data.read.samples import open_samples
from synthkd.errors import DataError
from tests.data.read.test_listing import PIXELS, folder, png, zipped


def classes(path: Path) -> tuple[str, ...]:
    """The class names, after a check that every job reads the same labels for the same images."""
    scored, source = open_samples(path), read_folder(path)
    assert scored.labels is not None
    assert scored.class_names == source.class_names
    assert torch.equal(torch.cat([*scored.batches(3)]), source.images)
    assert scored.labels.tolist() == source.labels.tolist()
    return source.class_names


@pytest.mark.parametrize(
    ("directories", "names"),
    [
        (["0", "1", "2", "10", "11"], ("0", "1", "2", "10", "11")),
        (["07", "8", "010"], ("07", "8", "010")),
        (["7", "07", "10"], ("07", "10", "7")),  # two names of one number are names
        (["0", "10", "2b"], ("0", "10", "2b")),
        (["0002_ant", "0000_cat", "0001_bee"], ("cat", "bee", "ant")),
        (["9_cat", "10_ant"], ("cat", "ant")),
        (["2020_cat", "2021_cat", "2022_dog"], ("2020_cat", "2021_cat", "2022_dog")),  # one name twice
        (["1_cat", "01_dog"], ("01_dog", "1_cat")),  # one number twice
        (["0_cat", "dog"], ("0_cat", "dog")),
        (["cat", "dog", "Eel"], ("Eel", "cat", "dog")),
    ],
)
def test_numbers_order_the_classes(tmp_path: Path, directories: list[str], names: tuple[str, ...]) -> None:
    files = {f"{directory}/{row}.png": png(row) for row, directory in enumerate(directories)}
    assert classes(folder(tmp_path / "set", files)) == names
    assert classes(zipped(tmp_path / "set.zip", files)) == names


def test_a_test_part_may_lack_a_class_and_number_the_others_otherwise(tmp_path: Path) -> None:
    files = {f"train/{row:04}_{name}/0.png": png(row) for row, name in enumerate("abc")}
    files |= {"test/0_c/0.png": png(3), "test/1_a/0.png": png(4)}
    source = read_folder(folder(tmp_path, files))
    assert source.class_names == ("a", "b", "c")
    assert (source.labels.tolist(), source.train) == ([0, 1, 2, 2, 0], 3)


def dataset_tool(**changes: Any) -> dict[str, bytes]:
    """The files of NVIDIA's dataset_tool: folders of a thousand images each, and the labels in one file."""
    names = [f"0000{row // 3}/img0000000{row}.png" for row in range(5)]
    labels = [[name, label] for name, label in zip(names, [1, 0, 2, 0, 1], strict=True)]
    text = json.dumps({"labels": labels, **changes}).encode()
    return {**{name: png(row) for row, name in enumerate(names)}, "dataset.json": text}


@pytest.mark.parametrize("around", ["", "set/"])
def test_labels_of_dataset_tool_come_from_its_file(tmp_path: Path, around: str) -> None:
    files = {around + name: content for name, content in dataset_tool().items()}
    for path in (folder(tmp_path / "set", dataset_tool()), zipped(tmp_path / "set.zip", files)):
        assert classes(path) == ("0", "1", "2")
        source = read_folder(path)
        assert source.labels.tolist() == [1, 0, 2, 0, 1]
        assert torch.equal(source.images, torch.from_numpy(PIXELS[:5]).permute(0, 3, 1, 2))


def test_folders_of_dataset_tool_without_labels_are_no_classes(tmp_path: Path) -> None:
    path = folder(tmp_path / "set", dataset_tool(labels=None))
    found = open_samples(path)
    assert (found.count, found.labels, found.class_names) == (5, None, ())
    with pytest.raises(DataError, match=r"dataset.json has no labels to train on"):
        read_folder(path)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([["a.png", "cat"]], r'dataset.json: labels must be a list of \["FILE", NUMBER\]'),
        ([["00000/img00000000.png", 0], ["gone.png", 1]], r"gone.png \(missing, though dataset.json has its label\)"),
        ([["00000/img00000000.png", 0]], r"4 of 5 .*img00000001.png \(no label, though others have one\)"),
    ],
)
def test_labels_of_dataset_tool_that_do_not_fit_are_refused(tmp_path: Path, labels: object, message: str) -> None:
    path = folder(tmp_path / "set", dataset_tool(labels=labels))
    for read in (open_samples, read_folder):
        with pytest.raises(DataError, match=message):
            read(path)


def test_another_dataset_json_changes_nothing(tmp_path: Path) -> None:
    files = {"cat/0.png": png(0), "dog/0.png": png(1), "dataset.json": b'{"name": "pets"}'}
    assert classes(folder(tmp_path / "set", files)) == ("cat", "dog")
