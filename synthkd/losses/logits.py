"""Losses on logits: pure functions in log space, batch means."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def kl_divergence(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """Per-sample `KL(teacher_T || student_T)`, float32 `[N]`.

    Hinton, Vinyals and Dean 2015, section 2, without the factor T^2. Finite at any logit gap, since it stays in log
    space; infinite logits are not supported.

    Args:
        teacher: logits `[N, K]`.
        student: logits `[N, K]`.
        temperature: T > 0, divides both.
    """
    log_p = F.log_softmax(teacher / temperature, dim=1)
    log_q = F.log_softmax(student / temperature, dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


def distillation(teacher: Tensor, student: Tensor, temperature: float, weights: Tensor | None = None) -> Tensor:
    """Soft-label loss `T^2 * mean_i w_i KL(teacher_T || student_T)_i` (Hinton et al. 2015), a scalar.

    Args:
        teacher: logits `[N, K]`.
        student: logits `[N, K]`.
        temperature: T > 0.
        weights: importance weights `[N]`, or None for ones.
    """
    return temperature**2 * weighted_mean(kl_divergence(teacher, student, temperature), weights)


def hard_label(student: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy of logits `[N, K]` to labels int64 `[N]`, weighted batch mean, a scalar."""
    return weighted_mean(F.cross_entropy(student, labels, reduction="none"), weights)


def centred_difference(teacher: Tensor, student: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean absolute difference of logits after each row's mean is taken off (a softmax cannot see it), a scalar.

    The logit-matching limit of Hinton et al. 2015 (section 2.1), with the absolute value of DFAD (Fang et al. 2019)
    in place of the square, in units of the standard deviation of the teacher's centred logits.
    """
    teacher = teacher - teacher.mean(dim=1, keepdim=True)
    student = student - student.mean(dim=1, keepdim=True)
    scale = teacher.detach().std().clamp_min(1e-6)
    return weighted_mean((teacher - student).abs().mean(dim=1), weights) / scale


def weighted_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """Mean of `values [N]`, times `weights [N]` where given (not renormalised: importance weights are unbiased so)."""
    return values.mean() if weights is None else (values * weights).mean()


def agreement(teacher: Tensor, student: Tensor) -> Tensor:
    """Fraction of rows whose largest logit is at the same class, a float32 scalar."""
    return (teacher.argmax(dim=1) == student.argmax(dim=1)).to(torch.float32).mean()
