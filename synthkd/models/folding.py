"""A faster copy of a network for eval mode: BatchNorm folded into the convolution or linear layer before it."""

from __future__ import annotations

import operator
from collections import Counter, OrderedDict
from collections.abc import Collection, Mapping
from typing import cast

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from synthkd.models.channels_last import HOOKS
from synthkd.models.classifier import Classifier, copied
from synthkd.taps import INPUT, FoldedNorm, affine, has_statistics

FOLDED = (nn.BatchNorm2d, nn.SyncBatchNorm)
WITH_ACTIVATION = ("timm.layers.norm_act.BatchNormAct2d", "timm.layers.norm_act.FrozenBatchNormAct2d")
FOLDED_BY_NAME = (*WITH_ACTIVATION, "torchvision.ops.misc.FrozenBatchNorm2d")
"""Layers that are folded into a convolution before them. Those of libraries have names, so that nothing is imported."""

SMALLEST, SMALLEST_TO_BIAS, SMALLEST_TO_BIAS_IN_HALF = 1e-8, 1e-3, 0.02
"""Smallest weight of a BatchNorm whose output tells the moments of its input, and its smallest ratio to the bias, in
float32 and in bfloat16. Of a weight near 0 little but the bias is left in the output, and of a tiny one rounding loses
the variance: that of bfloat16 adds 0.3 % to it at the smallest ratio."""
IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv)
SAME_MEMORY = (nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout, nn.Dropout1d, nn.Dropout2d)
"""Layers that may give their input itself, or a view of it."""
NEW_MEMORY = (operator.add, operator.mul, torch.add, torch.cat)
"""Functions that never do."""


def fold_batch_norm(
    model: Classifier, keep: Collection[str] = (), statistics: bool = False, in_half: bool = False
) -> Classifier:
    """A frozen copy in eval mode whose BatchNorm layers are folded into the convolution or linear layer before them.

    Its logits agree with the model's up to rounding. It has no recipe, so it cannot be saved. Modules keep their paths
    and can be tapped: a folded layer gives the output of its BatchNorm, which becomes an identity (or its activation).
    A body that torch.fx cannot trace (control flow that depends on values) is copied without folding. So are layers
    with hooks, which may compute their weights (pruning, the older weight and spectral norm), layers whose weights are
    read elsewhere too, and layers that have several paths.

    Args:
        model: unchanged.
        keep: module paths of the model whose output (or input, `PATH:input`) must stay the same.
        statistics: keep the moments at the BatchNorm layers, for `Taps` with `statistics`. A layer with a weight near 0
            then stays, since its output does not tell what came in, and no layer of the copy works in place.
        in_half: the copy will run in bfloat16, so that fewer outputs tell what came in.
    """
    body = copied(model.body).eval()
    try:
        graph = _Tracer().trace(body)
    except Exception:  # tracing runs other people's code on proxies, which may fail in any way
        pass  # without folding the copy is slower, not wrong
    else:
        _fold(body, graph, keep, statistics, SMALLEST_TO_BIAS_IN_HALF if in_half else SMALLEST_TO_BIAS)
    mean, std = (b.flatten().tolist() for b in (model.normalize.mean, model.normalize.std))
    network = Classifier(body, model.spec, mean, std, class_names=model.class_names)
    return network.to(model.normalize.mean.device).requires_grad_(False).eval()


class _Proxy(fx.Proxy):
    """Tells `x += y` from `x = x + y`, which torch.fx does not."""

    def __iadd__(self, other: object) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __isub__(self, other: object) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __imul__(self, other: object) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})

    def __itruediv__(self, other: object) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.itruediv, (self, other), {})


class _Tracer(fx.Tracer):
    """Sees every BatchNorm as one layer; torch.fx looks inside those that are not PyTorch's own."""

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return has_statistics(m) or super().is_leaf_module(m, module_qualified_name)


