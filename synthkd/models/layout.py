"""Where a classifier's features are: its stages and its head, as module paths for `synthkd.taps`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from synthkd.errors import ModelError
from synthkd.models.classifier import Classifier
from synthkd.taps import evaluating, observe

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Layers of which the last one may give the logits."""
MOST_BLOCKS = 4
"""Largest number of blocks of a transformer that are taken as its stages."""


@dataclass(frozen=True)
class _Run:
    """One run of a module in the traced pass.

    Attributes:
        path: module path.
        pools: whether the module is a pooling.
        before: shape of the input.
        after: shape of the output.
        output: the output itself.
        version: number of changes in place of the output when the module finished.
    """

    path: str
    pools: bool
    before: tuple[int, ...]
    after: tuple[int, ...]
    output: Tensor
    version: int

    @property
    def area(self) -> int:
        return self.after[2] * self.after[3]


def head(model: Classifier) -> str:
    """Path of the final linear layer; `head(model) + ":input"` are the penultimate features.

    For a model from elsewhere it is the last `nn.Linear` with one output per class. Without one it is the last layer if
    that is a 1x1 convolution with one channel per class (SqueezeNet, BiT), whose input is maps `[N, C, H, W]`. Else it
    is the last `nn.Linear`.

    Raises:
        ModelError: the model has no such layer.
    """
    if model.recipe.get("kind") == "zoo":
        return "body.head"
    layers, classes = dict(model.named_modules()), model.spec.classes
    linear = {path: layer.out_features for path, layer in layers.items() if isinstance(layer, nn.Linear)}
    fitting = [path for path, out in linear.items() if out == classes]
    weighted = [path for path, layer in layers.items() if isinstance(layer, LAYERS)]
    convolutional = [path for path in weighted[-1:] if _classifies(layers[path], classes)]
    candidates: list[str] = fitting or convolutional or list(linear)
    if candidates:
        return candidates[-1]
    raise ModelError(
        "the model has no linear layer and so no penultimate features; end it in an nn.Linear, or in an nn.Conv2d of "
        "1x1 with one channel for each class"
    )


def _classifies(layer: nn.Module, classes: int) -> bool:
    """Whether a layer may be the last one of a classifier without `nn.Linear`."""
    if not isinstance(layer, nn.Conv2d):
        return False
    return set(layer.kernel_size) == {1} and layer.groups == 1 and layer.out_channels == classes


def stages(model: Classifier) -> tuple[str, ...]:
    """Paths of the modules whose outputs are the stage features, first to last.

    For the zoo: every `stageN`, maps `[N, C, H, W]` (mlp `[N, D]`, vit `[N, L, D]`). A model from elsewhere is run on
    one image: a stage is the last map of each spatial size before the global pooling. If there are fewer than two such
    maps (in a transformer), stages are up to four evenly spaced blocks of the longest sequence of equal blocks. The
    result is empty if there is neither.
    """
    if model.recipe.get("kind") == "zoo":
        return tuple(f"body.{name}" for name, _ in model.body.named_children() if name.startswith("stage"))
    runs = _trace(model)
    maps = [run for run in runs if len(run.after) == 4]
    # Blocks first where there are too few maps: a transformer may give maps in its patch embedding.
    paths = _last_of_each_size(_without_partial_results(model, maps))
    return paths if len(paths) > 1 else _blocks(model, runs) or _last_of_each_size(maps)


def _trace(model: Classifier) -> list[_Run]:
    """The runs of all modules of the body for an image of zeros, in the order in which they finish."""
    runs: list[_Run] = []

    def watch(path: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        pools = "pool" in type(module).__name__.lower()

        def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
                runs.append(_Run(path, pools, tuple(args[0].shape), tuple(output.shape), output, output._version))

        return module.register_forward_hook(hook)

    with ExitStack() as hooks, evaluating(model), torch.no_grad():
        for path, module in model.named_modules():
            if path.startswith("body."):
                hooks.callback(watch(path, module).remove)
        model(torch.zeros((1, *model.spec.shape), device=model.normalize.mean.device))
    # An output that a later layer overwrites in place (of a BatchNorm before an in-place ReLU) cannot be tapped.
    return [run for run in runs if run.output._version == run.version]


def _last_of_each_size(runs: list[_Run]) -> tuple[str, ...]:
    """The path of the last run for each size of maps before the global pooling.

    A module finishes after its children, so this is the outermost module with that size.
    """
    # In the trunk no map is followed by a larger one. Squeeze-and-excitation pools on a side branch, after which larger
    # maps follow. Seen from the end backwards, such a run is smaller than the one before it, and is left out.
    trunk: list[_Run] = []
    for run in reversed(runs):
        if (not run.pools or run.area == 1) and (not trunk or run.area >= trunk[-1].area):
            trunk.append(run)
    last: dict[int, str] = {}
    for run in reversed(trunk):
        if run.pools and len(run.before) == 4 and run.before[2] * run.before[3] > 1:
            break
        if not run.pools:
            last[run.area] = run.path
    return tuple(last.values())


def _without_partial_results(model: Classifier, runs: list[_Run]) -> list[_Run]:
    """The runs without those inside a block whose output has another size, which are only partial results."""
    # A Sequential is no block: its children are blocks or stages in their own right.
    blocks = {
        run.path + ".": run.area
        for run in runs
        if not isinstance(model.get_submodule(run.path), nn.Sequential | nn.ModuleList)
    }
    return [run for run in runs if not any(run.path.startswith(b) and run.area != area for b, area in blocks.items())]


def _blocks(model: Classifier, runs: list[_Run]) -> tuple[str, ...]:
    """Up to four blocks, evenly spaced and ending with the last, of the longest container of blocks of one shape."""
    # Vectors are left out, since a classifier's hidden layers are no blocks.
    shapes = {run.path: run.after for run in runs if len(run.after) > 2}
    best: list[str] = []
    for path, module in model.named_modules():
        blocks = [f"{path}.{name}" for name, _ in module.named_children() if f"{path}.{name}" in shapes]
        if (
            isinstance(module, nn.Sequential | nn.ModuleList)
            and len(blocks) > len(best)
            and len({shapes[b] for b in blocks}) == 1
        ):
            best = blocks
    # Block number n (i + 1) / count for i = 0 ... count - 1, so that the last of n blocks is always one.
    count = min(MOST_BLOCKS, len(best))
    return tuple(best[len(best) * (i + 1) // count - 1] for i in range(count))


def blank_features(model: Classifier, paths: Sequence[str]) -> Mapping[str, Tensor]:
    """Module path -> features of one image of zeros in eval mode, to learn the shapes of features.

    Raises:
        ModelError: a path that the model does not have.
    """
    device = model.normalize.mean.device  # a network may have no parameters
    with evaluating(model), torch.no_grad():
        return observe(model, torch.zeros(1, *model.spec.shape, device=device), features=paths).features
