"""The images of parquet files stay in them, and those of a file with a large row group lie in a temporary file."""

import io
import math
import multiprocessing
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from synthkd.data.epochs import EpochSource
from synthkd.data.read import compressed, row_groups
from synthkd.data.read import parquet as reader
from synthkd.data.read.entries import InFile
from synthkd.data.read.folder import Storage, read_folder
from synthkd.data.read.listing import list_dataset, list_every, list_unlabelled
from synthkd.data.read.on_disk import DiskImages
from synthkd.data.read.parquet import list_parquet
from synthkd.data.read.row_groups import ROWS
from synthkd.errors import DataError
from synthkd.settings import AugmentSettings

pa: Any = pytest.importorskip("pyarrow")
parquet: Any = pytest.importorskip("pyarrow.parquet")
COUNT = 3 * ROWS + 5


@pytest.fixture(autouse=True)
def nothing_kept() -> None:
    row_groups._OF_PROCESS.clear()


@pytest.fixture(params=["in the file", "copied"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the images are: row groups count as small, or as large."""
    if request.param == "copied":
        monkeypatch.setattr(reader, "LARGEST_GROUP", -1)
    return str(request.param)


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The row groups that are read, in order."""
    numbers: list[int] = []

    class Counted(row_groups._Group):
        def __init__(self, file: Any, rows: row_groups.RowGroups, number: int) -> None:
            numbers.append(number)
            super().__init__(file, rows, number)

    monkeypatch.setattr(row_groups, "_Group", Counted)
    return numbers


def content(row: int) -> bytes:
    return f"image {row} ".encode() * (row % 7 + 1)


def png(row: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(row).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def pictures(path: Path, first: int, count: int, rows: int, plain: bool = False) -> Path:
    """A file of pictures from number `first` on, by row groups of so many rows; `plain`: without names of files."""
    images = [png(row) if plain else {"bytes": png(row), "path": f"{row}.png"} for row in range(first, first + count)]
    table = pa.table({"label": [row % 3 for row in range(first, first + count)], "image": images})
    parquet.write_table(table, path, row_group_size=rows, compression="none")
    return path


def written(path: Path, labels: Sequence[object], name: str | None = None, group: int = 50) -> Path:
    rows = [
        {"image": {"bytes": content(row), "path": name and f"{row}{name}"}, "label": label}
        for row, label in enumerate(labels)
    ]
    parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)
    return path


@pytest.mark.usefixtures("place")
def test_every_row_gives_its_own_bytes_across_row_groups_and_blocks(tmp_path: Path) -> None:
    listing = list_parquet(
        written(tmp_path / "set.parquet", [row % 3 for row in range(COUNT)], ".png", group=2 * ROWS + 2)
    )
    assert [one.read() for one in listing.entries] == [content(row) for row in range(COUNT)]
    assert [one.label for one in listing.entries] == [row % 3 for row in range(COUNT)]
    assert [one.name for one in listing.entries] == [f"{row}.png" for row in range(COUNT)]


@pytest.mark.usefixtures("place")
def test_several_files_of_several_row_groups_are_the_folder_of_their_pictures(tmp_path: Path) -> None:
    pictures(tmp_path / "train-0.parquet", 0, 23, rows=5)
    pictures(tmp_path / "train-1.parquet", 23, 8, rows=8, plain=True)
    pictures(tmp_path / "train-2.parquet", 31, 9, rows=2)
    for row in range(40):
        (tmp_path / "folder" / str(row % 3)).mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / str(row % 3) / f"{row:02}.png").write_bytes(png(row))
    whole = read_folder(tmp_path / "folder")
    order = torch.tensor([row for label in range(3) for row in range(label, 40, 3)])  # classes one after the other
    in_memory = read_folder(tmp_path / "train-*.parquet")
    lazy = read_folder(tmp_path / "train-*.parquet", storage=Storage(0.0, tmp_path / "cache", workers=0))
    assert isinstance(lazy.images, DiskImages)
    draw = torch.tensor([39, 0, 22, 23, 30, 31, 22, 7])
    assert torch.equal(lazy.images[draw], in_memory.images[draw])
    for read in (in_memory, lazy):
        assert torch.equal(read.images[order], whole.images[:])
        assert torch.equal(read.labels[order], whole.labels)
        assert read.class_names == whole.class_names == ("0", "1", "2")


def test_batches_are_decoded_in_workers(tmp_path: Path) -> None:
    path = pictures(tmp_path / "set.parquet", 0, 40, rows=6)
    whole, lazy = (
        read_folder(path, storage=Storage(memory, tmp_path / "cache", workers=2)) for memory in (math.inf, 0.0)
    )
    ours, theirs = (
        EpochSource(one.images, one.labels, 7, AugmentSettings(flip=True), 5, torch.device("cpu"))
        for one in (lazy, whole)
    )
    for step in range(12):
        assert torch.equal(ours.batch(step).images, theirs.batch(step).images)
        assert torch.equal(ours.batch(step).labels, theirs.batch(step).labels)
    assert isinstance(lazy.images, DiskImages)
    assert lazy.images.lacking() == 0


def test_rows_in_order_read_each_row_group_once_and_few_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: list[int]
) -> None:
    monkeypatch.setattr(row_groups, "KEPT", 2 * 50 * (len(content(6)) + 8))
    entries = list_parquet(written(tmp_path / "set.parquet", [0] * COUNT)).entries
    assert groups == [], "the list takes no image"
    for _ in range(2):
        for one in entries:
            one.read()
    assert groups == [0, 1, 2, 3] * 2
    kept = row_groups._kept()
    assert kept._bytes == sum(group.nbytes for group in kept._groups.values())
    assert kept._bytes <= row_groups.KEPT


