"""Losses on logits against closed forms, slow oracles and their invariances."""

import math

import pytest
import torch

from synthkd.losses import logits


def slow_kl(teacher: torch.Tensor, student: torch.Tensor, temperature: float) -> list[float]:
    rows = []
    for t, s in zip(teacher.double().tolist(), student.double().tolist(), strict=True):
        p = [math.exp(x / temperature) for x in t]
        q = [math.exp(x / temperature) for x in s]
        rows.append(sum(a / sum(p) * math.log((a / sum(p)) / (b / sum(q))) for a, b in zip(p, q, strict=True)))
    return rows


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(7, 5, generator=generator), torch.randn(7, 5, generator=generator)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_kl_equals_its_definition(pair: tuple[torch.Tensor, torch.Tensor], temperature: float) -> None:
    teacher, student = pair
    expected = slow_kl(teacher, student, temperature)
    value = logits.kl_divergence(teacher.double(), student.double(), temperature)
    assert value.tolist() == pytest.approx(expected, rel=1e-9)


def test_kl_is_directed() -> None:
    sure, unsure = torch.tensor([[5.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    # KL(uniform || sure) pays for the mass that sure denies; KL(sure || uniform) is at most log 2
    assert float(logits.kl_divergence(sure, unsure)) < math.log(2) < float(logits.kl_divergence(unsure, sure))


def test_kl_is_finite_at_any_gap() -> None:
    value = logits.kl_divergence(torch.tensor([[400.0, -400.0]]), torch.tensor([[-400.0, 400.0]]))
    assert float(value) == pytest.approx(800.0)


def test_distillation_is_zero_for_equals_and_blind_to_shifts(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    teacher, student = pair
    assert float(logits.distillation_loss(teacher, teacher + 3.0, 4.0)) == pytest.approx(0.0, abs=1e-5)
    assert float(logits.centred_difference(teacher, teacher - 2.0)) == pytest.approx(0.0, abs=1e-6)
    assert float(logits.distillation_loss(teacher, student, 4.0)) > 0


def test_distillation_gradient_approaches_logit_matching(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Hinton et al. 2015, equation 4: at high T the gradient is the centred difference over N (batch mean) and K."""
    teacher, student = pair[0].double(), pair[1].double().requires_grad_()
    (gradient,) = torch.autograd.grad(logits.distillation_loss(teacher, student, 1e4), student)
    gap = student - teacher
    expected = (gap - gap.mean(1, keepdim=True)) / (5 * 7)
    assert torch.allclose(gradient, expected.detach(), rtol=1e-3, atol=1e-8)


def test_weights_weigh(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    teacher, student = pair
    only_first = torch.tensor([7.0, 0, 0, 0, 0, 0, 0])
    expected = float(logits.kl_divergence(teacher, student, 2.0)[0]) * 4
    assert float(logits.distillation_loss(teacher, student, 2.0, only_first)) == pytest.approx(expected, rel=1e-5)
    ones = logits.distillation_loss(teacher, student, 2.0, torch.ones(7))
    assert float(ones) == pytest.approx(float(logits.distillation_loss(teacher, student, 2.0)))


def test_hard_label_of_a_uniform_student_is_log_k() -> None:
    assert float(logits.hard_label(torch.zeros(3, 8), torch.tensor([0, 5, 7]))) == pytest.approx(math.log(8))


def test_agreement() -> None:
    a, b = torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 1]]), torch.tensor([[9.0, 0], [9, 1], [9, 0], [9, 1]])
    assert float(logits.agreement(a, b)) == 0.5
