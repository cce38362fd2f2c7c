"""Compression: what a model costs, how much it can hold, and its export to files that run elsewhere."""

from synthkd.compression.capacity import (
    CapacityBound,
    FisherTrace,
    LabelInformation,
    TeacherQuality,
    TeacherReport,
    capacity_bound,
    feature_dimension,
    fisher_trace,
    label_information,
    teacher_quality,
)
from synthkd.compression.cost import Cost, Energy, Latency, cost
from synthkd.compression.export import Description, export_onnx, export_program, quantize_int8
from synthkd.compression.predict import (
    OnnxModel,
    Parity,
    Prediction,
    onnx_latency,
    parity,
    predict_folder,
    run_onnx,
)

__all__ = [
    "CapacityBound",
    "Cost",
    "Description",
    "Energy",
    "FisherTrace",
    "LabelInformation",
    "Latency",
    "OnnxModel",
    "Parity",
    "Prediction",
    "TeacherQuality",
    "TeacherReport",
    "capacity_bound",
    "cost",
    "export_onnx",
    "export_program",
    "feature_dimension",
    "fisher_trace",
    "label_information",
    "onnx_latency",
    "parity",
    "predict_folder",
    "quantize_int8",
    "run_onnx",
    "teacher_quality",
]
