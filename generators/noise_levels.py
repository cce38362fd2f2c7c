"""The times that a training batch of a diffusion model gets, and the weight of each time in the loss."""

from __future__ import annotations

import torch
from torch import Tensor

GENTLEST = 0.1
"""Power of the noise schedule with which the curriculum begins."""


def stratified_times(count: int, levels: int, rng: torch.Generator) -> Tensor:
    """Times int64 `[count]` in `[0, levels)`, evenly spaced with one random offset.

    Stratified times reduce the variance of the gradient at no cost (Kingma et al. 2021, appendix I.1).
    """
    times = ((torch.rand((), generator=rng) + torch.arange(count)) * (levels / count)).long()
    # An offset just below 1 may be rounded up, to a time that does not exist.
    return times.clamp_max(levels - 1)


def level_weights(alphas: Tensor, limit: float) -> Tensor:
    """Weight of each noise level in the loss on velocities: min-SNR (Hang et al. 2023, section 3.4).

    `min(snr, limit) / (snr + 1)` with `snr = a / (1 - a)`, divided by its mean over the levels; all ones for a limit
    of 0.

    Args:
        alphas: `alpha_bar` of every level, float32 `[T]` in (0, 1).
        limit: largest signal-to-noise ratio that counts in full.

    Returns:
        float32 `[T]` with mean 1.
    """
    if limit == 0.0:
        return torch.ones_like(alphas)
    snr = alphas / (1.0 - alphas)
    # On images the weight is min(snr, limit). A velocity's squared error is snr + 1 times that of its image.
    weights = snr.clamp_max(limit) / (snr + 1.0)
    # Mean 1, so that the limit does not also change the learning rate.
    return weights / weights.mean()


def curriculum_times(alphas: Tensor, times: Tensor, progress: float) -> Tensor:
    """Times with less noise, early in training: the curriculum of "progressive diffusion".

    At progress p in [0, 1] the chain adds noise with `alpha_t(p) = alpha_t^g`, so `alpha_bar_t(p) = alpha_bar_t^g`,
    with `g = 0.1^(1 - p)`: little noise at first, the full schedule at the end.

    The article prints `q(x_t | x_{t-1}) = N(sqrt(alpha_t) x_{t-1}, (1 - alpha_t) I)` with `alpha_t = 0.9^(T - t)` for
    t <= T/2 and `0.99^(T - t)` after. There alpha_1 is almost 0, so the first step destroys the image, and the schedule
    is the same throughout training. This function keeps the aim, noise that grows, and the form, a power of the signal;
    the exponent depends on training progress. The network is not given t but the time at which the full schedule has
    the same noise. A noise level so has one time throughout training, and nothing has to be unlearned. Samples drawn
    before the curriculum ends start from more noise than the network has been trained on.

    Args:
        alphas: `alpha_bar` of the full schedule, float32 `[T]`, falling.
        times: int64 `[N]` in `[0, T)`.
        progress: p.

    Returns:
        int64 `[N]`, each at most `times`: the first time of the full schedule with as much noise as alpha_bar_t(p).
    """
    # -log alpha_bar rises with t and turns the power g into a factor, so a binary search finds the time.
    depth = -alphas.double().log()
    return torch.searchsorted(depth, GENTLEST ** (1.0 - progress) * depth[times]).clamp_max(len(alphas) - 1)
