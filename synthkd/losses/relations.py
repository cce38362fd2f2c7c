"""Losses on the relations between the images of a batch: similarities, distances and angles; and one similarity, CKA.

The features of teacher and student may have different dimensions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def semantic_consistency(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean squared difference between teacher and student of the cosines of all pairs of images, a scalar in [0, 4].

    `mean_{i != j} (cos(f_T(x_i), f_T(x_j)) - cos(f_S(x_i), f_S(x_j)))^2`: similarity-preserving distillation (Tung and
    Mori 2019) of cosines, without the diagonal, which is 1 on both sides. Cosines of pairs compare features of
    different dimensions without an adapter, which a loss on features (`E ||f_T(x) - f_S(x)||^2`) needs and which may
    change their meaning.

    Args:
        teacher: features `[N, D]`, or maps and tokens `[N, ...]`, which are flattened.
        student: features of the same images, `[N, E]` likewise.

    Returns:
        0 where both have the same cosines, and for fewer than two images.
    """
    count = len(teacher)
    if count < 2:
        return student.sum() * 0.0  # with a gradient of 0, for backward
    ours, theirs = unit_rows(student), unit_rows(teacher)
    return (ours @ ours.T - theirs @ theirs.T).square().sum() / (count * (count - 1))


def similarity_preserving(teacher: Tensor, student: Tensor) -> Tensor:
    """Similarity-preserving distillation `||G_T - G_S||_F^2 / N^2` (Tung and Mori 2019), a scalar.

    `G = Q Q^T` of the features `Q [N, D]`, with each row of G divided by its length. A factor common to all images
    changes nothing. Images with larger features than others have more weight in every row, unlike in
    `semantic_consistency`.

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


def linear_cka(teacher: Tensor, student: Tensor) -> Tensor:
    """How similar two sets of features of the same images are, a scalar in [0, 1]: linear CKA without bias.

    Centred kernel alignment (Kornblith et al. 2019, section 3) of the inner products `K = T T^T` and `L = S S^T` of all
    pairs of images, with the unbiased HSIC (Song et al. 2012) of Nguyen et al. 2021, equation 3:

    `CKA = max(0, <K', L'> / (|K'| |L'|))`, where K' is K without its diagonal and, off it,
    `K'_ij = K_ij - r_i / (N - 2) - r_j / (N - 2) + s / ((N - 1)(N - 2))`, with r the sums of rows and s that of all.

    A cosine of the features themselves would need equal dimensions and the same order of channels. CKA needs neither:
    rotation, shift and scale of either side change nothing. The biased form would be near 1 for unrelated features of
    more dimensions than there are images; this one is near 0 there. It says by how much the batch is arranged alike,
    while `agreement` says only whether the same class wins.

    Args:
        teacher: features `[N, D]`, or maps and tokens `[N, ...]`, which are flattened.
        student: features of the same images, `[N, E]` likewise.

    Returns:
        1 for the same arrangement, 0 for unrelated ones, for fewer than four images, and where all images of one side
        have the same features.
    """
    if len(teacher) < 4:
        return student.sum() * 0.0
    theirs, ours = (unit(_centred(features).flatten()) for features in (teacher, student))
    return (theirs @ ours).clamp(0.0, 1.0)


def full_precision(features: Tensor) -> Tensor:
    """Features in float32, or unchanged if they are float64; under mixed precision they come in half precision."""
    return features.to(torch.promote_types(features.dtype, torch.float32))


def unit(vectors: Tensor) -> Tensor:
    """Vectors `[..., D]` over their lengths; a vector of zeros stays as it is."""
    # A length of 1 for vectors of zeros: no division by 0, and a gradient that can move them away from 0.
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


def _centred(features: Tensor) -> Tensor:
    """Inner products `[N, N]` with rows that add up to 0, and a diagonal of 0; all 0 for features that are the same."""
    count = len(features)
    gram, rows = _gram(features), _rows(features)
    # The mean of equal features differs from them by rounding, which is no arrangement.
    rounding = torch.finfo(gram.dtype).eps ** 2 * rows.square().sum()
    products = gram - gram.diagonal().diag()
    if gram.trace() <= count * rounding:
        return torch.zeros_like(products)
    sums = products.sum(dim=0)
    centred = products - (sums[:, None] + sums) / (count - 2) + sums.sum() / ((count - 1) * (count - 2))
    return centred - centred.diagonal().diag()


def _relative_distances(features: Tensor) -> Tensor:
    """Distances `[N, N]` in units of their mean over pairs of different samples."""
    count = len(features)
    squared, together = _squared_distances(_gram(features))
    distances = squared.sqrt().masked_fill(together, 0.0)
    # The N distances of samples to themselves are 0 and must not lower the mean.
    mean = distances.sum() / (count * (count - 1))
    return distances / mean.masked_fill(mean == 0.0, 1.0)


def _cosines(features: Tensor) -> Tensor:
    """Cosines `[N, N, N]` of the angles at j (first index) between i and k; 0 where two of the three are the same."""
    gram = _gram(features)
    squared, together = _squared_distances(gram)
    inverse = squared.rsqrt().masked_fill(together, 0.0)  # 1 / |j - i|
    # <i - j, k - j> is <i, k> + a_ji + a_jk with a_ji = <j, j> / 2 - <j, i>: a product of rank 2 for each j. The
    # differences themselves would take N^2 D numbers, and N times the work.
    offsets = inverse * (gram.diagonal()[:, None] / 2 - gram)
    sums = torch.stack([offsets, inverse], dim=2) @ torch.stack([inverse, offsets], dim=1)
    cosines = torch.addcmul(sums, gram[None], inverse[:, :, None] * inverse[:, None, :])
    # Where i is k the angle is 0 for every j, but a triple is of three different samples.
    return torch.where(torch.eye(len(gram), dtype=torch.bool, device=gram.device), 0.0, cosines)


def _gram(features: Tensor) -> Tensor:
    """Inner products `[N, N]` of the features around their mean."""
    rows = _rows(features)
    # Distances do not depend on the mean, but differences of inner products lose digits to a large one.
    rows = rows - rows.mean(dim=0)
    return rows @ rows.T


def _squared_distances(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances `[N, N]`, and a mask of those that are 0 up to rounding, which are given as 1."""
    sizes = gram.diagonal()
    sums = sizes[:, None] + sizes
    squared = sums - 2.0 * gram
    # The difference of numbers near `sums` has an error of some eps * sums; below that it may even be negative.
    together = squared <= 64 * torch.finfo(gram.dtype).eps * sums
    # 1 and not 0, at which the gradient of a root is infinite; callers mask the result.
    return squared.masked_fill(together, 1.0), together
