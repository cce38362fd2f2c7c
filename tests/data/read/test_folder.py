"""Image folders: every odd kind of file made with Pillow, and found before anything would train on it."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from synthkd.data.read import decode
from synthkd.data.read.folder import read_folder
from synthkd.data.read.splits import Source
from synthkd.errors import DataError

RED, WHITE = (255, 0, 0), (255, 255, 255)


def write(path: Path, image: Image.Image, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)  # type: ignore[arg-type]
    return path


def picture(seed: int = 0, width: int = 10, height: int = 8) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def tensor(image: Image.Image) -> Tensor:
    values = torch.from_numpy(np.array(image))
    return values[None] if values.ndim == 2 else values.permute(2, 0, 1)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes with two plain PNGs each."""
    for index in range(4):
        write(tmp_path / ("cat" if index < 2 else "dog") / f"{index}.png", picture(index))
    return tmp_path


def note(source: Source, text: str) -> str:
    (found,) = [line for line in source.notes if text in line]
    return found


def test_plain_images_come_back_bit_for_bit_with_sorted_classes(root: Path) -> None:
    source = read_folder(root)
    assert source.images.dtype == torch.uint8
    assert source.labels.dtype == torch.int64
    assert source.images.shape == (4, 3, 8, 10)
    assert all(torch.equal(source.images[index], tensor(picture(index))) for index in range(4))
    assert source.labels.tolist() == [0, 0, 1, 1]
    assert source.class_names == ("cat", "dog")
    assert source.train is None
    assert source.notes == ()


def test_grey_and_colour_are_converted_to_the_channels_asked(root: Path) -> None:
    write(root / "cat" / "grey.png", picture(9).convert("L"))
    grey = read_folder(root, channels=1)
    assert grey.images.shape == (5, 1, 8, 10)
    assert torch.equal(grey.images[0], tensor(picture(0).convert("L")))
    assert note(grey, "turned from colour to grey").startswith("4 images")
    colour = read_folder(root, channels=3)
    assert torch.equal(colour.images[2], tensor(picture(9).convert("L")).expand(3, -1, -1))
    assert note(colour, "repeated from grey") == "1 images repeated from grey to 3 channels: cat/grey.png"


def test_palette_images_keep_their_colours(root: Path) -> None:
    palette = picture(5).quantize(16)
    write(root / "cat" / "p.png", palette)
    source = read_folder(root)
    assert torch.equal(source.images[2], tensor(palette.convert("RGB")))
    assert note(source, "palette") == "1 images converted from a palette: cat/p.png"


def test_transparency_goes_onto_white(root: Path) -> None:
    layer = Image.new("RGBA", (10, 8), (*RED, 255))
    layer.paste((0, 0, 0, 0), (0, 0, 5, 8))
    layer.putpixel((9, 7), (0, 0, 0, 128))
    write(root / "cat" / "rgba.png", layer)
    indexed = Image.new("P", (10, 8), 0)
    indexed.putpalette([0, 0, 0, *RED])
    indexed.paste(1, (5, 0, 10, 8))
    write(root / "dog" / "index.png", indexed, transparency=0)
    write(root / "dog" / "la.png", Image.new("LA", (10, 8), (0, 0)))
    opaque = write(root / "dog" / "opaque.png", Image.new("RGBA", (10, 8), (*RED, 255)))
    source = read_folder(root)
    rgba, index, la = source.images[2], source.images[5], source.images[6]
    assert tuple(rgba[:, 0, 0].tolist()) == tuple(index[:, 0, 0].tolist()) == tuple(la[:, 0, 0].tolist()) == WHITE
    assert tuple(rgba[:, 0, 7].tolist()) == tuple(index[:, 0, 7].tolist()) == RED
    assert rgba[:, 7, 9].tolist() == [127, 127, 127]
    assert note(source, "transparency").startswith("3 images with transparency put on white: cat/rgba.png")
    assert opaque.name not in note(source, "transparency")


def test_cmyk_jpegs_are_converted(root: Path) -> None:
    write(root / "cat" / "ink.jpg", Image.new("CMYK", (10, 8), (0, 255, 255, 0)), quality=95)
    source = read_folder(root)
    assert (source.images[2].float() - torch.tensor(RED).view(3, 1, 1)).abs().max() <= 8
    assert note(source, "CMYK") == "1 images converted from CMYK: cat/ink.jpg"


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_are_scaled_to_8_and_not_clipped(root: Path, suffix: str) -> None:
    values = np.linspace(0, 65535, 80).reshape(8, 10).astype(np.uint16)
    write(root / "cat" / f"deep.{suffix}", Image.fromarray(values))
    source = read_folder(root, channels=1)
    assert source.images[2, 0].numpy().tolist() == np.rint(values / 257.0).astype(int).tolist()
    assert note(source, "16 to 8 bits") == f"1 images scaled from 16 to 8 bits: cat/deep.{suffix}"


