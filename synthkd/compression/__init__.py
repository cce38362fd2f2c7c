"""Compression: what a model costs and can hold, the choice of a student, a changing width, export."""

from synthkd.compression.capacity import (
    CapacityBound,
    FisherTrace,
    LabelInformation,
    TeacherQuality,
    TeacherReport,
    capacity_bound,
    compare_teachers,
    feature_dimension,
    fisher_trace,
    label_information,
    teacher_quality,
)
from synthkd.compression.export import Description, export_onnx, export_program, quantize_int8
from synthkd.compression.pareto import Candidate, Front, Scores, hypervolume
from synthkd.compression.predict import (
    OnnxModel,
    Parity,
    Prediction,
    onnx_latency,
    parity,
    predict_folder,
    run_onnx,
)
from synthkd.compression.search import random_search, search, space_of
from synthkd.models.cost import Cost, cost
from synthkd.models.energy import Energy
from synthkd.models.latency import Latency
from synthkd.models.slimmable import Slimmable, slice_out

__all__ = [
    "Candidate",
    "CapacityBound",
    "Cost",
    "Description",
    "Energy",
    "FisherTrace",
    "Front",
    "LabelInformation",
    "Latency",
    "OnnxModel",
    "Parity",
    "Prediction",
    "Scores",
    "Slimmable",
    "TeacherQuality",
    "TeacherReport",
    "capacity_bound",
    "compare_teachers",
    "cost",
    "export_onnx",
    "export_program",
    "feature_dimension",
    "fisher_trace",
    "hypervolume",
    "label_information",
    "onnx_latency",
    "parity",
    "predict_folder",
    "quantize_int8",
    "random_search",
    "run_onnx",
    "search",
    "slice_out",
    "space_of",
    "teacher_quality",
]
