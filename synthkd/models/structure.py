"""What a network does to an image, step by step: its layers with weights and what lies between them.

One image runs through the network while PyTorch tells every operator. So the structure is that of the computation,
whatever the classes and module paths of the code that computes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from synthkd.models.classifier import logits_in
from synthkd.taps import evaluating

IMAGES = 0
"""Number of the node that stands for the images."""
PASSED_ON = ("alias", "detach", "clone", "contiguous", "_to_copy", "lift_fresh", "dropout")
"""Operators that give what they got."""
RESHAPED = ("view", "_unsafe_view", "reshape", "flatten", "squeeze")
POINTWISE = (
    "relu", "relu6", "hardtanh", "hardswish", "hardsigmoid", "leaky_relu", "elu", "gelu", "silu", "mish", "sigmoid",
    "tanh", "softplus",
)  # fmt: skip
"""Activations."""
SYMMETRIC = ("add", "mul")
PADDED, SLICED = "more channels", "fewer pixels"
"""Kinds of nodes: zero channels around those of the input, and a part of its pixels."""
TRANSPOSED = ("t", "transpose", "permute")


class UnclearError(Exception):
    """A network does something whose channels cannot be followed."""


@dataclass(frozen=True)
class Node:
    """A step of a network.

    Attributes:
        label: what is done, without numbers of channels: `("conv", kernel, stride, ...)`, `("norm", ...)`,
            `("linear", ...)`, `("add",)`, ...; the size of the map that comes out is a part of it.
        inputs: numbers of the nodes that it works on.
        shape: of its output, without the batch.
        weights: "weight", "bias", "running_mean" and "running_var" of a layer; empty without weights.
        before: zero channels that it puts before its input's.
        eps: of a BatchNorm.
    """

    label: tuple[Any, ...]
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    before: int = 0
    eps: float = 1e-5

    @property
    def kind(self) -> str:
        """First part of the label."""
        return str(self.label[0])

    @property
    def channels(self) -> int:
        """Channels or features of the output."""
        return self.shape[0]


def structure(body: nn.Module, image: Tensor) -> list[Node]:
    """The steps of a network that its logits depend on, in the order of execution; the last one gives the logits.

    Args:
        body: maps images to logits; run in eval mode.
        image: float32 `[1, C, H, W]`, on the device of the network.

    Raises:
        UnclearError: an operator that mixes channels in a way that is not followed, or weights that are computed.
        Exception: what the network's own code raises.
    """
    named = (*body.parameters(), *body.buffers())
    recorder = _Recorder(image, {id(tensor) for tensor in named})
    with evaluating(body), torch.no_grad(), recorder:
        output = logits_in(body(image))[0]
    return _live(recorder.nodes, recorder.number_of(output))


def _live(nodes: Sequence[Node], last: int) -> list[Node]:
    """The nodes that a node depends on, numbered anew."""
    needed = {IMAGES, last}
    for number in range(last, -1, -1):
        if number in needed:
            needed.update(nodes[number].inputs)
    numbers = {old: new for new, old in enumerate(sorted(needed))}
    return [
        replace(node, inputs=tuple(numbers[one] for one in node.inputs))
        for old, node in enumerate(nodes)
        if old in needed
    ]


class _Recorder(TorchDispatchMode):
    """Makes a node of every operator that works on the images or on what came of them.

    Args:
        image: the node `IMAGES`.
        weights: identities of the network's parameters and buffers.
    """

    def __init__(self, image: Tensor, weights: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.nodes = [Node(("images", *image.shape[2:]), (), tuple(image.shape[1:]))]
        self._weights = weights
        self._numbers = {id(image): IMAGES}
        self._transposed: dict[int, Tensor] = {}
        self._kept: list[object] = [image]  # an identity is that of another tensor once its tensor is gone

    def number_of(self, tensor: Tensor) -> int:
        """The node whose output a tensor is."""
        if id(tensor) not in self._numbers:
            raise UnclearError("the output does not come from the images")
        return self._numbers[id(tensor)]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        self._kept.append(output)
        first = output if isinstance(output, Tensor) else next((o for o in output if isinstance(o, Tensor)), None)
        given = _by_name(func, args, kwargs or {})
        tensors = [one for value in given.values() for one in _tensors(value)]
        name = func._schema.name.removeprefix("aten::").rstrip("_")
        if first is None:
            return output
        inputs = [self._numbers[id(one)] for one in tensors if id(one) in self._numbers]
        held = [one for one in tensors if id(one) in self._weights]
        if not inputs:
            if held and name in TRANSPOSED and held[0].dim() == 2:
                self._transposed[id(first)] = held[0]
            elif held and name in PASSED_ON:
                self._weights.add(id(first))
            elif held or any(id(one) in self._transposed for one in tensors):
                self._transposed[id(first)] = torch.empty(0)  # weights that are computed fit no layer
        else:
            self._numbers[id(first)] = self._number(name, given, inputs, held, first)
        return output

    def _number(
        self, name: str, given: Mapping[str, Any], inputs: Sequence[int], held: Sequence[Tensor], output: Tensor
    ) -> int:
        """The number of the node that an operator's output is: a new one, or that of its input."""
        shape, source = tuple(output.shape[1:]), self.nodes[inputs[0]]
        nothing_added = name == "constant_pad_nd" and shape == source.shape
        if name in PASSED_ON or nothing_added or (name in RESHAPED and math.prod(shape) == source.channels):
            return inputs[0]
        size = shape[1:]
        layer = _LAYERS.get(name)
        if layer is not None:
            weights = {key: self._held(given.get(key)) for key in ("weight", "bias", "running_mean", "running_var")}
            if name in ("addmm", "mm"):
                weights = {"weight": self._held(given["mat2"]), "bias": self._held(given.get("self"))}
                weights = weights if name == "addmm" else weights | {"bias": None}
            filled = {key: value for key, value in weights.items() if value is not None}
            label = (*layer(given, filled, source), *sorted(filled), *size)
            eps = given.get("eps", given.get("epsilon", 0.0))
            return self._add(Node(label, tuple(inputs), shape, filled, eps=eps))
        if held or any(id(one) in self._transposed for value in given.values() for one in _tensors(value)):
            raise UnclearError(f"{name} uses weights")
        if name == "cat" and len(inputs) == 1:
            return self._add(self._joined(given, inputs[0], shape))
        return self._add(_without_weights(name, given, tuple(inputs), source, self.nodes, shape))

    def _joined(self, given: Mapping[str, Any], number: int, shape: tuple[int, ...]) -> Node:
        """Zero channels before and after those of a node."""
        parts = given["tensors"]
        place = next(place for place, part in enumerate(parts) if id(part) in self._numbers)
        if given.get("dim", 0) != 1 or any(bool(part.any()) for part in (*parts[:place], *parts[place + 1 :])):
            raise UnclearError("cat is not followed")
        return Node((PADDED, *shape[1:]), (number,), shape, before=sum(part.shape[1] for part in parts[:place]))

    def _add(self, node: Node) -> int:
        self.nodes.append(node)
        return len(self.nodes) - 1

    def _held(self, value: object) -> Tensor | None:
        """The network's own tensor that an operator was given, or None for none."""
        if not isinstance(value, Tensor):
            return None
        own = self._transposed.get(id(value), value)
        if id(own) not in self._weights:
            raise UnclearError("the weights of a layer are computed")
        return own


