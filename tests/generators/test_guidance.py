"""The pure functions of guidance against closed forms."""

import math

import pytest
import torch

from synthkd.generators.guidance import SOFTENING, climb, guidance_scale, guided, teacher_score


def test_guidance_goes_from_the_unconditional_through_the_conditional_and_beyond() -> None:
    conditional, unconditional = torch.tensor([[3.0]]), torch.tensor([[1.0]])
    assert [float(guided(conditional, unconditional, w)) for w in (0.0, 1.0, 2.5)] == [1.0, 3.0, 6.0]


def test_the_scale_falls_as_difficulty_rises() -> None:
    assert [guidance_scale(d, 2.0, 1.0) for d in (0.0, 0.25, 1.0)] == [2.0, 1.75, 1.0]


def test_the_teachers_score_turns_from_the_label_to_disagreement() -> None:
    even, sure = torch.zeros(1, 2), torch.tensor([[math.log(3.0), 0.0]])
    labels = torch.tensor([0])
    for difficulty, expected in (
        (0.0, math.log(0.75)),
        (1.0, 0.75 * math.log(1.5) + 0.25 * math.log(0.5)),
        (0.5, 0.5 * (math.log(0.75) + 0.75 * math.log(1.5) + 0.25 * math.log(0.5))),
    ):
        assert float(teacher_score(sure, even, labels, difficulty)) == pytest.approx(expected, abs=1e-6)
    assert float(teacher_score(sure, None, labels, 0.25)) == pytest.approx(0.75 * math.log(0.75), abs=1e-6)
    # which side is the teacher's: KL(even || sure) is another number
    swapped = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert float(teacher_score(even, sure, labels, 1.0)) == pytest.approx(swapped, abs=1e-6)


def test_images_climb_at_most_the_length_and_stay_where_the_gradient_vanishes() -> None:
    images = torch.zeros(3, 1, 4, 4)
    direction = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    direction = direction / direction.square().mean().sqrt()
    gradient = torch.cat([1e4 * direction, SOFTENING * direction, torch.zeros_like(direction)])
    moved = climb(images, gradient, 0.2)
    lengths = moved.square().mean((1, 2, 3)).sqrt()
    assert torch.allclose(lengths, torch.tensor([0.2, 0.1, 0.0]), atol=1e-5)
    assert torch.allclose(moved[0] / lengths[0], direction[0], atol=1e-4), "uphill, not down"
