"""What can be scored can be trained on: a folder, a zip and a tar of the same images give the same dataset."""

import io
import os
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from synthkd.data.read import webdataset
from synthkd.data.read.folder import read_folder
from synthkd.data.read.listing import list_every, list_scored, list_unlabelled
from synthkd.data.read.real import load_splits
from synthkd.data.read.samples import open_samples
from synthkd.errors import DataError
from synthkd.settings import FolderData

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 5, 4, 3), dtype=np.uint8)
CLASSES = ("cat", "dog")


def png(row: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS[row]).save(buffer, "PNG")
    return buffer.getvalue()


def parts() -> dict[str, bytes]:
    """Two training images and one test image of each class; row 4 and 5 of the images are the test part."""
    rows = {"train": [(0, 0), (0, 1), (1, 2), (1, 3)], "test": [(0, 4), (1, 5)]}
    return {f"{part}/{CLASSES[label]}/{row}.png": png(row) for part in rows for label, row in rows[part]}


def folder(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def zipped(path: Path, files: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def tarred(path: Path, labels: list[int | None]) -> Path:
    with tarfile.open(path, "w") as archive:
        for row, label in enumerate(labels):
            for suffix, content in (("png", png(row)), ("cls", b"" if label is None else str(label).encode())):
                if content:
                    member = tarfile.TarInfo(f"{row:04}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("around", ["", "set/", "home/set/"])
def test_a_zip_with_train_and_test_is_the_dataset_of_its_folder(tmp_path: Path, around: str) -> None:
    extra = {"train/cat/notes.txt": b"x", "__MACOSX/._set": b"x"}
    files = {around + name: content for name, content in dict(reversed((parts() | extra).items())).items()}
    source = read_folder(zipped(tmp_path / "set.zip", files))
    same = read_folder(folder(tmp_path / "set", parts()))
    assert torch.equal(source.images, same.images)
    assert torch.equal(source.images, torch.from_numpy(PIXELS[:6]).permute(0, 3, 1, 2))
    assert source.labels.tolist() == same.labels.tolist() == [0, 0, 1, 1, 0, 1]
    assert source.class_names == same.class_names == CLASSES
    assert source.train == same.train == 4
    assert source.notes[0].startswith("2 files or folders ignored, not images of a class: ")
    assert f"{around}train/cat/notes.txt" in source.notes[0]


def test_a_file_without_a_suffix_beside_the_directory_around_a_zip_is_known_by_its_content(tmp_path: Path) -> None:
    files = {f"photos/{name}": content for name, content in parts().items()}
    source = read_folder(zipped(tmp_path / "set.zip", {"LICENSE": b"none", **files}))
    assert (source.class_names, len(source.images), source.train) == (CLASSES, 6, 4)
    assert source.notes == ("1 files or folders ignored, not images of a class: LICENSE",)
    assert len(list_scored(zipped(tmp_path / "b.zip", {"LICENSE": b"none", **files}), "train").entries) == 4
    with pytest.raises(DataError, match="lie beside directories of images"):
        list_scored(zipped(tmp_path / "c.zip", {"picture": png(0), "photos/0.png": png(1)}))


def test_settings_name_a_zip_or_a_tar_as_they_name_a_folder(tmp_path: Path) -> None:
    labels: list[int | None] = [0, 0, 0, 0, 1, 1, 1, 1]
    by_class = {f"{label}/{row}.png": png(row) for row, label in enumerate(labels)}
    paths = [
        folder(tmp_path / "set", by_class),
        zipped(tmp_path / "set.zip", by_class),
        tarred(tmp_path / "set.tar", labels),
    ]
    first = load_splits(FolderData(kind="folder", root=str(paths[0]), test=0.25, holdout=0.3))
    for path in paths:
        splits = load_splits(FolderData(kind="folder", root=str(path), test=0.25, holdout=0.3))
        assert [len(part) for part in (splits.train, splits.holdout, splits.test)] == [4, 2, 2]
        assert (splits.train.name, splits.train.class_names) == (path.name, ("0", "1"))
        for one, other in ((splits.train, first.train), (splits.holdout, first.holdout), (splits.test, first.test)):
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.labels, other.labels)


def test_what_is_scored_is_what_is_trained_on(tmp_path: Path) -> None:
    path = zipped(tmp_path / "set.zip", parts())
    source = read_folder(path)
    rows = {"train": source.images[:4], "test": source.images[4:]}
    for part, images in rows.items():
        assert torch.equal(torch.cat([*open_samples(path, split=part).batches(3)]), images)


def test_a_tar_gives_the_classes_of_its_cls_files(tmp_path: Path) -> None:
    source = read_folder(tarred(tmp_path / "set.tar", [2, 0, 1, 2]), channels=3)
    assert source.labels.tolist() == [2, 0, 1, 2]
    assert source.class_names == ("0", "1", "2")
    assert source.train is None
    assert torch.equal(source.images, torch.from_numpy(PIXELS[:4]).permute(0, 3, 1, 2))
    (tmp_path / "set.tar").rename(tmp_path / "s-0.tar")
    tarred(tmp_path / "s-1.tar", [1])
    assert read_folder(tmp_path / "s-*.tar").labels.tolist() == [2, 0, 1, 2, 1]


def test_archives_without_classes_can_be_scored_but_not_trained_on(tmp_path: Path) -> None:
    flat = zipped(tmp_path / "flat.zip", {f"set/{row}.png": png(row) for row in range(3)})
    assert open_samples(flat).count == 3
    with pytest.raises(DataError, match=r"flat.zip/set has no class directories; put the images"):
        read_folder(flat)
    unlabelled = tarred(tmp_path / "set.tar", [None, None])
    assert open_samples(unlabelled).count == 2
    with pytest.raises(DataError, match=r"set.tar has no labels to train on; put the class of each"):
        read_folder(unlabelled)
    tarred(tmp_path / "half.tar", [0, None, 1])
    with pytest.raises(DataError, match=r"half.tar: 1 of 3 files .*0001.png \(no label, though others have one"):
        read_folder(tmp_path / "half.tar")
    assert read_folder(tmp_path / "half.tar", skip_bad=True).labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"test/cat/0.png": b"", "val/cat/0.png": b""}, r"set.zip has test, val but no train/"),
        ({"train/cat/0.png": b"", "test/dog/0.png": b""}, r"only in train/: cat; only in test/: dog"),
        ({"train/cat/0.png": b"", "dog/0.png": b""}, r"train/ holds class directories, but beside it is dog"),
        ({"cat/0.png": b"", "dog/": b""}, r"set.zip: no images in class dog; add some"),
        ({"cat/0.png": b"", "dog/0.png": png(0)}, r"1 of 2 files .*cat/0.png \(empty file\); delete .*skip_bad: true"),
        ({"cat/0.png": png(0), "dog/0.png": png(1), "../up.png": png(2)}, r"1 of 3 files .*\.\./up.png \(unsafe name"),
    ],
)
def test_a_zip_is_judged_by_the_rules_of_folders(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_folder(zipped(tmp_path / "set.zip", files))
    assert "\n" not in str(caught.value)


def test_a_member_below_too_many_directories_is_a_bad_file(tmp_path: Path) -> None:
    path = zipped(tmp_path / "set.zip", {"a/0.png": png(0), "b/0.png": png(1), "a/" + "d/" * 100 + "0.png": png(2)})
    for read in (read_folder, open_samples):
        with pytest.raises(DataError, match=r"1 of 3 files .*0.png \(more than 100 levels of directories\)"):
            read(path)


def test_a_zip_bomb_and_a_damaged_archive_are_refused_as_in_scoring(tmp_path: Path) -> None:
    zeros = {f"{name}/{row}.png": bytes(1 << 25) for name in CLASSES for row in range(4)}
    bomb = zipped(tmp_path / "bomb.zip", zeros, zipfile.ZIP_DEFLATED)
    damaged = tarred(tmp_path / "damaged.tar", [0, 1])
    damaged.write_bytes(damaged.read_bytes()[:1500])
    (tmp_path / "text.zip").write_text("no archive")
    for path, message in (
        (bomb, "would unpack to 256 MiB, more than 200 times as much"),
        (damaged, "is not a whole .tar"),
        (tmp_path / "text.zip", "is not a readable .zip"),
    ):
        for read in (read_folder, open_samples):
            with pytest.raises(DataError, match=message):
                read(path)


def test_a_link_in_a_tar_is_refused_as_in_scoring(tmp_path: Path) -> None:
    path = tarred(tmp_path / "set.tar", [0, 1])
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("9999.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
    for read in (read_folder, open_samples):
        with pytest.raises(DataError, match=r"1 of 3 files .*9999.png \(a link or device, not a file\)"):
            read(path)


def test_paths_that_are_no_set_are_refused(tmp_path: Path) -> None:
    (tmp_path / "set.rar").touch()
    for name, problem in (
        ("gone.zip", "does not exist"),
        ("gone.tar", "does not exist"),
        ("set.rar", "is no set of images"),
    ):
        with pytest.raises(DataError, match=rf"{name} {problem}"):
            read_folder(tmp_path / name)


def test_two_classes_of_a_part_may_hold_links_to_one_place(tmp_path: Path) -> None:
    shared = folder(tmp_path / "shared", {"0.png": png(0)})
    files = {f"{part}/{name}/1.png": png(1) for part in ("train", "test") for name in CLASSES}
    root = folder(tmp_path / "set", files)
    for name in CLASSES:
        os.symlink(shared, root / "train" / name / "more")
    assert read_folder(root).labels.tolist() == [0, 0, 1, 1, 0, 1]
    assert open_samples(root, split="train").count == 4


def test_where_labels_are_left_aside_an_image_without_one_is_an_image_as_the_others(tmp_path: Path) -> None:
    folder(tmp_path, {f"{row}.png": png(row) for row in range(3)})
    table = tmp_path / "half.csv"
    table.write_text("file,label\n0.png,cat\n1.png,\n2.png,dog\n2.png,dog\n")
    for listed in (list_every, list_unlabelled):
        *images, twice = listed(table).entries
        assert [(one.name, one.read(), one.label) for one in images] == [
            (f"{row}.png", tmp_path / f"{row}.png", None) for row in range(3)
        ]
        with pytest.raises(ValueError, match="the table names it twice"):
            twice.read()
    with pytest.raises(ValueError, match="no label, though others have one"):
        list_scored(table).entries[1].read()


def test_braces_and_a_folder_name_shards_as_a_pattern_does(tmp_path: Path) -> None:
    top = tmp_path / "shards"
    top.mkdir()
    for number in range(3):
        tarred(top / f"s-{number:02}.tar", [number, 2])
    (top / "LICENSE").write_text("none")
    wanted = read_folder(top / "s-*.tar")
    assert wanted.labels.tolist() == [0, 2, 1, 2, 2, 2]
    for path in (top / "s-{00..02}.tar", top):
        source = read_folder(path)
        assert torch.equal(source.images, wanted.images)
        assert torch.equal(source.labels, wanted.labels)
    assert read_folder(top / "s-{02,00}.tar", lacks_classes=True).labels.tolist() == [2, 2, 0, 2]
    with pytest.raises(DataError, match=r"s-03\.tar is not a whole \.tar \(.*No such file"):
        read_folder(top / "s-{00..03}.tar")
    with pytest.raises(DataError, match=r"t-\{00\.\.02\}\.tar does not exist"):
        read_folder(top / "t-{00..02}.tar")


def test_shards_of_a_folder_are_in_the_part_of_their_names(tmp_path: Path) -> None:
    tarred(tmp_path / "train-0.tar", [0, 1])
    tarred(tmp_path / "train-1.tar", [1])
    tarred(tmp_path / "val-0.tar", [1, 1])
    source = read_folder(tmp_path)
    assert (source.labels.tolist(), source.train) == ([0, 1, 1, 1, 1], 3)


def test_a_tar_beside_class_directories_is_no_shard(tmp_path: Path) -> None:
    top = folder(tmp_path / "set", parts())
    tarred(top / "backup.tar", [0])
    source = read_folder(top)
    assert (source.train, len(source.images)) == (4, 6)
    assert source.notes == ("1 files or folders ignored, not images of a class: backup.tar",)


def test_tars_of_class_directories_are_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[str] = []
    members = webdataset._members
    monkeypatch.setattr(webdataset, "_members", lambda shard: listed.append(shard.name) or members(shard))
    for number in range(2):
        with tarfile.open(tmp_path / f"s-{number}.tar", "w") as archive:
            for label in "ab":
                member = tarfile.TarInfo(f"{label}/{number}.png")
                member.size = len(png(number))
                archive.addfile(member, io.BytesIO(png(number)))
    assert read_folder(tmp_path / "s-*.tar").labels.tolist() == [0, 0, 1, 1]
    assert listed == ["s-0.tar", "s-1.tar"]
    with pytest.raises(DataError, match=r"has tars of class directories; name them by a pattern: .*/\*\.tar"):
        read_folder(tmp_path)
    for number, part in enumerate(("train", "test")):
        (tmp_path / f"s-{number}.tar").rename(tmp_path / f"{part}.tar")
    with pytest.raises(DataError, match=r"has tars .*; name those of each part by a pattern: .*/train\*\.tar"):
        read_folder(tmp_path)
