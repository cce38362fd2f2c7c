"""Views of images: what a teacher sees of images that are optimised, so that they show their class in every view.

Images are float `[N, C, H, W]` and keep their size. All randomness comes from the generator argument, on the CPU, and
gradients pass.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from synthkd.data import augment

RATIO = (3 / 4, 4 / 3)
"""Aspect ratios of crops, as in torchvision's RandomResizedCrop."""


def shifted(images: Tensor, pixels: int, flip: bool, rng: torch.Generator) -> Tensor:
    """Each image shifted by its own whole numbers of pixels, at most `pixels`, and mirrored with probability one half.

    A teacher that was trained on shifted images has BatchNorm statistics of images with black edges. A generator that
    matches them without shifting its images draws such edges into them.
    """
    return augment.flip(augment.shift(images, pixels, rng), rng, 0.5 if flip else 0.0)


def rolled(images: Tensor, pixels: int, flip: bool, rng: torch.Generator) -> Tensor:
    """The whole batch rolled by one shift in `[-pixels, pixels]` each way, and mirrored with probability one half.

    This is the jitter of DeepInversion: what leaves an image on one side comes back on the other.
    """
    down, right = torch.randint(-pixels, pixels + 1, (2,), generator=rng).tolist()
    mirrored = flip and bool(torch.rand(1, generator=rng) < 0.5)
    images = images.roll((down, right), (2, 3))
    return images.flip(-1) if mirrored else images


def cropped(images: Tensor, least: float, rng: torch.Generator) -> Tensor:
    """A random crop of each image, resized to the whole (random resized crops).

    Args:
        images: `[N, C, H, W]`.
        least: smallest area of a crop, as a share of the image in (0, 1]; areas are uniform from there to 1, aspect
            ratios log-uniform in `RATIO` as far as they fit.
        rng: of areas, ratios and places.
    """
    numbers = torch.rand(4, len(images), generator=rng)
    area, ratio = least + (1.0 - least) * numbers[0], torch.tensor(RATIO).log()
    aspect = (ratio[0] + (ratio[1] - ratio[0]) * numbers[1]).exp()
    # Sides as shares of the image's; a side that would not fit is cut to the whole.
    wide, high = (area * aspect).sqrt().clamp_max(1.0), (area / aspect).sqrt().clamp_max(1.0)
    # In the coordinates of grid_sample the image reaches from -1 to 1, so a crop of side s may lie s - 1 to 1 - s away.
    right, down = (1.0 - wide) * (2.0 * numbers[2] - 1.0), (1.0 - high) * (2.0 * numbers[3] - 1.0)
    zero = torch.zeros_like(wide)
    theta = torch.stack([torch.stack([wide, zero, right], 1), torch.stack([zero, high, down], 1)], 1)
    grid = F.affine_grid(theta.to(images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
