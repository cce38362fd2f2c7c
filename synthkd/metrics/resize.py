"""Resize stored images to the size and channels of a feature network, as float32 in `[0, 1]`.

Scores depend on the filter (Parmar et al. 2022, "On Aliased Resizing"), so a score always comes with its mode:

| mode      | filter                                                      | as in                                      |
|-----------|-------------------------------------------------------------|--------------------------------------------|
| antialias | bilinear, widened when shrinking; no rounding, no overshoot | torchmetrics since 1.8                     |
| clean     | Pillow's bicubic in float, clipped to [0, 1]                | clean-fid                                  |
| tf1       | bilinear of TensorFlow 1: two pixels a side, corner at 0    | torch-fidelity, the first FID's code       |
| pil       | Pillow's bilinear on 8 bits, rounded                        | scripts that resize files first            |
| none      | none; images must have the network's size                   |                                            |
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from synthkd.errors import DataError
from synthkd.settings import ResizeMode
from synthkd.types import alike_in_channels, to_float


def resize(images: Tensor, shape: tuple[int, int, int], mode: ResizeMode) -> Tensor:
    """Images in the shape that a network takes. The aspect ratio may change; images of that size are not resampled.

    Args:
        images: uint8 `[N, C, H, W]`.
        shape: channels, height and width of the result. Grey images are repeated for a network with more channels,
            and grey images that are saved as RGB are grey for a network with one.
        mode: see the table above.

    Returns:
        float32 `[N, *shape]` on the images' device, in `[0, 1]`.

    Raises:
        DataError: not uint8 `[N, C, H, W]`; a number of channels that is neither 1 nor the network's; another size with
            mode `none`.
    """
    channels, height, width = shape
    if images.dim() != 4 or images.dtype != torch.uint8:
        raise DataError(
            f"images must be uint8 [N, C, H, W], got {images.dtype} {list(images.shape)}; turn floats in [0, 1] into "
            "uint8 with synthkd.types.to_uint8"
        )
    if images.shape[1] not in (1, channels):
        images = alike_in_channels(images, channels)
    if images.shape[1] not in (1, channels):
        raise DataError(
            f"the feature network takes {channels} channels, the images have {images.shape[1]}; set `channels` of the "
            f"set to {channels} (a set with keys is written {{path: ..., channels: {channels}}})"
        )
    result = to_float(images) if images.shape[2:] == (height, width) else _resample(images, (height, width), mode)
    return result.expand(-1, channels, -1, -1)  # a view: grey images are not copied


def _resample(images: Tensor, size: tuple[int, int], mode: ResizeMode) -> Tensor:
    match mode:
        case "antialias":
            return F.interpolate(to_float(images), size, mode="bilinear", antialias=True)
        case "clean":
            return _by_pillow(images, size, np.float32, Image.Resampling.BICUBIC).clamp_(0.0, 1.0)  # it overshoots
        case "tf1":
            rows = _between(images.to(torch.float32), 2, size[0])
            return _between(rows, 3, size[1]).mul_(1.0 / 255.0)
        case "pil":
            return _by_pillow(images, size, np.uint8, Image.Resampling.BILINEAR)
        case "none":
            raise DataError(
                f"the feature network takes images of {size[0]}x{size[1]}, got {images.shape[2]}x{images.shape[3]}; "
                "give images of that size, or set the extractor's resize to antialias"
            )


def _between(values: Tensor, dim: int, count: int) -> Tensor:
    """`count` values along a dimension: value i interpolates linearly at position `i * before / count`."""
    before = values.shape[dim]
    # In float32, as in TensorFlow: rounding decides on which side of a whole number a position falls.
    positions = torch.arange(count, dtype=torch.float32, device=values.device) * torch.tensor(before / count)
    low = positions.long()
    high = (low + 1).clamp_max(before - 1)
    weight = (positions - low).view([-1 if d == dim else 1 for d in range(4)])
    first = values.index_select(dim, low)
    return first + (values.index_select(dim, high) - first) * weight


def _by_pillow(images: Tensor, size: tuple[int, int], dtype: type[np.generic], method: Image.Resampling) -> Tensor:
    # Pillow has no float colour images, so each channel is resized alone. For 8 bits the result equals that of RGB.
    planes = images.flatten(0, 1).cpu().numpy().astype(dtype)
    resized = np.stack([np.asarray(Image.fromarray(plane).resize(size[::-1], method)) for plane in planes])
    result = torch.from_numpy(resized).to(images.device, torch.float32).mul_(1.0 / 255.0)
    return result.view(*images.shape[:2], *size)
