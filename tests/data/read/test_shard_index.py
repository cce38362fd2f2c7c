"""What tars hold is kept from start to start, and an unchanged tar is not opened to be listed."""

import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from synthkd.data.read.fitted import fitted
from synthkd.data.read.folder import Storage, read_folder
from synthkd.data.read.listing import list_dataset, list_every, list_unlabelled
from synthkd.data.read.samples import open_samples
from synthkd.errors import DataError
from synthkd.settings import FolderData
from synthkd.system.sealed import sealed, unsealed
from synthkd.types import ImageSpec
from tests.data.read.test_listing import png, tarred

OLD = 1_000_000_000


def aged(path: Path, seconds: int = OLD) -> Path:
    """The file, last changed long ago."""
    os.utime(path, (seconds, seconds))
    return path


def shards(top: Path) -> Path:
    """The pattern of two shards with labels of both kinds, a bad label, a missing one, and files that are no images."""
    aged(tarred(top / "s-0.tar", [2, 0, None, 1]))
    with tarfile.open(top / "s-1.tar", "w") as archive:
        for name, content in {
            "a.png": png(4),
            "a.json": b'{"label": 2}',
            "b.png": png(5),
            "b.json": b"[",
            "c.txt": b"x",
        }.items():
            (top / name).write_bytes(content)
            archive.add(top / name, name)
        link = tarfile.TarInfo("link.png")
        link.type = tarfile.SYMTYPE
        archive.addfile(link)
    aged(top / "s-1.tar")
    return top / "s-*.tar"


