"""Drawn pictures in colour: noise of every spectrum, textures, shapes and figures, whole and in collages."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from synthkd.generators.collage import Album, Collage, album_of
from synthkd.generators.procedural import draw
from synthkd.rng import Rows, stream
from synthkd.types import ImageSpec, to_uint8

NOISE, DRAWN, AT_ONCE = 256, 512, 64
"""Pictures of noise, pictures that `synthkd.generators.procedural` draws, and how many of those it draws at once."""
SMALLEST, LARGEST = 32, 128
"""Side of the pictures: twice that of the images, within these bounds."""
PLAIN, AREA = 0.2, 0.25
"""Chance that the ground of a mixture is a single colour, and smallest share of a picture that a crop covers, so that
figures stay whole enough to be figures."""
EXPONENTS = (0.5, 3.0)
"""Of noise, whose power falls with the frequency f as `f ** -exponent`; natural pictures have about 2."""


def drawn_album(spec: ImageSpec, seed: int) -> Album:
    """The album of a seed.

    Args:
        spec: size and channels of the images that are made of it.
        seed: the run's seed.
    """
    side = min(LARGEST, max(SMALLEST, 2 * max(spec.height, spec.width)))
    larger = ImageSpec(spec.channels, side, side, spec.classes)
    by_rule = torch.cat([draw(AT_ONCE, larger, Rows(seed, "album", start)) for start in range(0, DRAWN, AT_ONCE)])
    return album_of([*to_uint8(_noise(larger, seed)), *to_uint8(by_rule)])


@dataclass(frozen=True)
class DrawnPictures:
    """Makes images that are drawn anew, and between them images of an album that was drawn before.

    Attributes:
        album: makes images of the album.
        spec: size and channels of the images.
    """

    album: Collage
    spec: ImageSpec

    @classmethod
    def of_seed(cls, spec: ImageSpec, seed: int) -> DrawnPictures:
        """With the album of a seed; arguments as of `drawn_album`."""
        return cls(Collage(drawn_album(spec, seed), spec, math.pi, PLAIN, AREA), spec)

    def __call__(self, count: int, rng: Rows) -> Tensor:
        """As a `Collage`: images with an even number `rng.start + i` are drawn anew, the others are of the album."""
        images = torch.empty(count, *self.spec.shape)
        # Each kind numbers its own images without a gap.
        for make, odd in ((self._drawn, 0), (self.album, 1)):
            rows = slice((rng.start + odd) % 2, None, 2)
            if wanted := len(images[rows]):
                images[rows] = make(wanted, Rows(rng.seed, rng.purpose, (rng.start + 1 - odd) // 2))
        return images

    def _drawn(self, count: int, rng: Rows) -> Tensor:
        return draw(count, self.spec, rng)


def _noise(spec: ImageSpec, seed: int) -> Tensor:
    """Noise of random exponents, contrasts and colours, float32 `[NOISE, C, H, W]`; values may leave [0, 1]."""
    rng = stream(seed, "album of noise")
    height, width, channels = spec.height, spec.width, spec.channels
    frequency = (torch.fft.fftfreq(height)[:, None].square() + torch.fft.rfftfreq(width).square()).sqrt()
    frequency[0, 0] = torch.inf  # the mean is set below
    low, high = EXPONENTS
    exponents = low + (high - low) * torch.rand(NOISE, 1, 1, 1, generator=rng)
    white = torch.randn(NOISE, channels, height, width, generator=rng)
    fields = torch.fft.irfft2(torch.fft.rfft2(white) * frequency ** (-exponents / 2), s=(height, width))
    fields = fields / fields.std(dim=(2, 3), keepdim=True)
    # Channels that have much or little in common: of one hue, or of many.
    together = torch.randn(NOISE, channels, channels, generator=rng)
    together = together / together.square().sum(2, keepdim=True).sqrt()
    fields = (together @ fields.flatten(2)).reshape(white.shape)
    contrast = 0.1 + 0.25 * torch.rand(NOISE, 1, 1, 1, generator=rng)
    mean = 0.25 + 0.5 * torch.rand(NOISE, channels, 1, 1, generator=rng)
    images: Tensor = mean + contrast * fields
    return images