def _by_name(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    schema = func._schema.arguments
    return {**{one.name: value for one, value in zip(schema, args, strict=False)}, **kwargs}


def _tensors(value: object) -> list[Tensor]:
    return [one for one in (value if isinstance(value, list | tuple) else [value]) if isinstance(one, Tensor)]


def _convolution(given: Mapping[str, Any], weights: Mapping[str, Tensor], source: Node) -> tuple[Any, ...]:
    weight, groups = weights["weight"], given["groups"]
    if given.get("transposed") or weight.dim() != 4:
        raise UnclearError("a convolution that is not in two dimensions, or transposed")
    if groups > 1 and not groups == source.channels == len(weight):
        raise UnclearError("a convolution in groups")
    fixed = (tuple(given[name]) for name in ("stride", "padding", "dilation"))
    return ("depthwise" if groups > 1 else "conv", tuple(weight.shape[2:]), *fixed)


def _norm(given: Mapping[str, Any], weights: Mapping[str, Tensor], source: Node) -> tuple[Any, ...]:  # noqa: ARG001
    if "running_var" not in weights:
        raise UnclearError("a BatchNorm without statistics")
    return ("norm",)


def _linear(given: Mapping[str, Any], weights: Mapping[str, Tensor], source: Node) -> tuple[Any, ...]:  # noqa: ARG001
    if math.prod(source.shape) != source.channels:
        raise UnclearError("a linear layer at every position")
    if given.get("alpha", 1) != 1 or given.get("beta", 1) != 1:
        raise UnclearError("a linear layer with factors")
    return ("linear",)


_LAYERS: Mapping[str, Callable[[Mapping[str, Any], Mapping[str, Tensor], Node], tuple[Any, ...]]] = {
    "convolution": _convolution,
    "native_batch_norm": _norm,
    "_native_batch_norm_legit_no_training": _norm,
    "cudnn_batch_norm": _norm,
    "addmm": _linear,
    "mm": _linear,
    "linear": _linear,
}
"""Operators with weights, and what makes a label of their arguments, their weights and their input."""


def _without_weights(
    name: str,
    given: Mapping[str, Any],
    inputs: tuple[int, ...],
    source: Node,
    nodes: Sequence[Node],
    shape: tuple[int, ...],
) -> Node:
    """The node of an operator without weights.

    Raises:
        UnclearError: it is none of those whose channels are followed.
    """
    size, channels = shape[1:], source.channels
    tensors = [one for value in given.values() for one in _tensors(value)]
    if len(inputs) == len(tensors) == 2 and name in SYMMETRIC:
        if any(nodes[one].channels != shape[0] for one in inputs) or given.get("alpha", 1) != 1:
            raise UnclearError(f"{name} of other channels")
        return Node((name, *size), inputs, shape)
    numbers = tuple(value for value in given.values() if isinstance(value, int | float | str))
    if len(inputs) == len(tensors) == 1 and shape == source.shape and name in POINTWISE:
        return Node((name, *numbers, *size), inputs, shape)
    if len(inputs) == 1 and "pool" in name and shape[0] == channels and len(shape) == len(source.shape) == 3:
        return Node(("max" if "max" in name else "mean", *size), inputs, shape)
    if name == "mean" and sorted(dim % 4 for dim in given.get("dim") or ()) == [2, 3] and len(source.shape) == 3:
        return Node(("mean", 1, 1), inputs, (channels, 1, 1))
    if name in RESHAPED and shape == (math.prod(source.shape),):
        return Node(("flatten", math.prod(source.shape[1:])), inputs, shape)
    if name == "slice" and shape[0] == channels and given.get("dim", 0) in (2, 3):
        return Node((SLICED, given["dim"], given.get("start") or 0, given.get("step", 1), *size), inputs, shape)
    if name == "constant_pad_nd" and len(shape) == 3 and given.get("value", 0) == 0:
        return _padded(tuple(given["pad"]), inputs, shape)
    raise UnclearError(f"{name} is not followed")


def _padded(pad: tuple[int, ...], inputs: tuple[int, ...], shape: tuple[int, ...]) -> Node:
    channels = (*pad, 0, 0, 0, 0)[4:6]
    if any(channels):
        return Node((PADDED, *shape[1:]), inputs, shape, before=channels[0])
    return Node(("pad", *pad, *shape[1:]), inputs, shape)
