"""Resizing against Pillow itself and against hand calculations."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from synthkd.errors import DataError
from synthkd.metrics.resize import resize

MODES = ["antialias", "clean", "tf1", "pil"]


def random_images(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def row(*values: int) -> Tensor:
    """One grey image of one row."""
    return torch.tensor(values, dtype=torch.uint8).view(1, 1, 1, -1)


@pytest.mark.parametrize("mode", [*MODES, "none"])
def test_equal_size_only_divides_by_255(mode: str) -> None:
    images = random_images(2, 3, 5, 7)
    assert torch.equal(resize(images, (3, 5, 7), mode), images.float() * (1 / 255))


@pytest.mark.parametrize("mode", [*MODES, "none"])
def test_grey_is_repeated(mode: str) -> None:
    grey = random_images(2, 1, 6, 6)
    size = 6 if mode == "none" else 9
    result = resize(grey, (3, size, size), mode)
    assert result.shape == (2, 3, size, size)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, resize(grey.expand(-1, 3, -1, -1), (3, size, size), mode), atol=1e-7, rtol=0)


def test_grey_stays_grey_for_a_grey_network() -> None:
    assert resize(random_images(1, 1, 4, 4), (1, 8, 6), "antialias").shape == (1, 1, 8, 6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(4, 5), (23, 31)])
def test_a_constant_image_stays_constant(mode: str, size: tuple[int, int]) -> None:
    images = torch.full((1, 3, 11, 13), 77, dtype=torch.uint8)
    torch.testing.assert_close(resize(images, (3, *size), mode), torch.full((1, 3, *size), 77 / 255))


@pytest.mark.parametrize("size", [(4, 5), (23, 31), (9, 9)])
def test_clean_is_pillows_bicubic_in_float_clipped_to_levels(size: tuple[int, int]) -> None:
    images = random_images(3, 3, 9, 14)
    images[0, :, :, 7:] = 255
    images[0, :, :, :7] = 0
    found = resize(images, (3, *size), "clean")
    for i in range(3):
        for c in range(3):
            plane = Image.fromarray(images[i, c].numpy().astype(np.float32))
            resized = np.asarray(plane.resize((size[1], size[0]), Image.Resampling.BICUBIC))
            assert i > 0 or (resized.max() > 255 and resized.min() < 0)
            np.testing.assert_allclose(found[i, c].numpy(), resized.clip(0, 255) / np.float32(255), atol=1e-6)
    assert (float(found.max()), float(found.min())) == (1.0, 0.0)


@pytest.mark.parametrize("size", [(4, 5), (23, 31)])
def test_pil_is_pillows_bilinear_of_colour_images(size: tuple[int, int]) -> None:
    images = random_images(3, 3, 9, 14)
    found = resize(images, (3, *size), "pil")
    for image, result in zip(images, found, strict=True):
        colour = Image.fromarray(image.permute(1, 2, 0).numpy())
        expected = np.asarray(colour.resize((size[1], size[0]), Image.Resampling.BILINEAR))
        assert np.array_equal((result * 255).round().to(torch.uint8).permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("size", [(4, 5), (23, 31)])
def test_antialias_is_pillows_bilinear_without_its_rounding(size: tuple[int, int]) -> None:
    images = random_images(1, 1, 9, 14)
    plane = Image.fromarray(images[0, 0].numpy().astype(np.float32))
    expected = np.asarray(plane.resize((size[1], size[0]), Image.Resampling.BILINEAR)) / 255
    np.testing.assert_allclose(resize(images, (1, *size), "antialias")[0, 0].numpy(), expected, atol=1e-6)


def test_antialias_weighs_all_pixels_it_shrinks() -> None:
    # Halving: a triangle four pixels wide, weights 1 3 3 1 of 8; at the border 3 3 1 of 7.
    found = resize(row(0, 0, 0, 255, 0, 0), (1, 1, 3), "antialias")
    torch.testing.assert_close(found.flatten(), torch.tensor([0.0, 3 / 8, 1 / 7]))


def test_tf1_looks_at_two_pixels_only() -> None:
    # Places 0, 2, 4: the bright pixel in between is never seen.
    assert resize(row(0, 0, 0, 255, 0, 0), (1, 1, 3), "tf1").flatten().tolist() == [0, 0, 0]
    # Places 0, 1.5, 3 of 0..5 by hand: a quarter more pixels would be another result with half-pixel centres.
    found = resize(row(10, 20, 40, 80, 160, 250), (1, 1, 4), "tf1") * 255
    torch.testing.assert_close(found.flatten(), torch.tensor([10.0, 30.0, 80.0, 205.0]))
    # Enlarging: the last place, 1.5, has no right neighbour and takes the last pixel.
    found = resize(row(100, 200), (1, 1, 4), "tf1") * 255
    torch.testing.assert_close(found.flatten(), torch.tensor([100.0, 150.0, 200.0, 200.0]))


def test_tf1_equals_its_definition_in_both_directions() -> None:
    images = random_images(1, 1, 7, 10)
    found = resize(images, (1, 12, 9), "tf1")[0, 0]
    pixels = images[0, 0].tolist()

    def between(i: int, before: int, count: int) -> tuple[int, int, Fraction]:
        place = Fraction(i * before, count)
        return int(place), min(int(place) + 1, before - 1), place - int(place)

    for y in range(12):
        top, bottom, down = between(y, 7, 12)
        for x in range(9):
            left, right, along = between(x, 10, 9)
            upper = pixels[top][left] * (1 - along) + pixels[top][right] * along
            lower = pixels[bottom][left] * (1 - along) + pixels[bottom][right] * along
            expected = (upper * (1 - down) + lower * down) / 255
            assert float(found[y, x]) == pytest.approx(float(expected), abs=1e-6)


def test_tf1_is_torch_fidelitys() -> None:
    library = pytest.importorskip("torch_fidelity.interpolate_compat_tensorflow")
    images = random_images(2, 3, 28, 33)
    expected = library.interpolate_bilinear_2d_like_tensorflow1x(images.float(), size=(299, 299), align_corners=False)
    torch.testing.assert_close(resize(images, (3, 299, 299), "tf1") * 255, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("images", "mode", "message"),
    [
        (torch.zeros(1, 3, 8, 8), "pil", r"must be uint8 \[N, C, H, W\], got torch.float32.*to_uint8"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), "pil", r"got torch.uint8 \[3, 8, 8\]"),
        (torch.zeros(1, 4, 8, 8, dtype=torch.uint8), "pil", "takes 3 channels, the images have 4"),
        (torch.zeros(1, 3, 8, 9, dtype=torch.uint8), "none", "images of 8x8, got 8x9.*antialias"),
    ],
)
def test_what_is_refused(images: Tensor, mode: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        resize(images, (3, 8, 8), mode)
