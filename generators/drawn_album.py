"""An album that is drawn from random numbers: noise of every spectrum, textures, shapes and figures, in colour."""

from __future__ import annotations

import torch
from torch import Tensor

from synthkd.generators.collage import Album, album_of
from synthkd.generators.procedural import draw
from synthkd.rng import Rows, stream
from synthkd.types import ImageSpec, to_uint8

PICTURES = 96
"""Pictures of each half of the album: noise, and what `synthkd.generators.procedural` draws."""
SMALLEST, LARGEST = 64, 256
"""Side of the pictures: four times that of the images, within these bounds."""
PLAIN = 0.2
"""Chance that the ground of an image is a single colour."""
EXPONENTS = (0.5, 3.0)
"""Of noise, whose power falls with the frequency f as `f ** -exponent`; natural pictures have about 2."""


def drawn_album(spec: ImageSpec, seed: int) -> Album:
    """The album of a seed.

    Args:
        spec: size and channels of the images that are made of it.
        seed: the run's seed.
    """
    side = min(LARGEST, max(SMALLEST, 4 * max(spec.height, spec.width)))
    larger = ImageSpec(spec.channels, side, side, spec.classes)
    drawn = torch.cat([draw(8, larger, Rows(seed, "album", 8 * part)) for part in range(PICTURES // 8)])
    return album_of([*to_uint8(_noise(larger, seed)), *to_uint8(drawn)])


def _noise(spec: ImageSpec, seed: int) -> Tensor:
    """Noise of random exponents, contrasts and colours, float32 `[PICTURES, C, H, W]`; values may leave [0, 1]."""
    rng = stream(seed, "album of noise")
    height, width, channels = spec.height, spec.width, spec.channels
    frequency = (torch.fft.fftfreq(height)[:, None].square() + torch.fft.rfftfreq(width).square()).sqrt()
    frequency[0, 0] = torch.inf  # the mean is set below
    low, high = EXPONENTS
    exponents = low + (high - low) * torch.rand(PICTURES, 1, 1, 1, generator=rng)
    white = torch.randn(PICTURES, channels, height, width, generator=rng)
    fields = torch.fft.irfft2(torch.fft.rfft2(white) * frequency ** (-exponents / 2), s=(height, width))
    fields = fields / fields.std(dim=(2, 3), keepdim=True)
    # Channels that have much or little in common: of one hue, or of many.
    together = torch.randn(PICTURES, channels, channels, generator=rng)
    together = together / together.square().sum(2, keepdim=True).sqrt()
    fields = (together @ fields.flatten(2)).reshape(fields.shape)
    contrast = 0.1 + 0.25 * torch.rand(PICTURES, 1, 1, 1, generator=rng)
    return torch.rand(PICTURES, channels, 1, 1, generator=rng).lerp(torch.tensor(0.5), 0.5) + contrast * fields
