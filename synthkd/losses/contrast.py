"""Contrastive losses: CRD on pairs of a teacher's and a student's features, SSKD on similarities between two views."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from synthkd.errors import ConfigError
from synthkd.losses.logits import kl_divergence
from synthkd.losses.relations import full_precision, unit, unit_rows


def crd(
    teacher: Tensor,
    student: Tensor,
    negatives: Tensor,
    temperature: float = 0.1,
    population: int | None = None,
    log_normaliser: Tensor | float = 0.0,
    form: Literal["nce", "infonce"] = "nce",
) -> Tensor:
    """Contrastive representation distillation (CRD, Tian et al. 2020) with the student as anchor, a scalar.

    The student's features must tell the teacher's features of the same image from those of K other images. With
    `s = cos / temperature`:

    - `nce`: `-mean_i [log h(s_i) + sum_k log(1 - h(s_ik))]` with the paper's critic `h = e^s / (e^s + K / M)`. The
      authors' code first divides e^s by a constant Z from its first batch (`log_normaliser` here); without Z most
      cosines must become negative. With Z, M cancels.
    - `infonce`: `-mean_i log(e^{s_i} / (e^{s_i} + sum_k e^{s_ik}))`, which needs neither M nor Z. It suits negatives
      from a bank whose size changes.

    The caller projects both sides to D dimensions with layers that are trained, too. The authors add the same loss with
    exchanged roles: `crd(student, teacher, negatives of the student)`.

    Args:
        teacher: projected features `[N, D]`, of any length.
        student: projected features of the same images `[N, D]`.
        negatives: projected teacher features of other images, `[K, D]` for all or `[N, K, D]` for each. They must not
            include an image's own features, which would be pushed away too.
        temperature: above 0; 0.1 in the paper for CIFAR-100, 0.07 by default in the authors' code.
        population: M, the number of images that the negatives are drawn from; None for M = K.
        log_normaliser: log Z from `estimate_log_normaliser`; 0 is the paper's critic. Only `nce` reads it, and M.
        form: one of the two above.

    Returns:
        0 without negatives (an empty bank). Features of zeros have cosine 0 to everything.

    Raises:
        ConfigError: an unknown form.
    """
    if form not in ("nce", "infonce"):
        raise ConfigError(f"CRD has the forms 'nce' and 'infonce', got '{form}'; name one of them")
    positive, others = _scores(teacher, student, negatives, temperature)
    count = others.shape[1]
    if count == 0:
        return positive.sum() * 0.0  # with a gradient of 0, for backward
    if form == "infonce":
        # -log(e^a / (e^a + e^b)) is softplus(b - a), here with b the logsumexp of the negatives.
        return F.softplus(torch.logsumexp(others - positive[:, None], dim=1)).mean()
    # h is sigmoid(s - log(K / M)), and log(1 - sigmoid(x)) is logsigmoid(-x): finite at any score.
    threshold = math.log(count / (count if population is None else population)) + log_normaliser
    return -(F.logsigmoid(positive - threshold) + F.logsigmoid(threshold - others).sum(dim=1)).mean()


@torch.no_grad()
def estimate_log_normaliser(
    teacher: Tensor, student: Tensor, negatives: Tensor, temperature: float, population: int
) -> Tensor:
    """`log Z = log(M * mean e^s)` over all pairs of a batch, a scalar; the authors' code takes it once, on the first.

    With it the critic's threshold is `log(K * mean e^s)`: a pair is taken for one image once its e^s exceeds the sum
    over K average negatives of that batch.

    Args:
        teacher: projected features `[N, D]`.
        student: projected features of the same images `[N, D]`.
        negatives: `[K, D]` or `[N, K, D]`, as in `crd`.
        temperature: above 0, as in `crd`.
        population: M, as in `crd`.
    """
    positive, others = _scores(teacher, student, negatives, temperature)
    scores = torch.cat([positive, others.flatten()])
    return torch.logsumexp(scores, dim=0) - math.log(len(scores)) + math.log(population)


def sskd(
    teacher: Tensor,
    student: Tensor,
    teacher_view: Tensor,
    student_view: Tensor,
    temperature: float = 0.5,
    keep: float = 1.0,
    weights: Tensor | None = None,
) -> Tensor:
    """Self-supervised distillation (SSKD, Xu et al. 2020) of similarities between two views of a batch, a scalar.

    `A_ij = cos(view_i, z_j)` between the augmented image i and the plain image j; the loss is
    `T^2 * mean_i KL(softmax(A_T / T)_i || softmax(A_S / T)_i)`. The paper sums cross-entropies, whose gradient is the
    same up to a factor; the authors' code has the KL and the mean, as here. The similarities show what the teacher's
    logits of the plain images do not: which images it takes an altered image for. The authors project the features with
    a head that is trained on this task; here that is up to the caller.

    Selective transfer: a row is wrong where the teacher finds another image more similar than the right one. Of the
    wrong rows only the fraction `keep` with the best rank of the right image is used; ties keep the batch's order.

    Args:
        teacher: features of the images `[N, D]`, or maps and tokens `[N, ...]`, which are flattened.
        student: features of the same images, `[N, E]` likewise.
        teacher_view: the teacher's features of one augmentation of each image, `[N, D]` in the same order.
        student_view: the student's features of the same augmentations, `[N, E]`.
        temperature: T > 0; 0.5 in the authors' code.
        keep: in [0, 1]; 0.75 in the authors' code, 1 for all rows.
        weights: importance weights `[N]` of the rows, or None for ones.

    Returns:
        0 for one image (the softmax of one value is constant), and where no row is used.

    Raises:
        ConfigError: a fraction outside [0, 1].
    """
    if not 0.0 <= keep <= 1.0:
        raise ConfigError(f"keep is the fraction of wrong rows to learn from, in [0, 1], got {keep}; 1 keeps all")
    theirs = unit_rows(teacher_view) @ unit_rows(teacher).T
    ours = unit_rows(student_view) @ unit_rows(student).T
    divergence = kl_divergence(theirs, ours, temperature)
    if weights is not None:
        divergence = divergence * weights
    if keep < 1.0:
        divergence = divergence[_least_wrong(theirs, keep)]
    return temperature**2 * divergence.sum() / max(1, len(divergence))


def _scores(teacher: Tensor, student: Tensor, negatives: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Cosines over the temperature: of the positives `[N]`, and of the negatives `[N, K]`."""
    theirs, ours, others = (unit(full_precision(features)) for features in (teacher, student, negatives))
    positive = (ours * theirs).sum(dim=1)
    negative = ours @ others.T if others.ndim == 2 else (others @ ours[:, :, None]).squeeze(2)
    return positive / temperature, negative / temperature


def _least_wrong(similarities: Tensor, keep: float) -> Tensor:
    """Indices of the rows with their largest value on the diagonal, then of the fraction `keep` nearest to that."""
    rank = (similarities > similarities.diagonal()[:, None]).sum(dim=1)
    wrong = int((rank > 0).sum())
    # Right rows have rank 0, so sorting puts them first; a stable sort keeps the batch's order in ties.
    return rank.argsort(stable=True)[: len(rank) - wrong + math.floor(keep * wrong)]
