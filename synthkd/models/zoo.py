"""Small networks for small images: any height and width from 8 pixels on, any number of channels.

Every body is an `nn.Sequential` with named children. A child `stageN` ends in an activation and gives the N-th feature
map; `head` is the final linear layer. Initial weights are drawn from torch's global generator.

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

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from torch import nn

from synthkd.errors import ConfigError
from synthkd.models.architectures import convnet, lenet5, mlp, resnet, slim, vit, wide_resnet
from synthkd.models.classifier import Classifier
from synthkd.models.size import in_proportion
from synthkd.settings import ZooModel
from synthkd.system.environment import float32_by_default
from synthkd.types import ImageSpec

SMALLEST = 8
"""Smallest height and width of images, in pixels."""
GROUPS = 8
"""Largest number of groups of a GroupNorm."""

Factory = Callable[[ImageSpec, int, int], nn.Sequential]
"""Images, width and depth (0 where the architecture has none) -> body."""

ARCHITECTURES: Mapping[str, tuple[Factory, int, int | None]] = {
    "mlp": (mlp, 512, 2),
    "lenet5": (lenet5, 6, None),
    "convnet": (convnet, 32, None),
    "resnet": (resnet, 16, 20),
    "wide_resnet": (wide_resnet, 1, 16),
    "slim": (slim, 16, 2),
    "vit": (vit, 64, 4),
}
"""Name -> factory, default width, default depth (None: no depth to choose)."""


@float32_by_default()
def build(
    settings: ZooModel,
    spec: ImageSpec,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    class_names: Sequence[str] = (),
) -> Classifier:
    """A freshly initialised network of the zoo, in training mode, on the CPU.

    Args:
        settings: architecture, width, depth, norm, activation and shortcut.
        spec: images and number of classes.
        mean, std, class_names: see `Classifier`.

    Raises:
        ConfigError: images under 8 pixels, a depth that the architecture does not have, or a network that is too large.
        ModelError: mean, std or class_names do not fit the spec.
    """
    if min(spec.height, spec.width) < SMALLEST:
        raise ConfigError(
            f"the zoo needs images of at least {SMALLEST}x{SMALLEST} pixels, got {spec.height}x{spec.width}; "
            "enlarge them"
        )
    factory, default_width, default_depth = ARCHITECTURES[settings.arch]
    width = default_width if settings.width is None else settings.width
    depth = default_depth if settings.depth is None else settings.depth
    if default_depth is None and depth is not None:
        raise ConfigError(f"arch {settings.arch} has no depth to choose, got depth={depth}; leave depth out")
    keys = f"arch {settings.arch}, width={width}" + (f", depth={depth}" if depth else "")
    if settings.shortcut == "pad":
        factory = partial(resnet, padded=True)
    body = in_proportion(lambda: factory(spec, width, depth or 0), f"{keys} for {spec}")
    if settings.norm == "group":
        _replace(body, nn.BatchNorm2d, _group_norm)
    if settings.activation == "tanh":
        _replace(body, nn.ReLU, lambda _: nn.Tanh())
    # The recipe names the defaults, so that a saved model stays the same if they change.
    recipe = settings.model_copy(update={"width": width, "depth": depth}).model_dump(mode="json")
    return Classifier(body, spec, mean, std, recipe, class_names)


def _replace(module: nn.Module, kind: type[nn.Module], make: Callable[[nn.Module], nn.Module]) -> None:
    """Replace every module of a class, at any depth, by what `make` builds from it."""
    for name, child in module.named_children():
        if isinstance(child, kind):
            setattr(module, name, make(child))
        else:
            _replace(child, kind, make)


def _group_norm(norm: nn.Module) -> nn.GroupNorm:
    """A GroupNorm of at most `GROUPS` groups with the scale and shift of a BatchNorm."""
    assert isinstance(norm, nn.BatchNorm2d)
    # The largest number that divides the channels, since groups must be of one size.
    groups = next(g for g in range(min(GROUPS, norm.num_features), 0, -1) if norm.num_features % g == 0)
    group_norm = nn.GroupNorm(groups, norm.num_features)
    # The scale is copied, since that of the last norm of a residual branch starts at 0.
    group_norm.load_state_dict({"weight": norm.weight, "bias": norm.bias})
    return group_norm
