"""The format of exported ONNX files: weights inside, a description as metadata, and a checksum at the end.

Every file takes any number of float32 images `[N, C, H, W]` in `[0, 1]` as "images" and returns logits `[N, K]` as
"logits".
"""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from synthkd.errors import ModelError
from synthkd.imports import optional
from synthkd.settings import Count, Settings
from synthkd.types import ImageSpec

INPUT = "images"
OUTPUT = "logits"
METADATA = "synthkd"
"""Key of the description: a metadata property of an ONNX file, an extra file of a `torch.export` program."""
CHECKSUM = "sha256"
"""Key of the last metadata property of an ONNX file, the sha256 of all bytes before it."""

Precision = Literal["float32", "int8"]


class UndescribedError(ModelError):
    """A file of another program, which does not say what images it takes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(f"synthkd did not export {path}, which does not say what images it takes")

    def section(self, key: str) -> str:
        """What to write of such a file as the section `key` of an evaluation."""
        return (
            f"{key}.kind=load {key}.model={self.path} {key}.size=... {key}.classes=..., and {key}.channels, mean and "
            "std where needed"
        )


@dataclass(frozen=True)
class Description:
    """The description of an exported file's model, stored in the file.

    Attributes:
        spec: shape of its images and number of its classes.
        class_names: one per class, or empty.
        precision: of its weights and activations.
    """

    spec: ImageSpec
    class_names: tuple[str, ...]
    precision: Precision = "float32"

    def as_json(self) -> str:
        """The description as it is stored in files; the same text for equal descriptions."""
        written = _Written(**vars(self.spec), class_names=self.class_names, precision=self.precision)
        return json.dumps(written.model_dump(), separators=(",", ":"))


@dataclass(frozen=True)
class OnnxFile:
    """The verified content of an exported file.

    Attributes:
        model: an `onnx.ModelProto` with all weights inside.
        description: of the model.
    """

    model: Any
    description: Description


class _Written(Settings):
    """The description as JSON. From format 2 on the file ends with its checksum; files of format 1 are still read."""

    format: Literal[1, 2] = 2
    channels: Count
    height: Count
    width: Count
    classes: Count
    class_names: tuple[str, ...]
    precision: Precision


def needed(package: str) -> Any:
    """An optional package of the extra `export`, or a module of it, imported.

    Raises:
        MissingExtraError: it is not installed.
    """
    return optional(package, "export", "an exported model")


def read_onnx(path: Path) -> OnnxFile:
    """Read and verify an exported ONNX file.

    Raises:
        MissingExtraError: onnx is not installed.
        ModelError: no such file, a damaged file, a file of another program, or one that refers to other files.
    """
    onnx = needed("onnx")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}); give an exported .onnx file") from error
    length = len(_checksum(b""))
    is_whole = data[-length:] == _checksum(data[:-length])
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf has its own errors, which differ between versions
        raise ModelError(f"{path} is not an ONNX file, or a damaged one; export the model again") from error
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    # ONNX Runtime would open any file that a tensor names, and a file from somebody else may name any.
    if outside := next(filter(None, map(_external_file, _messages(model))), None):
        raise ModelError(f"{path} keeps weights in another file ({outside!r}), which is not opened; export it again")
    written = _parse(metadata, path)
    if not is_whole and (CHECKSUM in metadata or written.format > 1):
        raise ModelError(f"{path} does not have its own checksum: damaged or changed; copy it or export it again")
    spec = ImageSpec(written.channels, written.height, written.width, written.classes)
    return OnnxFile(model, Description(spec, written.class_names, written.precision))


def onnx_bytes(model: Any, description: Description) -> bytes:
    """The content of an ONNX file, reduced to what is needed to run it: short names, no notes, one description.

    Args:
        model: an `onnx.ModelProto`; it is changed.
        description: of the model.
    """
    graph = model.graph
    # Bodies of loops and branches refer to values outside by name, so with such a body all names are kept.
    is_plain = not any(a.HasField("g") or a.graphs for node in graph.node for a in node.attribute)
    used = {name for node in graph.node for name in node.input}
    weights = [weight for weight in graph.initializer if not is_plain or weight.name in used]
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *weights):
        # The exporter's notes include source lines, and with them folders, of the exporting machine.
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    if is_plain:
        _shorten_names(graph, weights)
    graph.ClearField("initializer")
    graph.initializer.extend(weights)
    graph.ClearField("value_info")
    model.metadata_props.add(key=METADATA, value=description.as_json())
    # Deterministic: the same model gives the same bytes, so files can be compared by their digest.
    body = bytes(model.SerializeToString(deterministic=True))
    return body + _checksum(body)


@contextmanager
def quiet() -> Iterator[None]:
    """Context without warnings and logs of the exporters; their errors are raised."""
    root, handler = logging.getLogger(), logging.NullHandler()
    before = root.manager.disable
    # Where the root logger has no handler, logging.warning installs one for good; a null handler prevents that.
    root.addHandler(handler)
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        root.removeHandler(handler)


def _shorten_names(graph: Any, weights: Iterable[Any]) -> None:
    """Number all values of a graph but its input and output, and remove the names of its nodes."""
    # The exporter's names repeat the path of each module, and tell more of the source than the file should.
    names = {"": "", INPUT: INPUT, OUTPUT: OUTPUT}

    def short(name: str) -> str:
        return names.setdefault(name, format(len(names), "x"))

    for node in graph.node:
        node.input[:] = map(short, node.input)
        node.output[:] = map(short, node.output)
        node.ClearField("name")
    for weight in weights:
        weight.name = short(weight.name)
    graph.name = "g"


def _checksum(body: bytes) -> bytes:
    """The end of an ONNX file: one more metadata property with the sha256 of all bytes before it."""
    # Protocol buffers may be joined end to end, so these bytes are part of the model for every reader of ONNX, and can
    # be verified before anything is parsed.
    key, value = CHECKSUM.encode(), hashlib.sha256(body).hexdigest().encode()
    entry = b"\x0a" + bytes([len(key)]) + key + b"\x12" + bytes([len(value)]) + value
    return b"\x72" + bytes([len(entry)]) + entry  # field 14 of a model


def _messages(message: Any) -> Iterator[Any]:
    """A protocol buffer and all that are inside it."""
    # Tensors are in graphs, attributes, subgraphs and functions: a list of these places would soon miss one.
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in value if isinstance(value, Iterable) else [value]:
                yield from _messages(inner)


def _external_file(message: Any) -> str | None:
    """The file in which a tensor keeps its values; None if they are inside, or for another message."""
    if message.DESCRIPTOR.name != "TensorProto" or not (message.data_location or message.external_data):
        return None
    return next((entry.value for entry in message.external_data if entry.key == "location"), "no name")


def parse_description(text: str, path: Path) -> Description:
    """The description in the metadata of an exported file; raises `ModelError` for any other text."""
    written = _parse({METADATA: text} if text else {}, path)
    spec = ImageSpec(written.channels, written.height, written.width, written.classes)
    return Description(spec, written.class_names, written.precision)


def _parse(metadata: Mapping[str, str], path: Path) -> _Written:
    if METADATA not in metadata:
        raise UndescribedError(path)
    try:
        written = _Written.model_validate_json(metadata[METADATA])
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the description"
        raise ModelError(f"{path} describes itself wrongly: {where}: {first['msg']}; export the model again") from error
    if written.class_names and len(written.class_names) != written.classes:
        raise ModelError(
            f"{path} names {len(written.class_names)} of its {written.classes} classes; export the model again"
        )
    return written
