"""The files of a finished student, the cost of student and teacher, and two heuristics of their capacity."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from synthkd.compression.capacity import (
    capacity_bound,
    feature_dimension,
    fisher_trace,
    label_information,
)
from synthkd.compression.export import export_onnx, export_program
from synthkd.compression.onnx_file import needed
from synthkd.compression.predict import onnx_latency, parity, run_onnx
from synthkd.compression.quantization import quantize_int8
from synthkd.compression.search import OPTUNA
from synthkd.data.read.real import RealData
from synthkd.errors import MissingExtraError
from synthkd.losses.logits import kl_divergence
from synthkd.metrics.features import build_extractor, extract
from synthkd.metrics.utility import accuracy, predict
from synthkd.models import Classifier
from synthkd.models.cost import cost
from synthkd.pipelines.config import ExportSettings
from synthkd.reports.results import (
    Capacity,
    CapacityOfModel,
    ExportedFile,
    Handover,
    HandoverCost,
    HandoverStudent,
    LeastCapacity,
    MeasuredFile,
)
from synthkd.settings import TeacherExtractor
from synthkd.types import to_float

FISHER = 200
"""Most images of the Fisher trace, which takes them one by one."""
TOLERATED = 0.1
"""Tolerated error of the capacity bound."""
NAMES = {"onnx": "student.onnx", "int8": "student.int8.onnx", "program": "student.pt2"}


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
    # Looked for and not imported, which takes half a second: a finished search does not need it.
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
) -> Handover:
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
    files: dict[str, MeasuredFile | ExportedFile] = {}
    float32 = directory / NAMES["onnx"]
    # int8 is made from the float32 file, so that one is written for it too.
    if {"onnx", "int8"} & set(settings.formats):
        export_onnx(student, float32)
    for kind in settings.formats:
        path = directory / NAMES[kind]
        if kind == "program":
            export_program(student, path)
            files[kind] = ExportedFile(path.name, path.stat().st_size)
            continue
        # Synthetic images calibrate it: their ranges can be read from the file, and those of private images must not.
        if kind == "int8":
            quantize_int8(float32, synthetic[: settings.calibration], path)
        files[kind] = MeasuredFile(
            path.name,
            path.stat().st_size,
            parity(student, path, synthetic),
            onnx_latency(path),
            None if test is None else accuracy(run_onnx(path, test.images).argmax(1), test.labels),
        )
    # What int8 was made from, and what an interrupted run with other formats left.
    for other in NAMES.keys() - settings.formats:
        (directory / NAMES[other]).unlink(missing_ok=True)
    right = None if test is None else accuracy(predict(student, test.images, device), test.labels)
    return Handover(HandoverCost(cost(teacher, device), cost(student, device)), HandoverStudent(right), files)


def measure_capacity(
    teacher: Classifier, student: Classifier, synthetic: Tensor, seed: int, device: torch.device
) -> Capacity:
    """Two heuristics about teacher and student, on synthetic images; see `synthkd.compression.capacity`.

    The bound is the least capacity that a student within `TOLERATED` of this teacher must have.

    Args:
        teacher, student: finished, on the device.
        synthetic: uint8 `[N, C, H, W]`.
        seed: of the labels that the Fisher trace draws.
        device: of the models.
    """

    # One pass over the images gives the features and the logits.
    def measure(model: Classifier) -> tuple[CapacityOfModel, Tensor]:
        outputs = extract([synthetic], build_extractor(TeacherExtractor(kind="teacher"), device, model))
        assert outputs.logits is not None
        trace = fisher_trace(model, to_float(synthetic[:FISHER]), seed)
        return CapacityOfModel(trace, feature_dimension(outputs.values)), outputs.logits

    of_teacher, teacher_logits = measure(teacher)
    of_student, student_logits = measure(student)
    divergence = float(kl_divergence(teacher_logits, student_logits).mean())
    bound = capacity_bound(label_information(teacher_logits), TOLERATED, divergence)
    value = bound.value if math.isfinite(bound.value) else None  # JSON has no infinity
    least = LeastCapacity(value, bound.mutual_information, bound.epsilon, bound.kl)
    return Capacity(len(synthetic), min(FISHER, len(synthetic)), of_teacher, of_student, least)
