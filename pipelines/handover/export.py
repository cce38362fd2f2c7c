"""The files of a finished student for use elsewhere, and what it costs next to its teacher."""

from __future__ import annotations

from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synthkd.compression.capacity import capacity_bound, feature_dimension, fisher_trace, label_information
from synthkd.compression.export import export_onnx, export_program
from synthkd.compression.onnx_file import needed
from synthkd.compression.predict import onnx_latency, parity, run_onnx
from synthkd.compression.quantization import quantize_int8
from synthkd.compression.search import OPTUNA
from synthkd.data.read.real import RealData
from synthkd.errors import MissingExtraError
from synthkd.losses.logits import kl_divergence
from synthkd.metrics.features import build_extractor, extract
from synthkd.metrics.utility import Proportion, accuracy, predict
from synthkd.models import Classifier
from synthkd.models.cost import cost
from synthkd.pipelines.config import ExportSettings
from synthkd.privacy.report import plain
from synthkd.settings import TeacherExtractor
from synthkd.types import to_float

FISHER = 200
"""Images that the Fisher trace is taken on, one by one."""
TOLERATED = 0.1
"""Error that the capacity bound tolerates."""
NAMES = {"onnx": "student.onnx", "int8": "student.int8.onnx", "program": "student.pt2"}


def require_packages(settings: ExportSettings, searched: bool) -> None:
    """Refuse, before anything is trained, formats or a search whose packages are not installed.

    Raises:
        MissingExtraError: the first of them, with the line that installs it.
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
) -> dict[str, Any]:
    """Export the student, hold each file against it, and measure what both models cost.

    Args:
        settings: which files.
        teacher, student: finished, in eval mode.
        synthetic: uint8 `[N, C, H, W]`: int8 ranges are measured on the first of them, parity on all.
        test: real test images, or None.
        directory: of the files.
        device: of the models.

    Returns:
        JSON-able: `cost` of both models, and for each format its file, bytes, parity, latency and accuracy.

    Raises:
        MissingExtraError: a format's packages are not installed.
        ModelError: the student does something that cannot be exported.
    """
    files: dict[str, Any] = {}
    exported = directory / NAMES["onnx"]
    if {"onnx", "int8"} & set(settings.formats):
        export_onnx(student, exported)
    for kind in settings.formats:
        path = directory / NAMES[kind]
        if kind == "int8":
            quantize_int8(exported, synthetic[: settings.calibration], path)
        if kind == "program":
            export_program(student, path)
            files[kind] = {"file": path.name, "bytes": path.stat().st_size}
            continue
        files[kind] = {
            "file": path.name,
            "bytes": path.stat().st_size,
            "parity": asdict(parity(student, path, synthetic)),
            "latency": asdict(onnx_latency(path)),
            "accuracy": None if test is None else asdict(_right(run_onnx(path, test.images).argmax(1), test)),
        }
    if "onnx" not in settings.formats:
        exported.unlink(missing_ok=True)
    right = None if test is None else asdict(_right(predict(student, test.images, device), test))
    return {
        "cost": {"teacher": asdict(cost(teacher, device)), "student": asdict(cost(student, device))},
        "student": {"accuracy": right},
        "files": files,
    }


def capacity(
    teacher: Classifier, student: Classifier, synthetic: Tensor, seed: int, device: torch.device
) -> dict[str, Any]:
    """Two rules of thumb about teacher and student, on synthetic images; see `synthkd.compression.capacity`.

    Args:
        teacher, student: finished, on the device.
        synthetic: uint8 `[N, C, H, W]`.
        seed: of the labels that the Fisher trace draws.
        device: of the models.

    Returns:
        JSON-able: of each model `fisher_trace` and `feature_dimension`, and `bound`, the least capacity that a student
        within `TOLERATED` of this teacher must have.
    """
    found: dict[str, Any] = {"n": len(synthetic), "fisher_n": min(FISHER, len(synthetic))}
    logits = {}
    for who, model in (("teacher", teacher), ("student", student)):
        seen = extract([synthetic], build_extractor(TeacherExtractor(kind="teacher"), device, model))
        assert seen.logits is not None
        logits[who] = seen.logits
        trace = fisher_trace(model, to_float(synthetic[:FISHER]), seed)
        found[who] = {"fisher_trace": asdict(trace), "feature_dimension": feature_dimension(seen.values)}
    information = label_information(logits["teacher"])
    divergence = float(kl_divergence(logits["teacher"], logits["student"]).mean())
    bound = capacity_bound(information.value, TOLERATED, divergence)
    made: dict[str, Any] = plain(found | {"bound": bound})
    return made


def _right(predictions: Tensor, test: RealData) -> Proportion:
    return accuracy(predictions, test.labels)
