"""Images drawn by rule, from random numbers alone: a start for generators when a teacher says little about pixels.

Three kinds, each with random shades and a soft texture of several scales: *leaves* (overlapping ellipses and boxes),
*fields* (a thresholded smooth field) and *figures* (one object, a union of rounded shapes, on a flat ground that is
mostly black). The figures are a prior, "one object on a ground", that suits pictures of things.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from synthkd.rng import Rows
from synthkd.types import ImageSpec

SCALES = (2, 3, 5, 9)
SHAPES = 6
PARTS = 4
UNIFORMS = 80
"""Uniform numbers an image consumes at the most; a fixed number, so that an image depends on its row alone."""
EPSILON = 1e-2


@dataclass(frozen=True)
class ToneCurve:
    """`sigmoid(gain * logit(x) + offset)`, the one curve that brings drawn images to the mean and deviation wanted."""

    gain: float = 1.0
    offset: float = 0.0

    def __call__(self, images: Tensor) -> Tensor:
        return torch.sigmoid(self.gain * torch.logit(images, EPSILON) + self.offset)


def fit_tone_curve(images: Tensor, mean: float, std: float, steps: int = 100) -> ToneCurve:
    """The curve after which `images` (float in [0, 1]) have this mean and standard deviation, as nearly as it can."""
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
    """Hands out columns of one row of uniform numbers per image, each shaped `[N, 1, 1, 1]`."""

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
        count: how many.
        spec: their size and channels.
        rng: random rows.

    Returns:
        float32 `[count, C, H, W]` in [0, 1]: a quarter leaves, a quarter fields, half figures, at random.
    """
    uniforms = Rows(rng.seed, f"{rng.purpose}/uniform", rng.start).uniform(count, UNIFORMS + 24 * spec.channels)
    texture = _texture(count, spec, rng)
    images = torch.empty(count, *spec.shape)
    kind = uniforms[:, 0]
    for low, high, make in ((0.0, 0.25, _leaves), (0.25, 0.5, _field), (0.5, 1.1, _figure)):
        rows = (kind >= low) & (kind < high)
        if bool(rows.any()):
            images[rows] = make(_Numbers(uniforms[rows, 1:]), texture[rows], spec)
    return images


def _texture(count: int, spec: ImageSpec, rng: Rows) -> Tensor:
    """Smooth noise of several scales, `[N, 2, H, W]` with unit deviation: one plane for masks, one for fillings."""
    size = (spec.height, spec.width)
    grids = [s for s in SCALES if s < min(size)]
    planes = 2
    width = planes * (sum(s * s for s in grids) + size[0] * size[1])
    normals = Rows(rng.seed, f"{rng.purpose}/normal", rng.start).normal(count, width)
    weights = Rows(rng.seed, f"{rng.purpose}/weight", rng.start).uniform(count, len(grids) + 1).square()
    total = torch.zeros(count, planes, *size)
    first = 0
    for i, s in enumerate(grids):
        grid = normals[:, first : first + planes * s * s].reshape(count, planes, s, s)
        first += planes * s * s
        smooth = F.interpolate(grid, size=size, mode="bicubic", align_corners=True)
        total += weights[:, i].reshape(-1, 1, 1, 1) * smooth
    total += 0.4 * weights[:, -1].reshape(-1, 1, 1, 1) * normals[:, first:].reshape(count, planes, *size)
    return total / total.std(dim=(2, 3), keepdim=True).clamp_min(1e-6)


def _contrasted(field: Tensor, numbers: _Numbers) -> Tensor:
    offset = torch.logit(numbers.uniform(0.02, 0.98)) * 0.9
    return torch.sigmoid(field * torch.exp(numbers.uniform(-0.7, 1.8)) + offset)


def _coordinates(spec: ImageSpec) -> tuple[Tensor, Tensor]:
    y, x = torch.meshgrid(torch.linspace(-1, 1, spec.height), torch.linspace(-1, 1, spec.width), indexing="ij")
    return y, x


def _turned(numbers: _Numbers, spec: ImageSpec, reach: float, radii: tuple[float, float], angle: Tensor) -> Tensor:
    """Coordinates `[N, 2, H, W]` in which a randomly placed, scaled and turned shape is the unit one."""
    y, x = _coordinates(spec)
    dx, dy = x - numbers.uniform(-reach, reach), y - numbers.uniform(-reach, reach)
    along = (dx * angle.cos() + dy * angle.sin()) / numbers.uniform(*radii)
    across = (dy * angle.cos() - dx * angle.sin()) / numbers.uniform(*radii)
    return torch.cat([along, across], dim=1).abs()


def _leaves(numbers: _Numbers, texture: Tensor, spec: ImageSpec) -> Tensor:
    ground = numbers.shade(spec.channels)
    images = torch.where(numbers.chance(0.5), ground.round(), ground).expand(-1, -1, spec.height, spec.width)
    filling = _contrasted(texture[:, :1], numbers)
    for _ in range(SHAPES):
        place = _turned(numbers, spec, 0.7, (0.08, 0.9), numbers.uniform(0.0, torch.pi))
        ellipse, box = place.square().sum(1, keepdim=True), place.amax(1, keepdim=True)
        inside = (torch.where(numbers.chance(0.5), ellipse, box) < 1) & numbers.chance(0.65)
        amount = numbers.uniform()
        images = torch.where(inside, numbers.shade(spec.channels) * (1 - amount) + filling * amount, images)
    half = images[..., : (spec.width + 1) // 2]
    mirrored = torch.cat([half, half.flip(-1)[..., spec.width % 2 :]], dim=-1)
    return torch.where(numbers.chance(0.5), mirrored, images)


def _field(numbers: _Numbers, texture: Tensor, spec: ImageSpec) -> Tensor:
    mask = torch.sigmoid(8 * (texture[:, :1] - 0.7 * torch.erfinv(numbers.uniform(-0.98, 0.98)) * 2**0.5))
    ground = numbers.shade(spec.channels)
    ground = torch.where(numbers.chance(0.5), ground.round(), ground)
    return ground * (1 - mask) + mask * _contrasted(texture[:, 1:], numbers)


def _figure(numbers: _Numbers, texture: Tensor, spec: ImageSpec) -> Tensor:
    mask = torch.zeros(len(texture), 1, spec.height, spec.width, dtype=torch.bool)
    for part in range(PARTS):
        angle = torch.where(numbers.chance(0.5), 0.0, numbers.uniform(-0.8, 0.8))
        place = _turned(numbers, spec, 0.6 if part else 0.0, (0.1, 0.9), angle)
        power = torch.where(numbers.chance(0.5), 2.0, 8.0)
        inside = (place.pow(power).sum(1, keepdim=True) < 1) & (numbers.chance(0.6) | (part == 0))
        cut = numbers.chance(0.25) & (part > 0)
        mask = torch.where(cut, mask & ~inside, mask | inside)
    mask = torch.where(numbers.chance(0.5), mask | mask.flip(-1), mask)
    amount = numbers.uniform() ** 2
    filling = numbers.shade(spec.channels) * (1 - amount) + _contrasted(texture[:, :1], numbers) * amount
    ground = torch.where(numbers.chance(0.7), 0.0, numbers.shade(spec.channels))
    return torch.where(mask, filling, ground)
