"""The bodies of the zoo's networks; `synthkd.models.zoo` lists them with their defaults.

Every function takes the image spec, a width and a depth. It returns an initialised `nn.Sequential` of named children
that maps images `[N, C, H, W]` to logits `[N, K]`. A child `stageN` ends in an activation and gives the N-th feature
map; `head` is the final linear layer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from torch import nn

from synthkd.errors import ConfigError
from synthkd.models import blocks
from synthkd.types import ImageSpec


def mlp(spec: ImageSpec, width: int, depth: int) -> nn.Sequential:
    """Fully connected: one hidden layer of `width` units, further ones of `width // 2` (784-512-256-K at 28x28)."""
    layers: dict[str, nn.Module] = {"flatten": nn.Flatten()}
    features = spec.channels * spec.height * spec.width
    for i in range(depth):
        out = width if i == 0 else max(1, width // 2)
        layers[f"stage{i + 1}"] = nn.Sequential(nn.Linear(features, out), nn.ReLU())
        features = out
    return _finish(layers, features, spec.classes)


def lenet5(spec: ImageSpec, width: int, depth: int) -> nn.Sequential:  # noqa: ARG001
    """LeNet-5 with ReLU and max pooling: 6 and 16 maps, 120 and 84 units; at width 3 half of the maps (3 and 8).

    It has 61,706 parameters at 1x28x28 and 10 classes, with half of the maps 35,820.
    """
    maps = round(width * 8 / 3)  # in the proportion of 6 to 16
    # Below 12 pixels the second 5x5 convolution would leave nothing of the halved image, so there it is padded, too.
    pad = 2 if min(spec.height, spec.width) < 12 else 0
    area = ((spec.height // 2 - 4 + 2 * pad) // 2) * ((spec.width // 2 - 4 + 2 * pad) // 2)
    layers: dict[str, nn.Module] = {
        "stage1": nn.Sequential(nn.Conv2d(spec.channels, width, 5, padding=2), nn.ReLU()),
        "pool1": nn.MaxPool2d(2),
        "stage2": nn.Sequential(nn.Conv2d(width, maps, 5, padding=pad), nn.ReLU()),
        "pool2": nn.MaxPool2d(2),
        "flatten": nn.Flatten(),
        "hidden1": nn.Sequential(nn.Linear(maps * area, 120), nn.ReLU()),
        "hidden2": nn.Sequential(nn.Linear(120, 84), nn.ReLU()),
    }
    return _finish(layers, 84, spec.classes)


def convnet(spec: ImageSpec, width: int, depth: int) -> nn.Sequential:  # noqa: ARG001
    """Three 3x3 convolutions with BatchNorm, `width`, `2 width`, `4 width` maps; fast on a CPU.

    The network pads images with zeros to the next multiple of 8 (28 to 32), which makes every map's size even. At one
    channel and 10 classes width 32 has 98,026 parameters, width 16 has 25,978.
    """
    layers: dict[str, nn.Module] = {
        "pad": blocks.pad_to_multiple(spec, 8),
        "stage1": blocks.conv_block(spec.channels, width, stride=2),
        "stage2": blocks.conv_block(width, 2 * width),
        "pool": nn.MaxPool2d(2),
        "stage3": blocks.conv_block(2 * width, 4 * width),
        # To 2x2 and not to one value, so that a small network still knows in which quarter a feature was.
        "squeeze": nn.AdaptiveAvgPool2d(2),
        "flatten": nn.Flatten(),
    }
    return _finish(layers, 16 * width, spec.classes)


def resnet(spec: ImageSpec, width: int, depth: int, padded: bool = False) -> nn.Sequential:
    """ResNet for small images (He et al. 2015, section 4.2): `width`, x2, x4 maps.

    Shortcuts between stages are projections or, `padded`, without parameters (the paper's option A).

    The stages halve the image twice, so an 8x8 image ends at 2x2.

    Raises:
        ConfigError: the depth is not 6n + 2.
    """
    count = _blocks_per_stage("resnet", depth, 2)

    def stage(channels: int, out: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            blocks.Residual(channels, out, stride, padded), *(blocks.Residual(out, out, 1) for _ in range(count - 1))
        )

    return _three_stages(spec, blocks.conv_block(spec.channels, width), width, width, stage)


def wide_resnet(spec: ImageSpec, width: int, depth: int) -> nn.Sequential:
    """Pre-activation WideResNet (Zagoruyko and Komodakis 2016): 16, then `16 width`, x2, x4 maps.

    In the paper a stage begins with BatchNorm and ReLU. Here they end the stage before, and branch and shortcut share
    them, so that the output of each stage is an activation. The network is the same but for width 1, where the paper's
    first shortcut takes the stem before its activation.

    Raises:
        ConfigError: the depth is not 6n + 4.
    """
    count = _blocks_per_stage("wide_resnet", depth, 4)

    def stage(channels: int, out: int, stride: int) -> nn.Sequential:
        first = blocks.PreActivation(channels, out, stride, activated=True)
        further = [blocks.PreActivation(out, out, 1, activated=False) for _ in range(count - 1)]
        return nn.Sequential(first, *further, nn.BatchNorm2d(out), nn.ReLU())

    return _three_stages(spec, blocks.conv_block(spec.channels, 16), 16, 16 * width, stage)


def slim(spec: ImageSpec, width: int, depth: int) -> nn.Sequential:
    """Depthwise-separable network after MobileNet: a stem of `width` maps, then stages of x2, x4, x8 maps.

    The stem halves images of 16 pixels or more; the stages halve them twice more.
    """

    def stage(channels: int, out: int, stride: int) -> nn.Sequential:
        further = (blocks.separable_block(out, out, 1) for _ in range(depth - 1))
        return nn.Sequential(blocks.separable_block(channels, out, stride), *further)

    stem = blocks.conv_block(spec.channels, width, stride=2 if min(spec.height, spec.width) >= 16 else 1)
    return _three_stages(spec, stem, width, 2 * width, stage)


def vit(spec: ImageSpec, width: int, depth: int) -> nn.Sequential:
    """Vision transformer with mean pooling; each block is a stage, `[N, L, width]`.

    Patches are 4x4 for images of 16 pixels or more, else 2x2; the network pads images with zeros to whole patches.
    There is one head for 16 dimensions, or the next smaller number of heads that divides the width.
    """
    patch = 4 if min(spec.height, spec.width) >= 16 else 2
    heads = next(h for h in range(max(1, width // 16), 0, -1) if width % h == 0)
    tokens = -(-spec.height // patch) * -(-spec.width // patch)
    layers: dict[str, nn.Module] = {
        "pad": blocks.pad_to_multiple(spec, patch),
        "tokens": blocks.Patches(spec.channels, width, patch, tokens),
        **{f"stage{i + 1}": blocks.TransformerBlock(width, heads) for i in range(depth)},
        "norm": nn.LayerNorm(width),
        "squeeze": blocks.MeanOverTokens(),
    }
    body = _finish(layers, width, spec.classes)
    # Smaller than He's initialisation, which would add as much in every block as comes in: sums would grow with depth.
    for module in body.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
    return body


def _three_stages(
    spec: ImageSpec, stem: nn.Module, channels: int, width: int, stage: Callable[[int, int, int], nn.Sequential]
) -> nn.Sequential:
    """A stem of `channels` maps and stages of `width`, x2, x4 maps, of which the second and third halve the image.

    `stage` builds one from channels, output channels and stride.
    """
    layers: dict[str, nn.Module] = {"stem": stem}
    for i in range(3):
        out = width * 2**i
        layers[f"stage{i + 1}"] = stage(channels, out, 1 if i == 0 else 2)
        channels = out
    layers |= {"squeeze": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
    return _finish(layers, channels, spec.classes)


def _blocks_per_stage(arch: str, depth: int, offset: int) -> int:
    """The n of a depth of `6 n + offset` layers."""
    if depth < 6 + offset or (depth - offset) % 6:
        below = max(1, (depth - offset) // 6)
        raise ConfigError(
            f"arch {arch} has depths of 6n + {offset} layers, got depth={depth}; "
            f"take {6 * below + offset} or {6 * (below + 1) + offset}"
        )
    return (depth - offset) // 6


def _finish(layers: dict[str, nn.Module], features: int, classes: int) -> nn.Sequential:
    """The layers, initialised He-normal with biases at 0, and the head with torch's own initialisation."""
    body = nn.Sequential(OrderedDict(layers))
    for module in body.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            # By fan-in: torch's fan-out ignores the groups, so for depthwise convolutions it is far too large.
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    body.add_module("head", nn.Linear(features, classes))
    return body
