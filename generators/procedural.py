"""Procedural images, drawn from random numbers alone: initial images for a teacher that stores no image statistics.

There are three kinds, each with random shades and a smooth texture of several scales: *leaves* (overlapping ellipses
and boxes), *fields* (a smooth field cut at a threshold) and *figures* (one object, a union of rounded shapes, on a flat
background that is mostly black). The figures are a prior for pictures of single objects.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from synthkd.rng import Rows
from synthkd.types import ImageSpec

SCALES = (2, 3, 5, 9)
"""Sides of the grids from which the texture is interpolated; small grids give broad shapes."""
SHAPES = 6
"""Ellipses and boxes of a leaves image."""
PARTS = 4
"""Shapes of a figure."""
UNIFORMS = 80
"""Uniform numbers of an image, besides 24 for each channel: at least what any kind needs, and as many for every kind,
so that an image depends on its row alone."""
EPSILON = 1e-2
"""Values are clamped to [EPSILON, 1 - EPSILON] before their logit is taken, which is infinite at 0 and 1."""


@dataclass(frozen=True)
class ToneCurve:
    """The curve `sigmoid(gain * logit(x) + offset)`, which changes mean and deviation of images.

    Attributes:
        gain: factor on the logits.
        offset: added to the logits.
    """

    gain: float = 1.0
    offset: float = 0.0

    def __call__(self, images: Tensor) -> Tensor:
        """Images float32 in [0, 1] after the curve, of the same shape and in (0, 1)."""
        return torch.sigmoid(self.gain * torch.logit(images, EPSILON) + self.offset)


def fit_tone_curve(images: Tensor, mean: float, std: float, steps: int = 100) -> ToneCurve:
    """Fit the curve that gives images a mean and a standard deviation, by steps of Adam.

    Args:
        images: float32 in [0, 1], of any shape.
        mean: mean after the curve.
        std: standard deviation after the curve.
        steps: number of steps.
    """
    logits = torch.logit(images, EPSILON)
    values = torch.tensor([1.0, 0.0], requires_grad=True)
    optimizer = torch.optim.Adam([values], lr=0.1)
    with torch.enable_grad():
        for _ in range(steps):
            toned = torch.sigmoid(values[0] * logits + values[1])
            loss = (toned.mean() - mean) ** 2 + (toned.std() - std) ** 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return ToneCurve(*values.detach().tolist())


class _Numbers:
    """Iterates over the columns of uniform numbers `[N, M]`, one row for each image; a column is `[N, 1, 1, 1]`."""

    def __init__(self, values: Tensor) -> None:
        self._values = values
        self._next = 0

    def uniform(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        column = self._values[:, self._next].reshape(-1, 1, 1, 1)
        self._next += 1
        return low + (high - low) * column

    def chance(self, p: float) -> Tensor:
        return self.uniform() < p

    def shade(self, channels: int) -> Tensor:
        return torch.cat([self.uniform() for _ in range(channels)], dim=1)


def draw(count: int, spec: ImageSpec, rng: Rows) -> Tensor:
    """Draw images; image i is a function of row `rng.start + i` alone.

    Args:
        count: number of images.
        spec: their size and channels.
        rng: random rows.

    Returns:
        float32 `[count, C, H, W]` in [0, 1]; the kind is random: leaves or fields with probability 1/4 each, figures
        with probability 1/2.
    """
    uniforms = Rows(rng.seed, f"{rng.purpose}/uniform", rng.start).uniform(count, UNIFORMS + 24 * spec.channels)
    texture = _texture(count, spec, rng)
    images = torch.empty(count, *spec.shape)
    kind = uniforms[:, 0]
    for low, high, draw_kind in ((0.0, 0.25, _leaves), (0.25, 0.5, _field), (0.5, 1.1, _figure)):
        rows = (kind >= low) & (kind < high)
        if bool(rows.any()):
            images[rows] = draw_kind(_Numbers(uniforms[rows, 1:]), texture[rows], spec)
    return images


def _texture(count: int, spec: ImageSpec, rng: Rows) -> Tensor:
    """Noise of several scales, `[N, 2, H, W]` with unit deviation; two planes, so that mask and filling may differ."""
    planes, size = 2, (spec.height, spec.width)
    scales = [scale for scale in SCALES if scale < min(size)]
    lengths = [planes * scale * scale for scale in scales] + [planes * size[0] * size[1]]
    normals = Rows(rng.seed, f"{rng.purpose}/normal", rng.start).normal(count, sum(lengths))
    # Squares make most weights small, so that often one scale prevails.
    weights = Rows(rng.seed, f"{rng.purpose}/weight", rng.start).uniform(count, len(lengths)).square()
    weights = weights.T.reshape(-1, count, 1, 1, 1)
    *grids, pixels = normals.split(lengths, dim=1)
    total = torch.zeros(count, planes, *size)
    for scale, grid, weight in zip(scales, grids, weights, strict=False):
        coarse = grid.reshape(count, planes, scale, scale)
        total += weight * F.interpolate(coarse, size=size, mode="bicubic", align_corners=True)
    total += 0.4 * weights[-1] * pixels.reshape(count, planes, *size)
    return total / total.std(dim=(2, 3), keepdim=True).clamp_min(1e-6)


def _contrast(field: Tensor, numbers: _Numbers) -> Tensor:
    """A field of unit deviation as values in (0, 1), with random contrast and brightness."""
    # The logit of a uniform number is a logistic one: most images are of medium brightness, some nearly black or white.
    offset = torch.logit(numbers.uniform(0.02, 0.98)) * 0.9
    return torch.sigmoid(field * torch.exp(numbers.uniform(-0.7, 1.8)) + offset)


def _coordinates(numbers: _Numbers, spec: ImageSpec, reach: float, radii: tuple[float, float], angle: Tensor) -> Tensor:
    """Absolute coordinates `[N, 2, H, W]` relative to a shape with random centre and radii, rotated by `angle`."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, spec.height), torch.linspace(-1, 1, spec.width), indexing="ij")
    dx, dy = x - numbers.uniform(-reach, reach), y - numbers.uniform(-reach, reach)
    along = (dx * angle.cos() + dy * angle.sin()) / numbers.uniform(*radii)
    across = (dy * angle.cos() - dx * angle.sin()) / numbers.uniform(*radii)
    return torch.cat([along, across], dim=1).abs()