def test_no_image_is_copied_and_a_file_that_is_written_anew_is_read_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compressed, "FREELY_PACKED", 0)
    monkeypatch.setattr(compressed, "MOST_PACKED", 0)
    path = written(tmp_path / "set.parquet", [0, 0])
    assert [one.read() for one in list_parquet(path).entries] == [content(0), content(1)]
    parquet.write_table(pa.table({"image": [content(1), content(0)]}), path)
    assert [one.read() for one in list_parquet(path).entries] == [content(1), content(0)]


def test_a_forked_process_opens_the_files_anew(tmp_path: Path) -> None:
    entries = list_parquet(written(tmp_path / "set.parquet", [0] * COUNT)).entries
    entries[0].read()
    with row_groups._kept()._lock:  # a thread is reading at the fork
        context = multiprocessing.get_context("fork")
        here, there = context.Pipe()
        process = context.Process(target=lambda: there.send([one.read() for one in entries]))
        process.start()
        assert here.poll(60), "the child waits for a lock that nobody holds there"
        assert here.recv() == [content(row) for row in range(COUNT)]
        process.join()


def test_no_more_files_are_open_than_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_groups, "_FILES", 2)
    for number in range(4):
        pictures(tmp_path / f"{number}.parquet", number, 1, rows=1)
    entries = list_parquet(tmp_path / "*.parquet").entries
    for row in (0, 1, 2, 3, 0, 2, 1):
        assert entries[row].read() == png(row)
        assert len(row_groups._kept()._files) <= 2


def test_copied_images_lie_in_one_temporary_file_until_the_set_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "LARGEST_GROUP", len(content(0)))
    path = written(tmp_path / "set.parquet", [0, 1])
    first, again = (list_parquet(path).entries[0].read for _ in range(2))
    assert isinstance(first, InFile)
    assert first == again
    assert first.path.stat().st_size == len(content(0)) + len(content(1)), "nothing but the images"
    written(path, [0, 1, 0])
    os.utime(path, ns=(1, 1))
    assert len(list_parquet(path).entries) == 3


@pytest.mark.usefixtures("place")
def test_a_row_without_a_label_is_refused_where_labels_count(tmp_path: Path) -> None:
    path = written(tmp_path / "set.parquet", [0, None, 1])
    with pytest.raises(ValueError, match="no label, though others have one"):
        list_parquet(path).entries[1].read()
    assert [one.read() for one in list_every(path).entries] == [content(row) for row in range(3)]


@pytest.mark.usefixtures("place")
def test_numbers_that_pandas_made_floats_are_labels(tmp_path: Path) -> None:
    found = list_parquet(written(tmp_path / "set.parquet", [0.0, 2.0, math.nan, 1.0]))
    assert [one.label for one in found.entries] == [0, 2, None, 1]
    assert found.class_names == ("0", "1", "2")
    with pytest.raises(ValueError, match="no label, though others have one"):
        found.entries[2].read()
    found = list_parquet(written(tmp_path / "two.parquet", [True, False]))
    assert ([one.label for one in found.entries], found.class_names) == ([1, 0], ("0", "1"))


@pytest.mark.usefixtures("place")
def test_where_no_label_can_be_read_the_first_reason_is_told(tmp_path: Path) -> None:
    reason = r"has no labels to train on \(set.parquet: row 0: label must be a whole number or a name, got '0.5'\)"
    with pytest.raises(DataError, match=reason):
        list_dataset(written(tmp_path / "set.parquet", [0.5, 1.5]))


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("value", [None, {"bytes": None, "path": "elsewhere.png"}])
def test_a_row_without_an_image_is_a_bad_file(tmp_path: Path, value: object) -> None:
    path = tmp_path / "set.parquet"
    rows = [{"image": {"bytes": png(row), "path": None}, "label": row % 2} for row in range(4)]
    parquet.write_table(pa.Table.from_pylist([*rows, {"image": value, "label": 1}]), path)
    with pytest.raises(DataError, match=r"1 of 5 files cannot be read as images: \S+.* \(no encoded image\)"):
        read_folder(path)
    left = read_folder(path, skip_bad=True)
    assert (len(left.images), left.labels.tolist()) == (4, [0, 1, 0, 1])


