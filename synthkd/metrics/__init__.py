"""Metrics: pure functions of predictions and features; rows are samples, tensors or numpy arrays."""

from synthkd.metrics.diversity import (
    ModeCollapse,
    SemanticCosine,
    VendiScore,
    cluster_modes,
    mode_collapse,
    semantic_cosine,
    vendi_score,
    vendi_with_error,
)
from synthkd.metrics.frechet import (
    FrechetInfinity,
    frechet_distance,
    frechet_distance_from_features,
    frechet_distance_infinity,
    frechet_standard_error,
)
from synthkd.metrics.inception_score import InceptionScore, inception_score
from synthkd.metrics.kernel import (
    KernelDistance,
    KernelDistances,
    kernel_distance,
    kernel_distance_subsets,
    kernel_distances,
)
from synthkd.metrics.manifold import PrecisionRecall, precision_recall_density_coverage
from synthkd.metrics.memorization import (
    Copying,
    NeighbourRatios,
    authenticity,
    copying,
    copying_statistic,
    nearest_neighbour_ratios,
)
from synthkd.metrics.statistics import FeatureStatistics
from synthkd.metrics.transfer import GapCurve, TransferEfficiency, fit_capacity_gap, transfer_efficiency
from synthkd.metrics.utility import Proportion, accuracy, predict, proportion

__all__ = [
    "Copying",
    "FeatureStatistics",
    "FrechetInfinity",
    "GapCurve",
    "InceptionScore",
    "KernelDistance",
    "KernelDistances",
    "ModeCollapse",
    "NeighbourRatios",
    "PrecisionRecall",
    "Proportion",
    "SemanticCosine",
    "TransferEfficiency",
    "VendiScore",
    "accuracy",
    "authenticity",
    "cluster_modes",
    "copying",
    "copying_statistic",
    "fit_capacity_gap",
    "frechet_distance",
    "frechet_distance_from_features",
    "frechet_distance_infinity",
    "frechet_standard_error",
    "inception_score",
    "kernel_distance",
    "kernel_distance_subsets",
    "kernel_distances",
    "mode_collapse",
    "nearest_neighbour_ratios",
    "precision_recall_density_coverage",
    "predict",
    "proportion",
    "semantic_cosine",
    "transfer_efficiency",
    "vendi_score",
    "vendi_with_error",
]
