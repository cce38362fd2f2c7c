"""ONNX files as networks of PyTorch layers, by the converter onnx2pytorch."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from synthkd.errors import ConfigError, ModelError
from synthkd.imports import optional
from synthkd.models.classifier import logits_in
from synthkd.models.onnx_session import OnnxNetwork
from synthkd.models.programs import CLOSE
from synthkd.system.text import first_line

EXTRA = "onnx"
MOST_OUTPUTS = 8
"""Largest number of outputs of an operator."""
TRIED = (2, 3)
"""Numbers of images that a file must take."""
WITH_WEIGHTS = ("BatchNormalization", "Conv", "ConvTranspose", "Gemm", "InstanceNormalization")
"""Operators that the converter turns into layers, whose weights it takes from those of the file alone."""


def read_onnx_network(path: Path, shape: tuple[int, int, int]) -> nn.Module:
    """The network of an ONNX file in eval mode, on the CPU.

    Weights in other files are read if these lie in its folder.

    Args:
        path: the file.
        shape: of an image, `(C, H, W)`.

    Raises:
        MissingExtraError: onnx, onnx2pytorch or onnxruntime is not installed.
        ModelError: a damaged file, several inputs, a fixed number of images, an operator that the converter lacks, or
            layers whose answers are not those of ONNX Runtime.
    """
    onnx, converter, _ = (
        optional(package, EXTRA, "an ONNX file as a model") for package in ("onnx", "onnx2pytorch", "onnxruntime")
    )
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
    _hold_weights(model.graph)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network = _traced(converter.ConvertModel(model)).eval()
    except Exception as error:  # the converter raises what it likes
        raise _not_convertible(path, first_line(error)[:160]) from error
    _require_any_number(network, inputs[0], shape, path)
    _require_same_answers(network, shape, path)
    return network


def _not_convertible(path: Path, reason: str) -> ModelError:
    return ModelError(
        f"{path} cannot be turned into PyTorch layers ({reason}); save the network as TorchScript or by torch.export, "
        "or name the function that builds it"
    )


def _hold_weights(graph: Any) -> None:
    """Turn constants and copies of weights that layers read into weights of the graph, in place.

    Exporters write a scale of ones as a constant, and one of two equal weights as a copy of the other. The converter
    does not see these, and gives the layer those that are left as if they were the first.
    """
    weights = {one.name: one for one in graph.initializer}
    read = {name for node in graph.node if node.op_type in WITH_WEIGHTS for name in node.input}
    for node in list(graph.node):
        if node.op_type == "Constant":
            tensor = next((one.t for one in node.attribute if one.name == "value"), None)
        else:
            tensor = weights.get(node.input[0]) if node.op_type == "Identity" else None
        if tensor is None or node.output[0] not in read:
            continue
        weights[node.output[0]] = held = graph.initializer.add()
        held.CopyFrom(tensor)
        held.name = node.output[0]
        graph.node.remove(node)


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


@torch.no_grad()
def _require_same_answers(network: nn.Module, shape: tuple[int, int, int], path: Path) -> None:
    """Refuse layers that answer other than the file; what is wrong with the file the probe of a teacher says."""
    images = torch.rand((TRIED[0], *shape), generator=torch.Generator().manual_seed(0))
    try:
        expected = OnnxNetwork(path)(images).float()
    except (ConfigError, ModelError):
        return
    if not expected.isfinite().all():
        return
    try:
        given = logits_in(network(images))[0].float()
    except Exception as error:  # any operator may refuse the images
        raise _not_convertible(path, first_line(error)[:160]) from error
    if given.shape != expected.shape or not torch.allclose(given, expected, CLOSE, CLOSE * float(expected.abs().max())):
        raise _not_convertible(path, "they give other values than ONNX Runtime")
