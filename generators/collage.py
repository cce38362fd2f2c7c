"""Pictures made of crops: two crops of an album at random scales, distorted, recoloured and put together.

Crops and distortions of a single picture are enough to distil on (Asano and Saeed 2023), and so are drawn noise, warps
and cut-outs (DIP-KD). Both cost no gradient, and no picture shows the task: the teacher says what it sees in them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from synthkd.rng import Rows
from synthkd.types import ImageSpec, to_float, to_uint8

SMALLEST = 8
"""No scale of a picture is shorter on a side, unless the picture itself is."""
ASPECT, ANGLE, SHEAR, WARP = 1.6, 0.8, 0.3, 0.12
"""Largest aspect of a crop (relative to that of the images), rotation in radians, shear, and displacement of a warp
relative to the crop."""
KNOTS = 4
"""Of a warp, on each side: displacements between them are interpolated."""
WARPED, MIRRORED, UPSIDE_DOWN = 0.5, 0.5, 0.1
"""Chances of a crop."""
BRIGHTNESS, CONTRAST, SATURATION = 0.2, (0.6, 1.6), (0.3, 1.6)
"""Largest change of brightness; ranges of the factors of contrast and of saturation."""
PASTED, CUT_OUT, BLENDED = 0.3, 0.15, 0.15
"""Chances that the second crop is pasted as a box (CutMix), as a rounded shape, or blended over the first."""

_CROP = 16 + 2 * KNOTS * KNOTS  # uniform numbers of a crop
_NUMBERS = 2 * _CROP + 12  # of an image


@dataclass(frozen=True)
class Album:
    """Pictures of any sizes, each at scales 1, 1/2, 1/4 and so on.

    Attributes:
        pixels: uint8 `[C, P]`, all scales of all pictures one after the other, row by row.
        starts, heights, widths: int64 `[N, S]`, first column in `pixels` and size of each picture at each scale; the
            last scale is repeated for pictures that have fewer.
        scales: int64 `[N]`, number of scales of each picture.
    """

    pixels: Tensor
    starts: Tensor
    heights: Tensor
    widths: Tensor
    scales: Tensor

    def __len__(self) -> int:
        return len(self.scales)


def album_of(pictures: Iterable[Tensor]) -> Album:
    """The album of pictures uint8 `[C, H, W]`, at least one, all with the same number of channels."""
    pixels: list[Tensor] = []
    sizes: list[list[tuple[int, int, int]]] = []
    start = 0
    for picture in pictures:
        places = []
        while True:
            channels, height, width = picture.shape
            pixels.append(picture.reshape(channels, -1))
            places.append((start, height, width))
            start += height * width
            if min(height, width) < 2 * SMALLEST:
                break
            picture = to_uint8(F.avg_pool2d(to_float(picture), 2))
        sizes.append(places)
    most = max(map(len, sizes))
    table = torch.tensor([[*places, *places[-1:] * (most - len(places))] for places in sizes])
    starts, heights, widths = table.unbind(2)
    return Album(torch.cat(pixels, dim=1), starts, heights, widths, torch.tensor([*map(len, sizes)]))


class _Numbers:
    """Iterates over columns of uniform numbers `[N, M]`; a column is `[N]`."""

    def __init__(self, values: Tensor) -> None:
        self._values, self._next = values, 0

    def uniform(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        self._next += 1
        return low + (high - low) * self._values[:, self._next - 1]

    def log_uniform(self, low: float, high: float) -> Tensor:
        return self.uniform(math.log(low), math.log(high)).exp()

    def sign(self, chance: float) -> Tensor:
        """-1 with that chance, else 1."""
        return 1.0 - 2.0 * (self.uniform() < chance)

    def knots(self) -> Tensor:
        """`[N, 2, KNOTS, KNOTS]` in (-1, 1)."""
        start, self._next = self._next, self._next + 2 * KNOTS * KNOTS
        return (2 * self._values[:, start : self._next] - 1).reshape(-1, 2, KNOTS, KNOTS)


@dataclass(frozen=True)
class Collage:
    """Makes images of an album.

    Attributes:
        album: its pictures have the channels of the images.
        spec: size and channels of the images.
        hue: largest rotation of the hues, in radians.
        plain: chance that a single colour takes the place of the first of two crops.
        area: smallest share of a picture's area that a crop covers; the largest is 1, and between them it is
            log-uniform.
    """

    album: Album
    spec: ImageSpec
    hue: float = 0.3
    plain: float = 0.0
    area: float = 0.01

    def __call__(self, count: int, rng: Rows) -> Tensor:
        """Images; image i is a function of the album and of row `rng.start + i` alone.

        Args:
            count: number of images.
            rng: random rows.

        Returns:
            float32 `[count, C, H, W]` in [0, 1].
        """
        values = rng.uniform(count, _NUMBERS)
        numbers = _Numbers(values[:, 2 * _CROP :])
        images = self._crops(values[:, :_CROP])
        kind, plain = numbers.uniform(), numbers.uniform() < self.plain
        mixed = kind < PASTED + CUT_OUT + BLENDED
        images = torch.where(_column(plain & mixed), images.mean((2, 3), keepdim=True), images)
        if not bool(mixed.any()):
            return images
        rest = _Numbers(values[mixed, 2 * _CROP + 2 :])
        weight = self._weights(kind[mixed], rest)
        images[mixed] = images[mixed].lerp(self._crops(values[mixed, _CROP : 2 * _CROP]), weight)
        return images

    def _crops(self, values: Tensor) -> Tensor:
        """A distorted and recoloured crop for each row of uniform numbers, float32 `[N, C, H, W]` in [0, 1]."""
        numbers, album = _Numbers(values), self.album
        picture = (numbers.uniform() * len(album)).long().clamp_(max=len(album) - 1)
        height, width = album.heights[picture, 0].float(), album.widths[picture, 0].float()
        side = (numbers.log_uniform(self.area, 1.0) * height * width).sqrt()
        aspect = (numbers.log_uniform(1 / ASPECT, ASPECT) * self.spec.width / self.spec.height).sqrt()
        across, down = torch.minimum(side * aspect, width), torch.minimum(side / aspect, height)
        x, y = self._distorted(numbers, across, down)
        x = x + _plane(across / 2 + numbers.uniform() * (width - across))
        y = y + _plane(down / 2 + numbers.uniform() * (height - down))
        # The scale at which neighbouring points of the crop are about one pixel apart.
        step = torch.maximum(across / self.spec.width, down / self.spec.height)
        scale = torch.minimum(step.log2().round().clamp_(min=0).long(), album.scales[picture] - 1)
        place = (picture, scale)
        size = album.heights[place], album.widths[place]
        crops = _looked_up(album, album.starts[place], size, x * _plane(size[1] / width), y * _plane(size[0] / height))
        return self._recoloured(crops, numbers)

    def _distorted(self, numbers: _Numbers, across: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
        """Points `[N, H, W]` of crops of a size, in pixels from their centres: flipped, warped, sheared and rotated."""
        v, u = ((torch.arange(n) + 0.5) / n - 0.5 for n in self.spec.shape[1:])
        angle, shear = numbers.uniform(-ANGLE, ANGLE), numbers.uniform(-SHEAR, SHEAR)
        amount = WARP * numbers.uniform() * (numbers.uniform() < WARPED)
        mirrored, turned = numbers.sign(MIRRORED), numbers.sign(UPSIDE_DOWN)
        rows, columns = (_interpolation(n) for n in self.spec.shape[1:])
        warp = (rows @ numbers.knots() @ columns.T) * amount.reshape(-1, 1, 1, 1)
        x = (u + warp[:, 0]) * _plane(across * mirrored)
        y = (v[:, None] + warp[:, 1]) * _plane(down * turned)
        x = x + _plane(shear) * y
        cosine, sine = _plane(angle.cos()), _plane(angle.sin())
        return cosine * x - sine * y, sine * x + cosine * y

    def _recoloured(self, images: Tensor, numbers: _Numbers) -> Tensor:
        """Images with other brightness and contrast and, in colour, other saturation and hues."""
        brightness, contrast = numbers.uniform(-BRIGHTNESS, BRIGHTNESS), numbers.log_uniform(*CONTRAST)
        saturation, hue = numbers.uniform(*SATURATION), numbers.uniform(-self.hue, self.hue)
        centred = (images - 0.5) * _column(contrast)
        if images.shape[1] == 3:
            # A rotation about the axis of greys turns the hues; a factor on the distance from it is the saturation.
            grey = torch.full((3, 3), 1 / 3)
            cross = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / 3**0.5
            turn = _plane(saturation * hue.cos()) * (torch.eye(3) - grey) + _plane(saturation * hue.sin()) * cross
            centred = ((turn + grey) @ centred.flatten(2)).reshape(centred.shape)
        return (centred + _column(0.5 + brightness)).clamp_(0.0, 1.0)

    def _weights(self, kind: Tensor, numbers: _Numbers) -> Tensor:
        """The share of the second crop in each pixel, `[N, 1, H, W]`, of images that are mixtures."""
        y, x = (torch.linspace(-1, 1, n) for n in self.spec.shape[1:])
        dx = x - _plane(numbers.uniform(-0.8, 0.8))
        dy = y[:, None] - _plane(numbers.uniform(-0.8, 0.8))
        width, height = numbers.uniform(0.2, 1.0), numbers.uniform(0.2, 1.0)
        angle, power, share = numbers.uniform(0, math.pi), numbers.log_uniform(1.2, 6.0), numbers.uniform(0.2, 0.8)
        box = (dx.abs() < _plane(width)) & (dy.abs() < _plane(height))
        along = (dx * _plane(angle.cos()) + dy * _plane(angle.sin())).abs() / _plane(width)
        over = (dy * _plane(angle.cos()) - dx * _plane(angle.sin())).abs() / _plane(height)
        shape = along.pow(_plane(power)) + over.pow(_plane(power)) < 1
        pasted, cut_out = _plane(kind < PASTED), _plane(kind < PASTED + CUT_OUT)
        return torch.where(pasted, box.float(), torch.where(cut_out, shape.float(), _plane(share))).unsqueeze(1)


def _looked_up(album: Album, starts: Tensor, size: tuple[Tensor, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Pixels at points `[N, H, W]`, bilinear and mirrored at the edges, float32 `[N, C, H, W]` in [0, 1]."""
    height, width = size
    x, y = _mirrored(x, width), _mirrored(y, height)
    left, top = x.floor(), y.floor()
    columns, rows = left.long(), top.long()
    first = _plane(starts) + rows * _plane(width) + columns
    right = (columns + 1 < _plane(width)).long()
    below = torch.where(rows + 1 < _plane(height), _plane(width), 0)
    x, y = x - left, y - top
    # Four bytes a corner, and float32 only of what is looked up: an album may be large.
    corners = [_taken(album.pixels, place) for place in (first, first + right, first + below, first + right + below)]
    upper, lower = corners[0].lerp(corners[1], x), corners[2].lerp(corners[3], x)
    return upper.lerp(lower, y).transpose(0, 1).mul(1 / 255.0)


def _taken(pixels: Tensor, places: Tensor) -> Tensor:
    return pixels.index_select(1, places.flatten()).reshape(-1, *places.shape).float()


def _mirrored(points: Tensor, size: Tensor) -> Tensor:
    """Points along a side as coordinates of pixel centres; those beyond the edges are reflected at them."""
    length = _plane(size.float())
    inside = length - (points.remainder(2 * length) - length).abs()
    return torch.minimum((inside - 0.5).clamp_(min=0.0), length - 1)


def _interpolation(points: int) -> Tensor:
    """Weights `[points, KNOTS]` of a linear interpolation between knots, evenly spaced from end to end."""
    knots = torch.linspace(0, KNOTS - 1, points)[:, None]
    return (1 - (knots - torch.arange(KNOTS)).abs()).clamp_(min=0)


def _plane(values: Tensor) -> Tensor:
    return values.reshape(-1, 1, 1)


def _column(values: Tensor) -> Tensor:
    return values.reshape(-1, 1, 1, 1)
