"""Augmentation of whole batches, each image with its own random parameters.

Every function takes float images `[N, C, H, W]` in `[0, 1]` on any device and returns images of the same shape, dtype,
device and range. The functions are pure: the input is never written to (where nothing changes it is returned itself),
and all randomness comes from the `torch.Generator` argument, usually on the CPU; the drawn numbers are moved to the
images. The number of draws depends on the shape and the settings alone. Gradients pass wherever pixels pass. Labels
are not changed: in distillation the teacher labels the augmented images.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from synthkd.settings import AugmentSettings


def shift(images: Tensor, pixels: int, rng: torch.Generator) -> Tensor:
    """Move each image by its own whole numbers of pixels in `[-pixels, pixels]`; vacated pixels are 0."""
    if pixels == 0:
        return images
    count, channels, height, width = images.shape
    padded = functional.pad(images, (pixels, pixels, pixels, pixels))
    # One gather for the whole batch: the window of each image is the same pattern of indices, begun at its own corner.
    stride = width + 2 * pixels
    offsets = torch.randint(0, 2 * pixels + 1, (count, 2), generator=rng, device=rng.device)
    corners = (offsets[:, 0] * stride + offsets[:, 1]).to(images.device)
    window = (torch.arange(height)[:, None] * stride + torch.arange(width)).flatten().to(images.device)
    index = (corners[:, None] + window)[:, None, :].expand(count, channels, height * width)
    return padded.flatten(2).gather(2, index).view_as(images)


def flip(images: Tensor, rng: torch.Generator, p: float = 0.5) -> Tensor:
    """Mirror each image left to right with probability `p`."""
    if p == 0.0:
        return images
    return torch.lerp(images, images.flip(-1), _chance(images, p, rng)[:, None, None, None])


def crop(images: Tensor, least: float, rng: torch.Generator, ratio: tuple[float, float] = (3 / 4, 4 / 3)) -> Tensor:
    """A window of each image in its place, resized to its size (random resized crop: Szegedy et al., CVPR 2015).

    The window's area is uniform in `[least, 1]` (a fraction of the image), its aspect ratio height / width log-uniform
    in `ratio`, and it lies anywhere inside. Pixels between those of the image are bilinear.
    """
    if least == 1.0:
        return images
    count, _, height, width = images.shape
    heights, widths = _sides(images, (least, 1.0), ratio, rng)
    spans = (widths / width, heights / height)
    # Coordinates of the image run from -1 to 1; a window of half the width has its centre within half of that.
    centres = [(1.0 - span) * _uniform(count, -1.0, 1.0, rng, images) for span in spans]
    affine = torch.zeros(count, 2, 3, device=images.device)
    for axis in (0, 1):
        affine[:, axis, axis], affine[:, axis, 2] = spans[axis], centres[axis]
    grid = functional.affine_grid(affine.to(images.dtype), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False).clamp(0.0, 1.0)


def turn(images: Tensor, rng: torch.Generator) -> Tensor:
    """Turn each image by 90, 180 or 270 degrees, with equal probability; images that are not square by 180.

    These are the augmented views of SSKD (Xu et al., ECCV 2020); no image stays as it is.
    """
    count, _, height, width = images.shape
    if height != width:
        return images.flip((-2, -1))
    # Never 0: a view that equals its image would be recognised without effort.
    quarters = torch.randint(1, 4, (count,), generator=rng, device=rng.device).to(images.device)[:, None, None, None]
    sideways = torch.where(quarters == 1, images.rot90(1, (2, 3)), images.rot90(3, (2, 3)))
    return torch.where(quarters == 2, images.flip((-2, -1)), sideways)


def erase(
    images: Tensor,
    p: float,
    rng: torch.Generator,
    area: tuple[float, float] = (0.02, 0.33),
    ratio: tuple[float, float] = (0.3, 3.3),
) -> Tensor:
    """Paint over one random rectangle per image with probability `p` (random erasing: Zhong et al., AAAI 2020).

    The area is uniform in `area` (a fraction of the image), the aspect ratio height / width log-uniform in `ratio`.
    The paper draws both again until the rectangle fits. Here the ratio is drawn among those that fit the area, which
    needs no loop and does not change the area. Each rectangle has one colour, uniform in `[0, 1]` per channel.
    """
    if p == 0.0:
        return images
    count, channels = images.shape[:2]
    hit = _chance(images, p, rng)
    # From here on numbers are drawn for every image, hit or not, so that their number depends on the shape alone.
    heights, widths = _sides(images, area, ratio, rng)
    mask = _rectangles(heights, widths, images, rng) * hit[:, None, None, None]
    colour = _uniform(count * channels, 0.0, 1.0, rng, images).view(count, channels, 1, 1)
    return torch.lerp(images, colour.to(images.dtype), mask)


def jitter(images: Tensor, strength: float, rng: torch.Generator) -> Tensor:
    """Change brightness, contrast and (of 3-channel images) saturation, each by its own factor per image.

    Factors are uniform in `[max(0, 1 - strength), 1 + strength]` with the meaning of torchvision's `ColorJitter`:
    blends with black, with the mean grey level and with the grey image. The order is always brightness, contrast,
    saturation.
    """
    if strength == 0.0:
        return images
    count, channels = images.shape[:2]
    # Also for images without saturation three factors are drawn, so that the number of draws follows from the count.
    factors = _uniform(3 * count, max(0.0, 1.0 - strength), 1.0 + strength, rng, images).to(images.dtype)
    brightness, contrast, saturation = factors.view(3, count, 1, 1, 1)
    # `mul` copies, so the operations in place after it leave the images of the caller alone.
    images = images.mul(brightness).clamp_(0.0, 1.0)
    level = _grey(images.mean(dim=(2, 3), keepdim=True))
    images = images.mul(contrast).add_(level * (1.0 - contrast)).clamp_(0.0, 1.0)
    if channels == 3:
        images = images.mul(saturation).add_(_grey(images) * (1.0 - saturation)).clamp_(0.0, 1.0)
    return images


def mixup(images: Tensor, fraction: float, rng: torch.Generator) -> Tensor:
    """Replace the first `round(fraction * N)` images by convex mixtures of themselves and another image of the batch.

    The share is uniform in `[0, 1]` per image (mixup: Zhang et al., ICLR 2018, with Beta(1, 1)). A batch of one image
    stays as it is.
    """
    rows = round(fraction * len(images))
    if rows == 0 or len(images) < 2:
        return images
    others = images[_partners(images, rng)[:rows]]
    share = _uniform(rows, 0.0, 1.0, rng, images).to(images.dtype)[:, None, None, None]
    return torch.cat([torch.lerp(others, images[:rows], share), images[rows:]])


def cutmix(images: Tensor, fraction: float, rng: torch.Generator) -> Tensor:
    """Paste a rectangle of another image of the batch into each of the LAST `round(fraction * N)` images.

    Mixup takes the first images, so that no image gets both. The rectangle has the image's proportions and an area
    uniform in `[0, 1]`. It lies wholly inside the image, whereas Yun et al. (ICCV 2019) clip it at the border. A batch
    of one image stays as it is.
    """
    rows = round(fraction * len(images))
    if rows == 0 or len(images) < 2:
        return images
    first = len(images) - rows
    height, width = images.shape[-2:]
    target, others = images[first:], images[_partners(images, rng)[first:]]
    # The root, so that the area and not the side is uniform.
    side = _uniform(rows, 0.0, 1.0, rng, images).sqrt()
    pasted = torch.lerp(target, others, _rectangles(side * height, side * width, target, rng))
    return torch.cat([images[:first], pasted])


def by_difficulty(
    images: Tensor, difficulty: float, rng: torch.Generator, erase_above: float = 0.5, jitter_above: float = 0.7
) -> Tensor:
    """Augment with a strength that grows with `difficulty` in `[0, 1]`.

    Above `jitter_above`: jitter of strength `0.5 * difficulty`. Above `erase_above`: erasing with probability
    `difficulty`. Below both: nothing.
    """
    # Jitter before erasing, so that the colour of an erased rectangle stays the one that was drawn.
    if difficulty > jitter_above:
        images = jitter(images, 0.5 * difficulty, rng)
    if difficulty > erase_above:
        images = erase(images, difficulty, rng)
    return images


def augment_real(images: Tensor, settings: AugmentSettings, rng: torch.Generator) -> Tensor:
    """Augmentation of real images in the training of a teacher: crop, shift, flip."""
    images = crop(images, settings.crop, rng)
    images = shift(images, settings.shift, rng)
    return flip(images, rng, 0.5 if settings.flip else 0.0)


def augment_for_critic(images: Tensor, p: float, rng: torch.Generator) -> Tensor:
    """Augmentation of real and of generated images for a GAN's critic, so that it cannot memorise few real images.

    The operations are those of DiffAugment (Zhao et al., NeurIPS 2020): a shift by up to an eighth of the longer side,
    one erased rectangle, and jitter of strength 0.5. Each is applied to an image with probability `p`; for `p` below
    about 0.8 the augmentations cannot leak into generated images (Karras et al., NeurIPS 2020). Real and generated
    images need random draws of their own.
    """
    if p == 0.0:
        return images
    shifted = shift(images, max(1, round(max(images.shape[-2:]) / 8)), rng)
    images = torch.lerp(images, shifted, _chance(images, p, rng)[:, None, None, None])
    images = erase(images, p, rng)
    return torch.lerp(images, jitter(images, 0.5, rng), _chance(images, p, rng)[:, None, None, None])


def _uniform(count: int, low: float, high: float, rng: torch.Generator, like: Tensor) -> Tensor:
    """float32 `[count]` uniform in `[low, high)`, on the device of `like`."""
    return torch.rand(count, generator=rng, device=rng.device).mul_(high - low).add_(low).to(like.device)


def _chance(images: Tensor, p: float, rng: torch.Generator) -> Tensor:
    """`[N]` in the dtype of the images: 1 with probability `p`, else 0."""
    return (_uniform(len(images), 0.0, 1.0, rng, images) < p).to(images.dtype)


def _sides(
    images: Tensor, area: tuple[float, float], ratio: tuple[float, float], rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Heights and widths float32 `[N]` of rectangles that fit into the images; see `erase` for area and ratio."""
    count, _, height, width = images.shape
    surface = _uniform(count, area[0], area[1], rng, images) * (height * width)
    # With area s and aspect a = h / w, h = sqrt(s a) <= height and w = sqrt(s / a) <= width bound a from both sides.
    lowest, highest = surface / width**2, height**2 / surface
    low = torch.full_like(surface, ratio[0]).clamp(lowest, highest).log()
    high = torch.full_like(surface, ratio[1]).clamp(lowest, highest).log()
    aspect = torch.lerp(low, high, _uniform(count, 0.0, 1.0, rng, images)).exp()
    return (surface * aspect).sqrt(), (surface / aspect).sqrt()


