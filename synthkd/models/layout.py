"""Where the feature maps of a classifier are: its stages and its head, as module paths for `synthkd.taps`."""

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

MOST_BLOCKS = 4


@dataclass(frozen=True)
class _Run:
    """One run of one module during the traced pass."""

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

    For a model from elsewhere: its last `nn.Linear` with as many outputs as there are classes, else its last one.

    Raises:
        ModelError: the model has no linear layer.
    """
    if model.recipe.get("kind") == "zoo":
        return "body.head"
    linear: dict[str, int] = {path: m.out_features for path, m in model.named_modules() if isinstance(m, nn.Linear)}
    if not linear:
        raise ModelError("the model has no linear layer and so no penultimate features; end it in an nn.Linear")
    fitting = [path for path, out in linear.items() if out == model.spec.classes]
    return (fitting or list(linear))[-1]


def stages(model: Classifier) -> tuple[str, ...]:
    """Paths of the modules whose outputs are the stage features, first to last.

    For the zoo: every `stageN`, maps `[N, C, H, W]` (mlp `[N, D]`, vit `[N, L, D]`). For a model from elsewhere one
    image is sent through: of each spatial size the last map before the global pooling is a stage; a model with fewer
    than two such maps (a transformer) gives up to four evenly spaced blocks of its longest run of equal blocks instead.
    Empty where neither finds anything.
    """
    if model.recipe.get("kind") == "zoo":
        return tuple(f"body.{name}" for name, _ in model.body.named_children() if name.startswith("stage"))
    runs = _trace(model)
    maps = [run for run in runs if len(run.after) == 4]
    found = _last_of_each_size(_whole(model, maps))
    return found if len(found) > 1 else _blocks(model, runs) or _last_of_each_size(maps)


def _trace(model: Classifier) -> list[_Run]:
    runs: list[_Run] = []

    def watch(path: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        pools = "pool" in type(module).__name__.lower()

        def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
                runs.append(_Run(path, pools, tuple(args[0].shape), tuple(output.shape), output, output._version))

        return module.register_forward_hook(hook)

    weight = next(model.parameters(), None)
    with ExitStack() as hooks, evaluating(model), torch.no_grad():
        for path, module in model.named_modules():
            if path.startswith("body."):
                hooks.callback(watch(path, module).remove)
        model(torch.zeros((1, *model.spec.shape), device=None if weight is None else weight.device))
    # What a later layer overwrites in place (the output of a BatchNorm before an in-place ReLU) is no feature.
    return [run for run in runs if run.output._version == run.version]


def _last_of_each_size(runs: list[_Run]) -> tuple[str, ...]:
    """A module finishes after its children, so the last run at a size is the outermost module that still has it."""
    # Squeeze-and-excitation pools aside and bigger maps follow; in the trunk no bigger map comes after a smaller one.
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


def _whole(model: Classifier, runs: list[_Run]) -> list[_Run]:
    """Leave out what lies inside a block that gives another size than it: half-way results are no stage."""
    blocks = {
        run.path + ".": run.area
        for run in runs
        if not isinstance(model.get_submodule(run.path), nn.Sequential | nn.ModuleList)
    }
    return [run for run in runs if not any(run.path.startswith(b) and run.area != area for b, area in blocks.items())]


def _blocks(model: Classifier, runs: list[_Run]) -> tuple[str, ...]:
    """Up to four blocks, evenly spaced and ending with the last, of the longest container of blocks of one shape."""
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
    count = min(MOST_BLOCKS, len(best))
    return tuple(best[len(best) * (i + 1) // count - 1] for i in range(count))


def blank_features(model: Classifier, paths: Sequence[str]) -> Mapping[str, Tensor]:
    """What the model shows at module paths of one image of zeros, in eval mode: for the shapes of features.

    Raises:
        ModelError: a path that the model does not have.
    """
    device = next(model.parameters()).device
    with evaluating(model), torch.no_grad():
        return observe(model, torch.zeros(1, *model.spec.shape, device=device), features=paths).features
