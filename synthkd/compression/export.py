"""A finished classifier as one file that runs without this project: ONNX in float32 and int8, and torch.export.

Every file takes any number of float32 images `[N, C, H, W]` in `[0, 1]` as "images" and gives logits `[N, K]` as
"logits". Normalisation is inside, and BatchNorm is folded into the layer before it where that layer allows it.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from synthkd.errors import DataError, ModelError
from synthkd.imports import optional
from synthkd.models.classifier import Classifier
from synthkd.models.folding import fold_batch_norm
from synthkd.models.weights import finite_state
from synthkd.settings import Count, Settings
from synthkd.system.files import naming, write_atomically
from synthkd.types import ImageSpec, to_float

INPUT = "images"
OUTPUT = "logits"
METADATA = "synthkd"
"""Key of the description: a metadata property of an ONNX file, an extra file of a program."""
CHECKSUM = "sha256"
"""Key of the last metadata property of an ONNX file, the sha256 of all bytes before it."""

Precision = Literal["float32", "int8"]

_OPSET = 18  # what torch's exporter writes by itself; a lower one would go through a converter
_TRACED = 2  # images to export with; 0 or 1 would be taken for a constant
_BATCH = 64
_QUANTIZED = (
    "Conv", "Gemm", "MatMul", "Add", "Relu", "Clip", "MaxPool", "Concat", "Reshape", "Flatten", "Squeeze", "Transpose",
)  # fmt: skip
_FEW_CHANNELS = 4


@dataclass(frozen=True)
class Description:
    """What an exported file says of itself.

    Attributes:
        spec: the images it takes and the number of classes it gives.
        class_names: one per class, or empty.
        precision: of its weights and activations.
    """

    spec: ImageSpec
    class_names: tuple[str, ...]
    precision: Precision


class _Written(Settings):
    """The description as JSON; from format 2 on the file ends with its checksum."""

    format: Literal[1, 2] = 2
    channels: Count
    height: Count
    width: Count
    classes: Count
    class_names: tuple[str, ...]
    precision: Precision


def export_onnx(model: Classifier, path: Path | str) -> None:
    """Write a classifier as one ONNX file with its weights inside, replaced atomically.

    The metadata property "synthkd" holds image shape, number of classes and class names as JSON. Names and traces of
    the code that the model came from are left out.

    Args:
        model: on any device, in any mode; unchanged.
        path: of the file; folders are made.

    Raises:
        MissingExtraError: onnx or onnxscript is not installed.
        ModelError: the model does something that cannot be exported.
        TrainingError: its weights are not finite.
    """
    for package in ("onnx", "onnxscript"):
        needed(package)
    folded = _folded(model)
    with _quiet():
        try:
            program = torch.onnx.export(
                folded,
                (torch.zeros(_TRACED, *model.spec.shape),),
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                opset_version=_OPSET,
                dynamo=True,
                verbose=False,
            )
        except Exception as error:  # exporting runs other people's code on symbols, which may fail in any way
            raise _cannot("ONNX", error) from error
    assert program is not None
    write_atomically(Path(path), _compact(program.model_proto, _as_json(model.spec, model.class_names)))


def export_program(model: Classifier, path: Path | str) -> None:
    """Write a classifier as a `torch.export` program (.pt2), replaced atomically.

    `torch.export.load(path).module()(images)` runs it, on versions of torch near the one that wrote it; the extra file
    "synthkd" holds the description.

    Args:
        model: on any device, in any mode; unchanged.
        path: of the file; folders are made.

    Raises:
        ModelError: the model does something that cannot be exported.
        TrainingError: its weights are not finite.
    """
    buffer, folded = io.BytesIO(), _folded(model)
    with _quiet():
        try:
            shapes = ({0: torch.export.Dim("batch")},)
            program = torch.export.export(folded, (torch.zeros(_TRACED, *model.spec.shape),), dynamic_shapes=shapes)
            for node in program.graph.nodes:
                node.meta.pop("stack_trace", None)  # the folders and source lines of the machine that exports
            torch.export.save(program, buffer, extra_files={METADATA: _as_json(model.spec, model.class_names)})
        except Exception as error:  # as for ONNX
            raise _cannot("torch.export", error) from error
    write_atomically(Path(path), buffer.getvalue())


def quantize_int8(onnx_path: Path | str, images: Tensor, path: Path | str) -> None:
    """Write an int8 copy of an exported file: static, in QDQ format, weights per channel, activations per tensor.

    The range of an activation is what it spans on the images. Weights use 7 of their 8 bits, since processors without
    VNNI add pairs of products in 16 bits, which 8 would overflow: so the file answers alike everywhere. What 8 bits
    would not make quicker stays float32: a convolution of 4 channels or fewer (the first one), averages, norms and the
    logits.

    Args:
        onnx_path: what `export_onnx` wrote.
        images: uint8 `[N, C, H, W]`. What they span can be read from the file, so give synthetic ones.
        path: of the new file, replaced atomically; folders are made.

    Raises:
        MissingExtraError: onnx or onnxruntime is not installed.
        ModelError: onnx_path is no such file, or is int8 already.
        DataError: images of another shape or type, or none.
    """
    onnx = needed("onnx")
    needed("onnxruntime")
    model, description = read_onnx(Path(onnx_path))
    if description.precision != "float32":
        raise ModelError(f"{onnx_path} is {description.precision} already; quantize the file that export_onnx wrote")
    if images.dtype != torch.uint8 or tuple(images.shape[1:]) != description.spec.shape or len(images) == 0:
        raise DataError(
            f"{onnx_path} is calibrated on uint8 images [N, {', '.join(map(str, description.spec.shape))}], N > 0, got "
            f"{images.dtype} {list(images.shape)}; resize them, or turn floats into uint8 with synthkd.types.to_uint8"
        )
    for index, node in enumerate(model.graph.node):
        node.name = f"node{index}"  # the quantizer calls them by name
    # Without this mark the quantizer advises to run its own simplifications first; torch's exporter has done them.
    model.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
    with _quiet(), tempfile.TemporaryDirectory() as folder, naming(Path(folder)):
        quantization = needed("onnxruntime.quantization")
        written = Path(folder) / "int8.onnx"
        quantization.quantize_static(
            model,
            written,
            _Batches(images),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=list(_QUANTIZED),
            nodes_to_exclude=_narrow(model.graph),
            per_channel=True,
            reduce_range=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            # "Entropy" would choose among thresholds of which there is only one, the range itself, with its fixed bins.
            calibrate_method=quantization.CalibrationMethod.MinMax,
        )
        quantized = onnx.load(written)
    _leave_logits_float(quantized.graph)
    _drop_zeros(quantized.graph)
    write_atomically(Path(path), _compact(quantized, _as_json(description.spec, description.class_names, "int8")))


def read_onnx(path: Path) -> tuple[Any, Description]:
    """The graph in an exported ONNX file, verified and with all its weights inside, and its description.

    Raises:
        MissingExtraError: onnx is not installed.
        ModelError: no such file, a damaged one, one that another program exported, or one that refers to other files.
    """
    onnx = needed("onnx")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}); give an exported .onnx file") from error
    body, end = data[: -len(_sealing(b""))], data[-len(_sealing(b"")) :]
    whole = end == _sealing(body)
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf has its own errors, which differ between versions
        raise ModelError(f"{path} is not an ONNX file, or a damaged one; export the model again") from error
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    if outside := next(filter(None, map(_outside, _messages(model))), None):
        raise ModelError(f"{path} keeps weights in another file ({outside!r}), which is not opened; export it again")
    description, version = _parse_description(metadata, path)
    if not whole and (CHECKSUM in metadata or version > 1):
        raise ModelError(f"{path} does not have its own checksum: damaged or changed; copy it or export it again")
    return model, description


def _sealing(body: bytes) -> bytes:
    """The end of an ONNX file: one more metadata property, the sha256 of all that comes before it.

    Protocol buffers may be joined end to end, so the property is a part of the model, and verified without parsing it.
    """
    key, value = CHECKSUM.encode(), hashlib.sha256(body).hexdigest().encode()
    entry = b"\x0a" + bytes([len(key)]) + key + b"\x12" + bytes([len(value)]) + value
    return b"\x72" + bytes([len(entry)]) + entry  # field 14 of a model


def _messages(message: Any) -> Iterator[Any]:
    """A protocol buffer and all that are inside it: tensors are in graphs, attributes, subgraphs and functions."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in value if isinstance(value, Iterable) else [value]:
                yield from _messages(inner)