def _leaves(numbers: _Numbers, texture: Tensor, spec: ImageSpec) -> Tensor:
    """Ellipses and boxes, each painted over the ones before."""
    # Half of the grounds are rounded to black, white or pure colours.
    ground = numbers.shade(spec.channels)
    images = torch.where(numbers.chance(0.5), ground.round(), ground).expand(-1, -1, spec.height, spec.width)
    filling = _contrast(texture[:, :1], numbers)
    for _ in range(SHAPES):
        position = _coordinates(numbers, spec, 0.7, (0.08, 0.9), numbers.uniform(0.0, torch.pi))
        # In a shape's own coordinates it is a unit ball, of the Euclidean norm or of the largest coordinate.
        ellipse, box = position.square().sum(1, keepdim=True), position.amax(1, keepdim=True)
        inside = (torch.where(numbers.chance(0.5), ellipse, box) < 1) & numbers.chance(0.65)
        amount = numbers.uniform()
        images = torch.where(inside, numbers.shade(spec.channels) * (1 - amount) + filling * amount, images)
    # Half of the images are symmetric, as many objects are.
    half = images[..., : (spec.width + 1) // 2]
    mirrored = torch.cat([half, half.flip(-1)[..., spec.width % 2 :]], dim=-1)
    return torch.where(numbers.chance(0.5), mirrored, images)


def _field(numbers: _Numbers, texture: Tensor, spec: ImageSpec) -> Tensor:
    """A texture where a second texture is above a random threshold, on a flat background."""
    # sqrt(2) erfinv(u) is a normal number for u uniform in (-1, 1), like the texture's values: the threshold leaves
    # shares of an image of every size. The factor 8 makes a soft edge of it.
    mask = torch.sigmoid(8 * (texture[:, :1] - 0.7 * torch.erfinv(numbers.uniform(-0.98, 0.98)) * 2**0.5))
    ground = numbers.shade(spec.channels)
    ground = torch.where(numbers.chance(0.5), ground.round(), ground)
    return ground * (1 - mask) + mask * _contrast(texture[:, 1:], numbers)


def _figure(numbers: _Numbers, texture: Tensor, spec: ImageSpec) -> Tensor:
    """One object of several shapes on a flat background."""
    mask = torch.zeros(len(texture), 1, spec.height, spec.width, dtype=torch.bool)
    for part in range(PARTS):
        angle = torch.where(numbers.chance(0.5), 0.0, numbers.uniform(-0.8, 0.8))
        # The first shape is in the middle and always there; a later one may be absent or cut out of the others.
        position = _coordinates(numbers, spec, 0.6 if part else 0.0, (0.1, 0.9), angle)
        # A superellipse: an ellipse with the exponent 2, nearly a box with 8.
        power = torch.where(numbers.chance(0.5), 2.0, 8.0)
        inside = (position.pow(power).sum(1, keepdim=True) < 1) & (numbers.chance(0.6) | (part == 0))
        cut = numbers.chance(0.25) & (part > 0)
        mask = torch.where(cut, mask & ~inside, mask | inside)
    mask = torch.where(numbers.chance(0.5), mask | mask.flip(-1), mask)
    amount = numbers.uniform() ** 2
    filling = numbers.shade(spec.channels) * (1 - amount) + _contrast(texture[:, :1], numbers) * amount
    ground = torch.where(numbers.chance(0.7), 0.0, numbers.shade(spec.channels))
    return torch.where(mask, filling, ground)
