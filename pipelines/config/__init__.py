"""The configuration of each job: one frozen model, `kind:` choosing among generators, data and phases."""

from synthkd.pipelines.config.audit import AuditConfig, ReferenceModels
from synthkd.pipelines.config.base import JobConfig, TrainingConfig
from synthkd.pipelines.config.budget import Planned
from synthkd.pipelines.config.compress import (
    NOISY_GENERATOR,
    NOISY_TEACHER,
    AuditSettings,
    CompressConfig,
    ExportSettings,
    SyntheticSettings,
)
from synthkd.pipelines.config.distill import Distillation, DistillConfig
from synthkd.pipelines.config.evaluate import EvaluateConfig, ImageSet
from synthkd.pipelines.config.generate import FilterSettings, GenerateConfig
from synthkd.pipelines.config.teach import TeachConfig
from synthkd.pipelines.config.transfer_set import (
    AnySet,
    CollageSet,
    GeneratedSet,
    PicturesSet,
    ProceduralSet,
    RealSet,
    StoredSet,
)

__all__ = [
    "NOISY_GENERATOR",
    "NOISY_TEACHER",
    "AnySet",
    "AuditConfig",
    "AuditSettings",
    "CollageSet",
    "CompressConfig",
    "DistillConfig",
    "Distillation",
    "EvaluateConfig",
    "ExportSettings",
    "FilterSettings",
    "GenerateConfig",
    "GeneratedSet",
    "ImageSet",
    "JobConfig",
    "PicturesSet",
    "Planned",
    "ProceduralSet",
    "RealSet",
    "ReferenceModels",
    "StoredSet",
    "SyntheticSettings",
    "TeachConfig",
    "TrainingConfig",
]