def test_32_bit_pixels_are_scaled_when_they_fit_16_bits_and_refused_otherwise(root: Path) -> None:
    write(root / "cat" / "fits.tif", Image.fromarray(np.full((8, 10), 257 * 200, dtype=np.int32)))
    assert read_folder(root, channels=1).images[2].unique().tolist() == [200]
    write(root / "cat" / "wide.tif", Image.fromarray(np.full((8, 10), 70_000, dtype=np.int32)))
    write(root / "dog" / "real.tif", Image.fromarray(np.full((8, 10), 0.5, dtype=np.float32)))
    with pytest.raises(DataError, match=r"2 of 7 files .*wide.tif \(32-bit pixels.*real.tif \(floating-point pixels"):
        read_folder(root)


def test_exif_rotation_is_applied(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = Image.new("RGB", (8, 10), WHITE)
    lying.paste(RED, (0, 0, 8, 5))  # red on top; orientation 6 turns it clockwise, so red is right
    write(root / "cat" / "phone.jpg", lying, exif=exif, quality=95)
    source = read_folder(root)
    assert source.images.shape[2:] == (8, 10)
    assert source.images[2, 1, :, 7:].max() < 20
    assert source.images[2, 1, :, :3].min() > 235
    assert note(source, "EXIF") == "1 images turned upright by their EXIF orientation: cat/phone.jpg"


def test_animations_give_their_first_frame(root: Path) -> None:
    frames = [Image.new("RGB", (10, 8), colour) for colour in (RED, WHITE, (0, 0, 255))]
    write(root / "cat" / "moving.gif", frames[0], save_all=True, append_images=frames[1:])
    source = read_folder(root)
    assert source.images[2].flatten(1).T.unique(dim=0).tolist() == [list(RED)]
    assert note(source, "several frames") == "1 images of several frames cut to the first: cat/moving.gif"


def spoil(root: Path) -> None:
    """A truncated PNG, a truncated JPEG, an empty file, a text named .jpg and a broken link."""
    whole = (root / "cat" / "0.png").read_bytes()
    (root / "cat" / "cut.png").write_bytes(whole[: len(whole) // 2])
    buffer = io.BytesIO()
    picture(1, 64, 64).save(buffer, "JPEG")
    (root / "dog" / "cut.jpg").write_bytes(buffer.getvalue()[:-200])
    (root / "dog" / "empty.png").touch()
    (root / "dog" / "text.jpg").write_text("this is no image")
    (root / "dog" / "link.png").symlink_to(root / "gone.png")


def test_all_unreadable_files_are_listed_in_one_error(root: Path) -> None:
    spoil(root)
    with pytest.raises(DataError) as caught:
        read_folder(root)
    message = str(caught.value)
    assert "\n" not in message
    assert "5 of 9 files cannot be read as images" in message
    for part in ("cat/cut.png (", "dog/cut.jpg (image file is truncated", "dog/empty.png (empty file)",
                 "dog/text.jpg (not an image", "dog/link.png (", "skip_bad: true"):  # fmt: skip
        assert part in message


def test_skip_bad_leaves_unreadable_files_out_and_says_so(root: Path) -> None:
    spoil(root)
    source = read_folder(root, skip_bad=True)
    assert source.labels.tolist() == [0, 0, 1, 1]
    assert all(torch.equal(source.images[index], tensor(picture(index))) for index in range(4))
    assert note(source, "left out").startswith("5 unreadable files left out: cat/cut.png (")


def test_only_ten_bad_files_are_named(root: Path) -> None:
    for index in range(12):
        (root / "cat" / f"empty{index:02}.png").touch()
    with pytest.raises(DataError, match=r"12 of 16 .*empty09.png \(empty file\) and 2 more; delete"):
        read_folder(root)


def test_an_image_far_too_large_is_refused_from_its_header(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "LARGEST", 79)
    with pytest.raises(DataError, match=r"4 of 4 .*too large: 10x8 pixels"):
        read_folder(root)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataError, match=r"4 of 4 .*too large: far too many pixels"):
        read_folder(root)


def test_differing_sizes_are_shown_and_size_resolves_them(root: Path) -> None:
    write(root / "cat" / "wide.png", picture(8, 40, 20))
    (root / "cat" / "empty.png").touch()
    with pytest.raises(DataError, match=r"1 of 6 .*; also, images have 2 .* sizes.*8x10 \(4\), 20x40 \(1\).*set size"):
        read_folder(root)
    source = read_folder(root, size=16, skip_bad=True)
    assert source.images.shape == (5, 3, 16, 16)
    assert note(source, "enlarged").startswith("4 images smaller than 16 pixels")


def test_resizing_takes_the_centred_square_with_antialiasing(tmp_path: Path) -> None:
    stripes = np.zeros((64, 128, 3), dtype=np.uint8)
    stripes[:, ::2] = 255  # one pixel wide: without antialiasing the result would be stripes or one colour
    stripes[:, :32], stripes[:, 96:] = (255, 0, 0), (0, 0, 255)
    write(tmp_path / "a" / "0.png", Image.fromarray(stripes))
    write(tmp_path / "b" / "0.png", Image.fromarray(stripes[::-1]))
    image = read_folder(tmp_path, size=8).images[0].float()
    assert (image - 127.5).abs().max() < 20


def test_files_that_are_no_images_are_ignored_with_a_note(root: Path) -> None:
    for name in (".DS_Store", "cat/.DS_Store", "cat/notes.TXT", "dog/meta.json", "dog/.hidden.png"):
        (root / name).write_bytes(b"x")
    write(root / ".cache" / "x.png", picture())
    source = read_folder(root)
    assert len(source.labels) == 4
    assert note(source, "ignored").startswith("6 files or folders ignored")


def test_images_are_found_below_their_class_and_loops_of_links_end(root: Path) -> None:
    write(root / "cat" / "deep" / "er" / "x.png", picture(7))
    os.symlink(root / "cat", root / "cat" / "deep" / "loop")
    assert read_folder(root).labels.tolist() == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("name", ["test", "val"])
def test_train_and_test_directories_are_the_split(tmp_path: Path, name: str) -> None:
    for index, part in enumerate(("train", "train", name)):
        for label in ("a", "b"):
            write(tmp_path / part / label / f"{index}.png", picture(index))
    source = read_folder(tmp_path)
    assert source.train == 4
    assert source.labels.tolist() == [0, 0, 1, 1, 0, 1]
    assert torch.equal(source.images[4], tensor(picture(2)))


def test_rows_left_out_do_not_move_the_border_of_the_split(tmp_path: Path) -> None:
    for index, part in enumerate(("train", "train", "test")):
        for label in ("a", "b"):
            write(tmp_path / part / label / f"{index}.png", picture(index))
    (tmp_path / "train" / "a" / "0.png").write_bytes(b"")
    source = read_folder(tmp_path, skip_bad=True)
    assert source.train == 3
    assert source.labels.tolist() == [0, 1, 1, 0, 1]


def test_a_class_may_be_called_train(root: Path) -> None:
    write(root / "train" / "x.png", picture())
    assert read_folder(root).class_names == ("cat", "dog", "train")


def test_splits_must_agree_on_the_classes(tmp_path: Path) -> None:
    for name in ("train/a", "train/b", "test/a", "test/c"):
        write(tmp_path / name / "0.png", picture())
    with pytest.raises(DataError, match=r"only in train/: b; only in test/: c"):
        read_folder(tmp_path)
    write(tmp_path / "d" / "0.png", picture())
    with pytest.raises(DataError, match=r"beside it is d; move it"):
        read_folder(tmp_path)


def test_folders_without_what_is_needed_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere does not exist; check the path"):
        read_folder(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"has no class directories"):
        read_folder(tmp_path)
    write(tmp_path / "test" / "a" / "0.png", picture())
    with pytest.raises(DataError, match=r"has test but no train/"):
        read_folder(tmp_path)
    (tmp_path / "b").mkdir()
    with pytest.raises(DataError, match=r"no images in class b; add some"):
        read_folder(tmp_path)


def test_memory_that_is_not_there_is_said_plainly(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(torch, "empty", refuse)
    with pytest.raises(DataError, match=r"4 images of 3x8x10 need 0 GiB of memory; set size"):
        read_folder(root)
