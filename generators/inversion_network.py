"""The network of the data-free generator: latent vectors to images of any size."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthkd.models.classifier import Normalize
from synthkd.models.contract import finite_logits
from synthkd.models.size import in_proportion
from synthkd.rng import derive
from synthkd.taps import evaluating, frozen
from synthkd.types import ImageSpec

BETAS = (0.5, 0.999)
"""Of every Adam optimiser of the data-free generators; the momentum of DCGAN (Radford et al. 2016)."""
SAMPLE_STEPS = 10
"""Optimiser steps on a latent vector of a sample."""
SAMPLE_RATE = 0.1
"""Learning rate of these steps, where latent vectors have unit variance."""
LARGEST_START = 8
"""Largest side of the network's first map, whatever the size of the images. From a larger one the linear layer would
draw each part of an image by itself, and have most of the network's parameters."""
MOST_CHANNELS = 8
"""Largest number of channels of a map, as a multiple of the width."""
USUAL = (0.5, 0.25)
"""Mean and deviation that pixels in [0, 1] have, about."""
TAP_SUMS = ((0.0, 0.0, 1.0), (0.0, 1.0, 1.0), (1.0, 1.0, 0.0), (1.0, 0.0, 0.0))
"""Of a row of three weights, the sums that are the four weights of the transposed convolution."""

Network = TypeVar("Network", bound=nn.Module)


