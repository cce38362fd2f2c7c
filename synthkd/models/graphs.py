"""Graphs of aten operators as networks of layers: a convolution, linear layer or BatchNorm becomes a module.

So a program (TorchScript, `torch.export`) has what everything here reads of a network: BatchNorm layers with statistics
and hooks, a linear layer at its end, and layers that can be folded.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from synthkd.errors import ModelError

aten = torch.ops.aten
CHECKS = (
    aten._assert_tensor_metadata.default,
    aten._assert_scalar.default,
    aten._assert_async.default,
    aten._assert_async.msg,
)
"""Checks in an exported graph, e.g. of the device that it was exported on."""
TRANSPOSED = (aten.t.default, aten.numpy_T.default, aten.permute.default, aten.transpose.int)
NORMS = (aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default)
CONVOLUTIONS = (
    aten.conv2d.default,
    aten.convolution.default,
    aten._convolution.default,
    aten._convolution.deprecated,
)


@dataclass(frozen=True)
class _Layer:
    """A layer in place of an operator.

    Attributes:
        module: the layer.
        images: node of its input.
        weight: path of the tensor by whose place the layer is placed.
    """

    module: nn.Module
    images: fx.Node
    weight: str


def graph_of_layers(graph: fx.Graph, held: Mapping[str, object]) -> fx.GraphModule:
    """A network in eval mode that does what a graph does; its layers have the paths that their weights had.

    Args:
        graph: of aten operators, with examples of their values as `meta["val"]`; it is changed.
        held: path -> tensor or module of each `get_attr` node.

    Raises:
        ModelError: a BatchNorm in training mode.
    """
    root = nn.Module()
    for node in list(graph.nodes):
        if node.op == "get_attr":
            _put(root, str(node.target), held[str(node.target)])
        elif node.target in CHECKS:
            graph.erase_node(node)
    for node in list(graph.nodes):
        layer = _layer(node, _arguments(node), held) if node.op == "call_function" else None
        if layer is not None:
            _replace(graph, node, _place(root, layer, node.name), layer.images)
    _show_ends(root, graph)
    whole = fx.GraphModule(root, graph)
    whole.graph.eliminate_dead_code()
    # Once more, without what nothing uses any longer.
    return fx.GraphModule(whole, whole.graph).eval()


def _show_ends(root: nn.Module, graph: fx.Graph) -> None:
    """Put an identity after each operator whose map is pooled, or goes into one of another size.

    Features are tapped at modules, and what ends a stage is often an operator: the addition of a residual block.
    """
    for node in list(graph.nodes):
        size = _size(node)
        ends = size not in (None, ("1", "1")) and any(_size(user) != size for user in node.users)
        if node.op != "call_function" or not ends:
            continue
        path = f"end_of_{node.name}"
        root.add_module(path, nn.Identity())
        with graph.inserting_after(node):
            end = graph.create_node("call_module", path, (node,))  # call_module looks for it in the graph's own module
        end.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(end, delete_user_cb=lambda user, end=end: user is not end)


def _size(node: fx.Node) -> tuple[str, ...] | None:
    """Height and width of a node's map `[N, C, H, W]`, which may be symbols; None if it is no map."""
    return tuple(map(str, node.meta["val"].shape[2:])) if _dimensions(node) == 4 else None


def _put(root: nn.Module, path: str, value: object) -> None:
    """Set an attribute below the root; modules on the way are made."""
    *parents, name = path.split(".")
    module = root
    for parent in parents:
        if parent not in module._modules:
            module.add_module(parent, nn.Module())
        module = getattr(module, parent)
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        module.register_buffer(name, value)
    else:
        setattr(module, name, value)


def _arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of an operator by name, also those that are left to their defaults."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return {}
    schema = node.target._schema.arguments
    defaults = {one.name: one.default_value for one in schema if one.has_default_value()}
    return {**defaults, **{one.name: value for one, value in zip(schema, node.args, strict=False)}, **node.kwargs}


def _layer(node: fx.Node, given: Mapping[str, Any], held: Mapping[str, object]) -> _Layer | None:
    """The layer that an operator is, or None: another operator, or weights that are computed."""
    if node.target in NORMS:
        return _norm(given, held)
    if node.target in CONVOLUTIONS:
        return _convolution(given, held)
    if node.target is aten.linear.default:
        return _linear(given["input"], given["weight"], given["bias"], held)
    if node.target is aten.addmm.default and (given["alpha"], given["beta"]) == (1, 1):
        matrix = given["mat2"]
        if isinstance(matrix, fx.Node) and matrix.target in TRANSPOSED:
            return _linear(given["mat1"], matrix.args[0], given["self"], held)
    return None


