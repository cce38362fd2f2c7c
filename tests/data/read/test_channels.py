"""Grey images in every form of file: the same values, with one channel or three, for scores and for training."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features
from torch import Tensor

from synthkd.data.read.folder import read_folder
from synthkd.data.read.real import load_splits, load_test
from synthkd.data.read.samples import open_samples
from synthkd.metrics.resize import resize
from synthkd.settings import FolderData, NpzData, NpzTest
from synthkd.types import alike_in_channels, in_channels, to_float

GREY = np.random.default_rng(0).integers(0, 256, (9, 7), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (9, 7, 3), dtype=np.uint8)


def as_tensor(image: Image.Image) -> Tensor:
    values = torch.from_numpy(np.array(image))
    return values[None] if values.ndim == 2 else values.permute(2, 0, 1)


def forms() -> dict[str, Image.Image]:
    """One grey picture in several modes."""
    grey = Image.fromarray(GREY)
    palette = grey.convert("P")
    palette.putpalette([level for value in range(256) for level in (value, value, value)])
    return {"grey.png": grey, "palette.png": palette, "palette.gif": palette, "rgb.png": grey.convert("RGB")}


def test_grey_in_a_palette_or_in_rgb_has_the_values_of_grey(tmp_path: Path) -> None:
    for name, image in forms().items():
        for label in ("a", "b"):
            (tmp_path / label).mkdir(exist_ok=True)
            image.save(tmp_path / label / name)
    expected = torch.from_numpy(GREY)
    source = read_folder(tmp_path, channels=1)
    assert len(source.images) == 8
    assert all(torch.equal(image[0], expected) for image in source.images)
    scored = open_samples(tmp_path, channels=1)
    assert all(torch.equal(image, expected[None]) for image in scored.images(range(8)))
    shapes = [len(image) for image in open_samples(tmp_path / "a").images(range(4))]
    assert shapes == [1, 1, 1, 3]  # the mode decides: palettes of greys are grey, RGB stays RGB


def test_a_palette_with_one_colour_stays_colour(tmp_path: Path) -> None:
    palette = forms()["palette.png"].copy()
    palette.putpalette([level for value in range(256) for level in (value, value, min(value + 1, 255))])
    palette.save(tmp_path / "0.png")
    assert open_samples(tmp_path).images([0])[0].shape == (3, 9, 7)


def test_colours_are_weighted_as_pillow_does() -> None:
    images = torch.from_numpy(COLOUR).permute(2, 0, 1)[None]
    expected = as_tensor(Image.fromarray(COLOUR).convert("L"))
    assert torch.equal(in_channels(images, 1)[0], expected)
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(in_channels(in_channels(levels, 3), 1), levels)
    assert alike_in_channels(images, 1) is images
    assert torch.equal(alike_in_channels(in_channels(levels, 3), 1), levels)


@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_of_data_has_the_key(tmp_path: Path, channels: int) -> None:
    images = np.stack([COLOUR, COLOUR[::-1]] * 5)
    np.savez(tmp_path / "a.npz", images=images, labels=[0, 1] * 5)
    settings = {"kind": "npz", "path": str(tmp_path / "a.npz"), "channels": channels}
    splits, test = load_splits(NpzData(**settings)), load_test(NpzTest(**settings))
    assert splits.train.spec.channels == test.spec.channels == channels
    expected = in_channels(torch.from_numpy(images.copy()).permute(0, 3, 1, 2), channels)
    assert torch.equal(test.images, expected)
    scored = open_samples(tmp_path / "a.npz", channels=channels)
    assert torch.equal(torch.cat([*scored.batches(3)]), expected)
    of_data = open_samples(NpzData(**settings), split="train")
    assert next(of_data.batches(1)).shape[1] == channels


def test_a_feature_network_of_one_channel_takes_grey_rgb() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(resize(in_channels(levels, 3), (1, 16, 16), "none"), to_float(levels))


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000", "AVIF"])
def test_what_pillow_reads_is_read(tmp_path: Path, kind: str) -> None:
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    image = Image.fromarray(np.full((16, 16, 3), 200, dtype=np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, kind)
    for label in "ab":
        (tmp_path / label).mkdir()
        (tmp_path / label / f"0.{kind.lower()}").write_bytes(buffer.getvalue())
    source = load_splits(FolderData(kind="folder", root=str(tmp_path), test=0.0, holdout=0.0)).train
    assert len(source) == 2
    assert (source.images.int() - 200).abs().max() <= 3
