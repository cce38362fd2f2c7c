"""Classifiers: a zoo of small networks, models from elsewhere, finished models on disk, the teacher's contract."""

from synthkd.models.classifier import Classifier, Normalize, parameters
from synthkd.models.contract import TeacherContract, probe
from synthkd.models.files import load, save
from synthkd.models.folding import fold_batch_norm
from synthkd.models.inheritance import inherit
from synthkd.models.layout import head, stages
from synthkd.models.sources import build_model, is_fresh, load_model
from synthkd.models.zoo import build

__all__ = [
    "Classifier",
    "Normalize",
    "TeacherContract",
    "build",
    "build_model",
    "fold_batch_norm",
    "head",
    "inherit",
    "is_fresh",
    "load",
    "load_model",
    "parameters",
    "probe",
    "save",
    "stages",
]
