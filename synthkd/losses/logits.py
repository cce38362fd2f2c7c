"""Losses on logits: pure functions in log space, means over the batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def kl_divergence(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """Per-sample `KL(teacher_T || student_T)`, float32 `[N]`.

    Hinton, Vinyals and Dean 2015, section 2, without the factor T^2. It is finite at any gap between logits, but not
    for infinite logits.

    Args:
        teacher: logits `[N, K]`.
        student: logits `[N, K]`.
        temperature: T > 0, divides both.
    """
    # In log space: the softmax of a wide gap is 0, whose logarithm is infinite.
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
    # Gradients of the divergence shrink as 1 / T^2; the factor keeps their share in a sum with other terms.
    return temperature**2 * weighted_mean(kl_divergence(teacher, student, temperature), weights)


def hard_label(student: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy of logits `[N, K]` to labels int64 `[N]`, weighted batch mean, a scalar."""
    return weighted_mean(F.cross_entropy(student, labels, reduction="none"), weights)


def centred_difference(teacher: Tensor, student: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean absolute difference of centred logits over the standard deviation of the teacher's, a scalar.

    Each row is centred, since a softmax does not depend on a row's mean. This is the logit matching of Hinton et al.
    2015 (section 2.1) with the absolute value of DFAD (Fang et al. 2019) in place of the square.

    Args:
        teacher: logits `[N, K]`.
        student: logits `[N, K]`.
        weights: importance weights `[N]`, or None for ones.
    """
    teacher = teacher - teacher.mean(dim=1, keepdim=True)
    student = student - student.mean(dim=1, keepdim=True)
    # One scale for the batch makes the weight of the term independent of how large the teacher's logits are.
    scale = teacher.detach().std().clamp_min(1e-6)
    return weighted_mean((teacher - student).abs().mean(dim=1), weights) / scale


def weighted_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """Mean of `values [N]`, each times its weight in `weights [N]` if given, a scalar."""
    # Not divided by the sum of the weights: that would bias the estimate of importance sampling.
    return values.mean() if weights is None else (values * weights).mean()


def agreement(teacher: Tensor, student: Tensor) -> Tensor:
    """Fraction of rows of logits `[N, K]` in which both choose the same class, a float32 scalar in [0, 1]."""
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

    TCKD is the divergence of the pairs (p_y, 1 - p_y) of the target class y and all other classes together. NCKD is the
    divergence of the softmaxes over the other classes alone. Plain distillation is `TCKD + (1 - p_y) NCKD` with the
    teacher's p_y, so it nearly drops NCKD where the teacher is sure. With two classes NCKD is 0 and TCKD is plain
    distillation.

    The factor T^2 is from the authors' code and not in the equation. That code takes the logarithm of a softmax, which
    is infinite at a wide gap between logits; here everything stays in log space.

    Args:
        teacher: logits `[N, K]`, K >= 2.
        student: logits `[N, K]`.
        labels: target classes int64 `[N]`.
        temperature: T > 0.
        alpha: weight of TCKD.
        beta: weight of NCKD; the authors choose it for each pair of networks.
        weights: importance weights `[N]`, or None for ones.
    """
    # The K - 1 other classes of each row, in order: from the label on, indices are one higher.
    others = torch.arange(teacher.shape[1] - 1, device=labels.device)[None]
    others = others + (others >= labels[:, None]).to(others.dtype)
    theirs, ours = teacher.gather(1, others), student.gather(1, others)
    target = kl_divergence(
        _against_rest(teacher, labels, theirs, temperature), _against_rest(student, labels, ours, temperature)
    )
    rest = kl_divergence(theirs, ours, temperature)
    return temperature**2 * weighted_mean(alpha * target + beta * rest, weights)


def _against_rest(logits: Tensor, labels: Tensor, others: Tensor, temperature: float) -> Tensor:
    """Logits `[N, 2]` whose softmax is (p_y, 1 - p_y): the label's own, and `logsumexp` of the `others [N, K - 1]`."""
    own = logits.gather(1, labels[:, None]) / temperature
    return torch.cat([own, torch.logsumexp(others / temperature, dim=1, keepdim=True)], dim=1)


def standardised(logits: Tensor) -> Tensor:
    """Z-scores `(z - mean(z)) / std(z)` of each row of logits, `[N, K]`, for a loss that takes them as its logits.

    Logit standardisation (Sun et al. 2024, the Z-score of algorithm 1; its temperature is that of the loss). The
    student must match the relations between the teacher's logits, not their shift and scale. The standard deviation
    divides by K as in the paper; the authors' code has K - 1, a constant factor on the temperature.

    A row of equal logits (up to rounding) has no z-score. Its result is zeros, which is a uniform softmax.

    Args:
        logits: `[N, K]`.
    """
    centred = logits - logits.mean(dim=1, keepdim=True)
    spread: Tensor = torch.linalg.vector_norm(centred, dim=1, keepdim=True) / logits.shape[1] ** 0.5
    equal = spread <= 8 * torch.finfo(logits.dtype).eps * logits.abs().amax(dim=1, keepdim=True)
    # A deviation of 1 for equal logits gives them a gradient: a new head whose logits are all 0 can still learn.
    return centred / spread.masked_fill(equal, 1.0)
