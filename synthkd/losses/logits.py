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


def distillation_loss(teacher: Tensor, student: Tensor, temperature: float, weights: Tensor | None = None) -> Tensor:
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


def decoupled(
    teacher: Tensor,
    student: Tensor,
    labels: Tensor,
    temperature: float,
    alpha: float = 1.0,
    beta: float = 8.0,
    weights: Tensor | None = None,
) -> Tensor:
    """Decoupled distillation `T^2 * mean_i w_i (alpha TCKD_i + beta NCKD_i)` (Zhao et al. 2022, equation 7), a scalar.

    TCKD is `KL(b_T || b_S)` between the pairs (p_y, 1 - p_y) of the target class y against all others, NCKD is
    `KL(q_T || q_S)` between the softmaxes over the other classes alone; `KL(teacher_T || student_T)` is
    `TCKD + (1 - p_y) NCKD` with the teacher's p_y, so plain distillation all but drops NCKD where the teacher is sure.
    T^2 is not in the equation but in the authors' code. That code takes the logarithm of a softmax, infinite at a wide
    gap; here everything stays in log space. With two classes NCKD is 0 and TCKD is plain distillation.

    Args:
        teacher: logits `[N, K]`, K >= 2.
        student: logits `[N, K]`.
        labels: target classes int64 `[N]`.
        temperature: T > 0.
        alpha: weight of TCKD.
        beta: weight of NCKD; the authors choose it by the pair of networks.
        weights: importance weights `[N]`, or None for ones.
    """
    others = torch.arange(teacher.shape[1] - 1, device=labels.device)[None]
    others = others + (others >= labels[:, None]).to(others.dtype)  # every class but the label, in order
    theirs, ours = teacher.gather(1, others), student.gather(1, others)
    target = kl_divergence(
        _against_rest(teacher, labels, theirs, temperature), _against_rest(student, labels, ours, temperature)
    )
    rest = kl_divergence(theirs, ours, temperature)
    return temperature**2 * weighted_mean(alpha * target + beta * rest, weights)


def _against_rest(logits: Tensor, labels: Tensor, others: Tensor, temperature: float) -> Tensor:
    """Logits `[N, 2]` of the label against all `others [N, K - 1]`: their softmax is (p_y, 1 - p_y)."""
    own = logits.gather(1, labels[:, None]) / temperature
    return torch.cat([own, torch.logsumexp(others / temperature, dim=1, keepdim=True)], dim=1)


def standardised(logits: Tensor) -> Tensor:
    """Z-scores `(z - mean(z)) / std(z)` of each row of logits `[N, K]`, to be given to a loss in place of the logits.

    Logit standardisation (Sun et al. 2024, the Z-score of algorithm 1 but for its temperature, which the loss divides
    by): the student need not match the teacher's logits in shift and scale, only in their relations. The paper's
    standard deviation (over K, not K - 1) is taken; the authors' code has K - 1, a constant factor on the temperature.

    A row whose logits are all equal but for rounding has no z-score. It comes out as zeros, a uniform softmax, and its
    gradient is that of a standard deviation of 1: an untrained head that answers zeros can still learn.
    """
    centred = logits - logits.mean(dim=1, keepdim=True)
    spread: Tensor = torch.linalg.vector_norm(centred, dim=1, keepdim=True) / logits.shape[1] ** 0.5
    equal = spread <= 8 * torch.finfo(logits.dtype).eps * logits.abs().amax(dim=1, keepdim=True)
    return centred / spread.masked_fill(equal, 1.0)