def _outside(message: Any) -> str | None:
    """The file where a tensor keeps its values, if not inside."""
    if message.DESCRIPTOR.name != "TensorProto" or not (message.data_location or message.external_data):
        return None
    return next((entry.value for entry in message.external_data if entry.key == "location"), "no name")


def _parse_description(metadata: Mapping[str, str], path: Path) -> tuple[Description, int]:
    if METADATA not in metadata:
        raise ModelError(f"{path} does not say what images it takes; export the model with synthkd")
    try:
        found = _Written.model_validate_json(metadata[METADATA])
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the description"
        raise ModelError(f"{path} describes itself wrongly: {where}: {first['msg']}; export the model again") from error
    spec = ImageSpec(found.channels, found.height, found.width, found.classes)
    if found.class_names and len(found.class_names) != spec.classes:
        raise ModelError(f"{path} names {len(found.class_names)} of its {spec.classes} classes; export the model again")
    return Description(spec, found.class_names, found.precision), found.format


def needed(package: str) -> Any:
    """An optional package of the extra `export`, or a module of it, imported.

    Raises:
        MissingExtraError: it is not installed.
    """
    return optional(package, "export", "an exported model")


class _Batches:
    """uint8 images one batch after the other, as the quantizer asks for them."""

    def __init__(self, images: Tensor) -> None:
        self._chunks = iter(images.split(_BATCH))

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        chunk = next(self._chunks, None)
        return None if chunk is None else {INPUT: to_float(chunk.cpu()).numpy()}


