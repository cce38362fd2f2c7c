"""Contrastive losses: CRD on pairs of a teacher's and a student's features, CMI and SSKD on two views of images."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from synthkd.errors import ConfigError
from synthkd.losses.logits import kl_divergence
from synthkd.losses.relations import full_precision, unit, unit_rows


def crd(teacher: Tensor, student: Tensor, negatives: Tensor, temperature: float = 0.1) -> Tensor:
    """Contrastive representation distillation (CRD, Tian et al. 2020) with the student as anchor, a scalar.

    The student's features must tell the teacher's features of the same image from those of K other images. With
    `s = cos / temperature`:

        -mean_i log(e^{s_i} / (e^{s_i} + sum_k e^{s_ik}))

    This is InfoNCE (van den Oord et al. 2018). The paper bounds the same mutual information by noise-contrastive
    estimation, which needs the number of images that negatives are drawn from and a constant from the first batch; here
    negatives may come from a bank whose size changes.

    The caller projects both sides to D dimensions with layers that are trained, too. The authors add the same loss with
    exchanged roles: `crd(student, teacher, negatives of the student)`.

    Args:
        teacher: projected features `[N, D]`, of any length.
        student: projected features of the same images `[N, D]`.
        negatives: projected teacher features of other images, `[K, D]` for all or `[N, K, D]` for each. They must not
            include an image's own features, which would be pushed away too.
        temperature: above 0; 0.1 in the paper for CIFAR-100, 0.07 by default in the authors' code.

    Returns:
        0 without negatives (an empty bank). Features of zeros have cosine 0 to everything.
    """
    # In float32 at least: over a small temperature the rounding of half precision would be large.
    theirs, ours, others = (unit(full_precision(features)) for features in (teacher, student, negatives))
    positive = (ours * theirs).sum(dim=1) / temperature
    scores = (ours @ others.T if others.ndim == 2 else (others @ ours[:, :, None]).squeeze(2)) / temperature
    if scores.shape[1] == 0:
        return positive.sum() * 0.0  # with a gradient of 0, for backward
    # -log(e^a / (e^a + e^b)) is softplus(b - a), here with b the logsumexp of the negatives.
    return F.softplus(torch.logsumexp(scores - positive[:, None], dim=1)).mean()


def instance_contrast(views: Tensor, anchors: Tensor, new: int, temperature: float = 0.1) -> Tensor:
    """Each view must identify its own image among all (L_cr of CMI, Fang et al. 2021), a scalar.

    With `s_ij = cos(views_i, anchors_j) / temperature` the loss of image i is `-log softmax(s_i)_i`. As in the authors'
    code, the mean over the new images and the mean over the earlier ones are added, so that the few new images have a
    weight of their own.

    Args:
        views: features of one view of N images `[N, D]`, the new images first.
        anchors: features of another view of the same images `[N, D]`, in the same order; they are targets and get no
            gradient.
        new: how many of the images are new, at least 1; the others are of earlier batches.
        temperature: above 0; 0.1 to 0.2 in the authors' code.
    """
    scores = unit(full_precision(views)) @ unit(full_precision(anchors)).detach().T / temperature
    each = F.cross_entropy(scores, torch.arange(len(scores), device=scores.device), reduction="none")
    earlier = each[new:]
    return each[:new].mean() + (earlier.mean() if len(earlier) else 0.0)


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
    # Weighted before rows are left out, while weights and rows are still in the same order.
    if weights is not None:
        divergence = divergence * weights
    if keep < 1.0:
        divergence = divergence[_least_wrong(theirs, keep)]
    return temperature**2 * divergence.sum() / max(1, len(divergence))


def _least_wrong(similarities: Tensor, keep: float) -> Tensor:
    """Indices of the rows with their largest value on the diagonal, then of the fraction `keep` nearest to that."""
    rank = (similarities > similarities.diagonal()[:, None]).sum(dim=1)
    wrong = int((rank > 0).sum())
    # Right rows have rank 0, so sorting puts them first; a stable sort keeps the batch's order in ties.
    return rank.argsort(stable=True)[: len(rank) - wrong + math.floor(keep * wrong)]
