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


def logit_gap(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean absolute difference of logits `[N, K]`, a scalar (the discrepancy of DFAD, Fang et al. 2019)."""
    return (teacher - student).abs().mean()


def competition(teacher: Tensor, student: Tensor, temperature: float = 3.0) -> Tensor:
    """`1 - JS(teacher_T, student_T)`, batch mean, a scalar in [1 - log 2, 1] (R_compete of DeepInversion).

    It is least where teacher and student disagree. The temperature of 3 is that of the authors' code, which also clips
    probabilities to [0.01, 0.99] and so has no gradient where a network is certain; here everything is in log space.

    Args:
        teacher: logits `[N, K]`.
        student: logits `[N, K]`.
        temperature: T > 0.
    """
    log_p, log_q = (F.log_softmax(logits / temperature, dim=1) for logits in (teacher, student))
    log_m = torch.logaddexp(log_p, log_q) - math.log(2.0)
    divergence = log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)
    return 1.0 - 0.5 * divergence.sum(dim=1).mean()


def total_variation(images: Tensor) -> Tensor:
    """Differences of neighbouring pixels of a batch `[N, C, H, W]`, a scalar (R_TV of DeepInversion, equation 3).

    Four norms over the whole batch, of the differences to the right, below and along both diagonals, as in the authors'
    code, whose weights are for this sum.
    """
    across, down = images[..., :-1] - images[..., 1:], images[..., :-1, :] - images[..., 1:, :]
    falling = images[..., :-1, :-1] - images[..., 1:, 1:]
    rising = images[..., 1:, :-1] - images[..., :-1, 1:]
    return torch.stack([torch.linalg.vector_norm(part) for part in (across, down, falling, rising)]).sum()


def magnitude(images: Tensor) -> Tensor:
    """Euclidean norm of a whole batch `[N, C, H, W]`, a scalar (R_l2 of DeepInversion, equation 3)."""
    norm: Tensor = torch.linalg.vector_norm(images)
    return norm
