"""Images made of crops: what they are made of, what each depends on, and exact values where nothing is distorted."""

import math

import pytest
import torch
from torch import Tensor

from synthkd.generators import collage
from synthkd.generators.collage import Album, Collage, album_of
from synthkd.generators.drawn_album import DrawnPictures, drawn_album
from synthkd.generators.procedural import draw
from synthkd.rng import Rows
from synthkd.types import ImageSpec, to_float

SPEC = ImageSpec(3, 16, 16, 10)


def noise(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def undistorted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Crops are whole pictures in their own colours, and nothing is mixed."""
    for name in ("ANGLE", "SHEAR", "WARPED", "MIRRORED", "UPSIDE_DOWN", "BRIGHTNESS", "PASTED", "CUT_OUT", "BLENDED"):
        monkeypatch.setattr(collage, name, 0.0)
    monkeypatch.setattr(collage, "ASPECT", 1.0)
    for name in ("CONTRAST", "SATURATION"):
        monkeypatch.setattr(collage, name, (1.0, 1.0))


@pytest.mark.usefixtures("undistorted")
@pytest.mark.parametrize("channels", [1, 3])
def test_an_undistorted_crop_of_a_picture_of_the_size_of_an_image_is_the_picture(channels: int) -> None:
    picture = noise(channels, 16, 16)
    made = Collage(album_of([picture]), ImageSpec(channels, 16, 16, 10), hue=0.0, area=1.0)(3, Rows(0, "test"))
    torch.testing.assert_close(made, to_float(picture).expand(3, -1, -1, -1), atol=1e-5, rtol=0)


@pytest.mark.usefixtures("undistorted")
def test_a_larger_picture_is_looked_up_at_the_scale_of_the_image() -> None:
    picture = noise(3, 64, 64)
    made = Collage(album_of([picture]), SPEC, hue=0.0, area=1.0)(1, Rows(0, "test"))
    halved = torch.nn.functional.avg_pool2d(to_float(picture)[None], 4)
    torch.testing.assert_close(made, halved, atol=2.5 / 255, rtol=0)  # rounded to 8 bits at each of two scales


@pytest.mark.usefixtures("undistorted")
def test_points_between_pixels_are_interpolated_and_those_beyond_an_edge_are_mirrored() -> None:
    album = album_of([torch.tensor([[[0, 100, 200]]], dtype=torch.uint8)])
    x = torch.tensor([[[0.5, 1.0, 2.0, -0.5, -1.5, 3.25]]])
    size = torch.tensor([1]), torch.tensor([3])
    values = collage._looked_up(album, torch.tensor([0]), size, x, torch.full_like(x, 0.5))
    torch.testing.assert_close(255 * values.flatten(), torch.tensor([0.0, 50.0, 150.0, 0.0, 100.0, 200.0]))


def test_an_image_is_a_function_of_its_row_alone() -> None:
    made = Collage(album_of([noise(3, 40, 30), noise(3, 17, 64)]), SPEC, plain=0.3)
    rows = made(12, Rows(3, "a"))
    assert torch.equal(made(5, Rows(3, "a")), rows[:5])
    assert torch.equal(made(4, Rows(3, "a", 8)), rows[8:])
    assert not torch.equal(made(12, Rows(4, "a")), rows)
    assert len({image.numpy().tobytes() for image in rows}) == 12


def test_images_are_float32_in_0_to_1_and_of_the_wanted_shape() -> None:
    for channels, height, width in ((1, 8, 8), (3, 16, 24)):
        album = album_of([noise(channels, 5, 7), noise(channels, 100, 60)])
        made = Collage(album, ImageSpec(channels, height, width, 10), hue=math.pi, plain=0.2)(40, Rows(0, "test"))
        assert made.shape == (40, channels, height, width)
        assert made.dtype == torch.float32
        assert 0 <= float(made.min()) < float(made.max()) <= 1


def test_every_kind_of_mixture_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    white, black = torch.full((3, 16, 16), 255, dtype=torch.uint8), torch.zeros(3, 16, 16, dtype=torch.uint8)
    monkeypatch.setattr(collage, "BRIGHTNESS", 0.0)
    monkeypatch.setattr(collage, "CONTRAST", (1.0, 1.0))
    made = Collage(album_of([white, black]), SPEC)(200, Rows(0, "test"))[:, 0]
    levels = [image.mul(1000).round().div(1000).unique() for image in made]
    one = sum(len(level) == 1 and float(level[0]) in (0.0, 1.0) for level in levels)
    pasted = sum(len(level) == 2 for level in levels)
    blended = sum(len(level) == 1 and 0.2 <= float(level[0]) <= 0.8 for level in levels)
    # Half of the mixtures are of one shade with itself, and some boxes cover all or nothing.
    assert one + pasted + blended == 200
    assert 25 < pasted < 60
    assert 5 < blended < 30


def test_a_turned_hue_keeps_the_greys_and_the_mean() -> None:
    grey = torch.full((1, 16, 16), 90, dtype=torch.uint8).expand(3, -1, -1)
    made = Collage(album_of([grey]), SPEC, hue=math.pi)(20, Rows(0, "test"))
    torch.testing.assert_close(made[:, :1].expand_as(made), made, atol=1e-5, rtol=0)


def test_an_album_has_half_the_size_at_each_scale() -> None:
    album = album_of([noise(1, 33, 64), noise(1, 9, 9)])
    assert isinstance(album, Album)
    assert album.scales.tolist() == [3, 1]
    assert album.heights.tolist() == [[33, 16, 8], [9, 9, 9]]
    assert album.widths.tolist() == [[64, 32, 16], [9, 9, 9]]
    assert album.starts.tolist() == [[0, 33 * 64, 33 * 64 + 16 * 32], [33 * 64 + 16 * 32 + 8 * 16] * 3]
    assert album.pixels.shape == (1, 33 * 64 + 16 * 32 + 8 * 16 + 81)


def test_a_drawn_album_follows_from_the_seed_and_has_colours_and_every_spectrum() -> None:
    small = ImageSpec(3, 8, 8, 10)
    album = drawn_album(small, 0)
    assert torch.equal(album.pixels, drawn_album(small, 0).pixels)
    assert not torch.equal(album.pixels, drawn_album(small, 1).pixels)
    assert (album.pixels[0] != album.pixels[1]).float().mean() > 0.3
    # The first third is noise. Neighbours of steep spectra are alike, those of flat ones are not.
    side = int(album.widths[0, 0])
    length = int(album.starts[1, 0] - album.starts[0, 0])
    assert side == 32
    first = [album.pixels[0, start : start + side * side].float() for start in album.starts[:256, 0].tolist()]
    rough = torch.stack([one.reshape(side, side).diff(dim=1).std() / one.std() for one in first])
    assert float(rough.min()) < 0.4
    assert float(rough.max()) > 1.0
    assert length > side * side


def test_drawn_pictures_are_in_turns_drawn_anew_and_of_the_album_and_depend_on_their_row_alone() -> None:
    small = ImageSpec(3, 8, 8, 10)
    made = DrawnPictures.of_seed(small, 0)
    rows = made(12, Rows(0, "a"))
    assert torch.equal(rows[::2], draw(6, small, Rows(0, "a")))
    assert torch.equal(rows[1::2], made.album(6, Rows(0, "a")))
    for start, count in ((0, 1), (3, 4), (4, 5), (7, 1), (5, 7)):
        assert torch.equal(made(count, Rows(0, "a", start)), rows[start : start + count])
