"""Images that do not fit the limit of memory: the same images, labels and messages, decoded when they are needed."""

import io
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from synthkd.data.read.decode import Decoded
from synthkd.data.read.fit import Fit
from synthkd.data.read.folder import Storage, read_folder
from synthkd.data.read.on_disk import DiskImages, ImageFiles
from synthkd.data.read.real import load_splits, load_test
from synthkd.data.read.row_cache import RowCache
from synthkd.data.read.samples import open_samples
from synthkd.data.read.splits import Source, channel_statistics
from synthkd.errors import DataError
from synthkd.settings import FolderData, FolderTest
from tests.data.read.test_listing import folder, zipped

SIZES = [(12, 12), (12, 20), (31, 14), (40, 40)]


def picture(number: int, height: int, width: int) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height))


def file_of(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pictures(count: int = 12, kind: str = "JPEG", mixed: bool = True) -> dict[str, bytes]:
    """Files of three classes, of several sizes or of one."""
    sizes = [SIZES[number % len(SIZES)] if mixed else SIZES[0] for number in range(count)]
    return {
        f"{'abc'[number % 3]}/{number:02}.{kind.lower()}": file_of(picture(number, *size), kind)
        for number, size in enumerate(sizes)
    }


def on_disk(path: Path, cache: Path, **keys: object) -> Source:
    return read_folder(path, storage=Storage(0.0, cache, workers=0), **keys)  # type: ignore[arg-type]


def equal(lazy: Source, whole: Source) -> bool:
    assert isinstance(lazy.images, DiskImages)
    assert (lazy.class_names, lazy.train, lazy.images.shape) == (whole.class_names, whole.train, whole.images.shape)
    return torch.equal(lazy.images[:], whole.images[:]) and torch.equal(lazy.labels, whole.labels)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_images_on_disk_are_those_in_memory(tmp_path: Path, kind: str) -> None:
    files = {f"train/{name}": content for name, content in pictures(kind=kind).items()}
    files |= {f"test/{name}": content for name, content in pictures(5, kind).items()}
    for path in (folder(tmp_path / "set", files), zipped(tmp_path / "set.zip", files)):
        lazy, whole = on_disk(path, tmp_path / "cache", size=10), read_folder(path, size=10)
        assert equal(lazy, whole), "decoded"
        assert equal(lazy, whole), "from the cache"
        assert lazy.notes[0] == f"17 images, 0.0 MB decoded, read from disk (cache: {tmp_path / 'cache'})"
        rows = torch.tensor([16, 3, 3, 0])
        assert torch.equal(lazy.images[rows], whole.images[rows])
        assert torch.equal(torch.cat([*lazy.images.split(5)]), whole.images[:])
        assert channel_statistics(lazy.images) == channel_statistics(whole.images)


def test_the_parts_of_a_dataset_and_its_set_for_a_score_are_the_same(tmp_path: Path) -> None:
    path = str(folder(tmp_path / "set", pictures(30)))
    lazy = FolderData(kind="folder", root=path, size=8, memory=0.0, cache=str(tmp_path / "cache"), half="first")
    whole = lazy.model_copy(update={"memory": 2.0})
    for one, other in ((load_splits(lazy), load_splits(whole)), (load_splits(lazy), load_splits(lazy))):
        for name in ("train", "holdout", "test", "unseen"):
            ours, theirs = getattr(one, name), getattr(other, name)
            assert isinstance(ours.images, DiskImages)
            assert torch.equal(ours.images[:], theirs.images[:])
            assert torch.equal(ours.labels, theirs.labels)
    test = FolderTest(kind="folder", root=path, size=8, memory=0.0, cache=str(tmp_path / "cache"))
    assert torch.equal(
        load_test(test).images[:],
        load_splits(whole.model_copy(update={"half": None, "test": 0.0, "holdout": 0.0})).train.images[:],
    )
    scored, expected = (open_samples(one, split="train", channels=1) for one in (lazy, whole))
    assert scored.digest == expected.digest
    assert torch.equal(torch.cat([*scored.batches(4)]), torch.cat([*expected.batches(4)]))
    assert torch.equal(scored.images([2])[0], expected.images([2])[0])


# Sizes


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("resize", [16, 15, [9, 21]])
@pytest.mark.parametrize("crop", [None, [9, 8], [8, 9]])
def test_resize_and_crop_are_those_of_torchvision(
    size: tuple[int, int], resize: int | list[int], crop: list[int] | None
) -> None:
    image = picture(1, *size)
    fit = Fit(tuple(resize) if isinstance(resize, list) else resize, None if crop is None else (crop[0], crop[1]))
    expected = v2.Resize(resize, v2.InterpolationMode.BILINEAR)(image)
    expected = expected if crop is None else v2.CenterCrop(crop)(expected)
    assert np.array_equal(np.asarray(fit(image)), np.asarray(expected))
    assert fit.size(*size) == (expected.height, expected.width)


def test_a_size_of_two_numbers_is_the_largest_centre_of_that_shape(tmp_path: Path) -> None:
    path = folder(
        tmp_path / "set", {"a/0.png": file_of(picture(0, 20, 60), "PNG"), "b/1.png": file_of(picture(1, 10, 5), "PNG")}
    )
    whole = read_folder(path, size=(5, 10))
    assert equal(on_disk(path, tmp_path / "cache", size=(5, 10)), whole)
    expected = picture(0, 20, 60).resize((10, 5), Image.Resampling.BILINEAR, box=(10, 0, 50, 20))
    assert torch.equal(whole.images[0], torch.from_numpy(np.array(expected)).permute(2, 0, 1))
    assert whole.notes == ("1 images smaller than 5x10 pixels enlarged: b/1.png",)


def test_turned_pictures_have_the_size_that_they_are_shown_in(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned, upright = picture(0, 20, 12), picture(1, 12, 20)
    for kind in ("JPEG", "PNG", "WEBP"):
        files = {"a/0.img": file_of(turned, kind, exif=exif.tobytes()), "b/1.img": file_of(upright, kind)}
        path = folder(tmp_path / kind, files)
        assert equal(on_disk(path, tmp_path / "cache"), read_folder(path))


def test_mixed_sizes_are_refused_alike(tmp_path: Path) -> None:
    path = folder(tmp_path / "set", pictures())
    for keys in ({}, {"resize": 12}):
        for storage in (Storage(), Storage(0.0, tmp_path / "cache")):
            with pytest.raises(DataError, match=r"set: images have [34] different sizes.*; set size or resize$"):
                read_folder(path, storage=storage, **keys)
    with pytest.raises(ValueError, match="size is cut out of what resize leaves"):
        FolderData(kind="folder", root=str(path), size=13, resize=12)


# Bad files


def damaged(files: Mapping[str, bytes], name: str) -> dict[str, bytes]:
    """The files, one of them damaged behind its header."""
    whole = bytearray(files[name])
    start = whole.index(b"IDAT") + 8
    whole[start : start + 20] = bytes(20)
    return {**files, name: bytes(whole)}


def test_files_that_break_off_are_named_before_anything_is_trained(tmp_path: Path) -> None:
    for kind in ("JPEG", "PNG", "WEBP"):
        files = pictures(kind=kind)
        broken = f"b/04.{kind.lower()}"
        files |= {broken: files[broken][:-30], f"c/05.{kind.lower()}": b"no image"}
        path = folder(tmp_path / kind, files)
        with pytest.raises(DataError) as whole:
            read_folder(path, size=8)
        with pytest.raises(DataError, match="2 of 12 files cannot be read") as lazy:
            on_disk(path, tmp_path / "cache", size=8)
        assert str(lazy.value) == str(whole.value)


def test_a_file_that_is_damaged_within_is_named_when_it_is_drawn(tmp_path: Path) -> None:
    path = folder(tmp_path / "set", damaged(pictures(kind="PNG"), "b/04.png"))
    lazy = on_disk(path, tmp_path / "cache", size=8)
    row = 5  # classes in order: a 0, 3, 6, 9; b 1, 4
    assert len(lazy.images[torch.tensor([row - 1, row + 1])]) == 2
    with pytest.raises(DataError, match=r"set: b/04.png \(.*\) cannot be read as an image; delete it, or set skip_bad"):
        lazy.images[torch.tensor([0, row])]


def test_skip_bad_leaves_out_what_it_leaves_out_in_memory(tmp_path: Path) -> None:
    files = damaged(pictures(kind="PNG"), "b/04.png") | {"a/00.png": b""}
    path = folder(tmp_path / "set", files)
    whole = read_folder(path, size=8, skip_bad=True)
    for _ in ("decoded", "from the cache"):
        lazy = on_disk(path, tmp_path / "cache", size=8, skip_bad=True)
        assert equal(lazy, whole)
        assert len(lazy.labels) == 10
        assert lazy.notes[-1].startswith("2 unreadable files left out: a/00.png (empty file), b/04.png (")


def test_a_file_that_changes_after_the_survey_is_not_taken_for_the_old_one(tmp_path: Path) -> None:
    path = folder(tmp_path / "set", pictures())
    lazy = on_disk(path, tmp_path / "cache", size=8)
    (path / "a/00.jpeg").write_bytes(file_of(picture(77, 12, 12)))
    with pytest.raises(DataError, match=r"a/00.jpeg \(changed since the run began\)"):
        lazy.images[:1]


# The cache


def forbidden(_: ImageFiles, number: int) -> Decoded:
    raise AssertionError(f"image {number} is decoded again")


def test_images_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder(tmp_path / "set", pictures())
    expected = on_disk(path, tmp_path / "cache", size=8).images[:]
    monkeypatch.setattr(ImageFiles, "decode", forbidden)
    assert torch.equal(on_disk(path, tmp_path / "cache", size=8).images[:], expected)
    shutil.copytree(path, tmp_path / "copy")
    assert torch.equal(on_disk(tmp_path / "copy", tmp_path / "cache", size=8).images[:], expected), "by its content"
    for keys in ({"size": 9}, {"size": 8, "channels": 1}, {"size": 8, "resize": 9}):
        with pytest.raises(AssertionError, match="decoded again"):
            on_disk(path, tmp_path / "cache", **keys).images[:]  # type: ignore[arg-type]


@pytest.mark.parametrize("damage", ["a byte", "a mark", "cut off", "two exchanged", "deleted"])
def test_a_damaged_cache_is_made_again(tmp_path: Path, damage: str) -> None:
    path = folder(tmp_path / "set", pictures())
    expected = on_disk(path, tmp_path / "cache", size=8).images[:]
    (file,) = (tmp_path / "cache").iterdir()
    record, content = 8 + 3 * 64, bytearray(file.read_bytes())
    if damage == "a byte":
        content[5 * record - 1] ^= 1
    elif damage == "a mark":
        content[5 * record] ^= 1
    elif damage == "cut off":
        del content[5 * record + 20 :]
    elif damage == "two exchanged":
        first, second = content[:record], content[record : 2 * record]
        content[: 2 * record] = second + first
    file.write_bytes(content)
    if damage == "deleted":
        file.unlink()
    for _ in range(2):
        assert torch.equal(on_disk(path, tmp_path / "cache", size=8).images[:], expected)
    assert len(file.read_bytes()) == 12 * record


def test_a_cache_without_room_or_permission_is_refused_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder(tmp_path / "set", pictures())
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"file cannot be written \(.*\); set cache to another folder"):
        on_disk(path, tmp_path / "file", size=8)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(DataError, match=r"cache has 0.0 MB free, and the decoded images need 0.0 MB; set cache to"):
        on_disk(path, tmp_path / "cache", size=8)


def test_a_full_disk_costs_decoding_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "no space")

    path = folder(tmp_path / "set", pictures())
    whole = read_folder(path, size=8)
    monkeypatch.setattr("os.pwritev", full)
    assert equal(on_disk(path, tmp_path / "cache", size=8), whole)


def test_an_image_that_was_never_written_is_absent(tmp_path: Path) -> None:
    cache = RowCache(tmp_path / "a" / "file", 3, (1, 2, 2))
    image = torch.zeros(1, 2, 2, dtype=torch.uint8)  # as the holes of a file, but written
    cache.write(1, image)
    assert [cache.read(number, image) for number in range(3)] == [False, True, False]
    assert cache.has(torch.arange(3)).tolist() == [False, True, False]
