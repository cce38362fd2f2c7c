"""Pictures of the task without labels: every image of any form, in one order, and no label of theirs."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from synthkd.data.read.splits import Splits
from synthkd.data.read.unlabelled import read_unlabelled
from synthkd.errors import DataError
from synthkd.settings import UnlabelledData
from synthkd.types import ImageSpec

SPEC = ImageSpec(3, 4, 4, 2)
COUNT = 20
PIXELS = np.arange(COUNT * 48, dtype=np.uint32).reshape(COUNT, 4, 4, 3).astype(np.uint8)


def read(path: Path, spec: ImageSpec = SPEC, **options: object) -> Splits:
    return read_unlabelled(UnlabelledData(kind="unlabelled", path=str(path), **options), spec, ())  # type: ignore[arg-type]


def save(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(PIXELS[number]).save(path)


def values(splits: Splits) -> list[list[int]]:
    return [part.images[:, 0, 0, 0].tolist() for part in (splits.train, splits.holdout, splits.test)]


FIRSTS = PIXELS[:, 0, 0, 0].tolist()


def test_every_form_gives_the_same_images_without_labels(tmp_path: Path) -> None:
    for number in range(COUNT):
        save(tmp_path / "flat" / f"{number:03d}.png", number)
        save(tmp_path / "classes" / f"{number // 10}" / f"{number:03d}.png", number)
        save(tmp_path / "parts" / "train" / f"{number // 10}" / f"{number:03d}.png", number)
        save(tmp_path / "parts" / "test" / "0" / f"{number:03d}.png", 0)
    with zipfile.ZipFile(tmp_path / "flat.zip", "w") as archive:
        for file in sorted((tmp_path / "flat").iterdir()):
            archive.write(file, f"flat/{file.name}")
    np.savez(tmp_path / "a.npz", images=PIXELS, labels=np.arange(COUNT) % 2)
    lines = [f"flat/{number:03d}.png,{'ab'[number % 2]}" for number in range(COUNT)]
    (tmp_path / "table.csv").write_text("\n".join(["file,label", *lines]))
    for name in ("flat", "classes", "parts", "flat.zip", "a.npz", "table.csv"):
        found = read(tmp_path / name, holdout=0.0)
        assert values(found) == [FIRSTS, [], []], name
        assert found.train.labels.tolist() == [-1] * COUNT
        assert (found.train.name, found.train.spec) == (name, SPEC)


def test_a_share_is_held_out_and_always_the_same(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=PIXELS)
    train, held, _ = values(read(tmp_path / "a.npz", holdout=0.25))
    assert (len(held), sorted([*train, *held])) == (5, sorted(FIRSTS))
    assert values(read(tmp_path / "a.npz", holdout=0.25))[1] == held
    assert held != FIRSTS[:5]
    np.savez(tmp_path / "one.npz", images=PIXELS[:1])
    with pytest.raises(DataError, match="holds 1 images, too few to hold any out; add some, or set holdout to 0"):
        read(tmp_path / "one.npz", holdout=0.9)


def test_images_beside_directories_and_other_files(tmp_path: Path) -> None:
    save(tmp_path / "b.png", 1)
    save(tmp_path / "a" / "x.png", 0)
    (tmp_path / "notes.txt").write_text("none")
    assert values(read(tmp_path, holdout=0.0))[0] == FIRSTS[:2]


def test_size_and_channels_are_those_of_the_teacher(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 6, 3), 7, dtype=np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="images are 3x8x6, the teacher takes 3x4x4; set size to 4"):
        read(tmp_path)
    assert read(tmp_path, size=4, holdout=0.0).train.images.tolist() == np.full((1, 3, 4, 4), 7).tolist()
    grey = ImageSpec(1, 4, 4, 2)
    assert read(tmp_path, grey, size=4, holdout=0.0).train.images.tolist() == np.full((1, 1, 4, 4), 7).tolist()
    Image.fromarray(PIXELS[0]).resize((4, 4)).save(tmp_path / "b.png")
    with pytest.raises(DataError, match="images are 3x4x4, the teacher takes 1x4x4; set channels to 1"):
        read(tmp_path, grey, size=4)
    np.savez(tmp_path / "a.npz", images=PIXELS)
    with pytest.raises(DataError, match="size and resize are for image files"):
        read(tmp_path / "a.npz", size=4)
    for path, wide, remedy in (
        (tmp_path, ImageSpec(3, 8, 6, 2), r"set size to \[8, 6\], or convert them"),
        (tmp_path / "a.npz", ImageSpec(3, 8, 8, 2), "takes 3x8x8; resize the array"),
        (tmp_path / "a.npz", ImageSpec(4, 4, 4, 2), "takes 4x4x4; images as data have 1 or 3 channels"),
    ):
        with pytest.raises(DataError, match=remedy):
            read(path, wide, **({"size": 4} if path == tmp_path else {}))


def test_bad_files_and_no_images(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images; check the path"):
        read(tmp_path / "empty")
    save(tmp_path / "set" / "a.png", 0)
    (tmp_path / "set" / "b.png").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"1 of 2 files cannot be read as images: b.png"):
        read(tmp_path / "set")
    assert values(read(tmp_path / "set", skip_bad=True, holdout=0.0))[0] == FIRSTS[:1]
