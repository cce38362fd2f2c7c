"""Noise levels in training: weights and curriculum against closed forms."""

import math

import torch

from synthkd.generators.denoising import noise_schedule
from synthkd.generators.noise_levels import GENTLEST, curriculum_times, level_weights, stratified_times


def test_stratified_times_fall_one_into_each_part_of_the_schedule() -> None:
    rng = torch.Generator().manual_seed(0)
    for _ in range(20):
        times = stratified_times(8, 1000, rng)
        assert torch.equal(times // 125, torch.arange(8))
    assert stratified_times(1, 1, rng).tolist() == [0]


def test_weights_of_noise_levels_are_those_of_min_snr() -> None:
    alphas = torch.tensor([0.9, 0.5, 0.2])
    assert torch.equal(level_weights(alphas, 0.0), torch.ones(3))
    expected = torch.tensor([5.0 / 10.0, 0.5, 0.2])  # snr 9, 1, 1/4, limited to 5
    assert torch.allclose(level_weights(alphas, 5.0), expected / expected.mean())


def test_the_curriculum_begins_gently_and_ends_with_the_full_schedule() -> None:
    alphas, times = noise_schedule().alphas_cumprod, torch.arange(1000)
    assert torch.equal(curriculum_times(alphas, times, 1.0), times)
    power = math.sqrt(GENTLEST)
    for progress, exponent in ((0.0, GENTLEST), (0.5, power)):
        moved = curriculum_times(alphas, times, progress)
        assert torch.allclose(alphas[moved].log(), exponent * alphas.log(), rtol=0.05, atol=0.05)
        assert bool((moved.diff() >= 0).all())
        assert bool((moved <= times).all())