@pytest.mark.usefixtures("place")
def test_a_column_of_anything_but_encoded_images_is_refused_in_a_line(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"image": [[1, 2], [3, 4]]}), tmp_path / "set.parquet")
    with pytest.raises(DataError, match=r"set\.parquet: row 0 \(no encoded image\), set\.parquet: row 1") as one:
        read_folder(tmp_path / "set.parquet", listed=list_unlabelled)
    assert "\n" not in str(one.value)


@pytest.mark.parametrize("plain", [False, True])
def test_a_row_group_of_images_that_are_repeated_is_copied_by_a_few_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: list[int], plain: bool
) -> None:
    few, count = 4, 40 * ROWS
    images = [png(row % few) if plain else {"bytes": png(row % few), "path": None} for row in range(count)]
    table = pa.table({"image": [*images[:few], *images], "label": [0] * (few + count)})
    path = tmp_path / "set.parquet"
    with parquet.ParquetWriter(path, table.schema) as writer:  # a small row group, then one that hides what it holds
        writer.write_table(table[:few])
        writer.write_table(table[few:], row_group_size=count)
    largest = 20 * ROWS * len(png(0))
    monkeypatch.setattr(reader, "LARGEST_GROUP", largest)
    monkeypatch.setattr(row_groups, "_MOST", largest)
    with parquet.ParquetFile(path) as file:
        about = file.metadata.row_group(1)
    assert about.num_rows == count
    assert about.column(0).total_uncompressed_size < largest / 100, "each image is there once"
    whole, counted = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(counted)
    try:
        entries = list_parquet(path).entries
    finally:
        pa.set_memory_pool(whole)
    assert 0 < counted.max_memory() < largest, "it is never unpacked as a whole"
    assert [one.read() for one in entries[few:]] == [png(row % few) for row in range(count)]
    assert groups == []
    monkeypatch.setattr(reader, "LARGEST_GROUP", 3 * largest)
    assert [one.read() for one in list_parquet(path).entries[:few]] == [png(row) for row in range(few)]
    assert groups == [0], "where it is small enough, it stays in the file"


def test_a_row_group_of_far_more_than_its_first_rows_is_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "set.parquet"
    parquet.write_table(pa.table({"image": [b"small"] * ROWS + [png(0)] * COUNT, "label": [0] * (ROWS + COUNT)}), path)
    monkeypatch.setattr(row_groups, "_MOST", 2 * ROWS * len(png(0)))
    entries = list_parquet(path).entries
    with pytest.raises(
        ValueError, match=r"set\.parquet unpacks to more than 0 MiB; write it anew with row_group_size=100"
    ):
        entries[0].read()


def test_damage_in_the_rows_that_are_looked_at_is_left_to_who_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "set.parquet"
    parquet.write_table(pa.table({"image": [png(0)] * COUNT, "label": [0] * COUNT}), path)
    with parquet.ParquetFile(path) as file:
        start = file.metadata.row_group(0).column(0).dictionary_page_offset
    whole = path.read_bytes()
    path.write_bytes(whole[:start] + bytes(20) + whole[start + 20 :])
    monkeypatch.setattr(reader, "LARGEST_GROUP", 20 * len(png(0)))
    assert len(list_parquet(path).entries) == COUNT
    with pytest.raises(DataError, match="cannot be read as images"):
        read_folder(path)


def test_damage_in_a_row_group_is_told_with_the_name_of_the_row(tmp_path: Path) -> None:
    path = pictures(tmp_path / "set.parquet", 0, 12, rows=4)
    lazy = read_folder(path, storage=Storage(0.0, tmp_path / "cache", workers=0))
    assert torch.equal(lazy.images[torch.tensor([0])], read_folder(path).images[:1])
    whole = path.read_bytes()
    assert whole.count(png(5)) == 1
    path.write_bytes(whole.replace(png(5), png(5)[:40] + bytes(len(png(5)) - 40)))
    row_groups._OF_PROCESS.clear()
    with pytest.raises(DataError, match=r"set\.parquet: 5\.png \(changed since the run began\) cannot be read"):
        lazy.images[torch.tensor([5])]


def test_a_small_file_of_far_more_than_images_is_refused_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "LARGEST_GROUP", 0)
    path = written(tmp_path / "set.parquet", [0] * COUNT)
    monkeypatch.setattr(compressed, "MOST_PACKED", 0)
    monkeypatch.setattr(compressed, "FREELY_PACKED", 2000)
    with pytest.raises(
        DataError, match=r"set\.parquet: it unpacks to more than .*; write it anew with row_group_size=100"
    ) as one:
        list_parquet(path)
    assert "\n" not in str(one.value)
