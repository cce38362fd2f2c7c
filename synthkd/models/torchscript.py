"""A TorchScript program as a graph of aten operators.

The program is run once, on a node of the graph in place of the images. What does not depend on them (modes, sizes of
layers, branches and loops over them) is computed; every operator on them becomes a node. So that sizes which do not
depend on the number of images are known too, two batches of noise run beside it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx

BATCHES = (2, 3)
"""Images of the two batches; a size that is the same in both does not depend on their number."""
LONGEST = 10_000
"""Largest number of rounds of a loop that are written out."""


class Untranslatable(Exception):
    """What the graph cannot hold, in words."""


def _same(value: Any) -> Any:
    return value


def _nothing(*_: Any) -> None:
    return None


PLAIN: dict[str, Callable[..., Any]] = {
    "aten::len": len,
    "aten::__getitem__": operator.getitem,
    "aten::__contains__": operator.contains,
    "aten::__is__": operator.is_,
    "aten::__isnot__": operator.is_not,
    "aten::__not__": operator.not_,
    "aten::__and__": operator.and_,
    "aten::__or__": operator.or_,
    "aten::eq": operator.eq,
    "aten::ne": operator.ne,
    "aten::lt": operator.lt,
    "aten::le": operator.le,
    "aten::gt": operator.gt,
    "aten::ge": operator.ge,
    "aten::add": operator.add,
    "aten::sub": operator.sub,
    "aten::mul": operator.mul,
    "aten::div": operator.truediv,
    "aten::floordiv": operator.floordiv,
    "aten::floor_divide": operator.floordiv,
    "aten::remainder": operator.mod,
    "aten::neg": operator.neg,
    "aten::Int": int,
    "aten::Float": float,
    "aten::Bool": bool,
    "aten::list": list,
    "aten::format": str.format,
    "aten::warn": _nothing,
    "prim::NumToTensor": torch.tensor,
    "prim::unchecked_cast": _same,
    "prim::Uninitialized": _nothing,
    "prim::min": min,
    "prim::max": max,
}
"""Operators on numbers, texts and lists, as Python has them."""
ALSO_OF_TENSORS = ("aten::Int", "aten::Float", "aten::Bool", "aten::__getitem__", "aten::len", "aten::__is__")
SHAPES = (torch.ops.aten.size.default, torch.ops.aten.size.int, torch.ops.aten.dim.default)
MAKERS: dict[str, Callable[[Iterable[Any]], Any]] = {"prim::ListConstruct": list, "prim::TupleConstruct": tuple}


@torch.no_grad()
def graph_of(program: torch.jit.ScriptModule, shape: tuple[int, int, int]) -> tuple[fx.Graph, dict[str, Tensor]]:
    """The graph of a program, and path -> tensor of its `get_attr` nodes.

    Args:
        program: a `torch.jit.ScriptModule` in eval mode.
        shape: of an image, `(C, H, W)`.

    Raises:
        Untranslatable: a branch or a loop that depends on the images, or an operator that is not of aten.
    """
    translation = _Translation(program)
    block = program.inlined_graph
    own, *inputs = list(block.inputs())
    if len(inputs) != 1:
        raise Untranslatable(f"it takes {len(inputs)} inputs")
    translation.values[own.debugName()] = program
    generator = torch.Generator().manual_seed(0)
    images = translation.graph.placeholder("images")
    translation.note(images, tuple(torch.rand((count, *shape), generator=generator) for count in BATCHES))
    translation.values[inputs[0].debugName()] = images
    outputs = translation.block(block)
    translation.graph.output(outputs[0])
    return translation.graph, translation.held


class _Translation:
    """The state of a translation.

    Attributes:
        graph: what is written.
        held: tensors that it needs, by path.
        values: name in the program -> plain value, or node of the graph.
    """

    def __init__(self, program: Any) -> None:
        self.graph = fx.Graph()
        self.held: dict[str, Tensor] = {}
        self.values: dict[str, Any] = {}
        self._paths = {tensor.data_ptr(): path for path, tensor in _tensors(program).items()}
        self._nodes: dict[str, fx.Node] = {}
        self._examples: dict[fx.Node, tuple[Any, ...]] = {}

    def note(self, node: fx.Node, examples: tuple[object, ...]) -> None:
        """Keep the values of a node for both batches."""
        self._examples[node] = examples
        node.meta["val"] = examples[0]

    def block(self, block: Any) -> list[Any]:
        """Translate the operators of a block; returns the values of its outputs."""
        for node in block.nodes():
            self._translate(node)
        return [self.values[value.debugName()] for value in block.outputs()]

    def _translate(self, node: Any) -> None:
        kind, outputs = node.kind(), [value.debugName() for value in node.outputs()]
        inputs = [] if kind == "prim::Constant" else [self.values[value.debugName()] for value in node.inputs()]
        if kind == "prim::If":
            results = self.block(self._branch(node, inputs[0]))
        elif kind == "prim::Loop":
            results = self._loop(node, inputs)
        elif kind in ("prim::TupleUnpack", "prim::ListUnpack"):
            results = [self._run(operator.getitem, (inputs[0], place)) for place in range(len(outputs))]
        else:
            results = [self._value(node, kind, inputs)]
        self.values.update(zip(outputs, results, strict=False))

    def _value(self, node: Any, kind: str, inputs: list[Any]) -> Any:
        """The value of an operator with one output, or without."""
        if kind == "prim::Constant":
            return self._known(node.output().toIValue()) if node.outputsSize() else None
        if kind == "prim::GetAttr":
            return self._known(getattr(inputs[0], node.s("name")))
        if kind in MAKERS:
            return MAKERS[kind](inputs)
        if kind == "prim::RaiseException":
            raise Untranslatable("it ends in an exception")
        if kind == "aten::append":
            inputs[0].append(inputs[1])
            return inputs[0]
        return self._run(_function(node, kind), tuple(inputs))

    def _known(self, value: Any) -> Any:
        """A value that the program holds; a tensor becomes a node."""
        if not isinstance(value, Tensor):
            return value
        path = self._paths.get(value.data_ptr()) if value.numel() else None
        path = path or f"constant_{len(self.held)}"
        if path not in self._nodes:
            self.held[path] = value
            self._nodes[path] = self.graph.get_attr(path)
            self.note(self._nodes[path], (value,) * len(BATCHES))
        return self._nodes[path]

    def _run(self, function: Callable[..., Any], inputs: tuple[Any, ...]) -> Any:
        """A node if an input depends on one, else the result."""
        named: dict[str, Any] = {}
        if isinstance(function, torch._ops.OpOverload):  # a program gives all arguments by place
            arguments = function._schema.arguments
            named = {one.name: value for one, value in zip(arguments, inputs, strict=True) if one.kwarg_only}
            inputs = inputs[: len(inputs) - len(named)]
        if not any(isinstance(value, fx.Node) for value in _flat(inputs)):
            return function(*inputs, **named)
        examples = tuple(self._example(function, inputs, named, batch) for batch in range(len(BATCHES)))
        if function in SHAPES and examples[0] == examples[1]:
            return examples[0]
        node = self.graph.call_function(function, inputs, named)
        self.note(node, examples)
        if function is torch.ops.aten.size.default:
            sizes = enumerate(zip(*examples, strict=True))
            return [one if one == other else self._run(operator.getitem, (node, at)) for at, (one, other) in sizes]
        return node

    def _example(self, function: Callable[..., Any], inputs: tuple[Any, ...], named: dict[str, Any], batch: int) -> Any:
        """What a function gives for one of the batches."""

        def value(node: fx.Node) -> Any:
            return self._examples[node][batch]

        return function(*fx.map_arg(inputs, value), **fx.map_arg(named, value))

    def _branch(self, node: Any, condition: Any) -> Any:
        yes, no = node.blocks()
        if not isinstance(condition, fx.Node):
            return yes if condition else no
        # A check of the images' shape, which ends in an exception: the probe of a teacher tries its images anyway.
        ends = [any(one.kind() == "prim::RaiseException" for one in block.nodes()) for block in (yes, no)]
        if ends[0] == ends[1]:
            raise Untranslatable("a branch depends on its images")
        return no if ends[0] else yes

    def _loop(self, node: Any, inputs: list[Any]) -> list[Any]:
        most, goes_on, *carried = inputs
        (block,) = node.blocks()
        count, *names = (value.debugName() for value in block.inputs())
        turn = 0
        while not isinstance(goes_on, fx.Node) and not isinstance(most, fx.Node) and turn < LONGEST:
            if not goes_on or turn >= most:
                return carried
            self.values |= {count: turn, **dict(zip(names, carried, strict=True))}
            goes_on, *carried = self.block(block)
            turn += 1
        raise Untranslatable("a loop depends on its images")


def _tensors(program: Any) -> dict[str, Tensor]:
    return {**dict(program.named_parameters()), **dict(program.named_buffers())}


def _function(node: Any, kind: str) -> Callable[..., Any]:
    """What an operator does, as a function of plain values and tensors."""
    name, _, rest = node.schema().partition("(")
    of_tensors = "Tensor" in rest.partition("->")[0]
    if kind in PLAIN and (not of_tensors or kind in ALSO_OF_TENSORS):
        return PLAIN[kind]
    if not kind.startswith("aten::") or not rest:
        raise Untranslatable(f"it has {kind}")
    try:
        packet = getattr(torch.ops.aten, kind.removeprefix("aten::"))
        return getattr(packet, name.partition(".")[2] or "default")  # type: ignore[no-any-return]
    except AttributeError:
        raise Untranslatable(f"it has {kind}") from None


def _flat(values: Iterable[Any]) -> Iterable[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(value)
        else:
            yield value
