"""What a data-free generator is trained on: the frozen teacher's view of its images."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from synthkd.losses.logits import kl_divergence
from synthkd.types import BatchNormStatistics


def batch_norm(statistics: Mapping[str, BatchNormStatistics]) -> Tensor:
    """Distance of the batch's moments from those the teacher's BatchNorm layers stored, a scalar.

    `sum_l ||mu_l(x) - mu_l||_2 + ||sigma_l^2(x) - sigma_l^2||_2` (DeepInversion, Yin et al. 2020, equation 4).

    Raises:
        ValueError: when there is no BatchNorm layer, where the sum would silently be zero.
    """
    if not statistics:
        raise ValueError("the teacher has no BatchNorm statistics to match")
    terms = [
        torch.linalg.vector_norm(s.mean - s.running_mean) + torch.linalg.vector_norm(s.var - s.running_var)
        for s in statistics.values()
    ]
    return torch.stack(terms).sum()


def one_hot(teacher: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the teacher's logits `[N, K]` to the asked labels int64 `[N]` (DAFL, Chen et al. 2019)."""
    return F.cross_entropy(teacher, labels)


def adversarial(teacher: Tensor, student: Tensor) -> Tensor:
    """Negative disagreement `-mean_i [argmax T = argmax S] KL(teacher || student)_i`, a scalar to be minimised.

    Only samples on which both still agree are pushed, so that they stay on the teacher's side of the boundary
    (the decision adversarial loss of CMI, Fang et al. 2021).
    """
    agree = (teacher.argmax(dim=1) == student.argmax(dim=1)).to(teacher.dtype)
    return -(kl_divergence(teacher, student) * agree).mean()


def information_entropy(teacher: Tensor) -> Tensor:
    """Negative entropy, in nats, of the batch's mean prediction (DAFL): least when classes are balanced."""
    mean = torch.logsumexp(F.log_softmax(teacher, dim=1), dim=0) - math.log(len(teacher))
    return (mean.exp() * mean).sum()


def activation(features: Tensor) -> Tensor:
    """Negative mean absolute penultimate feature (DAFL): real images excite a network more than noise."""
    return -features.abs().mean()
