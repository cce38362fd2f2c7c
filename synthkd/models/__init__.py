"""Classifiers: a zoo of small networks, models from elsewhere, finished models on disk, and what a model costs."""

from synthkd.models.classifier import Classifier, Normalize, as_classifier, parameters, state_bytes
from synthkd.models.contract import TeacherContract, probe
from synthkd.models.cost import Cost, macs
from synthkd.models.energy import Energy, measure_energy
from synthkd.models.files import load, save
from synthkd.models.folding import fold_batch_norm
from synthkd.models.inheritance import Inherited, inherit
from synthkd.models.latency import Latency, measure_latency, time_calls
from synthkd.models.layout import head, stages
from synthkd.models.slimmable import Slimmable, slice_out
from synthkd.models.sources import build_model, has_weights, is_fresh, load_model
from synthkd.models.zoo import build

__all__ = [
    "Classifier",
    "Cost",
    "Energy",
    "Inherited",
    "Latency",
    "Normalize",
    "Slimmable",
    "TeacherContract",
    "as_classifier",
    "build",
    "build_model",
    "fold_batch_norm",
    "has_weights",
    "head",
    "inherit",
    "is_fresh",
    "load",
    "load_model",
    "macs",
    "measure_energy",
    "measure_latency",
    "parameters",
    "probe",
    "save",
    "slice_out",
    "stages",
    "state_bytes",
    "time_calls",
]
