"""A quicker copy of a network for eval mode: BatchNorm folded into the convolution or linear layer before it."""

from __future__ import annotations

import copy
from collections import Counter

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from synthkd.models.classifier import Classifier
from synthkd.taps import has_statistics


def fold_batch_norm(model: Classifier) -> Classifier:
    """A copy for inference in eval mode with its BatchNorm layers folded away where they directly follow a convolution
    or linear layer; logits agree up to rounding. It has no recipe, so it cannot be saved; its parameters are frozen.

    A body that torch.fx cannot trace (control flow that depends on values) is copied as it is.
    """
    body = copy.deepcopy(model.body).eval()
    try:
        graph = fx.symbolic_trace(body)
    except Exception:  # tracing runs other people's code on proxies, which may fail in any way; the copy serves as well
        folded = body
    else:
        _fold(graph)
        folded = graph
    mean, std = (b.flatten().tolist() for b in (model.normalize.mean, model.normalize.std))
    copied = Classifier(folded, model.spec, mean, std, class_names=model.class_names)
    return copied.to(model.normalize.mean.device).requires_grad_(False).eval()


def _fold(graph: fx.GraphModule) -> None:
    modules = dict(graph.named_modules())
    calls = Counter(str(node.target) for node in graph.graph.nodes if node.op == "call_module")
    for node in list(graph.graph.nodes):
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        layer, norm = str(before.target), str(node.target)
        fused = _fuse(modules[layer], modules[norm])
        # A layer that runs twice serves two places, and folding would change both.
        if fused is None or calls[layer] > 1 or calls[norm] > 1:
            continue
        graph.set_submodule(layer, fused)
        node.replace_all_uses_with(before)
        graph.graph.erase_node(node)
    graph.delete_all_unused_submodules()
    graph.recompile()


def _fuse(layer: nn.Module, norm: nn.Module) -> nn.Module | None:
    # Exact types: a subclass may do more in its forward than its parent (an activation, standardised weights).
    if not has_statistics(norm):
        return None
    with torch.no_grad():
        if type(layer) is nn.Conv2d and type(norm) is nn.BatchNorm2d:
            return fuse_conv_bn_eval(layer, norm)
        if type(layer) is nn.Linear and type(norm) is nn.BatchNorm1d:
            return fuse_linear_bn_eval(layer, norm)
    return None
