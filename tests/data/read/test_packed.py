"""Entries in arrays are the entries that went in, and a large listing takes few bytes for each file."""

import io
import tarfile
import tracemalloc
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synthkd.data.read.entries import Entry, InFile, InFolder, InTable
from synthkd.data.read.labels import Written
from synthkd.data.read.listing import list_dataset, list_every, list_scored
from synthkd.data.read.packed import Entries, FolderFiles, Names, WrittenImages, packed

TEXT = st.text(st.characters(min_codepoint=1, exclude_characters="/"), min_size=1, max_size=8)  # lone surrogates too
PLACES = st.sampled_from([Path("a"), Path("b/c.tar")])


class Table:
    """A table that nobody reads."""

    def content(self, row: int) -> bytes:
        return b""


TABLES = st.sampled_from([Table(), Table()])


def no_reader() -> bytes:
    return b""


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    name = draw(TEXT)
    read = draw(
        st.builds(InFolder, PLACES, st.sampled_from([name, "other"]))
        | st.builds(InFile, PLACES, st.integers(0, 2**40), st.integers(0, 2**30))
        | st.builds(InTable, TABLES, st.integers(0, 2**40))
        | st.just(no_reader)
    )
    image = draw(st.sampled_from([None, no_reader]))
    return Entry(name, read, draw(st.none() | st.integers(0, 2**31 - 1)), draw(st.booleans()), image)


@settings(max_examples=60, deadline=None)
@given(every=st.lists(entries(), max_size=12))
def test_what_goes_in_comes_out(every: list[Entry]) -> None:
    compact = Entries(every)
    assert [*compact] == every
    assert [compact[row] for row in range(-len(every), len(every))] == every * 2
    assert compact[1:7] == every[1:7]
    assert [*compact.names()] == [entry.name for entry in every]
    assert compact.labels.tolist() == [-1 if entry.label is None else entry.label for entry in every]
    assert compact.in_test.tolist() == [entry.test for entry in every]
    assert [*packed(compact, every)] == every * 2


@settings(max_examples=60, deadline=None)
@given(names=st.sets(TEXT, max_size=12), other=TEXT)
def test_the_files_of_a_directory_are_found_by_name(names: set[str], other: str) -> None:
    files = FolderFiles(Path("root"), "inner", Names(sorted(names)))
    assert [*files] == sorted(names)
    assert {**files} == {name: Entry(f"inner/{name}", InFolder(Path("root"), f"inner/{name}")) for name in names}
    assert (other in files) == (other in names)
    wanted = files.where(lambda name: name > other)
    assert [*wanted] == sorted(name for name in names if name > other)
    assert [*wanted.paths()] == [f"inner/{name}" for name in wanted]


@settings(max_examples=60, deadline=None)
@given(labels=st.lists(st.none() | st.integers(0, 3) | st.sampled_from(["0", "1", "cat"]), max_size=12))
def test_labels_stay_what_they_were(labels: list[int | str | None]) -> None:
    images, plain = WrittenImages(), []
    for row, label in enumerate(labels):
        plain.append(Written(str(row), no_reader, label))
        images.append(plain[-1])
    assert [*images] == plain
    assert [type(one.label) for one in images] == [type(label) for label in labels]
    assert len(images.distinct) == len(set(labels))


FILES = 3000


def taken(call: partial[object]) -> tuple[float, float]:
    """Bytes that stay for each file once a call has returned, and the most meanwhile."""
    call()  # what is made once
    tracemalloc.start()
    try:
        result = call()
        now, most = tracemalloc.get_traced_memory()
        del result
    finally:
        tracemalloc.stop()
    return now / FILES, most / FILES


def test_a_file_of_a_folder_takes_few_bytes(tmp_path: Path) -> None:
    for row in range(FILES):
        place = tmp_path / "ab"[row % 2] / f"{row:06}.png"
        place.parent.mkdir(exist_ok=True)
        place.touch()
    for listed in (list_dataset, list_scored, list_every):
        stay, most = taken(partial(listed, tmp_path))
        assert stay < 80, "beside some 12 bytes of its name"
        assert most < 350


def test_a_sample_of_shards_takes_few_bytes(tmp_path: Path) -> None:
    for shard in range(10):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for row in range(FILES // 10):
                for suffix, content in (("png", b"picture"), ("cls", str(row % 2).encode())):
                    member = tarfile.TarInfo(f"{row:06}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    stay, most = taken(partial(list_dataset, tmp_path / "*.tar"))
    assert stay < 80
    assert most < 175, "one shard at a time, and of each member less than tarfile keeps"


@pytest.mark.parametrize("form", ["parquet", "parquet in parts", "saved"])
def test_a_row_of_a_table_takes_few_bytes(tmp_path: Path, form: str) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "set"
    path.mkdir()
    images = [{"bytes": b"picture", "path": None}] * FILES
    if form == "saved":
        datasets = pytest.importorskip("datasets")
        datasets.Dataset.from_dict({"image": images, "label": [0] * FILES}).cast_column(
            "image", datasets.Image()
        ).save_to_disk(str(path))
    else:
        for part in ("train", "test") if form == "parquet in parts" else ("train",):
            table = arrow.table({"image": images, "label": [row % 2 for row in range(FILES)]})
            parquet.write_table(table, path / f"{part}.parquet", row_group_size=100)
    count = len(list_dataset(path).entries)
    stay, most = (FILES * each / count for each in taken(partial(list_dataset, path)))
    assert count == FILES * (1 + (form == "parquet in parts"))
    assert stay < 100, "beside some 25 bytes of its name"
    assert most < 350
