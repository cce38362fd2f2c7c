"""Losses of a data-free generator on the frozen teacher's outputs for its images."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from synthkd.losses.logits import kl_divergence
from synthkd.types import BatchNormStatistics


def batch_norm(statistics: Mapping[str, BatchNormStatistics]) -> Tensor:
    """Distance between the batch's moments and the running statistics of the teacher's BatchNorm layers, a scalar.

    `sum_l ||mu_l(x) - mu_l||_2 + ||sigma_l^2(x) - sigma_l^2||_2` (DeepInversion, Yin et al. 2020, equation 4).

    Args:
        statistics: module path of a layer -> its moments `[C]`.

    Raises:
        ValueError: no BatchNorm layer; without this the loss would always be 0.
    """
    if not statistics:
        raise ValueError("the teacher has no BatchNorm statistics to match")
    # Norms and not their squares: a layer that fits well keeps a gradient beside one that does not.
    terms = [
        torch.linalg.vector_norm(s.mean - s.running_mean) + torch.linalg.vector_norm(s.var - s.running_var)
        for s in statistics.values()
    ]
    return torch.stack(terms).sum()


def one_hot(teacher: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the teacher's logits `[N, K]` to labels, a scalar (DAFL, Chen et al. 2019).

    Args:
        teacher: logits `[N, K]`.
        labels: int64 `[N]`, or probabilities float32 `[N, K]`.
    """
    return F.cross_entropy(teacher, labels)


def adversarial(teacher: Tensor, student: Tensor) -> Tensor:
    """Negative disagreement `-mean_i [argmax T = argmax S] KL(teacher || student)_i`, a scalar to be minimised.

    Only images on which both networks still agree have a gradient, so an image is not moved on once their predictions
    differ (decision adversarial loss of CMI, Fang et al. 2021).

    Args:
        teacher: logits `[N, K]`.
        student: logits `[N, K]`.
    """
    agree = (teacher.argmax(dim=1) == student.argmax(dim=1)).to(teacher.dtype)
    return -(kl_divergence(teacher, student) * agree).mean()


def information_entropy(teacher: Tensor) -> Tensor:
    """Negative entropy, in nats, of the mean prediction of logits `[N, K]`, a scalar: minimal for balanced classes.

    DAFL, Chen et al. 2019.
    """
    # In log space: where no image shows a class, its mean probability may round to 0, whose logarithm is infinite.
    mean = torch.logsumexp(F.log_softmax(teacher, dim=1), dim=0) - math.log(len(teacher))
    return (mean.exp() * mean).sum()


def activation(features: Tensor) -> Tensor:
    """Negative mean absolute value of the penultimate features `[N, D]`, a scalar.

    DAFL, Chen et al. 2019: real images give larger activations than noise.
    """
    return -features.abs().mean()
