"""ONNX files as networks of PyTorch layers, by the converter onnx2pytorch."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from synthkd.errors import ModelError
from synthkd.imports import optional
from synthkd.system.text import first_line

EXTRA = "onnx"
MOST_OUTPUTS = 8
"""Largest number of outputs of an operator."""
TRIED = (2, 3)
"""Numbers of images that a file must take."""


def read_onnx_network(path: Path, shape: tuple[int, int, int]) -> nn.Module:
    """The network of an ONNX file in eval mode, on the CPU.

    Weights in other files are read if these lie in its folder.

    Args:
        path: the file.
        shape: of an image, `(C, H, W)`.

    Raises:
        MissingExtraError: onnx or onnx2pytorch is not installed.
        ModelError: a damaged file, several inputs, a fixed number of images, or an operator that the converter lacks.
    """
    onnx = optional("onnx", EXTRA, "an ONNX file as a model")
    converter = optional("onnx2pytorch", EXTRA, "an ONNX file as a model")
    try:
        model = onnx.load(str(path))
    except Exception as error:  # protobuf has its own errors, which differ between versions
        raise ModelError(
            f"{path} is not a readable ONNX file ({first_line(error)[:160]}); export or copy it again"
        ) from error
    weights = {one.name for one in model.graph.initializer}
    inputs = [one for one in model.graph.input if one.name not in weights]
    if len(inputs) != 1:
        raise ModelError(f"{path} takes {len(inputs)} inputs; export a network that takes images alone")
    _require_evaluation(model, path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network = _traced(converter.ConvertModel(model)).eval()
    except Exception as error:  # the converter raises what it likes
        raise ModelError(
            f"{path} cannot be turned into PyTorch layers ({first_line(error)[:160]}); save the network as TorchScript "
            "or by torch.export, or name the function that builds it"
        ) from error
    _require_any_number(network, inputs[0], shape, path)
    return network


def _traced(network: Any) -> nn.Module:
    """The converted network as a plain graph of its layers, without the ONNX file that it carries along."""
    # Its names of modules have dots, which separate modules in paths.
    for key, name in network.mapping.items():
        clean = re.sub(r"\W", "_", name)
        if clean != name:
            network.mapping[key] = clean = (
                clean if clean not in network._modules else f"{clean}_{len(network._modules)}"
            )
            setattr(network, clean, network.__dict__.pop(name, None) or network._modules.pop(name))
    whole = _Converted(network)
    traced = fx.GraphModule(whole, _Tracer().trace(whole))
    _take_norms_out(traced)
    return traced


def _take_norms_out(network: fx.GraphModule) -> None:
    """Replace the converter's wrappers of BatchNorm, which call it past its hooks, by the layers themselves."""
    for node in network.graph.nodes:
        wrapper: Any = network.get_submodule(node.target) if node.op == "call_module" else None
        norm = getattr(wrapper, "bnu", None)
        if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or len(node.args) != 1 or wrapper.has_lazy:
            continue
        before = network.get_submodule(node.args[0].target) if node.args[0].op == "call_module" else None
        # The last class takes inputs of any number of dimensions.
        kinds = {nn.Conv2d: nn.BatchNorm2d, nn.Linear: nn.BatchNorm1d}
        layer = kinds.get(type(before), nn.SyncBatchNorm)(norm.num_features, norm.eps)
        layer.load_state_dict(norm.state_dict())
        network.set_submodule(node.target, layer)


class _Converted(nn.Module):
    """The converter's network with one argument."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Any:
        """What the network gives for images `[N, C, H, W]`."""
        return self.network(images)


class _Tracer(fx.Tracer):
    """Sees each operator as one layer."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name != "network"

    def iter(self, obj: Any) -> Iterator[Any]:
        """The outputs of an operator; the converter stops at the number that the file names."""
        return (obj[number] for number in range(MOST_OUTPUTS))


def _require_evaluation(model: Any, path: Path) -> None:
    """Refuse BatchNorm in training mode, and take the mode out of the others: the converter does not know the key."""
    for node in model.graph.node:
        if node.op_type == "BatchNormalization":
            for attribute in [one for one in node.attribute if one.name == "training_mode"]:
                if attribute.i:
                    raise ModelError(f"{path}: its BatchNorm is in training mode; call model.eval() before the export")
                node.attribute.remove(attribute)


@torch.no_grad()
def _require_any_number(network: nn.Module, taken: Any, shape: tuple[int, int, int], path: Path) -> None:
    """Refuse a file in whose graph a number of images is written; what else is wrong the probe of a teacher says."""
    dimensions = taken.type.tensor_type.shape.dim
    fixed = dimensions[0].dim_value if dimensions else 0
    try:
        counts = [len(network(torch.zeros((count, *shape)))) for count in TRIED]
    except Exception:  # any operator may refuse the images
        counts = []
    if not fixed or counts == list(TRIED):
        return
    try:
        network(torch.zeros((fixed, *shape)))
    except Exception:
        return  # not the number alone
    raise ModelError(
        f"{path} takes {fixed} image{'s' if fixed > 1 else ''} at once and no other number; export it with a dynamic "
        'batch dimension: torch.onnx.export(..., dynamic_shapes=({0: torch.export.Dim("n")},))'
    )
