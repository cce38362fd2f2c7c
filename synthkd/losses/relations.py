"""Losses on the relations between the images of a batch: similarities, distances and angles.

The features of teacher and student may have different dimensions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def semantic_consistency(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean squared difference between teacher and student of the cosines of all pairs of images, a scalar in [0, 4].

    `mean_{i != j} (cos(f_T(x_i), f_T(x_j)) - cos(f_S(x_i), f_S(x_j)))^2`: similarity-preserving distillation (Tung and
    Mori 2019) of cosines, without the diagonal, which is 1 on both sides. Equal features (`E ||f_T(x) - f_S(x)||^2`)
    would need an adapter where the dimensions differ, and an adapter can undo the meaning of features; cosines of pairs
    need none.

    Args:
        teacher: features `[N, D]`, or maps and tokens `[N, ...]`, which are flattened.
        student: features of the same images, `[N, E]` likewise.

    Returns:
        0 where both have the same cosines, and for fewer than two images.
    """
    count = len(teacher)
    if count < 2:
        return student.sum() * 0.0
    ours, theirs = unit_rows(student), unit_rows(teacher)
    return (ours @ ours.T - theirs @ theirs.T).square().sum() / (count * (count - 1))


def similarity_preserving(teacher: Tensor, student: Tensor) -> Tensor:
    """Similarity-preserving distillation `||G_T - G_S||_F^2 / N^2` (Tung and Mori 2019), a scalar.

    `G = Q Q^T` of the features `Q [N, D]`, with each row of G divided by its length. Unlike in `semantic_consistency`,
    images with large features have more weight in every row; only a factor common to all images changes nothing.

    Args:
        teacher: features `[N, D]`, or maps and tokens `[N, ...]`, which are flattened.
        student: features of the same images, `[N, E]` likewise.

    Returns:
        0 for one image. An image whose features are all 0 has a row of zeros.
    """
    ours, theirs = (_similarities(features) for features in (student, teacher))
    return (ours - theirs).square().sum() / len(teacher) ** 2


def rkd_distance(teacher: Tensor, student: Tensor) -> Tensor:
    """Distance-wise relational distillation (RKD-D, Park et al. 2019, section 3.2.1), a scalar.

    Mean over ordered pairs of different samples of `huber(psi(t_i, t_j) - psi(s_i, s_j))`, with
    `psi(a, b) = ||a - b|| / mu`, mu the mean distance of the pairs and Huber's delta 1. Shift, scale and rotation of
    either side change nothing. The paper sums; the authors' code takes the mean including the zeros at i = j, which is
    (N - 1) / N of this value, and excludes pairs at distance 0 from mu.

    Args:
        teacher: features `[N, D]`, or maps and tokens `[N, ...]`, which are flattened.
        student: features of the same images, `[N, E]` likewise.

    Returns:
        0 for fewer than two images. Samples whose distance is within rounding have distance 0 and no gradient from
        their pair; if all samples are, every psi is 0.
    """
    count = len(teacher)
    if count < 2:
        return student.sum() * 0.0
    ours, theirs = (_relative_distances(features) for features in (student, teacher))
    return F.smooth_l1_loss(ours, theirs, reduction="sum") / (count * (count - 1))


def rkd_angle(teacher: Tensor, student: Tensor) -> Tensor:
    """Angle-wise relational distillation (RKD-A, Park et al. 2019, section 3.2.2), a scalar.

    Mean over ordered triples of different samples of `huber(cos_T(i, j, k) - cos_S(i, j, k))`, with `cos(i, j, k)` the
    cosine of the angle at j between the directions to i and to k, and Huber's delta 1. Shift, scale and rotation of
    either side change nothing. The paper sums; the authors' code takes the mean over all N^3 triples including the
    zeros of repeated samples, which is (N - 1)(N - 2) / N^2 of this value. Memory: N^3 numbers for any dimension.

    Args:
        teacher: features `[N, D]`, or maps and tokens `[N, ...]`, which are flattened.
        student: features of the same images, `[N, E]` likewise.

    Returns:
        0 for fewer than three images. Where the distance of two samples is within rounding there is no direction
        between them, and the cosine is 0 without gradient.
    """
    count = len(teacher)
    if count < 3:
        return student.sum() * 0.0
    ours, theirs = (_cosines(features) for features in (student, teacher))
    return F.smooth_l1_loss(ours, theirs, reduction="sum") / (count * (count - 1) * (count - 2))


def full_precision(features: Tensor) -> Tensor:
    """Features in float32, or in float64 if they are: mixed precision produces them in half precision."""
    return features.to(torch.promote_types(features.dtype, torch.float32))


def unit(vectors: Tensor) -> Tensor:
    """Vectors `[..., D]` over their lengths. A vector of zeros stays one, with the gradient of a length of 1."""
    length: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / length.masked_fill(length == 0.0, 1.0)


def unit_rows(features: Tensor) -> Tensor:
    """Features `[N, ...]` of each image as one vector of length 1, float32 or float64 `[N, D]`."""
    return unit(_rows(features))


def _rows(features: Tensor) -> Tensor:
    return full_precision(features).flatten(1)


def _similarities(features: Tensor) -> Tensor:
    rows = _rows(features)
    return unit(rows @ rows.T)


def _relative_distances(features: Tensor) -> Tensor:
    """Distances `[N, N]` in units of their mean over pairs of different samples."""
    count = len(features)
    squared, together = _squared_distances(_gram(features))
    distances = squared.sqrt().masked_fill(together, 0.0)
    mean = distances.sum() / (count * (count - 1))
    return distances / mean.masked_fill(mean == 0.0, 1.0)


def _cosines(features: Tensor) -> Tensor:
    """Cosines `[N, N, N]` of the angles at j (first index) between i and k; 0 where two of the three are the same."""
    gram = _gram(features)
    squared, together = _squared_distances(gram)
    nearness = squared.rsqrt().masked_fill(together, 0.0)
    # <i - j, k - j> is <i, k> + a_ji + a_jk with a_ji = <j, j> / 2 - <j, i>: a product of rank 2 for each j. The
    # differences themselves would take N^2 D numbers, and N times the work.
    offsets = nearness * (gram.diagonal()[:, None] / 2 - gram)
    sums = torch.stack([offsets, nearness], dim=2) @ torch.stack([nearness, offsets], dim=1)
    cosines = torch.addcmul(sums, gram[None], nearness[:, :, None] * nearness[:, None, :])
    return torch.where(torch.eye(len(gram), dtype=torch.bool, device=gram.device), 0.0, cosines)


def _gram(features: Tensor) -> Tensor:
    rows = _rows(features)
    rows = rows - rows.mean(dim=0)  # distances do not depend on the mean, but a large one would cost their digits
    return rows @ rows.T


def _squared_distances(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances `[N, N]`, and where they are 0 up to rounding: 1 there, so that roots have a gradient."""
    sizes = gram.diagonal()
    sums = sizes[:, None] + sizes
    squared = sums - 2.0 * gram
    together = squared <= 64 * torch.finfo(gram.dtype).eps * sums
    return squared.masked_fill(together, 1.0), together
