"""Generator and critic of the conditional GAN, and the losses of the critic."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from synthkd.errors import ConfigError
from synthkd.types import ImageSpec

LARGEST_START = 4
"""Largest side of the generator's first and the critic's last map, if the size of the images permits: the critic then
sees the whole of an image at once."""
MOST_CHANNELS = 8
"""Largest number of channels of a map, as a multiple of the width."""


def scales(spec: ImageSpec) -> int:
    """Number of halvings from an image to the smallest map: two, then more while a side is above 4 and both are even.

    Raises:
        ConfigError: the sides of the images are not multiples of 4, or the images have neither 1 nor 3 channels.
    """
    if spec.height % 4 or spec.width % 4 or spec.channels not in (1, 3):
        raise ConfigError(
            "the cgan makes images with 1 or 3 channels whose sides are multiples of 4, got "
            f"{spec.channels}x{spec.height}x{spec.width}; resize the images, or take a generator of another kind"
        )
    count = 2
    # `height | width` is a multiple of a power of two exactly if both sides are.
    while max(spec.height, spec.width) >> count > LARGEST_START and (spec.height | spec.width) % (2 << count) == 0:
        count += 1
    return count


def _channels(width: int, count: int) -> list[int]:
    """Numbers of channels after 0, 1, ... `count` halvings."""
    return [width * min(2**level, MOST_CHANNELS) for level in range(count + 1)]


class ConditionalNorm(nn.Module):
    """BatchNorm with a gain and a bias for each class (conditional BatchNorm: Dumoulin et al. 2017).

    In eval mode a map depends on its own input and label alone.

    Args:
        channels: of the input.
        classes: number of classes.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.gain = nn.Embedding(classes, channels)
        self.bias = nn.Embedding(classes, channels)
        # All classes start as plain BatchNorm; nn.Embedding's normal values would flip and scale channels at random.
        nn.init.ones_(self.gain.weight)
        nn.init.zeros_(self.bias.weight)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """Maps `[N, channels, H, W]` and labels int64 `[N]` to normalised maps of the same shape."""
        gain, bias = self.gain(labels)[:, :, None, None], self.bias(labels)[:, :, None, None]
        result: Tensor = torch.addcmul(bias, self.norm(x), gain)
        return result


class ConditionalGenerator(nn.Module):
    """Latent vectors and labels to images.

    A linear layer turns the vector and the label's embedding into a map at a quarter of the image's size or less (see
    `scales`). Each stage normalises the map by class and doubles its sides with a transposed convolution.

    Args:
        spec: of the images.
        latent: dimensions of a latent vector.
        embedding: dimensions of a label's embedding.
        width: channels of the last hidden layer.
        normalised: divide the weights of each convolution by their largest singular value, as in the critic.
    """

    def __init__(self, spec: ImageSpec, latent: int, embedding: int, width: int, normalised: bool = False) -> None:
        super().__init__()
        count = scales(spec)
        channels = _channels(width, count)[::-1]
        self.start = (channels[0], spec.height >> count, spec.width >> count)
        self.label = nn.Embedding(spec.classes, embedding)
        self.project = nn.Linear(latent + embedding, channels[0] * self.start[1] * self.start[2])
        self.norms = nn.ModuleList(ConditionalNorm(c, spec.classes) for c in channels)
        # A kernel of 4 is a multiple of the stride, so all inner pixels sum equally many products and show no
        # checkerboard (Odena et al. 2016). No bias, since the norm that follows would subtract it.
        self.doublings = nn.ModuleList(
            nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1, bias=False) for wide, narrow in pairwise(channels)
        )
        self.paint = nn.Conv2d(channels[-1], spec.channels, 3, padding=1)
        if normalised:
            _normalise(self)

    def forward(self, latent: Tensor, labels: Tensor) -> Tensor:
        """Latent vectors `[N, latent]` and labels int64 `[N]` to images float32 `[N, C, H, W]` in (0, 1)."""
        x = self.project(torch.cat([latent, self.label(labels)], dim=1)).unflatten(1, self.start)
        x = x.contiguous(memory_format=torch.channels_last)
        # Not strict: the last norm has no doubling after it but `paint`.
        for norm, double in zip(self.norms, self.doublings, strict=False):
            x = double(F.relu(norm(x, labels)))
        x = self.paint(F.relu(self.norms[-1](x, labels)))
        # In float32: neighbouring bfloat16 numbers just below 1 are 1/256 apart, a whole level of grey.
        return torch.sigmoid(x.float())


