"""Noise levels of a diffusion model in training: which times a batch gets, and the weight of each time in the loss."""

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
    return times.clamp_max(levels - 1)


def level_weights(alphas: Tensor, limit: float) -> Tensor:
    """Weight of each noise level in the loss on velocities: min-SNR (Hang et al. 2023, section 3.4).

    `min(snr, limit) / (snr + 1)` with `snr = a / (1 - a)`, divided by its mean over the levels so that the learning
    rate keeps its meaning; all ones for a limit of 0.

    Args:
        alphas: `alpha_bar` of every level, float32 `[T]` in (0, 1).
        limit: largest signal-to-noise ratio that counts in full.

    Returns:
        float32 `[T]` with mean 1.
    """
    if limit == 0.0:
        return torch.ones_like(alphas)
    snr = alphas / (1.0 - alphas)
    weights = snr.clamp_max(limit) / (snr + 1.0)
    return weights / weights.mean()


def curriculum_times(alphas: Tensor, times: Tensor, progress: float) -> Tensor:
    """Times with less noise, early in training: the curriculum of "progressive diffusion".

    At progress p in [0, 1] the chain adds noise with `alpha_t(p) = alpha_t^g`, so `alpha_bar_t(p) = alpha_bar_t^g`,
    with `g = 0.1^(1 - p)`: little noise at first, the full schedule at the end.

    The article prints `q(x_t | x_{t-1}) = N(sqrt(alpha_t) x_{t-1}, (1 - alpha_t) I)` with `alpha_t = 0.9^(T - t)` for
    t <= T/2 and `0.99^(T - t)` after. With these numbers alpha_1 is almost 0: the first step destroys the image, and
    the schedule does not change during training. This function keeps the purpose, noise that grows, and the power of
    what remains, here of training progress. The network gets the actual noise level, not t: a level belongs to the same
    time throughout training, the time at which the full schedule has it, so nothing has to be unlearned. Samples drawn
    before the end of the curriculum start from more noise than the network was trained on so far.

    Args:
        alphas: `alpha_bar` of the full schedule, float32 `[T]`, falling.
        times: int64 `[N]` in `[0, T)`.
        progress: p.

    Returns:
        int64 `[N]`, each at most `times`: the first time of the full schedule with as much noise as alpha_bar_t(p).
    """
    depth = -alphas.double().log()
    return torch.searchsorted(depth, GENTLEST ** (1.0 - progress) * depth[times]).clamp_max(len(alphas) - 1)
