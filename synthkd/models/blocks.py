"""Layers and blocks of the zoo's networks. Shapes: maps `[N, C, H, W]`, tokens `[N, L, D]`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthkd.types import ImageSpec


class PaddedShortcut(nn.Module):
    """Every `stride`-th pixel, and maps of zeros before and after (He et al. 2015, option A): no parameters.

    Args:
        channels: channels of the input.
        out: channels of the output, at least as many.
        stride: in pixels.
    """

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (out - channels) // 2
        self.after = out - channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[N, out, H / stride, W / stride]`."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class Residual(nn.Module):
    """Two 3x3 convolutions with BatchNorm and a shortcut (He et al. 2015).

    Args:
        channels: channels of the input.
        out: channels of the output.
        stride: stride of the first convolution and of the shortcut.
        padded: whether a shortcut between maps of different sizes has no parameters; else it is a projection.
    """

    def __init__(self, channels: int, out: int, stride: int, padded: bool = False) -> None:
        super().__init__()
        # The branch starts at 0, so a block starts as its shortcut and a deep network as a shallow one.
        last = nn.BatchNorm2d(out)
        nn.init.zeros_(last.weight)
        self.branch = nn.Sequential(
            *conv_block(channels, out, stride), nn.Conv2d(out, out, 3, padding=1, bias=False), last
        )
        self.shortcut: nn.Module
        if stride == 1 and channels == out:
            self.shortcut = nn.Identity()
        elif padded:
            self.shortcut = PaddedShortcut(channels, out, stride)
        else:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[N, out, H / stride, W / stride]`, after the activation."""
        y: Tensor = self.relu(self.branch(x) + self.shortcut(x))
        return y


class PreActivation(nn.Module):
    """Pre-activation residual block of a WideResNet (Zagoruyko and Komodakis 2016).

    Args:
        channels: channels of the input.
        out: channels of the output.
        stride: stride of the first convolution and of the shortcut.
        activated: whether the input already went through BatchNorm and ReLU.
    """

    def __init__(self, channels: int, out: int, stride: int, activated: bool) -> None:
        super().__init__()
        before: list[nn.Module] = [] if activated else [nn.BatchNorm2d(channels), nn.ReLU()]
        self.branch = nn.Sequential(
            *before, *conv_block(channels, out, stride), nn.Conv2d(out, out, 3, padding=1, bias=False)
        )
        self.shortcut = (
            nn.Identity() if stride == 1 and channels == out else nn.Conv2d(channels, out, 1, stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[N, out, H / stride, W / stride]`, before any activation."""
        y: Tensor = self.branch(x) + self.shortcut(x)
        return y


class Patches(nn.Module):
    """Patches of an image as tokens `[N, L, width]` with a learned embedding of their positions.

    Args:
        channels: channels of the image.
        width: token dimension.
        patch: side of a patch in pixels; it must divide height and width.
        tokens: L, number of patches.
    """

    def __init__(self, channels: int, width: int, patch: int, tokens: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(channels, width, patch, patch)
        # Without it the tokens would be a set, since attention does not know their order.
        self.position = nn.Parameter(nn.init.trunc_normal_(torch.empty(tokens, width), std=0.02))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens `[N, L, width]` of images `[N, C, H, W]`."""
        y: Tensor = self.project(x).flatten(2).transpose(1, 2) + self.position
        return y


class TransformerBlock(nn.Module):
    """Pre-norm transformer block with a hidden layer of twice the width.

    Args:
        width: token dimension.
        heads: number of attention heads; must divide the width.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens `[N, L, width]` to tokens of the same shape."""
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, dim=-1))
        x = x + self.project(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


class MeanOverTokens(nn.Module):
    """Tokens `[N, L, D]` to their mean `[N, D]`."""

    def forward(self, x: Tensor) -> Tensor:
        """The mean `[N, D]`."""
        return x.mean(dim=1)


def conv_block(channels: int, out: int, stride: int = 1) -> nn.Sequential:
    """A 3x3 convolution, BatchNorm and ReLU."""
    # No bias, here and below: BatchNorm would subtract it.
    return nn.Sequential(nn.Conv2d(channels, out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU())


def separable_block(channels: int, out: int, stride: int) -> nn.Sequential:
    """A depthwise 3x3 and a pointwise convolution, each with BatchNorm and ReLU (MobileNet, Howard et al. 2017)."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, out, 1, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU(),
    )


def pad_to_multiple(spec: ImageSpec, multiple: int) -> nn.Module:
    """Zero padding of images to the next multiple of `multiple` pixels in height and width."""
    height, width = -spec.height % multiple, -spec.width % multiple
    return nn.ZeroPad2d((width // 2, width - width // 2, height // 2, height - height // 2))