def _fold(body: nn.Module, graph: fx.Graph, keep: Collection[str], statistics: bool, to_bias: float) -> None:
    modules = dict(body.named_modules())
    # The graph only shows which modules follow each other. The body itself is changed, so that its paths stay.
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    paths = Counter(module for _, module in body.named_modules(remove_duplicate=False))
    read = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    for node in graph.nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        # A layer with a second user would give that user the folded output, too.
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        layer, norm = str(before.target), str(node.target)
        # A layer that runs twice stands in two places, and folding would change both.
        if calls[layer] > 1 or calls[norm] > 1 or {layer, norm} & read or _is_seen(layer, norm, keep):
            continue
        # The graph has one path of a layer that has several, and the body may call it by another.
        if paths[modules[layer]] > 1 or paths[modules[norm]] > 1:
            continue
        if statistics and not _tells_its_input(modules[norm], to_bias):
            continue
        fusion = _fuse(modules[layer], modules[norm])
        if fusion is not None:
            rest = _rest(modules[norm])
            if statistics:
                # The moments' gradient needs the folded output as it was, which an operation in place would change.
                rest = FoldedNorm(modules[norm], nn.Sequential(_Copy(), rest) if _overwritten(node, modules) else rest)
            body.set_submodule(layer, fusion)
            body.set_submodule(norm, rest)
    if statistics:
        for module in body.modules():
            if getattr(module, "inplace", False) is True:
                module.inplace = False  # type: ignore[assignment]


def _is_seen(layer: str, norm: str, keep: Collection[str]) -> bool:
    """Whether what goes from the layer to its BatchNorm may be the output, or the input, of a module that is kept."""
    before, after = _with_containers(layer), _with_containers(norm)
    outputs = {f"body.{path}" for path in before - after}
    return bool((outputs | {f"body.{path}{INPUT}" for path in after - before}) & set(keep))


def _with_containers(path: str) -> set[str]:
    """The path of a module and those of the modules around it."""
    names = path.split(".")
    return {".".join(names[: count + 1]) for count in range(len(names))}


def _fuse(layer: nn.Module, norm: nn.Module) -> nn.Module | None:
    """One layer that does what both do, or None if they cannot be folded."""
    if not _shows_its_map(norm) or _has_hooks(layer) or _has_hooks(norm):
        return None
    # Exact types: a subclass may do more in its forward than its parent (an activation, standardised weights).
    with torch.no_grad():
        if type(layer) is nn.Conv2d and (type(norm) in FOLDED or _name(norm) in FOLDED_BY_NAME):
            # The function reads the moments, eps, weight and bias, which all of these layers have.
            return fuse_conv_bn_eval(layer, cast(nn.BatchNorm2d, norm))
        if type(layer) is nn.Linear and type(norm) is nn.BatchNorm1d:
            return fuse_linear_bn_eval(layer, norm)
    return None


def _shows_its_map(norm: nn.Module) -> bool:
    """Whether it is a BatchNorm with all that `affine` reads; FrozenBatchNorm2d of DETR has eps in its code alone."""
    return has_statistics(norm) and all(hasattr(norm, name) for name in ("eps", "weight", "bias"))


class _Copy(nn.Module):
    """Gives a copy of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


def _tells_its_input(norm: nn.Module, to_bias: float) -> bool:
    """Whether the moments of a BatchNorm's input can be computed from its output.

    Args:
        norm: the layer.
        to_bias: smallest ratio of a weight to its bias.
    """
    if not _shows_its_map(norm):
        return False
    _, _, scale, bias = affine(norm)
    weight = getattr(norm, "weight", None)
    size = torch.ones_like(scale) if weight is None else weight.abs()
    return bool(((size >= SMALLEST) & (size >= to_bias * bias.abs())).all())


def _overwritten(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether an operation in place may change the value of a node; those of layers do not count."""
    for user in node.users:
        if user.op == "call_module":
            written, same = False, isinstance(modules[str(user.target)], SAME_MEMORY)
        else:
            # What is written to stands first; views of it come from functions and methods, sums are new.
            first = bool(user.args) and user.args[0] is node
            written, same = first and _in_place(user), user.target not in NEW_MEMORY
        if written or (same and _overwritten(user, modules)):
            return True
    return False


def _in_place(node: fx.Node) -> bool:
    """Whether a function or method works in place: `+=`, `relu_` or `relu(x, inplace=True)`."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    flags = (*node.args[1:], *node.kwargs.values())
    return node.target in IN_PLACE or name.endswith("_") or any(flag is True for flag in flags) or "out" in node.kwargs


def _has_hooks(module: nn.Module) -> bool:
    """Whether a module has hooks, which may compute its weights; those for the memory order do not."""
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    return any(hook not in HOOKS for hook in hooks)


def _rest(norm: nn.Module) -> nn.Module:
    """What is left of a BatchNorm that was folded: nothing, or its dropout and activation under their names."""
    return nn.Sequential(OrderedDict(norm.named_children())) if _name(norm) in WITH_ACTIVATION else nn.Identity()


def _name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"