def _norm(given: Mapping[str, Any], held: Mapping[str, object]) -> _Layer | None:
    if given.get("training"):
        raise ModelError(
            "its BatchNorm is in training mode; call model.eval() before the network is traced or exported"
        )
    mean, var = (_tensor(given[name], held) for name in ("running_mean", "running_var"))
    weight, bias = (_tensor(given[name], held) for name in ("weight", "bias"))
    if mean is None or var is None or (weight is None) != (bias is None) or (weight is None and given["weight"]):
        return None
    images = given["input"]
    # Of the classes that take the statistics, the last alone takes inputs of any number of dimensions.
    kind = {2: nn.BatchNorm1d, 4: nn.BatchNorm2d}.get(_dimensions(images), nn.SyncBatchNorm)
    layer = kind(len(mean), given["eps"], affine=weight is not None)
    layer.running_mean, layer.running_var = mean, var
    if weight is not None:
        layer.weight, layer.bias = _parameter(weight), _parameter(bias)
    return _Layer(layer, images, str(given["running_mean"].target))


def _dimensions(node: fx.Node) -> int:
    """Number of dimensions of a node's tensor; 0 if it is not known."""
    value = node.meta.get("val")
    return value.dim() if isinstance(value, Tensor) else 0


def _convolution(given: Mapping[str, Any], held: Mapping[str, object]) -> _Layer | None:
    weight, bias = _tensor(given["weight"], held), _tensor(given["bias"], held)
    fixed = [given[name] for name in ("stride", "padding", "dilation")]
    if weight is None or weight.dim() != 4 or (bias is None and given["bias"]) or given.get("transposed"):
        return None
    if not all(isinstance(number, int) for numbers in fixed for number in numbers):
        return None
    stride, padding, dilation = ((numbers[0], numbers[-1]) for numbers in fixed)  # one number stands for both
    outputs, inputs, height, width = weight.shape
    groups = given["groups"]
    layer = nn.Conv2d(inputs * groups, outputs, (height, width), stride, padding, dilation, groups, bias is not None)
    layer.weight, layer.bias = _parameter(weight), _parameter(bias)
    return _Layer(layer, given["input"], str(given["weight"].target))


def _linear(images: Any, weight_node: Any, bias_node: Any, held: Mapping[str, object]) -> _Layer | None:
    weight, bias = _tensor(weight_node, held), _tensor(bias_node, held)
    if weight is None or weight.dim() != 2 or (bias is None and bias_node):
        return None
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    layer.weight, layer.bias = _parameter(weight), _parameter(bias)
    return _Layer(layer, images, str(weight_node.target))


def _tensor(node: object, held: Mapping[str, object]) -> Tensor | None:
    """The tensor that a node gets from the program, if it does."""
    value = held.get(str(node.target)) if isinstance(node, fx.Node) and node.op == "get_attr" else None
    return value if isinstance(value, Tensor) else None


def _parameter(tensor: Tensor | None) -> Any:
    if tensor is None or isinstance(tensor, nn.Parameter):
        return tensor
    return nn.Parameter(tensor.detach(), requires_grad=tensor.is_floating_point())


def _place(root: nn.Module, layer: _Layer, name: str) -> str:
    """Put a layer where the bare module of its weight is, and return the path; else give it a place of its own."""
    path = layer.weight.rpartition(".")[0]
    there, module = root.get_submodule(path), layer.module
    if path and type(there) is nn.Module and _names(there) <= _names(module):
        _put(root, path, module)
    elif type(there) is not type(module) or repr(there) != repr(module):  # else it is one layer that runs twice
        path = f"{path}.{name}".replace(".", "_").lstrip("_")
        _put(root, path, module)
    return path


def _names(module: nn.Module) -> set[str]:
    return {*module._parameters, *module._buffers, *module._modules}


def _replace(graph: fx.Graph, node: fx.Node, path: str, images: fx.Node) -> None:
    """Replace an operator by a call of its layer."""
    with graph.inserting_before(node):
        call = graph.call_module(path, (images,))
    value = node.meta.get("val")
    call.meta["val"] = value[0] if isinstance(value, tuple | list) else value
    if node.target is NORMS[1]:  # it returns a tuple, whose first tensor alone is of use in eval mode
        users = [user for user in node.users if user.target is operator.getitem and user.args[1] == 0]
        for user in users:
            user.replace_all_uses_with(call)
            graph.erase_node(user)
    else:
        node.replace_all_uses_with(call)
    if not node.users:
        graph.erase_node(node)
