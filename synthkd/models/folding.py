"""A faster copy of a network for eval mode: BatchNorm folded into the convolution or linear layer before it."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from synthkd.models.classifier import Classifier
from synthkd.taps import INPUT, has_statistics


def fold_batch_norm(model: Classifier, keep: Collection[str] = ()) -> Classifier:
    """A frozen copy in eval mode whose BatchNorm layers are folded into the convolution or linear layer before them.

    Its logits agree with the model's up to rounding. It has no recipe, so it cannot be saved. Modules keep their paths
    and can be tapped: a folded layer gives the output of its BatchNorm, which becomes an identity. A body that torch.fx
    cannot trace (control flow that depends on values) is copied without folding.

    Args:
        model: unchanged.
        keep: module paths of the model whose output (or input, `PATH:input`) must stay the same.
    """
    body = copy.deepcopy(model.body).eval()
    try:
        graph = fx.symbolic_trace(body)
    except Exception:  # tracing runs other people's code on proxies, which may fail in any way
        pass  # without folding the copy is slower, not wrong
    else:
        _fold(body, graph, keep)
    mean, std = (b.flatten().tolist() for b in (model.normalize.mean, model.normalize.std))
    network = Classifier(body, model.spec, mean, std, class_names=model.class_names)
    return network.to(model.normalize.mean.device).requires_grad_(False).eval()


def _fold(body: nn.Module, graph: fx.GraphModule, keep: Collection[str]) -> None:
    modules = dict(body.named_modules())
    # The graph only shows which modules follow each other. The body itself is changed, so that its paths stay.
    calls = Counter(str(node.target) for node in graph.graph.nodes if node.op == "call_module")
    for node in graph.graph.nodes:
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
            body.set_submodule(norm, nn.Identity())


def _fuse(layer: nn.Module, norm: nn.Module) -> nn.Module | None:
    """One layer that does what both do, or None if they cannot be folded."""
    if not has_statistics(norm):
        return None
    # Exact types: a subclass may do more in its forward than its parent (an activation, standardised weights).
    with torch.no_grad():
        if type(layer) is nn.Conv2d and type(norm) is nn.BatchNorm2d:
            return fuse_conv_bn_eval(layer, norm)
        if type(layer) is nn.Linear and type(norm) is nn.BatchNorm1d:
            return fuse_linear_bn_eval(layer, norm)
    return None
