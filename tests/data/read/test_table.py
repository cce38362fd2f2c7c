"""Tables of files and labels, and tars from elsewhere: the images and labels of class folders of the same content."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from synthkd.data.read.folder import read_folder
from synthkd.data.read.samples import open_samples
from synthkd.errors import DataError
from tests.data.read.test_listing import PIXELS, folder, png, zipped

IMAGES = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)


def holds(path: Path, labels: list[int], names: tuple[str, ...]) -> None:
    """Whether scores and training read images 0, 1, ... with these labels."""
    scored, source = open_samples(path), read_folder(path)
    assert scored.labels is not None
    assert scored.labels.tolist() == source.labels.tolist() == labels
    assert scored.class_names == source.class_names == names
    assert torch.equal(torch.cat([*scored.batches(3)]), IMAGES[: len(labels)])
    assert torch.equal(source.images, IMAGES[: len(labels)])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("set.csv", "file,label\nflat/0.png,dog\nflat/1.png,cat\nflat/2.png,dog\n"),
        ("set.csv", "number,Class, Filename\n7,dog,flat/0.png\n8,cat,flat/1.png\n\n9,dog,flat/2.png\n"),
        ("set.csv", "flat/0.png,dog\nflat/1.png,cat\nflat/2.png,dog\n"),
        ("set.csv", '\ufefffile_name,label\r\n"flat/0.png",dog\r\nflat/1.png,"cat"\r\nflat/2.png,dog\r\n'),
        ("set.tsv", "image\tlabel\nflat/0.png\tdog\nflat/1.png\tcat\nflat/2.png\tdog\n"),
    ],
)
def test_a_table_names_files_beside_it_and_their_classes(tmp_path: Path, name: str, text: str) -> None:
    folder(tmp_path / "flat", {f"{row}.png": png(row) for row in range(3)})
    (tmp_path / name).write_bytes(text.encode())
    holds(tmp_path / name, [1, 0, 1], ("cat", "dog"))


def test_numbers_in_a_table_are_names_of_classes_sorted_by_number(tmp_path: Path) -> None:
    folder(tmp_path, {f"{row}.png": png(row) for row in range(3)})
    (tmp_path / "set.csv").write_text("file,label\n0.png,10\n1.png,9\n2.png,10\n")
    holds(tmp_path / "set.csv", [1, 0, 1], ("9", "10"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b,c\n0.png,1,2\n", r"set.csv has the columns a, b, c; name one `file` and one `label` in its first line"),
        ("file,label\n", r"set.csv names no images; write lines"),
        ("file,label\n0.png,a\n0.png,b\n", r"1 of 2 files .*0.png \(the table names it twice\)"),
        ("file,label\n0.png,a\n9.png,b\n", r"1 of 2 files .*9.png \(\[Errno 2\] No such file"),
        ("file,label\n0.png,a\n1.png,\n", r"1 of 2 files .*1.png \(no label, though others have one\)"),
        ("file,label\n0.png,a\n\xff.png,b\n", r"set.csv is no table in UTF-8 \("),
    ],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path: Path, text: str, message: str) -> None:
    folder(tmp_path, {f"{row}.png": png(row) for row in range(2)})
    (tmp_path / "set.csv").write_bytes(text.encode("latin-1"))
    for read in (open_samples, read_folder):
        with pytest.raises(DataError, match=message) as caught:
            read(tmp_path / "set.csv")
        assert "\n" not in str(caught.value)


def test_a_table_without_labels_can_be_scored_alone(tmp_path: Path) -> None:
    folder(tmp_path, {"0.png": png(0)})
    (tmp_path / "set.csv").write_text("file,label\n0.png,\n")
    assert open_samples(tmp_path / "set.csv").labels is None
    with pytest.raises(DataError, match=r"set.csv has no labels to train on; fill the column `label`"):
        read_folder(tmp_path / "set.csv")
    with pytest.raises(DataError, match=r"set.csv has no parts; leave out split=train"):
        open_samples(tmp_path / "set.csv", split="train")


# --- tars ------------------------------------------------------------------------------------------------------------


def tarred(path: Path, files: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("around", ["", "./", "set/"])
@pytest.mark.parametrize("base", ["{}.png", "a.b.{}.v1.png", "{}.JPEG.png"])
def test_class_folders_in_a_tar_are_those_of_a_zip(tmp_path: Path, around: str, base: str) -> None:
    files = {f"{around}{'cat' if row < 2 else 'dog'}/{base.format(row)}": png(row) for row in range(4)}
    files[f"{around}readme.txt"] = b"x"
    holds(tarred(tmp_path / "set.tar", files), [0, 0, 1, 1], ("cat", "dog"))
    holds(
        zipped(tmp_path / "set.zip", {name.removeprefix("./"): files[name] for name in files}),
        [0, 0, 1, 1],
        ("cat", "dog"),
    )


def test_class_folders_in_several_shards_are_one_set(tmp_path: Path) -> None:
    tarred(tmp_path / "s-0.tar", {"cat/0.png": png(0), "dog/0.png": png(2)})
    tarred(tmp_path / "s-1.tar", {"cat/0.png": png(1), "dog/0.png": png(3)})
    source = read_folder(tmp_path / "s-*.tar")
    assert source.labels.tolist() == [0, 0, 1, 1]
    assert sorted(image.sum().item() for image in source.images) == sorted(image.sum().item() for image in IMAGES[:4])


def test_parts_of_a_tar_are_those_of_a_folder(tmp_path: Path) -> None:
    files = {f"set/{part}/{name}/0.png": png(0) for part in ("train", "test") for name in ("cat", "dog")}
    path = tarred(tmp_path / "set.tar", files)
    assert read_folder(path).train == 2
    assert open_samples(path, split="test").count == 2


@pytest.mark.parametrize("key", ["{}", "a.{}", "x/a.b.{}"])
def test_classes_of_a_webdataset_may_be_names(tmp_path: Path, key: str) -> None:
    files = {}
    for row, name in enumerate(["dog", "cat", "dog"]):
        files |= {f"{key.format(row)}.png": png(row), f"{key.format(row)}.cls": name.encode()}
    holds(tarred(tmp_path / "set.tar", files), [1, 0, 1], ("cat", "dog"))


def test_further_images_of_a_sample_are_left_aside(tmp_path: Path) -> None:
    files = {"0.png": png(0), "0.mask.png": png(5), "0.cls": b"0", "1.png": png(1), "1.mask.png": png(5), "1.cls": b"1"}
    holds(tarred(tmp_path / "set.tar", files), [0, 1], ("0", "1"))
