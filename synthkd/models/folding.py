"""A faster copy of a network for eval mode: BatchNorm folded into the convolution or linear layer before it."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Collection
from typing import cast

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from synthkd.models.channels_last import HOOKS
from synthkd.models.classifier import Classifier, copied
from synthkd.taps import INPUT, has_statistics

FOLDED = (nn.BatchNorm2d, nn.SyncBatchNorm)
WITH_ACTIVATION = ("timm.layers.norm_act.BatchNormAct2d", "timm.layers.norm_act.FrozenBatchNormAct2d")
FOLDED_BY_NAME = (*WITH_ACTIVATION, "torchvision.ops.misc.FrozenBatchNorm2d")
"""Layers that are folded into a convolution before them. Those of libraries have names, so that nothing is imported."""


def fold_batch_norm(model: Classifier, keep: Collection[str] = ()) -> Classifier:
    """A frozen copy in eval mode whose BatchNorm layers are folded into the convolution or linear layer before them.

    Its logits agree with the model's up to rounding. It has no recipe, so it cannot be saved. Modules keep their paths
    and can be tapped: a folded layer gives the output of its BatchNorm, which becomes an identity (or its activation).
    A body that torch.fx cannot trace (control flow that depends on values) is copied without folding. So are layers
    with hooks, which may compute their weights (pruning, the older weight and spectral norm).

    Args:
        model: unchanged.
        keep: module paths of the model whose output (or input, `PATH:input`) must stay the same.
    """
    body = copied(model.body).eval()
    try:
        graph = _Tracer().trace(body)
    except Exception:  # tracing runs other people's code on proxies, which may fail in any way
        pass  # without folding the copy is slower, not wrong
    else:
        _fold(body, graph, keep)
    mean, std = (b.flatten().tolist() for b in (model.normalize.mean, model.normalize.std))
    network = Classifier(body, model.spec, mean, std, class_names=model.class_names)
    return network.to(model.normalize.mean.device).requires_grad_(False).eval()


class _Tracer(fx.Tracer):
    """Sees every BatchNorm as one layer; torch.fx looks inside those that are not PyTorch's own."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return has_statistics(m) or super().is_leaf_module(m, module_qualified_name)


def _fold(body: nn.Module, graph: fx.Graph, keep: Collection[str]) -> None:
    modules = dict(body.named_modules())
    # The graph only shows which modules follow each other. The body itself is changed, so that its paths stay.
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    for node in graph.nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        # A layer with a second user would give that user the folded output, too.
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        layer, norm = str(before.target), str(node.target)
        # A layer that runs twice stands in two places, and folding would change both.
        if calls[layer] > 1 or calls[norm] > 1 or {f"body.{layer}", f"body.{norm}{INPUT}"} & set(keep):
            continue
        fusion = _fuse(modules[layer], modules[norm])
        if fusion is not None:
            body.set_submodule(layer, fusion)
            body.set_submodule(norm, _rest(modules[norm]))


def _fuse(layer: nn.Module, norm: nn.Module) -> nn.Module | None:
    """One layer that does what both do, or None if they cannot be folded."""
    if not has_statistics(norm) or _has_hooks(layer) or _has_hooks(norm):
        return None
    # Exact types: a subclass may do more in its forward than its parent (an activation, standardised weights).
    with torch.no_grad():
        if type(layer) is nn.Conv2d and (type(norm) in FOLDED or _name(norm) in FOLDED_BY_NAME):
            # The function reads the moments, eps, weight and bias, which all of these layers have.
            return fuse_conv_bn_eval(layer, cast(nn.BatchNorm2d, norm))
        if type(layer) is nn.Linear and type(norm) is nn.BatchNorm1d:
            return fuse_linear_bn_eval(layer, norm)
    return None


def _has_hooks(module: nn.Module) -> bool:
    """Whether a module has hooks, which may compute its weights; those for the memory order do not."""
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    return any(hook not in HOOKS for hook in hooks)


def _rest(norm: nn.Module) -> nn.Module:
    """What is left of a BatchNorm that was folded: nothing, or its dropout and activation under their names."""
    return nn.Sequential(OrderedDict(norm.named_children())) if _name(norm) in WITH_ACTIVATION else nn.Identity()


def _name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"
