"""Losses on self-supervised knowledge: which images are the same, and how alike others are. Pure functions."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from synthkd.errors import ConfigError
from synthkd.losses.logits import kl_divergence
from synthkd.losses.relations import full_precision, unit


def crd(
    teacher: Tensor,
    student: Tensor,
    negatives: Tensor,
    temperature: float = 0.1,
    population: int | None = None,
    log_normaliser: Tensor | float = 0.0,
    form: Literal["nce", "infonce"] = "nce",
) -> Tensor:
    """Contrastive representation distillation (CRD, Tian et al. 2020), the student as anchor, a scalar.

    Can one tell the teacher's features of the same image from those of K others? With `s = cos / temperature`:

    - `nce`: `-mean_i [log h(s_i) + sum_k log(1 - h(s_ik))]` with the paper's critic `h = e^s / (e^s + K / M)`, which is
      `sigmoid(s - log(K / M))`: nothing is exponentiated. The authors' code first divides e^s by a constant Z that it
      estimates on its first batch (`log_normaliser` here), else most cosines must become negative; M then cancels.
    - `infonce`: `-mean_i log(e^{s_i} / (e^{s_i} + sum_k e^{s_ik}))`, which needs neither M nor Z: for negatives from a
      bank that changes its size.

    Both sides are projected to D dimensions by the caller, with layers that are trained along. The authors add the same
    with the roles exchanged: `crd(student, teacher, negatives of the student)`.

    Args:
        teacher: projected features `[N, D]`, of any length.
        student: projected features of the same images `[N, D]`.
        negatives: projected teacher features of other images, `[K, D]` for all or `[N, K, D]` for each. An image's own
            features among them would be pushed away too; leave them out.
        temperature: above 0; the paper has 0.1 on CIFAR-100, the authors' code 0.07 by default.
        population: M, the number of images that the negatives are drawn from; None where they are all (M = K).
        log_normaliser: log Z, of `estimate_log_normaliser`; 0 is the paper's critic. Used by `nce` alone, as M is.
        form: which of the two.

    Returns:
        0 without negatives (a bank that is still empty). Features of zeros have cosine 0 to everything.

    Raises:
        ConfigError: an unknown form.
    """
    if form not in ("nce", "infonce"):
        raise ConfigError(f"CRD has the forms 'nce' and 'infonce', got '{form}'; name one of them")
    positive, others = _scores(teacher, student, negatives, temperature)
    count = others.shape[1]
    if count == 0:
        return positive.sum() * 0.0
    if form == "infonce":
        return F.softplus(torch.logsumexp(others - positive[:, None], dim=1)).mean()
    threshold = math.log(count / (count if population is None else population)) + log_normaliser
    return -(F.logsigmoid(positive - threshold) + F.logsigmoid(threshold - others).sum(dim=1)).mean()


@torch.no_grad()
def estimate_log_normaliser(
    teacher: Tensor, student: Tensor, negatives: Tensor, temperature: float, population: int
) -> Tensor:
    """`log Z = log(M * mean e^s)` over all pairs of a batch, as the authors' code does once, on the first; a scalar.

    With it the critic's threshold is `log(K * mean e^s)`: a pair counts as one image from where its e^s outweighs the
    negatives of that first batch together.

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
    """The teacher's similarities between two views of a batch, for the student (SSKD, Xu et al. 2020), a scalar.

    `A_ij = cos(view_i, z_j)` between image i in its other view and image j as it is; the loss is
    `T^2 * mean_i KL(softmax(A_T / T)_i || softmax(A_S / T)_i)`. The paper sums cross-entropies, whose gradient is the
    same but for the factor; the authors' code has the KL and the mean, as here. What a teacher takes an altered image
    for is not in its logits of the plain images. Features that did not learn to tell images apart are projected by the
    caller, as the authors do with a head trained on this task.

    Selective transfer: rows in which the teacher takes another image for the same are wrong, and of those only the
    fraction `keep` that is least wrong (by the rank of the right image) is learnt from; ties keep the batch's order.

    Args:
        teacher: features of the images `[N, D]`, or maps and tokens `[N, ...]`, which are flattened.
        student: features of the same images, `[N, E]` likewise.
        teacher_view: the teacher's features of an augmentation of each image, `[N, D]` in the same order.
        student_view: the student's of the same augmentations, `[N, E]`.
        temperature: T > 0; the authors have 0.5.
        keep: in [0, 1]; the authors have 0.75, 1 is all rows.
        weights: importance weights `[N]` of the rows, or None for ones.

    Returns:
        0 for one image (a row of one has one softmax), and where no row is kept.

    Raises:
        ConfigError: a fraction outside [0, 1].
    """
    if not 0.0 <= keep <= 1.0:
        raise ConfigError(f"keep is the fraction of wrong rows to learn from, in [0, 1], got {keep}; 1 keeps all")
    theirs, ours = _cosines(teacher_view, teacher), _cosines(student_view, student)
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


def _cosines(rows: Tensor, columns: Tensor) -> Tensor:
    left, right = (unit(full_precision(features).flatten(1)) for features in (rows, columns))
    return left @ right.T


def _least_wrong(similarities: Tensor, keep: float) -> Tensor:
    """Indices of the rows whose largest entry is on the diagonal, and of the fraction `keep` nearest to that."""
    rank = (similarities > similarities.diagonal()[:, None]).sum(dim=1)
    wrong = int((rank > 0).sum())
    return rank.argsort(stable=True)[: len(rank) - wrong + math.floor(keep * wrong)]