def initialised(make: Callable[[], Network], sizes: str, seed: int, device: torch.device, step: int = 0) -> Network:
    """A network whose initial weights are a function of seed and step; torch's global generator stays as it was.

    Args:
        make: builds the network.
        sizes: the settings of its size, for the error.
        seed: the run's seed.
        device: of the network.
        step: number of the network, where a run has several.

    Raises:
        ConfigError: the network is too large.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "generator/init", step))
        network = in_proportion(make, f"generator, {sizes}")
    return network.to(device).to(memory_format=torch.channels_last)


class DoublingConv2d(nn.Conv2d):
    """Nearest upsampling by two and a 3x3 convolution padded by one, as one transposed 4x4 convolution of stride two.

    A pixel of the doubled map has at most four different neighbours in the map before, so two of every three weights
    meet the same pixel, and their sum can. The borders are the same, too: what lies outside is 0 in both forms. The
    weight is that of the 3x3 convolution.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[N, C, H, W]` to `[N, out, 2 H, 2 W]`."""
        if x.device.type != "cpu":
            return super().forward(F.interpolate(x, scale_factor=2))
        sums = self.weight.new_tensor(TAP_SUMS)
        kernel = sums @ self.weight.transpose(0, 1) @ sums.T
        return F.conv_transpose2d(x, kernel, self.bias, stride=2, padding=1)


def image_moments(normalize: Normalize) -> tuple[Tensor, Tensor]:
    """Mean and deviation of a teacher's images, float32 `[C, 1, 1]` each: those it normalises by, or `USUAL`.

    `USUAL` takes the place of values that only change the range of pixels, as to [-1, 1] or to 0 to 255.
    """
    mean, std = normalize.mean, normalize.std
    if normalize.is_of_images:
        return mean, std
    return torch.full_like(mean, USUAL[0]), torch.full_like(std, USUAL[1])


class Normalised(nn.Module):
    """Maps to images of the teacher's mean and deviation: Tanh, and BatchNorm without parameters.

    In training mode every batch has the teacher's mean and deviation in each channel, so that images cannot all become
    one grey, as they can behind a sigmoid. What leaves [0, 1] is cut off.

    Args:
        mean: float32 `[C, 1, 1]`, see `image_moments`.
        std: likewise.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(mean.numel(), affine=False)
        self.register_buffer("mean", mean.detach().clone())
        self.register_buffer("std", std.detach().clone())

    def forward(self, maps: Tensor) -> Tensor:
        """Maps `[N, C, H, W]` to images in [0, 1]."""
        images: Tensor = self.norm(maps.tanh()) * self.std + self.mean
        return images.clamp(0.0, 1.0)


class GeneratorNetwork(nn.Module):
    """Latent vectors to images.

    A linear layer gives a map of at most 8 pixels a side. Each stage is nearest upsampling, a 3x3 convolution,
    BatchNorm and a leaky ReLU. The last two stages double a map at a quarter of the image's size, and images whose
    sides are not multiples of 4 are cropped from the next multiple. The stages before them lead to that map; each
    doubles the sides that are not there yet, where necessary less a pixel.

    Args:
        spec: of the images.
        latent: dimensions of a latent vector.
        width: channels of the last hidden layer.
        output: last layer, which makes images of maps; None: a sigmoid.
    """

    def __init__(self, spec: ImageSpec, latent: int, width: int, output: nn.Module | None = None) -> None:
        super().__init__()
        self.spec = spec
        *smaller, quarter = _maps(spec, width)
        double = _Map(2 * width, 2 * quarter.height, 2 * quarter.width)
        whole = _Map(width, 4 * quarter.height, 4 * quarter.width)
        maps = (*smaller, quarter, double, whole)
        self.start = (maps[0].channels, maps[0].height, maps[0].width)
        self.project = nn.Linear(latent, math.prod(self.start))
        layers: list[nn.Module] = [nn.BatchNorm2d(maps[0].channels)]
        for into, out in pairwise(maps):
            doubled = (out.height, out.width) == (2 * into.height, 2 * into.width)
            layers += [
                nn.Identity() if doubled else nn.Upsample((out.height, out.width)),
                (DoublingConv2d if doubled else nn.Conv2d)(into.channels, out.channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(out.channels),
                nn.LeakyReLU(0.2, inplace=True),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, spec.channels, 3, padding=1), output or nn.Sigmoid())

    def forward(self, latent: Tensor) -> Tensor:
        """Latent vectors float32 `[N, latent]` to images `[N, C, H, W]` in [0, 1]."""
        hidden = self.project(latent).unflatten(1, self.start)
        images: Tensor = self.layers(hidden.contiguous(memory_format=torch.channels_last))
        return images[..., : self.spec.height, : self.spec.width]


def latent_network(
    spec: ImageSpec,
    latent: int,
    width: int,
    seed: int,
    device: torch.device,
    step: int = 0,
    output: nn.Module | None = None,
) -> GeneratorNetwork:
    """A new `GeneratorNetwork`; see `initialised` for seed, device and step, and for what is raised."""
    make = functools.partial(GeneratorNetwork, spec, latent, width, output)
    return initialised(make, f"latent={latent}, width={width} for {spec}", seed, device, step)


@torch.enable_grad()
def images_of_labels(
    network: GeneratorNetwork,
    teacher: nn.Module,
    labels: Tensor,
    latent: Tensor,
    rate: float,
    autocast: Callable[[], AbstractContextManager[object]],
) -> Tensor:
    """Images of the network at latent vectors that are optimised for the teacher to predict the labels.

    The network is in eval mode and the loss is a sum over images, so each image is a function of its label and latent
    vector alone (up to the rounding of batched kernels).

    Args:
        network: trained; unchanged.
        teacher: frozen; unchanged.
        labels: int64 `[N]`.
        latent: float32 `[N, latent]`, where the optimisation starts.
        rate: learning rate of its `SAMPLE_STEPS` steps.
        autocast: context manager that sets the precision.

    Returns:
        float32 `[N, C, H, W]` in [0, 1].

    Raises:
        ModelError: the teacher's logits are not finite.
    """
    latent = latent.requires_grad_()
    # Adam scales each coordinate by itself, so images do not affect each other.
    optimizer = torch.optim.Adam([latent], rate, BETAS)
    with evaluating(network, teacher), frozen(network, teacher):
        for _ in range(SAMPLE_STEPS):
            with autocast():
                logits = finite_logits(teacher(network(latent)))
            optimizer.zero_grad(set_to_none=True)
            # A sum: in a mean the gradient of an image would be divided by the size of its batch.
            F.cross_entropy(logits.float(), labels, reduction="sum").backward()
            optimizer.step()
        images: Tensor = network(latent.detach())
    return images.detach().float().contiguous()


@dataclass(frozen=True)
class _Map:
    """Sizes of the maps between two stages of the network."""

    channels: int
    height: int
    width: int


def _maps(spec: ImageSpec, width: int) -> list[_Map]:
    """Sizes of the maps from the start to a quarter of the image's size, which is rounded up.

    A side is halved, rounded up, while it is above `LARGEST_START`; the channels double with every halving of a map.
    """
    maps = [_Map(2 * width, -(-spec.height // 4), -(-spec.width // 4))]
    while max(maps[0].height, maps[0].width) > LARGEST_START:
        height, wide = (-(-side // 2) if side > LARGEST_START else side for side in (maps[0].height, maps[0].width))
        maps.insert(0, _Map(min(2 * maps[0].channels, MOST_CHANNELS * width), height, wide))
    return maps
