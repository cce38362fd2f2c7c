"""Losses on how the samples of a batch lie to each other: pure functions, whatever dimensions the features have."""

from __future__ import annotations

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
    # mixed precision gives features of half precision, in which squared differences of cosines mean little
    ours, theirs = (F.normalize(features.flatten(1).float(), dim=1) for features in (student, teacher))
    return (ours @ ours.T - theirs @ theirs.T).square().sum() / (count * (count - 1))
