"""Compression: the capacity of models, the search of a student, exported files and their use."""

from synthkd.compression.capacity import (
    CapacityBound,
    FisherTrace,
    TeacherQuality,
    TeacherReport,
    capacity_bound,
    compare_teachers,
    feature_dimension,
    fisher_trace,
    label_information,
    teacher_quality,
)
from synthkd.compression.export import export_onnx, export_program
from synthkd.compression.onnx_file import Description
from synthkd.compression.pareto import Candidate, Front, Scores, hypervolume
from synthkd.compression.predict import OnnxModel, Parity, Prediction, onnx_latency, parity, predict_files, run_onnx
from synthkd.compression.quantization import quantize_int8
from synthkd.compression.search import search
from synthkd.compression.space import space_of

__all__ = [
    "Candidate",
    "CapacityBound",
    "Description",
    "FisherTrace",
    "Front",
    "OnnxModel",
    "Parity",
    "Prediction",
    "Scores",
    "TeacherQuality",
    "TeacherReport",
    "capacity_bound",
    "compare_teachers",
    "export_onnx",
    "export_program",
    "feature_dimension",
    "fisher_trace",
    "hypervolume",
    "label_information",
    "onnx_latency",
    "parity",
    "predict_files",
    "quantize_int8",
    "run_onnx",
    "search",
    "space_of",
    "teacher_quality",
]
