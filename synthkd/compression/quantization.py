"""Static int8 quantization of an exported ONNX file, by ONNX Runtime."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from synthkd.compression.onnx_file import INPUT, OUTPUT, Description, needed, onnx_bytes, quiet, read_onnx
from synthkd.errors import DataError, ModelError
from synthkd.system.files import naming, write_atomically
from synthkd.types import to_float

_BATCH = 64  # images at once, in calibration
# operations that ONNX Runtime computes in int8, or that only pass int8 values on
_QUANTIZED = (
    "Conv", "Gemm", "MatMul", "Add", "Relu", "Clip", "MaxPool", "Concat", "Reshape", "Flatten", "Squeeze", "Transpose",
)  # fmt: skip
_FEW_CHANNELS = 4  # a convolution of so many input channels is no faster in int8


def quantize_int8(onnx_path: Path | str, images: Tensor, path: Path | str) -> None:
    """Write an int8 copy of an exported file: static, in QDQ format, weights per channel, activations per tensor.

    The range of an activation is its range on the images. Weights use 7 of their 8 bits. Layers that int8 would not
    accelerate stay float32: convolutions of at most 4 channels (the first one), averages, norms and the logits.

    Args:
        onnx_path: a file of `export_onnx`.
        images: uint8 `[N, C, H, W]`. Their ranges can be read from the file, so use synthetic images.
        path: of the new file, replaced atomically; folders are created.

    Raises:
        MissingExtraError: onnx or onnxruntime is not installed.
        ModelError: onnx_path is no such file, or is int8 already.
        DataError: images of another shape or type, or none.
    """
    onnx = needed("onnx")
    needed("onnxruntime")
    source = read_onnx(Path(onnx_path))
    model, description = source.model, source.description
    if description.precision != "float32":
        raise ModelError(f"{onnx_path} is {description.precision} already; quantize the file that export_onnx wrote")
    if images.dtype != torch.uint8 or tuple(images.shape[1:]) != description.spec.shape or len(images) == 0:
        raise DataError(
            f"{onnx_path} is calibrated on uint8 images [N, {', '.join(map(str, description.spec.shape))}], N > 0, got "
            f"{images.dtype} {list(images.shape)}; resize them, or turn floats into uint8 with synthkd.types.to_uint8"
        )
    for index, node in enumerate(model.graph.node):
        node.name = f"node{index}"  # the quantizer refers to nodes by name
    # Without this mark the quantizer advises to run its own simplifications first; torch's exporter has done them.
    model.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
    with quiet(), tempfile.TemporaryDirectory() as folder, naming(Path(folder)):
        quantization = needed("onnxruntime.quantization")
        written = Path(folder) / "int8.onnx"
        quantization.quantize_static(
            model,
            written,
            _Batches(images),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=list(_QUANTIZED),
            nodes_to_exclude=_narrow_convolutions(model.graph),
            per_channel=True,
            # Processors without VNNI add pairs of products in 16 bits, which weights of 8 bits would overflow. With 7
            # bits the file gives the same answers on all of them.
            reduce_range=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            # With its fixed number of bins "Entropy" has a single threshold to choose: the range itself.
            calibrate_method=quantization.CalibrationMethod.MinMax,
        )
        quantized = onnx.load(written)
    _leave_logits_float(quantized.graph)
    _drop_zeros(quantized.graph)
    write_atomically(Path(path), onnx_bytes(quantized, Description(description.spec, description.class_names, "int8")))


class _Batches:
    """Batches of uint8 images, in the form that the quantizer reads."""

    def __init__(self, images: Tensor) -> None:
        self._chunks = iter(images.split(_BATCH))

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        chunk = next(self._chunks, None)
        return None if chunk is None else {INPUT: to_float(chunk.cpu()).numpy()}


def _leave_logits_float(graph: Any) -> None:
    """Remove the last pair of quantize and dequantize, which only rounds the logits."""
    producers = {name: node for node in graph.node for name in node.output}
    last = producers[OUTPUT]
    if last.op_type != "DequantizeLinear" or (before := producers.get(last.input[0])) is None:
        return
    value = before.input[0]
    # Another reader of the value would lose its input when the producer is renamed.
    if sum(value in node.input for node in graph.node) > 1:
        return
    producer = producers[value]
    producer.output[:] = [OUTPUT if name == value else name for name in producer.output]
    graph.node.remove(last)
    graph.node.remove(before)


def _drop_zeros(graph: Any) -> None:
    """Remove zero points of 0, which is their default, from biases and from the weights of convolutions."""
    # Those of other weights stay: without them ONNX Runtime computes the layer in float32.
    onnx = needed("onnx")
    constants = {weight.name: weight for weight in graph.initializer}
    convolved = {node.input[1] for node in graph.node if node.op_type == "Conv"}
    for node in graph.node:
        if node.op_type != "DequantizeLinear" or len(node.input) < 3 or node.input[0] not in constants:
            continue
        is_bias = constants[node.input[0]].data_type == onnx.TensorProto.INT32
        zero = onnx.numpy_helper.to_array(constants[node.input[2]])
        if not zero.any() and (is_bias or node.output[0] in convolved):
            del node.input[2]


def _narrow_convolutions(graph: Any) -> list[str]:
    """Names of the convolutions of few input channels."""
    shapes = {weight.name: tuple(weight.dims) for weight in graph.initializer}
    names = []
    for node in graph.node:
        if node.op_type == "Conv" and node.input[1] in shapes:
            groups = next((a.i for a in node.attribute if a.name == "group"), 1)
            if groups * shapes[node.input[1]][1] <= _FEW_CHANNELS:
                names.append(node.name)
    return names