def _rectangles(heights: Tensor, widths: Tensor, images: Tensor, rng: torch.Generator) -> Tensor:
    """`[N, 1, H, W]` in the dtype of the images: 1 in one rectangle per image, 0 outside.

    Each lies anywhere inside the image and has the given float size, rounded. Masks are numbers for `torch.lerp`, which
    is exact at 0 and 1 and vectorised on CPUs; boolean products and `torch.where` take several times as long there.
    """
    spans = []
    for lengths, size in ((heights, images.shape[-2]), (widths, images.shape[-1])):
        length = lengths.round().clamp(1, size)
        start = (_uniform(len(images), 0.0, 1.0, rng, images) * (size - length + 1)).floor()
        offset = torch.arange(size, device=images.device) - start[:, None]
        spans.append(((offset >= 0) & (offset < length[:, None])).to(images.dtype))
    rows, columns = spans
    return (rows[:, :, None] * columns[:, None, :])[:, None]


def _partners(images: Tensor, rng: torch.Generator) -> Tensor:
    """int64 `[N]`: the row of another image for each, from one random cycle through the batch, so never its own."""
    # A random permutation alone would pair some images with themselves.
    cycle = torch.randperm(len(images), generator=rng, device=rng.device)
    partners = torch.empty_like(cycle)
    partners[cycle] = cycle.roll(-1)
    return partners.to(images.device)


def _grey(images: Tensor) -> Tensor:
    """`[N, 1, H, W]`: luma of RGB images, weighted as in torchvision's `rgb_to_grayscale`; else the channel mean."""
    count, channels, height, width = images.shape
    if channels == 1:
        return images
    weights = images.new_tensor([[0.2989, 0.587, 0.114]] if channels == 3 else [[1.0 / channels] * channels])
    return (weights @ images.flatten(2)).view(count, 1, height, width)
