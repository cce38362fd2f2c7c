"""Attention transfer in its two forms, against loops over positions."""

import math
from typing import Literal

import numpy as np
import pytest
import torch

from synthkd.errors import ConfigError, ModelError
from synthkd.losses.attention import attention_map, attention_transfer

Form = Literal["paper", "authors"]
FORMS: list[Form] = ["paper", "authors"]


def maps(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_attention(activations: torch.Tensor, power: float) -> list[list[float]]:
    """Normalised attention of each image, position by position."""
    rows = []
    for image in activations.numpy():
        positions = [(h, w) for h in range(image.shape[1]) for w in range(image.shape[2])]
        sums = [sum(abs(float(a)) ** power for a in image[:, h, w]) for h, w in positions]
        rows.append([q / math.sqrt(sum(s * s for s in sums)) for q in sums])
    return rows


@pytest.mark.parametrize("power", [1.0, 2.0, 4.0])
def test_both_forms_equal_their_loops(power: float) -> None:
    teacher, student = maps(0, 3, 6, 4, 5), maps(1, 3, 2, 4, 5)
    pairs = list(zip(slow_attention(teacher, power), slow_attention(student, power), strict=True))
    squares = [sum((a - b) ** 2 for a, b in zip(t, s, strict=True)) for t, s in pairs]
    paper = attention_transfer(teacher, student, power, "paper")
    authors = attention_transfer(teacher, student, power, "authors")
    assert float(paper) == pytest.approx(np.mean(np.sqrt(squares)), rel=1e-10)
    assert float(authors) == pytest.approx(np.mean(squares) / 20, rel=1e-10)


def test_weights_of_images_scale_their_part_of_both_forms() -> None:
    teacher, student = maps(0, 3, 6, 4, 5), maps(1, 3, 2, 4, 5)
    weights = torch.tensor([0.3, 2.0, 0.0], dtype=torch.float64)
    pairs = zip(slow_attention(teacher, 2.0), slow_attention(student, 2.0), strict=True)
    squares = [sum((a - b) ** 2 for a, b in zip(t, s, strict=True)) for t, s in pairs]
    parts: dict[Form, list[float]] = {"paper": [math.sqrt(s) for s in squares], "authors": [s / 20 for s in squares]}
    for form, of_image in parts.items():
        expected = sum(w * part for w, part in zip(weights.tolist(), of_image, strict=True)) / 3
        assert float(attention_transfer(teacher, student, form=form, weights=weights)) == pytest.approx(expected)
        ones = attention_transfer(teacher, student, form=form, weights=torch.ones(3))
        assert float(ones) == pytest.approx(float(attention_transfer(teacher, student, form=form)), rel=1e-12)


def test_looking_elsewhere_costs_root_2() -> None:
    here, there = torch.zeros(1, 3, 2, 4), torch.zeros(1, 1, 2, 4)
    here[0, 1, 0, 3], there[0, 0, 1, 2] = 7.0, -0.01
    assert float(attention_transfer(here, there)) == pytest.approx(2**0.5)
    assert float(attention_transfer(here, there, form="authors")) == pytest.approx(2 / 8)


@pytest.mark.parametrize("form", FORMS)
def test_a_factor_a_sign_and_the_order_of_channels_change_nothing(form: Form) -> None:
    teacher, student = maps(2, 2, 5, 3, 3), maps(3, 2, 4, 3, 3)
    value = float(attention_transfer(teacher, student, form=form))
    factors = torch.tensor([1e-12, 300.0], dtype=torch.float64).view(2, 1, 1, 1)
    other = -factors * student[:, [2, 0, 3, 1]]
    assert float(attention_transfer(teacher, other, form=form)) == pytest.approx(value, rel=1e-9)
    assert float(attention_transfer(1e-15 * teacher.float(), 1e15 * student.float(), form=form)) == pytest.approx(
        value, rel=1e-4
    )
    turned = student.transpose(2, 3)
    assert float(attention_transfer(teacher, turned, form=form)) != pytest.approx(value, rel=1e-3)


def test_a_higher_power_is_about_the_strongest_position() -> None:
    peaked = torch.tensor([[[[3.0, 2.0, 1.0]]]])
    flatter = torch.tensor([[[[3.0, 1.0, 2.0]]]])
    values = [float(attention_transfer(peaked, flatter, power)) for power in (1.0, 2.0, 4.0, 8.0)]
    assert values[:2] == pytest.approx([math.sqrt(2 / 14), math.sqrt(18 / 98)])
    assert values[1] > values[2] > 4 * values[3] > 0


def test_maps_of_unlike_size_meet_at_the_smaller_height_and_width() -> None:
    wide, high = maps(4, 2, 3, 2, 8), maps(5, 2, 3, 6, 4)
    halves = attention_map(wide).view(2, 2, 4, 2).mean(3)
    thirds = attention_map(high).view(2, 2, 3, 4).mean(2)
    expected = attention_transfer(halves.sqrt()[:, None], thirds.sqrt()[:, None])
    assert float(attention_transfer(wide, high)) == pytest.approx(float(expected), rel=1e-10)
    assert float(attention_transfer(high, wide)) == pytest.approx(float(expected), rel=1e-10)


def test_opposite_signs_do_not_cancel_when_a_map_shrinks() -> None:
    board = torch.ones(1, 1, 4, 4)
    board[..., ::2] = -1.0
    board[..., 2:, :] *= 3.0
    halves = torch.tensor([[[[1.0, 1.0], [3.0, 3.0]]]])
    assert float(attention_transfer(board, halves)) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("power", [1.0, 2.0])
def test_constant_equal_and_silent_maps_are_finite(form: Form, power: float) -> None:
    constant = torch.full((1, 4, 3, 3), 0.3, requires_grad=True)
    value = attention_transfer(torch.full((1, 2, 3, 3), 11.0), constant, power, form)
    value.backward()
    assert float(value.detach()) == pytest.approx(0.0, abs=1e-6)
    silent = torch.zeros(1, 4, 3, 3, requires_grad=True)
    loss = attention_transfer(torch.full((1, 2, 3, 3), 11.0), silent, power, form)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(1.0 if form == "paper" else 1 / 9)
    for image in (constant, silent):
        assert image.grad is not None
        assert bool(image.grad.isfinite().all())


@pytest.mark.parametrize("form", FORMS)
def test_half_precision_does_not_overflow(form: Form) -> None:
    teacher, student = maps(6, 2, 3, 4, 4), maps(7, 2, 3, 4, 4)
    value = attention_transfer((1e4 * teacher).half(), student.bfloat16(), 4.0, form)
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(float(attention_transfer(teacher, student, 4.0, form)), rel=0.05)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
def test_attention_has_the_gradient_of_its_values(form: Form, power: float) -> None:
    teacher, student = maps(8, 2, 3, 2, 3), maps(9, 2, 2, 4, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: attention_transfer(teacher, s, power, form), student)


def test_what_is_no_map_no_form_and_no_power_is_refused() -> None:
    image = torch.ones(2, 3, 4, 4)
    with pytest.raises(ModelError, match=r"\[N, C, H, W\], got \[2, 3\]; tap a layer"):
        attention_transfer(image, torch.ones(2, 3))
    with pytest.raises(ConfigError, match="got 'author'"):
        attention_transfer(image, image, form="author")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"power >= 1, got 0.5"):
        attention_transfer(image, image, power=0.5)
