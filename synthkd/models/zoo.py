"""Small networks for small images: any height and width from 8 pixels on, any number of channels.

Every body is an `nn.Sequential` with named children. A child `stageN` ends in an activation and gives the N-th feature
map; `head` is the final linear layer. Convolutions and hidden layers start He-normal, the last BatchNorm of a residual
branch at zero (every block starts as the identity). Weights are drawn from torch's global generator.

| arch        | width (default)                        | depth (default)                                      |
|-------------|----------------------------------------|------------------------------------------------------|
| mlp         | first hidden layer (512), later half   | hidden layers (2)                                    |
| lenet5      | maps of the first convolution (6)      | -                                                    |
| convnet     | maps of the first convolution (32)     | -                                                    |
| resnet      | maps of the first stage (16)           | 6n + 2 layers: 8, 14, 20 ... (20)                    |
| wide_resnet | widening factor of 16-32-64 maps (1)   | 6n + 4 layers: 10, 16, 22, 28 ... (16)               |
| slim        | maps of the stem (16)                  | depthwise-separable blocks in each of 3 stages (2)   |
| vit         | token dimension (64)                   | blocks (4)                                           |
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthkd.errors import ConfigError
from synthkd.models.classifier import Classifier
from synthkd.models.size import in_proportion
from synthkd.settings import ZooModel
from synthkd.types import ImageSpec

SMALLEST = 8
GROUPS = 8
"""Of a GroupNorm, at most."""


def build(
    settings: ZooModel,
    spec: ImageSpec,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    class_names: Sequence[str] = (),
) -> Classifier:
    """A freshly initialised network of the zoo.

    Raises:
        ConfigError: images under 8 pixels, a depth that the architecture does not have, or a network out of proportion.
    """
    if min(spec.height, spec.width) < SMALLEST:
        raise ConfigError(
            f"the zoo needs images of at least {SMALLEST}x{SMALLEST} pixels, got {spec.height}x{spec.width}; "
            "enlarge them"
        )
    make, default_width, default_depth = _ARCHITECTURES[settings.arch]
    width = default_width if settings.width is None else settings.width
    depth = default_depth if settings.depth is None else settings.depth
    if default_depth is None and depth is not None:
        raise ConfigError(f"arch {settings.arch} has no depth to choose, got depth={depth}; leave depth out")
    told = f"arch {settings.arch}, width={width}" + (f", depth={depth}" if depth else "")
    body = in_proportion(lambda: make(spec, width, depth or 0), f"{told} for {spec}")
    if settings.norm == "group":
        _group_norms(body)
    if settings.activation == "tanh":
        _tanh(body)
    recipe = settings.model_copy(update={"width": width, "depth": depth}).model_dump(mode="json")
    return Classifier(body, spec, mean, std, recipe, class_names)


def mlp(spec: ImageSpec, width: int, depth: int) -> nn.Sequential:
    """Fully connected: flatten, `width`, then `width // 2` for every further hidden layer, K (784-512-256-K)."""
    layers: dict[str, nn.Module] = {"flatten": nn.Flatten()}
    features = spec.channels * spec.height * spec.width
    for i in range(depth):
        out = width if i == 0 else max(1, width // 2)
        layers[f"stage{i + 1}"] = nn.Sequential(nn.Linear(features, out), nn.ReLU())
        features = out
    return _finish(layers, features, spec.classes)


def lenet5(spec: ImageSpec, width: int, depth: int) -> nn.Sequential:  # noqa: ARG001
    """LeNet-5 with ReLU and max pooling: 6 and 16 maps, 120, 84; width 3 is its half (3 and 8 maps).

    61,706 parameters at 1x28x28 and 10 classes, the half 35,820. Images under 12 pixels would leave nothing of the
    second 5x5 convolution, so there it is padded as well.
    """
    maps = round(width * 8 / 3)
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
    """Three 3x3 convolutions with BatchNorm, `width`, `2 width`, `4 width` maps; quick on a CPU.

    Images are zero-padded inside to the next multiple of 8 (28 to 32), which makes every map's size even. At one
    channel and 10 classes width 32 has 98,026 parameters, width 16 has 25,978.
    """
    layers: dict[str, nn.Module] = {
        "pad": _pad_to_multiple(spec, 8),
        "stage1": _conv_block(spec.channels, width, stride=2),
        "stage2": _conv_block(width, 2 * width),
        "pool": nn.MaxPool2d(2),
        "stage3": _conv_block(2 * width, 4 * width),
        "squeeze": nn.AdaptiveAvgPool2d(2),
        "flatten": nn.Flatten(),
    }
    return _finish(layers, 16 * width, spec.classes)


def resnet(spec: ImageSpec, width: int, depth: int) -> nn.Sequential:
    """ResNet for small images (He et al. 2015, section 4.2), with projection shortcuts: `width`, x2, x4 maps.

    The stages halve the image twice, so an 8x8 image ends at 2x2.
    """
    blocks = _blocks_per_stage("resnet", depth, 2)
    layers: dict[str, nn.Module] = {"stem": _conv_block(spec.channels, width)}
    channels = width
    for i in range(3):
        out = width * 2**i
        stage: list[nn.Module] = [_Residual(channels, out, 1 if i == 0 else 2)]
        stage += [_Residual(out, out, 1) for _ in range(blocks - 1)]
        layers[f"stage{i + 1}"] = nn.Sequential(*stage)
        channels = out
    layers |= {"squeeze": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
    return _finish(layers, channels, spec.classes)


def wide_resnet(spec: ImageSpec, width: int, depth: int) -> nn.Sequential:
    """Pre-activation WideResNet (Zagoruyko & Komodakis 2016): 16, then `16 width`, x2, x4 maps.

    The BatchNorm and ReLU with which a stage of the paper begins stand at the end of the one before, where they serve
    the branch and the shortcut alike: the same network, and each stage's output is an activation. Only for width 1 it
    differs: there the paper's first shortcut takes the stem before its activation.
    """
    blocks = _blocks_per_stage("wide_resnet", depth, 4)
    layers: dict[str, nn.Module] = {"stem": _conv_block(spec.channels, 16)}
    channels = 16
    for i in range(3):
        out = 16 * width * 2**i
        stage: list[nn.Module] = [_PreActivation(channels, out, 1 if i == 0 else 2, activated=True)]
        stage += [_PreActivation(out, out, 1, activated=False) for _ in range(blocks - 1)]
        layers[f"stage{i + 1}"] = nn.Sequential(*stage, nn.BatchNorm2d(out), nn.ReLU())
        channels = out
    layers |= {"squeeze": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
    return _finish(layers, channels, spec.classes)


def slim(spec: ImageSpec, width: int, depth: int) -> nn.Sequential:
    """Depthwise-separable network after MobileNet: a stem of `width` maps, then stages of x2, x4, x8 maps.

    From 16 pixels on the stem halves the image; the stages halve it twice more.
    """
    layers: dict[str, nn.Module] = {
        "stem": _conv_block(spec.channels, width, stride=2 if min(spec.height, spec.width) >= 16 else 1)
    }
    channels = width
    for i in range(3):
        out = width * 2 ** (i + 1)
        stage = [_separable(channels, out, 1 if i == 0 else 2)]
        stage += [_separable(out, out, 1) for _ in range(depth - 1)]
        layers[f"stage{i + 1}"] = nn.Sequential(*stage)
        channels = out
    layers |= {"squeeze": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
    return _finish(layers, channels, spec.classes)


def vit(spec: ImageSpec, width: int, depth: int) -> nn.Sequential:
    """Vision transformer with mean pooling; each block is a stage, `[N, L, width]`.

    Patches are 4x4 from 16 pixels on, else 2x2 (images are zero-padded inside to whole patches); one head per 16
    dimensions, or the next smaller number that divides the width.
    """
    patch = 4 if min(spec.height, spec.width) >= 16 else 2
    heads = next(h for h in range(max(1, width // 16), 0, -1) if width % h == 0)
    tokens = -(-spec.height // patch) * -(-spec.width // patch)
    layers: dict[str, nn.Module] = {
        "pad": _pad_to_multiple(spec, patch),
        "tokens": _Patches(spec.channels, width, patch, tokens),
    }
    for i in range(depth):
        layers[f"stage{i + 1}"] = _TransformerBlock(width, heads)
    layers |= {"norm": nn.LayerNorm(width), "squeeze": _MeanOverTokens()}
    body = _finish(layers, width, spec.classes)
    for module in body.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
    return body


_Factory = Callable[[ImageSpec, int, int], nn.Sequential]

_ARCHITECTURES: dict[str, tuple[_Factory, int, int | None]] = {
    "mlp": (mlp, 512, 2),
    "lenet5": (lenet5, 6, None),
    "convnet": (convnet, 32, None),
    "resnet": (resnet, 16, 20),
    "wide_resnet": (wide_resnet, 1, 16),
    "slim": (slim, 16, 2),
    "vit": (vit, 64, 4),
}


class _Residual(nn.Module):
    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(channels, out, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(),
            nn.Conv2d(out, out, 3, padding=1, bias=False),
            _zeroed(nn.BatchNorm2d(out)),
        )
        self.shortcut = (
            nn.Identity()
            if stride == 1 and channels == out
            else nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        )
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.relu(self.branch(x) + self.shortcut(x))
        return y


class _PreActivation(nn.Module):
    def __init__(self, channels: int, out: int, stride: int, activated: bool) -> None:
        super().__init__()
        before: list[nn.Module] = [] if activated else [nn.BatchNorm2d(channels), nn.ReLU()]
        self.branch = nn.Sequential(
            *before,
            nn.Conv2d(channels, out, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(),
            nn.Conv2d(out, out, 3, padding=1, bias=False),
        )
        self.shortcut = (
            nn.Identity() if stride == 1 and channels == out else nn.Conv2d(channels, out, 1, stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.branch(x) + self.shortcut(x)
        return y


class _Patches(nn.Module):
    def __init__(self, channels: int, width: int, patch: int, tokens: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(channels, width, patch, patch)
        self.position = nn.Parameter(nn.init.trunc_normal_(torch.empty(tokens, width), std=0.02))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(x).flatten(2).transpose(1, 2) + self.position
        return y


class _TransformerBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, dim=-1))
        x = x + self.project(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


class _MeanOverTokens(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=1)


def _conv_block(channels: int, out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU())


def _separable(channels: int, out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, out, 1, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU(),
    )


def _zeroed(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    nn.init.zeros_(norm.weight)
    return norm


def _tanh(module: nn.Module) -> None:
    """A tanh in the place of every ReLU inside."""
    for name, child in module.named_children():
        if isinstance(child, nn.ReLU):
            setattr(module, name, nn.Tanh())
        else:
            _tanh(child)


def _group_norms(module: nn.Module) -> None:
    """Put a GroupNorm of at most `GROUPS` groups in the place of every BatchNorm, with its scale."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            groups = next(g for g in range(min(GROUPS, child.num_features), 0, -1) if child.num_features % g == 0)
            norm = nn.GroupNorm(groups, child.num_features)
            norm.load_state_dict({"weight": child.weight, "bias": child.bias})
            setattr(module, name, norm)
        else:
            _group_norms(child)


def _pad_to_multiple(spec: ImageSpec, multiple: int) -> nn.Module:
    height, width = -spec.height % multiple, -spec.width % multiple
    return nn.ZeroPad2d((width // 2, width - width // 2, height // 2, height - height // 2))


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
    """Add the head, initialise."""
    body = nn.Sequential(OrderedDict(layers))
    for module in body.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            # By fan-in: for depthwise convolutions torch's fan-out ignores the groups and is far too large.
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    body.add_module("head", nn.Linear(features, classes))
    return body
