"""Losses on how the samples of a batch lie to each other: pure functions, whatever dimensions the features have."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def semantic_consistency(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean squared difference of the cosines between all pairs of samples, in the teacher's and the student's features.

    `mean_{i != j} (cos(f_T(x_i), f_T(x_j)) - cos(f_S(x_i), f_S(x_j)))^2`: 0 where both find the same images alike, at
    most 4. Asking for equal features (`E ||f_T(x) - f_S(x)||^2`) would need an adapter wherever the dimensions differ;
    cosines of pairs need none, and no adapter can undo what the features mean (similarity-preserving distillation, Tung
    and Mori 2019, with the diagonal left out, which is 1 on both sides).

    Args:
        teacher: features `[N, D]`, or maps and tokens `[N, ...]`, which are flattened.
        student: features of the same images, `[N, E]` likewise.

    Returns:
        A scalar; 0 for fewer than two images.
    """
    count = len(teacher)
    if count < 2:
        return student.sum() * 0.0
    ours, theirs = (unit(full_precision(features).flatten(1)) for features in (student, teacher))
    return (ours @ ours.T - theirs @ theirs.T).square().sum() / (count * (count - 1))


def similarity_preserving(teacher: Tensor, student: Tensor) -> Tensor:
    """Similarity-preserving distillation `||G_T - G_S||_F^2 / N^2` (Tung and Mori 2019), a scalar.

    `G = Q Q^T` of the features `Q [N, D]`, each row of G divided by its length. Where `semantic_consistency` takes
    cosines, here an image with large features weighs more in every row: only one common factor changes nothing.

    Args:
        teacher: features `[N, D]`, or maps and tokens `[N, ...]`, which are flattened.
        student: features of the same images, `[N, E]` likewise.

    Returns:
        0 for one image; an image with no features but zeros has a row of zeros.
    """
    ours, theirs = (_similarities(features) for features in (student, teacher))
    return (ours - theirs).square().sum() / len(teacher) ** 2


def rkd_distance(teacher: Tensor, student: Tensor) -> Tensor:
    """Distance-wise relational distillation (RKD-D, Park et al. 2019, section 3.2.1), a scalar.

    Mean over ordered pairs of different samples of `huber(psi(t_i, t_j) - psi(s_i, s_j))`, with
    `psi(a, b) = ||a - b|| / mu`, mu the mean distance of the pairs and Huber's delta 1. Shift, scale and rotation of
    either side change nothing. The paper sums; the authors' code takes the mean with the zeros i = j in it, which is
    (N - 1) / N of this one, and leaves pairs at distance 0 out of mu.

    Args:
        teacher: features `[N, D]`, or maps and tokens `[N, ...]`, which are flattened.
        student: features of the same images, `[N, E]` likewise.

    Returns:
        0 for fewer than two images. Samples nearer than rounding can tell are at distance 0 and get no gradient from
        their pair; where all are, every psi is 0.
    """
    count = len(teacher)
    if count < 2:
        return student.sum() * 0.0
    ours, theirs = (_relative_distances(features) for features in (student, teacher))
    return F.smooth_l1_loss(ours, theirs, reduction="sum") / (count * (count - 1))


def rkd_angle(teacher: Tensor, student: Tensor) -> Tensor:
    """Angle-wise relational distillation (RKD-A, Park et al. 2019, section 3.2.2), a scalar.

    Mean over ordered triples of different samples of `huber(cos_T(i, j, k) - cos_S(i, j, k))`, with `cos(i, j, k)` that
    of the angle at j between the directions to i and to k, and Huber's delta 1. Shift, scale and rotation of either
    side change nothing. The paper sums; the authors' code takes the mean over all N^3, with the zeros of repeated
    samples in it, which is (N - 1)(N - 2) / N^2 of this one. Holds N^3 numbers, whatever dimension the features have.

    Args:
        teacher: features `[N, D]`, or maps and tokens `[N, ...]`, which are flattened.
        student: features of the same images, `[N, E]` likewise.

    Returns:
        0 for fewer than three images. The cosine is 0, without gradient, where two of the samples are nearer than
        rounding can tell and there is no direction between them.
    """
    count = len(teacher)
    if count < 3:
        return student.sum() * 0.0
    ours, theirs = (_cosines(features) for features in (student, teacher))
    return F.smooth_l1_loss(ours, theirs, reduction="sum") / (count * (count - 1) * (count - 2))


def full_precision(features: Tensor) -> Tensor:
    """Features in float32, where they are not in float64: mixed precision gives them in half."""
    return features.to(torch.promote_types(features.dtype, torch.float32))


def unit(vectors: Tensor) -> Tensor:
    """Vectors `[..., D]` over their lengths; zeros stay zeros, with the gradient of a length of 1, not of almost 0."""
    length: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / length.masked_fill(length == 0.0, 1.0)


def _similarities(features: Tensor) -> Tensor:
    rows = full_precision(features).flatten(1)
    return unit(rows @ rows.T)


def _relative_distances(features: Tensor) -> Tensor:
    """Distances `[N, N]` in units of their mean over pairs of different samples."""
    count = len(features)
    squared, together = _squared_distances(_gram(features))
    distances = squared.sqrt().masked_fill(together, 0.0)
    mean = distances.sum() / (count * (count - 1))
    return distances / mean.masked_fill(mean == 0.0, 1.0)


def _cosines(features: Tensor) -> Tensor:
    """Cosines `[N, N, N]` of the angles at j (first index) between i and k; 0 where two of the three are one."""
    gram = _gram(features)
    squared, together = _squared_distances(gram)
    nearness = squared.rsqrt().masked_fill(together, 0.0)
    # <i - j, k - j> is <i, k> + a_ji + a_jk with a_ji = <j, j> / 2 - <j, i>, a product of rank 2 for each j: the
    # differences themselves would be N^2 D numbers, and N times the work
    offsets = nearness * (gram.diagonal()[:, None] / 2 - gram)
    sums = torch.stack([offsets, nearness], dim=2) @ torch.stack([nearness, offsets], dim=1)
    cosines = torch.addcmul(sums, gram[None], nearness[:, :, None] * nearness[:, None, :])
    return torch.where(torch.eye(len(gram), dtype=torch.bool, device=gram.device), 0.0, cosines)


def _gram(features: Tensor) -> Tensor:
    rows = full_precision(features).flatten(1)
    rows = rows - rows.mean(dim=0)  # distances know no mean, but a large one would drown them in rounding
    return rows @ rows.T


def _squared_distances(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances `[N, N]` and where they are 0 but for rounding; 1 there, so that a root has a gradient."""
    sizes = gram.diagonal()
    sums = sizes[:, None] + sizes
    squared = sums - 2.0 * gram
    together = squared <= 64 * torch.finfo(gram.dtype).eps * sums
    return squared.masked_fill(together, 1.0), together
