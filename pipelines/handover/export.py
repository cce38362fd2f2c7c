"""Exported files of a finished student, the cost of student and teacher, and their capacity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synthkd.compression import capacity
from synthkd.compression.export import export_onnx, export_program
from synthkd.compression.onnx_file import needed
from synthkd.compression.predict import Parity, onnx_latency, parity, run_onnx
from synthkd.compression.quantization import quantize_int8
from synthkd.compression.search import OPTUNA
from synthkd.data.read.real import RealData
from synthkd.errors import MissingExtraError
from synthkd.losses.logits import kl_divergence
from synthkd.metrics.features import build_extractor, extract
from synthkd.metrics.utility import Proportion, accuracy, predict
from synthkd.models import Classifier
from synthkd.models.cost import Cost, cost
from synthkd.models.latency import Latency
from synthkd.pipelines.config import ExportSettings
from synthkd.privacy.report import plain
from synthkd.settings import TeacherExtractor
from synthkd.types import to_float

FISHER = 200
"""Images of the Fisher trace, which takes them one by one."""
TOLERATED = 0.1
"""Tolerated error of the capacity bound."""
NAMES = {"onnx": "student.onnx", "int8": "student.int8.onnx", "program": "student.pt2"}


@dataclass(frozen=True)
class OnnxCheck:
    """An exported ONNX file next to the student in PyTorch.

    Attributes:
        parity: difference of the logits on synthetic images.
        latency: of one image.
        accuracy: on the test images; None without any.
    """

    parity: Parity
    latency: Latency
    accuracy: Proportion | None


@dataclass(frozen=True)
class ExportedFile:
    """A file of the student.

    Attributes:
        file: its name.
        bytes: its size.
        check: of an ONNX file; None for a program.
    """

    file: str
    bytes: int
    check: OnnxCheck | None = None


@dataclass(frozen=True)
class HandOver:
    """The exports of a student and the cost of both models.

    Attributes:
        teacher_cost, student_cost: in PyTorch.
        accuracy: of the student on the test images; None without any.
        files: format -> file.
    """

    teacher_cost: Cost
    student_cost: Cost
    accuracy: Proportion | None
    files: Mapping[str, ExportedFile]

    def as_json(self) -> dict[str, Any]:
        """The section `handover` of result.json."""
        return {
            "cost": {"teacher": asdict(self.teacher_cost), "student": asdict(self.student_cost)},
            "student": {"accuracy": None if self.accuracy is None else asdict(self.accuracy)},
            "files": {
                kind: {"file": file.file, "bytes": file.bytes, **({} if file.check is None else asdict(file.check))}
                for kind, file in self.files.items()
            },
        }


@dataclass(frozen=True)
class ModelCapacity:
    """The two measures of a model: Fisher trace, and dimension of the penultimate features."""

    fisher_trace: capacity.FisherTrace
    feature_dimension: int


@dataclass(frozen=True)
class CapacityReport:
    """Capacity of teacher and student.

    Attributes:
        n: synthetic images.
        fisher_n: those among them for the Fisher traces.
        teacher, student: their measures.
        bound: least capacity of a student within an error of `TOLERATED` of this teacher.
    """

    n: int
    fisher_n: int
    teacher: ModelCapacity
    student: ModelCapacity
    bound: capacity.CapacityBound

    def as_json(self) -> dict[str, Any]:
        """The section `capacity` of result.json, with null for numbers that are not finite."""
        values: dict[str, Any] = plain(self)
        return values


def require_packages(settings: ExportSettings, searched: bool) -> None:
    """Check, before anything is trained, that the packages of formats and of a search are installed.

    Args:
        settings: with the formats.
        searched: whether there is a search.

    Raises:
        MissingExtraError: a package is missing; the error has the line that installs it.
    """
    if {"onnx", "int8"} & set(settings.formats):
        for package in ("onnx", "onnxscript", "onnxruntime"):
            needed(package)
    if searched and find_spec(OPTUNA[0]) is None:
        raise MissingExtraError(*OPTUNA)


def hand_over(
    settings: ExportSettings,
    teacher: Classifier,
    student: Classifier,
    synthetic: Tensor,
    test: RealData | None,
    directory: Path,
    device: torch.device,
) -> HandOver:
    """Export the student, compare each ONNX file with it, and measure the cost of both models.

    Args:
        settings: which files.
        teacher, student: finished, in eval mode.
        synthetic: uint8 `[N, C, H, W]`: the first images calibrate int8, parity is measured on all.
        test: real test images, or None.
        directory: of the files.
        device: of the models.

    Raises:
        MissingExtraError: a format's packages are not installed.
        ModelError: the student has an operation that cannot be exported.
    """
    files: dict[str, ExportedFile] = {}
    float32 = directory / NAMES["onnx"]
    if {"onnx", "int8"} & set(settings.formats):
        export_onnx(student, float32)
    for kind in settings.formats:
        path = directory / NAMES[kind]
        if kind == "program":
            export_program(student, path)
            files[kind] = ExportedFile(path.name, path.stat().st_size)
            continue
        if kind == "int8":
            quantize_int8(float32, synthetic[: settings.calibration], path)
        right = None if test is None else accuracy(run_onnx(path, test.images).argmax(1), test.labels)
        check = OnnxCheck(parity(student, path, synthetic), onnx_latency(path), right)
        files[kind] = ExportedFile(path.name, path.stat().st_size, check)
    if "onnx" not in settings.formats:
        float32.unlink(missing_ok=True)  # it was only the source of the int8 file
    right = None if test is None else accuracy(predict(student, test.images, device), test.labels)
    return HandOver(cost(teacher, device), cost(student, device), right, files)


def measure_capacity(
    teacher: Classifier, student: Classifier, synthetic: Tensor, seed: int, device: torch.device
) -> CapacityReport:
    """Two heuristics about teacher and student, on synthetic images; see `synthkd.compression.capacity`.

    Args:
        teacher, student: finished, on the device.
        synthetic: uint8 `[N, C, H, W]`.
        seed: of the labels that the Fisher trace draws.
        device: of the models.
    """

    def measure(model: Classifier) -> tuple[ModelCapacity, Tensor]:
        outputs = extract([synthetic], build_extractor(TeacherExtractor(kind="teacher"), device, model))
        assert outputs.logits is not None
        trace = capacity.fisher_trace(model, to_float(synthetic[:FISHER]), seed)
        return ModelCapacity(trace, capacity.feature_dimension(outputs.values)), outputs.logits

    of_teacher, teacher_logits = measure(teacher)
    of_student, student_logits = measure(student)
    divergence = float(kl_divergence(teacher_logits, student_logits).mean())
    bound = capacity.capacity_bound(capacity.label_information(teacher_logits), TOLERATED, divergence)
    return CapacityReport(len(synthetic), min(FISHER, len(synthetic)), of_teacher, of_student, bound)
