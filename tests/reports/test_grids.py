import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from synthkd.errors import DataError
from synthkd.reports.grids import chosen, save_grid


def test_grid_places_images_by_column_and_enlarges_them(tmp_path):
    images = torch.zeros(6, 1, 8, 8)
    images[4] = 1.0  # second row, second of three columns
    save_grid(images, 3, tmp_path / "deep" / "grid.png", ["a", "b", "a very long name indeed"])
    pixels = np.asarray(Image.open(tmp_path / "deep" / "grid.png"))
    height, width = pixels.shape[:2]
    assert width == 3 * 48 + 2 * 4
    bottom = pixels[height - 48 :]
    assert (bottom[:, 52:100, :3] == 255).all()
    assert (bottom[:, :48, :3] == 0).all()
    assert (bottom[:, 48:52, 3] == 0).all()
    heading = pixels[: height - 100]
    assert heading[:, :48, 3].any()
    assert heading[:, 104:, 3].any()
    assert not heading[:, 100:104, 3].any()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["grid.png"]


def test_grid_of_bytes_equals_grid_of_floats(tmp_path):
    images = torch.randint(0, 256, (4, 3, 28, 20), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    save_grid(images, 2, tmp_path / "bytes.png")
    save_grid(images / 255, 2, tmp_path / "floats.png")
    assert (tmp_path / "bytes.png").read_bytes() == (tmp_path / "floats.png").read_bytes()
    pixels = np.asarray(Image.open(tmp_path / "bytes.png"))
    assert pixels.shape == (2 * 84 + 4, 2 * 60 + 4, 4)
    assert (pixels[:84:3, :60:3, :3] == images[0].permute(1, 2, 0).numpy()).all()


def test_grid_draws_values_out_of_range_without_wrapping(tmp_path):
    images = torch.tensor([float("nan"), float("inf"), -3.0, 7.0])[:, None, None, None].expand(4, 1, 64, 64)
    save_grid(images, 4, tmp_path / "grid.png")
    pixels = np.asarray(Image.open(tmp_path / "grid.png"))
    assert [int(pixels[5, 5 + 68 * column, 0]) for column in range(4)] == [0, 0, 0, 255]


@pytest.mark.parametrize(
    ("images", "columns", "labels", "message"),
    [
        (torch.zeros(5, 1, 8, 8), 2, None, "5 images for 2 columns"),
        (torch.zeros(0, 1, 8, 8), 2, None, "0 images"),
        (torch.zeros(4, 2, 8, 8), 2, None, "1 or 3 channels"),
        (torch.zeros(4, 1, 8, 8), 2, ["a"], "one label per column"),
    ],
)
def test_grid_that_cannot_be_drawn_is_refused(tmp_path, images, columns, labels, message):
    with pytest.raises(DataError, match=message):
        save_grid(images, columns, tmp_path / "grid.png", labels)


@pytest.mark.parametrize(
    ("classes", "side", "columns", "rows"),
    [(10, 8, 10, 6), (10, 32, 10, 6), (100, 32, 12, 6), (1000, 32, 12, 6), (10, 224, 10, 2), (1000, 224, 10, 2)],
)
def test_a_grid_shows_a_sample_of_many_classes_and_fewer_large_images(classes, side, columns, rows):
    shown, deep = chosen(range(classes), side, side)
    assert (len(shown), deep) == (columns, rows)
    assert shown[0] == 0
    gaps = {second - first for first, second in itertools.pairwise(shown)}
    assert gaps <= {classes // columns, classes // columns + 1}, "evenly spread"


def test_a_grid_shows_classes_that_have_images():
    assert chosen([3, 7], 32, 32) == ([3, 7], 6)
