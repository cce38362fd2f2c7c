"""Decoupled distillation and standardised logits, against closed forms, slow oracles and plain distillation."""

import math

import numpy as np
import pytest
import torch

from synthkd.losses import logits

Case = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@pytest.fixture
def case() -> Case:
    rng = torch.Generator().manual_seed(0)
    teacher, student = (3.0 * torch.randn(6, 5, generator=rng, dtype=torch.float64) for _ in range(2))
    return teacher, student, torch.tensor([0, 4, 2, 2, 1, 3])


def softmax(values: list[float]) -> list[float]:
    return [math.exp(v) / sum(math.exp(w) for w in values) for v in values]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def slow_decoupled(case: Case, temperature: float, alpha: float, beta: float) -> list[float]:
    rows = []
    for t, s, y in zip(*(tensor.tolist() for tensor in case), strict=True):
        t, s = ([z / temperature for z in side] for side in (t, s))
        p, q = softmax(t)[y], softmax(s)[y]
        others = [[z for k, z in enumerate(side) if k != y] for side in (t, s)]
        rows.append(alpha * kl([p, 1 - p], [q, 1 - q]) + beta * kl(softmax(others[0]), softmax(others[1])))
    return [temperature**2 * row for row in rows]


@pytest.mark.parametrize(("temperature", "alpha", "beta"), [(1.0, 1.0, 8.0), (4.0, 0.3, 2.0), (4.0, 2.0, 0.0)])
def test_decoupled_equals_its_definition(case: Case, temperature: float, alpha: float, beta: float) -> None:
    expected = slow_decoupled(case, temperature, alpha, beta)
    assert float(logits.decoupled(*case, temperature, alpha, beta)) == pytest.approx(sum(expected) / 6, rel=1e-10)
    third = torch.tensor([0.0, 0.0, 6.0, 0.0, 0.0, 0.0])
    assert float(logits.decoupled(*case, temperature, alpha, beta, third)) == pytest.approx(expected[2], rel=1e-10)


def test_the_two_parts_weighted_as_in_plain_distillation_are_plain_distillation(case: Case) -> None:
    teacher, student, labels = case
    others = 1.0 - torch.softmax(teacher / 4.0, dim=1).gather(1, labels[:, None]).squeeze(1)
    target = logits.decoupled(*case, 4.0, alpha=1.0, beta=0.0)
    rest = logits.decoupled(*case, 4.0, alpha=0.0, beta=1.0, weights=others)
    assert float(target + rest) == pytest.approx(float(logits.distillation_loss(teacher, student, 4.0)), rel=1e-10)


def test_of_two_classes_the_target_part_is_plain_distillation_and_the_rest_nothing(case: Case) -> None:
    teacher, student, labels = case[0][:, :2], case[1][:, :2], case[2] % 2
    assert float(logits.decoupled(teacher, student, labels, 2.0, beta=5.0)) == pytest.approx(
        float(logits.distillation_loss(teacher, student, 2.0)), rel=1e-10
    )


def test_a_student_that_only_doubts_the_target_pays_for_nothing_else(case: Case) -> None:
    teacher, _, labels = case
    doubting = teacher.scatter_add(1, labels[:, None], torch.full((6, 1), -2.0, dtype=torch.float64)) + 7.0
    assert float(logits.decoupled(teacher, doubting, labels, 3.0, alpha=0.0)) == pytest.approx(0.0, abs=1e-12)
    assert float(logits.decoupled(teacher, doubting, labels, 3.0, beta=0.0)) > 0.1


def test_decoupled_and_its_gradient_are_finite_at_any_gap() -> None:
    teacher = torch.tensor([[400.0, -400.0, -400.0], [0.0, 300.0, -300.0]])
    student = torch.tensor([[-400.0, 400.0, 400.0], [0.0, -300.0, 300.0]], requires_grad=True)
    value = logits.decoupled(teacher, student, torch.tensor([0, 0]), 1.0, alpha=1.0, beta=1.0)
    # first row: log(1 / q_y) = 800 + log 2 and equal others; second: log 2-class gap 0, others 600 apart
    assert float(value.detach()) == pytest.approx((800.0 + math.log(2) + 600.0) / 2, rel=1e-6)
    value.backward()
    assert student.grad is not None
    assert bool(student.grad.isfinite().all())
    assert bool((student.grad != 0).any(dim=1).all())


def test_decoupled_has_the_gradient_of_its_values(case: Case) -> None:
    teacher, student, labels = case
    weights = torch.linspace(0.0, 2.0, 6, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda s: logits.decoupled(teacher, s, labels, 4.0, 0.7, 3.0, weights), student.requires_grad_()
    )


def test_standardised_rows_have_mean_0_and_deviation_1(case: Case) -> None:
    values = logits.standardised(case[0]).numpy()
    for row, given in zip(values, case[0].numpy(), strict=True):
        assert row == pytest.approx((given - np.mean(given)) / np.std(given))
    assert logits.standardised(torch.tensor([[3.0, 3.0, 9.0, 9.0]])).tolist() == [[-1.0, -1.0, 1.0, 1.0]]


def test_standardised_sees_neither_shift_nor_scale_but_the_sign(case: Case) -> None:
    teacher = case[0]
    z = logits.standardised(teacher)
    assert torch.allclose(logits.standardised(1e-3 * teacher + 5.0), z)
    assert torch.allclose(logits.standardised(-teacher), -z)
    assert float(logits.distillation_loss(z, logits.standardised(0.1 * teacher), 2.0)) == pytest.approx(0.0, abs=1e-12)
    assert float(logits.distillation_loss(teacher, 0.1 * teacher, 2.0)) > 0.1


@pytest.mark.parametrize("level", [0.0, 0.1, -1234.567])
def test_constant_logits_are_standardised_to_a_uniform_softmax_that_can_learn(level: float) -> None:
    student = torch.full((2, 10), level, requires_grad=True)
    z = logits.standardised(student)
    assert torch.softmax(z, dim=1).tolist() == pytest.approx(np.full((2, 10), 0.1), abs=1e-4)
    loss = logits.distillation_loss(logits.standardised(torch.arange(10.0).repeat(2, 1)), z, 1.0)
    (gradient,) = torch.autograd.grad(loss, student)
    assert 0.01 < float(gradient.abs().max()) < 1.0
    assert int(gradient[0].argmin()) == 9


def test_standardised_has_the_gradient_of_its_values(case: Case) -> None:
    assert torch.autograd.gradcheck(logits.standardised, case[1].requires_grad_())