def _folded(model: Classifier) -> Classifier:
    folded = fold_batch_norm(model).cpu()
    finite_state(folded, "the model to export")
    return folded


def _as_json(spec: ImageSpec, class_names: tuple[str, ...], precision: Precision = "float32") -> str:
    written = _Written(**vars(spec), class_names=class_names, precision=precision)
    return json.dumps(written.model_dump(), separators=(",", ":"))


def _cannot(kind: str, error: Exception) -> ModelError:
    # The exporters' messages go on for pages; the first cause has the reason.
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return ModelError(
        f"the model cannot be exported with {kind}: {reason}; its forward must not branch on the values of tensors"
        " and must keep to operations that the exporter knows"
    )


def _compact(model: Any, description: str) -> bytes:
    """An ONNX file with no more than it takes to run: short names, no notes of the exporter, one description."""
    graph = model.graph
    # Bodies of loops and branches see the values outside by name, so with such a body everything keeps its name.
    plain = not any(a.HasField("g") or a.graphs for node in graph.node for a in node.attribute)
    used = {name for node in graph.node for name in node.input}
    weights = [weight for weight in graph.initializer if not plain or weight.name in used]
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *weights):
        # The notes include the source lines, and with them the folders, of the machine that exported.
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    names = {"": "", INPUT: INPUT, OUTPUT: OUTPUT}

    def short(name: str) -> str:
        return names.setdefault(name, format(len(names), "x"))

    if plain:
        for node in graph.node:
            node.input[:] = map(short, node.input)
            node.output[:] = map(short, node.output)
            node.ClearField("name")
        for weight in weights:
            weight.name = short(weight.name)
        graph.name = "g"
    graph.ClearField("initializer")
    graph.initializer.extend(weights)
    graph.ClearField("value_info")
    model.metadata_props.add(key=METADATA, value=description)
    body = bytes(model.SerializeToString(deterministic=True))
    return body + _sealing(body)


def _leave_logits_float(graph: Any) -> None:
    """Take the last pair of quantize and dequantize away, which would only round the logits."""
    made_by = {name: node for node in graph.node for name in node.output}
    last = made_by[OUTPUT]
    if last.op_type != "DequantizeLinear" or (before := made_by.get(last.input[0])) is None:
        return
    value = before.input[0]
    if sum(value in node.input for node in graph.node) > 1:
        return
    producer = made_by[value]
    producer.output[:] = [OUTPUT if name == value else name for name in producer.output]
    graph.node.remove(last)
    graph.node.remove(before)


def _drop_zeros(graph: Any) -> None:
    """Leave out the zero points of biases and of the weights of convolutions where they are 0, as when left out.

    Those of other weights stay: without them ONNX Runtime computes the layer in float32.
    """
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


def _narrow(graph: Any) -> list[str]:
    """Names of the convolutions that read few channels."""
    shapes = {weight.name: tuple(weight.dims) for weight in graph.initializer}
    names = []
    for node in graph.node:
        if node.op_type == "Conv" and node.input[1] in shapes:
            groups = next((a.i for a in node.attribute if a.name == "group"), 1)
            if groups * shapes[node.input[1]][1] <= _FEW_CHANNELS:
                names.append(node.name)
    return names


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep warnings and logs of the exporters to themselves; what fails raises."""
    root, nothing = logging.getLogger(), logging.NullHandler()
    before = root.manager.disable
    # With a handler there, logging.warning does not set one up for good.
    root.addHandler(nothing)
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        root.removeHandler(nothing)
