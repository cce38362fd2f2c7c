"""Networks that are programs: TorchScript archives and programs of `torch.export`. They run only if they are trusted.

Both are turned into networks of layers, so that the statistics of BatchNorm are found, layers can be folded and their
outputs seen. A TorchScript program that cannot be is run as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.jit._fuser import optimized_execution

from synthkd.errors import ModelError
from synthkd.imports import load_program
from synthkd.models.file_kinds import EXPORTED, TORCHSCRIPT, kind_of
from synthkd.models.graphs import graph_of_layers
from synthkd.models.torchscript import Untranslatable, graph_of
from synthkd.system.text import one_line

GUARDS = "_guards_fn"
"""Module of an exported program that checks the shapes of its images, as its example had them."""
TRIED = (1, 4)
"""Numbers of images by which a translation is compared with its program."""
CLOSE = 1e-3
"""Largest difference of the two, relative to the largest output."""


PROGRAMS = (TORCHSCRIPT, EXPORTED)


def read_program(path: Path, shape: tuple[int, int, int], source: Path | None) -> nn.Module:
    """The network of a program, in eval mode, on the CPU: of layers, or a `Script`.

    Args:
        path: the file.
        shape: of an image, `(C, H, W)`.
        source: the file that names it, or None if a user typed it (see `synthkd.imports`).

    Raises:
        ModelError: the program is not trusted, holds a pickle, is damaged, was saved in training mode, takes other than
            one tensor, or takes a fixed number of images.
    """
    if kind_of(path) == TORCHSCRIPT:
        script = load_program(path, "TorchScript", source)
        assert isinstance(script, torch.jit.ScriptModule)
        return of_script(script, shape, str(path))
    program = load_program(path, "torch.export", source)
    assert isinstance(program, torch.export.ExportedProgram)
    return of_exported(program, str(path))


def of_exported(program: torch.export.ExportedProgram, who: str) -> nn.Module:
    """The network of an exported program; for arguments and errors see `read_program`."""
    signature = program.graph_signature
    inputs = [node for node in program.graph.nodes if node.op == "placeholder" and node.name in signature.user_inputs]
    if len(inputs) != 1 or len(signature.user_inputs) != 1 or not isinstance(inputs[0].meta.get("val"), Tensor):
        raise ModelError(f"{who} takes {len(signature.user_inputs)} inputs; export a network that takes images alone")
    _require_any_number(inputs[0].meta["val"].shape[0], who)
    return _of_graph(program.module(check_guards=False), who)


def opened(network: nn.Module, shape: tuple[int, int, int], who: str) -> nn.Module:
    """A network in memory; of a program the network of layers, else itself.

    Args:
        network: also a `torch.jit.ScriptModule`, or what `ExportedProgram.module()` gives; it is used up.
        shape: of an image, `(C, H, W)`.
        who: name of the network in errors.

    Raises:
        ModelError: a program in training mode, or one that takes a fixed number of images.
    """
    if isinstance(network, torch.jit.ScriptModule):
        return of_script(network.eval(), shape, who)
    if not isinstance(network, fx.GraphModule) or not isinstance(network.graph._codegen, fx.graph._PyTreeCodeGen):
        return network
    images = next(node for node in network.graph.nodes if node.op == "placeholder").meta.get("val")
    if isinstance(images, Tensor):
        _require_any_number(images.shape[0], who)
    return _of_graph(network, who)


def _of_graph(module: fx.GraphModule, who: str) -> nn.Module:
    for node in list(module.graph.nodes):
        if node.op == "call_module" and node.target == GUARDS:
            module.graph.erase_node(node)
    held = {
        str(node.target): _attribute(module, str(node.target)) for node in module.graph.nodes if node.op == "get_attr"
    }
    return _layered(module.graph, held, who)


def _require_any_number(count: object, who: str) -> None:
    if isinstance(count, int):
        raise ModelError(
            f"{who} takes {count} images at once and no other number; export it with a dynamic batch dimension: "
            'torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("n")},))'
        )


def of_script(program: torch.jit.ScriptModule, shape: tuple[int, int, int], who: str) -> nn.Module:
    """The network of a `torch.jit.ScriptModule`; for arguments, result and errors see `read_program`."""
    try:
        if any(one.is_floating_point() and one.dtype != torch.float32 for one in program.state_dict().values()):
            program.float()
        graph, held = graph_of(program, shape)
        network = _layered(graph, held, who)
        if _differ(program, network, shape):
            raise Untranslatable("its translation gives other values")
    except ModelError:
        raise
    except Exception as error:  # other people's programs may hold anything
        reason = str(error) if isinstance(error, Untranslatable) else one_line(repr(error))[:120]
        return Script(program, f"run as it is, since {reason}: its layers and BatchNorm statistics cannot be seen")
    return network


class Script(nn.Module):
    """A TorchScript program that is run as it is. Its layers have no hooks, so nothing inside it can be seen.

    Args:
        program: a `torch.jit.ScriptModule`; its parameters no longer require gradients.
        how: it is run and why, for people.
    """

    def __init__(self, program: torch.jit.ScriptModule, how: str) -> None:
        super().__init__()
        self.how = how
        self.program = program
        for parameter in program.parameters():  # else deepcopy makes some that are not leaves
            parameter.requires_grad_(False)

    def forward(self, images: Tensor) -> object:
        """What the program gives for images `[N, C, H, W]`."""
        # The optimising executor of TorchScript compiles anew for other shapes and modes of gradients.
        with optimized_execution(False):
            return self.program(images)


def _layered(graph: fx.Graph, held: dict[str, Any], who: str) -> nn.Module:
    try:
        return graph_of_layers(graph, held)
    except ModelError as error:
        raise ModelError(f"{who}: {error}") from error


def _attribute(module: nn.Module, path: str) -> Any:
    parent, _, name = path.rpartition(".")
    return getattr(module.get_submodule(parent), name)


@torch.no_grad()
def _differ(program: nn.Module, network: nn.Module, shape: tuple[int, int, int]) -> bool:
    """Whether a translation gives other values than its program; False if the program takes no such images."""
    generator = torch.Generator().manual_seed(0)
    for count in TRIED:
        images = torch.rand((count, *shape), generator=generator)
        try:
            expected = program(images)
        except Exception:  # the probe of a teacher says what is wrong
            return False
        given = network(images)
        for one, other in zip(_tensors(expected), _tensors(given), strict=True):
            if one.shape != other.shape or not torch.allclose(one, other, CLOSE, CLOSE * float(one.abs().max())):
                return True
    return False


def _tensors(output: Any) -> list[Tensor]:
    return [one for one in (output if isinstance(output, tuple | list) else [output]) if isinstance(one, Tensor)]
