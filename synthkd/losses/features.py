"""Losses on intermediate features: pure functions."""

from __future__ import annotations

from torch import Tensor


def hint(teacher: Tensor, student: Tensor) -> Tensor:
    """Normalised FitNets hint: mean squared difference over the variance of the teacher's features, a scalar.

    Romero et al. 2015, equation 3, without its factor 1/2 and divided by the variance, so that layers of any scale
    weigh alike: 0 for a perfect match, 1 for a regressor that answers the teacher's mean.

    Args:
        teacher: features of any shape.
        student: regressed features of the same shape.
    """
    return (student - teacher).square().mean() / teacher.detach().var().clamp_min(1e-8)
