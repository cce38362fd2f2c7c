"""Export of a finished classifier to one file that runs without this project: ONNX, or a `torch.export` program.

Normalisation is part of the file. BatchNorm is folded into the layer before it where that layer allows it.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from synthkd import imports
from synthkd.compression.onnx_file import (
    INPUT,
    METADATA,
    OUTPUT,
    Description,
    needed,
    onnx_bytes,
    parse_description,
    quiet,
)
from synthkd.errors import ModelError
from synthkd.models.classifier import Classifier
from synthkd.models.folding import fold_batch_norm
from synthkd.models.weights import finite_state
from synthkd.system.files import write_atomically

_OPSET = 18  # what torch's exporter writes by itself; a lower one would go through a converter
_TRACED = 2  # images of the traced batch; torch.export takes a size of 0 or 1 for a constant


def export_onnx(model: Classifier, path: Path | str) -> None:
    """Write a classifier as one ONNX file in float32 with its weights inside, replaced atomically.

    The metadata property "synthkd" holds image shape, number of classes and class names as JSON. Names and traces of
    the model's source code are left out.

    Args:
        model: on any device, in any mode; unchanged.
        path: of the file; folders are created.

    Raises:
        MissingExtraError: onnx or onnxscript is not installed.
        ModelError: the model has an operation that cannot be exported.
        TrainingError: its weights are not finite.
    """
    for package in ("onnx", "onnxscript"):
        needed(package)
    folded = _folded(model)
    with quiet():
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
            raise _not_exportable("ONNX", error) from error
    assert program is not None
    write_atomically(Path(path), onnx_bytes(program.model_proto, Description(model.spec, model.class_names)))


def export_program(model: Classifier, path: Path | str) -> None:
    """Write a classifier as a `torch.export` program (.pt2), replaced atomically.

    `torch.export.load(path).module()(images)` runs it, on versions of torch near the one that wrote it. The extra file
    "synthkd" holds the description.

    Args:
        model: on any device, in any mode; unchanged.
        path: of the file; folders are created.

    Raises:
        ModelError: the model has an operation that cannot be exported.
        TrainingError: its weights are not finite.
    """
    buffer, folded = io.BytesIO(), _folded(model)
    description = Description(model.spec, model.class_names).as_json()
    with quiet():
        try:
            shapes = ({0: torch.export.Dim("batch")},)
            program = torch.export.export(folded, (torch.zeros(_TRACED, *model.spec.shape),), dynamic_shapes=shapes)
            for node in program.graph.nodes:
                node.meta.pop("stack_trace", None)  # source lines and folders of the exporting machine
            torch.export.save(program, buffer, extra_files={METADATA: description})
        except Exception as error:  # as for ONNX
            raise _not_exportable("torch.export", error) from error
    write_atomically(Path(path), buffer.getvalue())


def load_program(path: Path | str) -> tuple[Callable[[Tensor], Tensor], Description]:
    """The module of a file of `export_program`, and its description.

    Raises:
        ModelError: a file that is not trusted, cannot be read, or does not describe itself.
    """
    path = Path(path)
    extra = {METADATA: ""}
    with quiet():
        program = imports.load_program(path, "torch.export", extra_files=extra)
    assert isinstance(program, torch.export.ExportedProgram)
    return program.module(), parse_description(extra[METADATA], path)


def _folded(model: Classifier) -> Classifier:
    folded = fold_batch_norm(model).cpu()
    finite_state(folded, "the model to export")
    return folded


def _not_exportable(kind: str, error: Exception) -> ModelError:
    # The exporters' messages are pages long; the reason stands in the first cause.
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return ModelError(
        f"the model cannot be exported with {kind}: {reason}; its forward must not branch on the values of tensors"
        " and must keep to operations that the exporter knows"
    )
