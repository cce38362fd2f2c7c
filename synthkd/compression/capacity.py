"""Two heuristics for the choice of teacher and student: the quality of a teacher, and a lower bound of capacity.

They rank candidates under the estimators that are named here. Neither predicts the accuracy of a student.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from synthkd.errors import ConfigError, DataError
from synthkd.metrics.arrays import Array, one_thread, rows
from synthkd.metrics.features import build_extractor, extract
from synthkd.models.classifier import Classifier
from synthkd.rng import Rows
from synthkd.settings import TeacherExtractor
from synthkd.taps import evaluating
from synthkd.types import to_float

# the weights of the article's teacher evaluator
FISHER_WEIGHT = 0.6
DIMENSION_WEIGHT = 0.4


@dataclass(frozen=True)
class FisherTrace:
    """Trace of the Fisher information matrix of a model's parameters.

    Attributes:
        value: estimate, >= 0.
        standard_error: of the mean over images; infinite for a single image.
        n: number of images.
    """

    value: float
    standard_error: float
    n: int


@dataclass(frozen=True)
class TeacherReport:
    """The two measures of a teacher.

    Attributes:
        name: of the teacher.
        fisher_trace: value of `fisher_trace`, on the same images for all teachers.
        feature_dimension: value of `feature_dimension` for the features of those images.
    """

    name: str
    fisher_trace: float
    feature_dimension: int


@dataclass(frozen=True)
class TeacherQuality:
    """The quality of a teacher, relative to those it was compared with.

    Attributes:
        report: the two measures.
        relative_trace: its Fisher trace over the largest, in [0, 1].
        relative_dimension: its feature dimension over the largest, in [0, 1].
        score: `0.6 * relative_trace + 0.4 * relative_dimension`, in [0, 1].
    """

    report: TeacherReport
    relative_trace: float
    relative_dimension: float
    score: float


@dataclass(frozen=True)
class CapacityBound:
    """Lower bound of a student's capacity; see `capacity_bound`.

    Attributes:
        value: the bound, without a unit; infinite if student and teacher do not differ.
        mutual_information: I(X;Y), nats.
        epsilon: tolerated error.
        kl: KL(p_T || p_S), nats.
    """

    value: float
    mutual_information: float
    epsilon: float
    kl: float


def fisher_trace(model: Classifier, images: Tensor, seed: int) -> FisherTrace:
    """Mean squared norm of the gradient of `log p(y | x)` by all parameters, with y drawn from the model itself.

    It is large for an unsure model, near 0 for one that is always certain, and grows with the number of parameters, so
    it can rank teachers at most.

    Args:
        model: in any mode, frozen or not; it runs in eval mode, and is afterwards as it was.
        images: float32 `[N, C, H, W]` in `[0, 1]`.
        seed: of the labels; the label of image i depends on (seed, i) alone.

    Raises:
        DataError: no images.
    """
    if len(images) == 0:
        raise DataError("fisher_trace: at least 1 image is needed, got none")
    uniform = Rows(seed, "labels of the Fisher trace").uniform(len(images), 1).double()
    # Tensors outside of the model: it may be frozen, and its own gradients must stay as they are.
    weights = {name: value.detach().requires_grad_() for name, value in model.named_parameters()}
    device = model.normalize.mean.device
    norms = []
    # One image at a time: the norm of each image's own gradient is needed, not that of their sum.
    with evaluating(model), torch.enable_grad():
        for image, draw in zip(images.split(1), uniform, strict=True):
            log_p = F.log_softmax(functional_call(model, weights, (image.to(device),))[0], dim=0)
            # A class drawn from the model's own p, by inversion. With the labels of the data this would be the
            # "empirical Fisher", another quantity (Kunstner, Balles and Hennig 2019). Rounding may leave the sum of p
            # just below the uniform number, hence the min.
            below = log_p.detach().double().exp().cumsum(0).cpu() < draw
            label = min(int(below.sum()), len(log_p) - 1)
            gradients = torch.autograd.grad(log_p[label], list(weights.values()), allow_unused=True)
            norms.append(sum(float(g.double().square().sum()) for g in gradients if g is not None))
    error = float(np.std(norms, ddof=1)) / math.sqrt(len(norms)) if len(norms) > 1 else math.inf
    return FisherTrace(float(np.mean(norms)), error, len(norms))


def feature_dimension(features: Array, share: float = 0.95) -> int:
    """Smallest number of principal components that hold a share of the features' variance; 0 if all samples are equal.

    It is at most N - 1: compare teachers on the same images, and on more images than there are features.

    Args:
        features: `[N, D]`, at least 2 samples.
        share: of the variance, in (0, 1].

    Raises:
        DataError: features of another shape, too few, or not finite.
        ConfigError: share outside (0, 1].
    """
    if not 0.0 < share <= 1.0:
        raise ConfigError(f"feature_dimension: share must be in (0, 1], got {share}")
    values = rows(features, "features", 2)
    with one_thread():
        variances = torch.linalg.svdvals(values - values.mean(dim=0)).square()
    total = float(variances.sum())
    # Rounding of centred values, about 1e-16 of each, leaves up to 1e-32 of the squares where there is no variance.
    if total <= 1e-24 * float(values.square().sum()):
        return 0
    # The share less a rounding: 1.0 must not ask for components that hold nothing.
    return 1 + int((variances.cumsum(0) < (share - 1e-12) * total).sum())


def teacher_quality(reports: Sequence[TeacherReport]) -> tuple[TeacherQuality, ...]:
    """The quality score 0.6 x Fisher trace + 0.4 x feature dimension of each teacher, in the same order.

    Both are first divided by the largest among the teachers. So a score is valid within its comparison only, and a
    teacher alone scores 1.

    Raises:
        DataError: no teachers, or a value that is negative or not finite.
    """
    if not reports:
        raise DataError("teacher_quality: at least 1 teacher is needed, got none")
    for report in reports:
        if not (0 <= report.fisher_trace < math.inf and report.feature_dimension >= 0):
            raise DataError(
                f"teacher_quality: Fisher trace and feature dimension must be finite and >= 0, got "
                f"{report.fisher_trace} and {report.feature_dimension} for {report.name}"
            )
    # A trace may be thousands and a dimension tens: added as they are, only one of them would count.
    most_trace = max(report.fisher_trace for report in reports) or 1.0
    most_dimensions = max(report.feature_dimension for report in reports) or 1
    qualities = []
    for report in reports:
        trace, dimension = report.fisher_trace / most_trace, report.feature_dimension / most_dimensions
        score = FISHER_WEIGHT * trace + DIMENSION_WEIGHT * dimension
        qualities.append(TeacherQuality(report, trace, dimension, score))
    return tuple(qualities)


def compare_teachers(
    models: Mapping[str, Classifier], images: Tensor, seed: int, batch_size: int = 128
) -> tuple[TeacherQuality, ...]:
    """The `teacher_quality` of models, in their order, all measured on the same images.

    The feature dimension is that of the penultimate features, with maps and tokens averaged over positions, and takes
    one pass. The Fisher trace takes long: a forward and a backward pass for each image and model, one image at a time.
    For a large network on a processor use some hundred images at most.

    Args:
        models: name -> teacher, on any device; unchanged.
        images: uint8 `[N, C, H, W]` of the size of every model, at least 2. The dimension is at most N - 1, so more
            images than features are needed to see it.
        seed: of the labels that the Fisher trace draws, the same for every model.
        batch_size: largest number of images of a pass.

    Raises:
        DataError: no models, fewer than 2 images, or images of another size.
        ModelError: a model without a linear layer.
    """
    reports = []
    for name, model in models.items():
        extractor = build_extractor(TeacherExtractor(kind="teacher"), model.normalize.mean.device, model)
        dimension = feature_dimension(extract([images], extractor, batch_size).values)
        reports.append(TeacherReport(name, fisher_trace(model, to_float(images), seed).value, dimension))
    return teacher_quality(reports)


def label_information(logits: Tensor) -> float:
    """Estimate of I(X;Y) as `H(mean p) - mean H(p)` of a model's predictions, in nats.

    The predictions stand in for the distribution of the label given the image, so an overconfident model makes the
    estimate too large.

    Args:
        logits: `[N, K]`, of images drawn from the data.

    Returns:
        Entropy of the mean prediction minus mean entropy of the predictions, between 0 and log K.

    Raises:
        DataError: logits of another shape, none, or not finite.
    """
    log_p = F.log_softmax(rows(logits, "logits"), dim=1)
    p = log_p.exp()
    mean = p.mean(dim=0)
    label, remaining = -float(torch.special.xlogy(mean, mean).sum()), -float((p * log_p).sum(dim=1).mean())
    return max(0.0, label - remaining)


def capacity_bound(mutual_information: float, epsilon: float, kl: float) -> CapacityBound:
    """Lower bound `C_S >= I(X;Y) / (epsilon^2 KL(p_T || p_S))` of a student's capacity.

    A heuristic: C_S has no unit and is no number of parameters, and the bound grows without limit as the student
    approaches the teacher. Estimators: `label_information` of the teacher for I(X;Y), the mean of
    `synthkd.losses.logits.kl_divergence` over the same images for the divergence.

    Args:
        mutual_information: nats, >= 0.
        epsilon: tolerated error, > 0.
        kl: nats, >= 0.

    Raises:
        ConfigError: epsilon is not positive and finite.
        DataError: mutual_information or kl is negative or not finite.
    """
    if not 0.0 < epsilon < math.inf:
        raise ConfigError(f"capacity_bound: epsilon must be positive and finite, got {epsilon}")
    for name, value in (("mutual_information", mutual_information), ("kl", kl)):
        if not 0.0 <= value < math.inf:
            raise DataError(f"capacity_bound: {name} must be finite and >= 0 nats, got {value}")
    # 0 / 0, of a teacher without information whose student agrees with it, is 0: there is nothing to hold.
    bound = 0.0 if mutual_information == 0 else math.inf if kl == 0 else mutual_information / (epsilon**2 * kl)
    return CapacityBound(bound, mutual_information, epsilon, kl)