def _normalise(network: nn.Module) -> None:
    """Spectral normalisation of every convolution (Miyato et al. 2018)."""
    for module in list(network.modules()):
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            spectral_norm(module)


class Critic(nn.Module):
    """Images and labels to scores, which are higher for real images, and to logits of the class.

    `h` is the last map summed over positions. With the head `projection` the score is `w . h + v_y . h` (Miyato and
    Koyama 2018). With `auxiliary` it is `w . h`, and a second head predicts the class (Odena et al. 2017).

    Args:
        spec: of the images.
        width: channels of the first map; each halving doubles them.
        head: "projection" or "auxiliary".
        normalised: divide the weights of each convolution by their largest singular value (Miyato et al. 2018), with
            one power iteration for each pass in training mode. The article normalises the heads too; here a small
            critic with bounded heads did not reach the margin of the hinge loss, and the images of a class became few.
    """

    def __init__(self, spec: ImageSpec, width: int, head: str, normalised: bool) -> None:
        super().__init__()
        count = scales(spec)
        channels = [spec.channels, *_channels(width, count)]
        layers: list[nn.Module] = []
        for into, out in pairwise(channels[: count + 1]):
            layers += [nn.Conv2d(into, out, 4, stride=2, padding=1), nn.LeakyReLU(0.1)]
        layers += [nn.Conv2d(channels[count], channels[count + 1], 3, padding=1), nn.LeakyReLU(0.1)]
        self.layers = nn.Sequential(*layers)
        self.real = nn.Linear(channels[-1], 1)
        self.project = nn.Embedding(spec.classes, channels[-1]) if head == "projection" else None
        self.name = nn.Linear(channels[-1], spec.classes) if head == "auxiliary" else None
        if normalised:
            _normalise(self.layers)

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scores float32 `[N]` and the auxiliary head's logits float32 `[N, K]` (None without that head).

        Args:
            images: `[N, C, H, W]` in [0, 1].
            labels: int64 `[N]`.
        """
        x = (2.0 * images - 1.0).contiguous(memory_format=torch.channels_last)
        hidden = self.layers(x).float().sum((2, 3))
        # In float32: the hinge loss compares scores with 1, so their precision matters, and the heads are cheap.
        with torch.autocast(images.device.type, enabled=False):
            score = self.real(hidden).squeeze(1)
            if self.project is not None:
                score = score + (self.project(labels) * hidden).sum(1)
            return score, None if self.name is None else self.name(hidden)


def critic_hinge(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss `mean max(0, 1 - D(x)) + mean max(0, 1 + D(G(z)))` of scores `[N]` (Lim and Ye 2017), a scalar."""
    return F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean()


def gradient_penalty(score: Tensor, images: Tensor) -> Tensor:
    """R1: `1/2 mean |dD(x)/dx|^2` at real images (Mescheder et al. 2018, equation 9, without its weight), a scalar.

    Args:
        score: `[N]` of the real images.
        images: `[M, C, H, W]` with gradient, a batch that contains the real images; other images add nothing.
    """
    # The sum gives each image the gradient of its own score. `create_graph`, since the penalty is differentiated again.
    (slope,) = torch.autograd.grad(score.sum(), images, create_graph=True)
    return 0.5 * slope.square().sum() / len(score)
