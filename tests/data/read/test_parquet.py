"""Parquet files are read a few rows at a time; their encoded images lie in a temporary file."""

import os
from pathlib import Path
from typing import Any

import pytest

from synthkd.data.read import compressed
from synthkd.data.read.entries import InFile
from synthkd.data.read.listing import list_every
from synthkd.data.read.parquet import ROWS, list_parquet
from synthkd.errors import DataError

pa: Any = pytest.importorskip("pyarrow")
parquet: Any = pytest.importorskip("pyarrow.parquet")
COUNT = 3 * ROWS + 5


def content(row: int) -> bytes:
    return f"image {row} ".encode() * (row % 7 + 1)


def written(path: Path, labels: list[int | None], name: str | None = None) -> Path:
    rows = [
        {"image": {"bytes": content(row), "path": name and f"{row}{name}"}, "label": label}
        for row, label in enumerate(labels)
    ]
    parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=50)
    return path


def test_every_row_gives_its_own_bytes_across_row_groups_and_blocks(tmp_path: Path) -> None:
    listing = list_parquet(written(tmp_path / "set.parquet", [row % 3 for row in range(COUNT)], ".png"))
    assert [one.read() for one in listing.entries] == [content(row) for row in range(COUNT)]
    assert [one.label for one in listing.entries] == [row % 3 for row in range(COUNT)]
    assert [one.name for one in listing.entries] == [f"{row}.png" for row in range(COUNT)]


def test_the_images_lie_in_one_temporary_file_until_the_set_changes(tmp_path: Path) -> None:
    path = written(tmp_path / "set.parquet", [0, 1])
    first, again = (list_parquet(path).entries[0].read for _ in range(2))
    assert isinstance(first, InFile)
    assert first == again
    assert first.path.stat().st_size == len(content(0)) + len(content(1)), "nothing but the images"
    written(path, [0, 1, 0])
    os.utime(path, ns=(1, 1))
    assert len(list_parquet(path).entries) == 3


def test_a_row_without_a_label_is_refused_where_labels_count(tmp_path: Path) -> None:
    path = written(tmp_path / "set.parquet", [0, None, 1])
    with pytest.raises(ValueError, match="no label, though others have one"):
        list_parquet(path).entries[1].read()
    assert [one.read() for one in list_every(path).entries] == [content(row) for row in range(3)]


def test_a_small_file_of_far_more_than_images_is_refused_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "set.parquet", [0] * COUNT)
    monkeypatch.setattr(compressed, "MOST_PACKED", 0)
    monkeypatch.setattr(compressed, "FREELY_PACKED", 2000)
    with pytest.raises(
        DataError, match=r"set\.parquet is not a readable parquet file \(it unpacks to more than"
    ) as one:
        list_parquet(path)
    assert "\n" not in str(one.value)