def content(listing: Any) -> list[Any]:
    """All that a listing says, with the bytes of each image or why there are none."""

    def read(entry: Any) -> object:
        try:
            return entry.read()
        except ValueError as error:
            return str(error)

    entries = [(one.name, read(one), one.label, one.test) for one in listing.entries]
    return [entries, listing.class_names, [*listing.ignored]]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the tars that were opened, in order."""
    names: list[str] = []
    open_path = Path.open

    def watched(path: Path, *args: Any, **keys: Any) -> Any:
        if ".tar" in path.name:
            names.append(path.name)
        return open_path(path, *args, **keys)

    monkeypatch.setattr(Path, "open", watched)
    return names


def test_an_unchanged_tar_is_not_opened_again(tmp_path: Path, opened: list[str]) -> None:
    path, cache = shards(tmp_path), tmp_path / "cache"
    alone = content(list_dataset(path))
    first = content(list_dataset(path, cache=cache))
    opened.clear()
    listing = list_dataset(path, cache=cache)
    assert opened == []
    assert content(listing) == first == alone
    assert [entry[2] for entry in first[0] if isinstance(entry[1], bytes)] == [2, 0, 1, 2]
    assert sum(isinstance(entry[1], str) for entry in first[0]) == 3, "two bad labels and a link"
    assert first[2] == ["s-1.tar: c.txt"]


def test_a_changed_tar_is_listed_anew(tmp_path: Path, opened: list[str]) -> None:
    path, cache = shards(tmp_path), tmp_path / "cache"
    list_dataset(path, cache=cache)
    size = (tmp_path / "s-0.tar").stat().st_size
    for seconds in (OLD + 1, OLD - 1):  # changed, and changed to an older one
        labels: list[int | None] = [1, 1, None, 2] if seconds > OLD else [0, 1, None, 2]
        aged(tarred(tmp_path / "s-0.tar", labels), seconds)
        assert (tmp_path / "s-0.tar").stat().st_size == size
        opened.clear()
        assert [one.label for one in list_dataset(path, cache=cache).entries][:4] == labels
        assert {*opened} == {"s-0.tar"}
    aged(tarred(tmp_path / "s-0.tar", [0] * 8), OLD - 1)
    assert len(list_dataset(path, cache=cache).entries) == 11, "by its size"
    assert len([*cache.iterdir()]) == 2, "in place of what was kept"


@pytest.mark.parametrize("replaced", [False, True])
def test_a_rewritten_tar_of_the_same_time_is_listed_anew(tmp_path: Path, replaced: bool) -> None:
    path, cache = aged(tarred(tmp_path / "set.tar", [0, 1])), tmp_path / "cache"
    assert [one.label for one in list_dataset(path, cache=cache).entries] == [0, 1]
    before = path.stat()
    if replaced:
        tarred(tmp_path / "new.tar", [1, 0]).replace(path)
    else:
        tarred(path, [1, 0])
    while aged(path).stat().st_ctime_ns == before.st_ctime_ns:
        pass  # within one tick of the clock
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert (after.st_ino != before.st_ino) == replaced
    assert [one.label for one in list_dataset(path, cache=cache).entries] == [1, 0]


@pytest.mark.parametrize("name", ["format", "path", "size", "time", "status", "inode"])
def test_what_is_kept_of_another_tar_is_left_aside(tmp_path: Path, opened: list[str], name: str) -> None:
    path, cache = aged(tarred(tmp_path / "set.tar", [0, 1])), tmp_path / "cache"
    first = content(list_dataset(path, cache=cache))
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    values = unsealed(whole)
    values[name] = f"{values[name]}x" if isinstance(values[name], str) else values[name] + 1
    file.write_bytes(sealed(values))
    opened.clear()
    again = list_dataset(path, cache=cache)
    assert opened
    assert content(again) == first
    assert file.read_bytes() == whole


def test_sections_keep_what_a_tar_holds_and_paths_alone_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = aged(tarred(tmp_path / "set.tar", [0, 1, 0, 1]))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    open_samples(path)
    fitted(path, ImageSpec(3, 5, 4, 2), list_every)
    assert not (tmp_path / "home").exists()
    open_samples(FolderData(kind="folder", root=str(path)), split="train")
    (file,) = (tmp_path / "home/.cache/synthkd/images").iterdir()
    assert (file.suffix, file.stat().st_mode & 0o777) == (".shard", 0o600)


def test_directories_in_tars_are_kept_too(tmp_path: Path, opened: list[str]) -> None:
    for number in range(2):
        with tarfile.open(tmp_path / f"s-{number}.tar", "w") as archive:
            for label in "ab":
                (tmp_path / "image.png").write_bytes(png(number))
                archive.add(tmp_path / "image.png", f"{label}/{number}.png")
        aged(tmp_path / f"s-{number}.tar")
    listings: list[Callable[..., Any]] = [list_dataset, list_unlabelled]
    for listed in listings:
        first = content(listed(tmp_path / "s-*.tar", cache=tmp_path / "cache"))
        opened.clear()
        again = listed(tmp_path / "s-*.tar", cache=tmp_path / "cache")
        assert opened == []
        assert content(again) == first == content(listed(tmp_path / "s-*.tar"))


@pytest.mark.parametrize("damage", ["a byte", "cut off", "no object", "emptied", "another format"])
def test_a_damaged_cache_is_made_anew(tmp_path: Path, opened: list[str], damage: str) -> None:
    path, cache = shards(tmp_path), tmp_path / "cache"
    first = content(list_dataset(path, cache=cache))
    files = sorted(cache.iterdir())
    kept = [file.read_bytes() for file in files]
    for file, whole in zip(files, kept, strict=True):
        spoilt = {
            "a byte": whole.replace(b'.png"', b'.pnq"', 1),
            "cut off": whole[:-20],
            "no object": b"[1]",
            "emptied": b"",
            "another format": b'{"format": "synthkd shard 0"}',
        }[damage]
        assert spoilt != whole
        file.write_bytes(spoilt)
    assert content(list_dataset(path, cache=cache)) == first
    assert [file.read_bytes() for file in files] == kept
    opened.clear()
    list_dataset(path, cache=cache)
    assert opened == []


@pytest.mark.parametrize(
    ("part", "column", "wrong"),
    [
        ("images", 0, [7, "b.png"]),
        ("images", 0, ["a.png", "a.png"]),
        ("images", 0, ["a.png", None]),
        ("images", 0, "ab"),
        ("images", 0, 5),
        ("images", 1, [0]),
        ("images", 1, [-1, 512]),
        ("images", 1, [2**70, 512]),
        ("images", 1, [True, 512]),
        ("images", 1, [512.0, 512]),
        ("images", 2, [-1, 1]),
        ("images", 2, ["1", 1]),
        ("images", 2, [10**6, 1]),
        ("images", 2, [1, False]),
        ("images", 2, [1, 1, 1]),
        ("images", 3, [0]),
        ("images", 3, [0, 1, 1]),
        ("images", 3, [0, True]),
        ("images", 3, [0, 1.0]),
        ("images", 3, [0, [1]]),
        ("images", None, [[], [], []]),
        ("images", None, {"a": 1}),
        ("images", None, 3),
        ("files", 0, ["a.png"]),
        ("files", 2, [-1]),
        ("files", None, None),
        ("refused", None, [["a.png"]]),
        ("refused", None, [["a.png", 1]]),
        ("bad", None, ["ab"]),
        ("bad", None, {}),
        ("ignored", None, [1]),
        ("ignored", None, "ab"),
    ],
)
def test_a_list_with_wrong_content_is_made_anew(tmp_path: Path, part: str, column: int | None, wrong: object) -> None:
    path, cache = aged(tarred(tmp_path / "set.tar", [0, 1])), tmp_path / "cache"
    first = content(list_dataset(path, cache=cache))
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    values = unsealed(whole)
    if column is None:
        values[part] = wrong
    else:
        values[part][column] = wrong
    file.write_bytes(sealed(values))
    assert content(list_dataset(path, cache=cache)) == first
    assert file.read_bytes() == whole


def test_a_list_without_a_checksum_is_made_anew(tmp_path: Path) -> None:
    path, cache = aged(tarred(tmp_path / "set.tar", [0, 1])), tmp_path / "cache"
    first = content(list_dataset(path, cache=cache))
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    values = unsealed(whole)
    values["images"][3] = [1, 0]
    file.write_text(json.dumps(values))
    assert content(list_dataset(path, cache=cache)) == first
    assert file.read_bytes() == whole


def test_what_may_not_last_is_not_kept(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    list_dataset(tarred(tmp_path / "new.tar", [0, 1]), cache=cache)  # it may change within the same tick
    with tarfile.open(tmp_path / "packed.tar.gz", "w:gz") as archive:
        for name in ("a.png", "a.cls"):
            (tmp_path / name).write_bytes(png(0) if name == "a.png" else b"0")
            archive.add(tmp_path / name, name)
    packed = aged(tmp_path / "packed.tar.gz")
    assert [content(list_dataset(packed, cache=cache)) for _ in range(2)] == [content(list_dataset(packed))] * 2
    assert not cache.exists()
    broken = tmp_path / "broken.tar"
    broken.write_bytes((tmp_path / "new.tar").read_bytes()[:700])
    aged(broken)
    for _ in range(2):
        with pytest.raises(DataError, match=r"broken.tar is not a whole .tar"):
            list_dataset(broken, cache=cache)


def test_a_set_is_read_where_the_cache_cannot_be_written(tmp_path: Path, opened: list[str]) -> None:
    path = aged(tarred(tmp_path / "set.tar", [0, 1]))
    (tmp_path / "file").write_bytes(b"")
    assert read_folder(path, storage=Storage(folder=tmp_path / "file")).labels.tolist() == [0, 1]
    aged(tarred(tmp_path / "s-00.tar", [0]))
    with pytest.raises(DataError, match=r"s-01.tar is not a whole .tar"):
        read_folder(tmp_path / "s-{00..01}.tar", storage=Storage(folder=tmp_path / "cache"))
    for _ in range(2):
        opened.clear()
        assert read_folder(path, storage=Storage(folder=tmp_path / "cache")).labels.tolist() == [0, 1]
    assert opened == ["set.tar"] * 4, "both images, the first ones also to know their size"
