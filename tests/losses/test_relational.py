"""Relational losses: distances, angles and similarities of a batch, against loops over pairs and triples."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from synthkd.losses.relations import rkd_angle, rkd_distance, semantic_consistency, similarity_preserving

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Rows = NDArray[np.float64]
LOSSES = [rkd_distance, rkd_angle, similarity_preserving]


def huber(gap: float) -> float:
    return gap * gap / 2 if abs(gap) <= 1 else abs(gap) - 0.5


def slow_distance(teacher: Rows, student: Rows) -> float:
    n = len(teacher)
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    theirs, ours = ([float(np.linalg.norm(side[i] - side[j])) for i, j in pairs] for side in (teacher, student))
    return float(np.mean([huber(t / np.mean(theirs) - s / np.mean(ours)) for t, s in zip(theirs, ours, strict=True)]))


def slow_angle(teacher: Rows, student: Rows) -> float:
    def cosine(side: Rows, i: int, j: int, k: int) -> float:
        a, b = side[i] - side[j], side[k] - side[j]
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    n = range(len(teacher))
    triples = [(i, j, k) for i in n for j in n for k in n if len({i, j, k}) == 3]
    return float(np.mean([huber(cosine(teacher, *t) - cosine(student, *t)) for t in triples]))


def slow_similarity(teacher: Rows, student: Rows) -> float:
    total, n = 0.0, len(teacher)
    for i in range(n):
        theirs, ours = ([float(side[i] @ side[j]) for j in range(n)] for side in (teacher, student))
        lengths = np.sqrt(sum(t * t for t in theirs)), np.sqrt(sum(s * s for s in ours))
        total += sum((t / lengths[0] - s / lengths[1]) ** 2 for t, s in zip(theirs, ours, strict=True))
    return total / n**2


SLOW = [slow_distance, slow_angle, slow_similarity]


def features(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("loss", "slow"), list(zip(LOSSES, SLOW, strict=True)))
def test_each_equals_its_loop_over_samples(loss: Loss, slow: Callable[[Rows, Rows], float]) -> None:
    teacher, student = features(0, 7, 5), features(1, 7, 2, 3)
    student[3] *= 20.0  # an outlier, so that Huber's linear part counts
    expected = slow(teacher.numpy(), student.flatten(1).numpy())
    assert float(loss(teacher, student)) == pytest.approx(expected, rel=1e-9)
    assert float(loss(teacher.float(), student.float())) == pytest.approx(expected, rel=1e-4)


def test_distances_on_a_line_by_hand() -> None:
    line, doubled = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[5.0], [5.0], [6.0]])
    # 1, 1, 2 over their mean 4/3 against 0, 1, 1 over 2/3: two pairs differ by 0.75
    assert float(rkd_distance(line, doubled)) == pytest.approx(2 * 0.75**2 / 2 / 3)
    first, last = torch.tensor([[9.0], [0.0], [0.0], [0.0]]), torch.tensor([[0.0], [0.0], [0.0], [1.0]])
    # four of the six pairs differ by 2, where Huber's loss is linear
    assert float(rkd_distance(first, last)) == pytest.approx(4 * 1.5 / 6)


def test_a_triangle_against_a_line_by_hand() -> None:
    triangle = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75**0.5]])
    line = torch.tensor([[0.0], [1.0], [3.0]])
    # cosines 1/2, 1/2, 1/2 against 1, -1, 1
    assert float(rkd_angle(triangle, line)) == pytest.approx((0.125 + 1.0 + 0.125) / 3, rel=1e-5)


def test_unlike_images_against_equal_ones_by_hand() -> None:
    unlike, equal = torch.eye(2), torch.ones(2, 3)
    assert float(similarity_preserving(unlike, equal)) == pytest.approx(1 - 0.5**0.5)


@pytest.mark.parametrize("loss", LOSSES)
def test_scale_and_rotation_change_nothing(loss: Loss) -> None:
    teacher, student = features(2, 6, 4), features(3, 6, 4)
    rotation = torch.linalg.qr(features(4, 4, 4)).Q
    assert float(loss(teacher, 100.0 * teacher @ rotation)) == pytest.approx(0.0, abs=1e-20)
    moved = loss(0.01 * teacher @ rotation, 3.0 * student)
    assert float(moved) == pytest.approx(float(loss(teacher, student)), rel=1e-9)


@pytest.mark.parametrize("loss", [rkd_distance, rkd_angle])
def test_a_shift_changes_nothing_even_where_float32_is_coarse(loss: Loss) -> None:
    teacher, student = features(5, 8, 16), features(6, 8, 16)
    assert float(loss(teacher + 50.0, student)) == pytest.approx(float(loss(teacher, student)), rel=1e-9)
    shifted = loss(teacher.float() + 300.0, student.float() - 300.0)
    assert float(shifted) == pytest.approx(float(loss(teacher, student)), rel=1e-3)


def test_similarities_see_a_shift_and_the_length_of_one_image() -> None:
    teacher = features(7, 5, 4)
    longer = teacher.clone()
    longer[2] *= 5.0
    assert float(similarity_preserving(teacher, teacher + 1.0)) > 1e-3
    assert float(similarity_preserving(teacher, longer)) > 1e-3
    assert float(semantic_consistency(teacher, longer)) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_order_of_the_images_does_not_matter_but_which_is_which_does(loss: Loss) -> None:
    teacher, student = features(8, 6, 3), features(9, 6, 3)
    order = torch.tensor([3, 0, 5, 1, 2, 4])
    value = float(loss(teacher, student))
    assert float(loss(teacher[order], student[order])) == pytest.approx(value, rel=1e-9)
    assert float(loss(teacher, student[order])) != pytest.approx(value, rel=1e-3)


@pytest.mark.parametrize(
    ("loss", "count"), [(rkd_distance, 1), (rkd_angle, 1), (rkd_angle, 2), (similarity_preserving, 1)]
)
def test_too_few_images_cost_nothing_and_have_a_gradient_of_zeros(loss: Loss, count: int) -> None:
    student = features(10, count, 3).requires_grad_()
    value = loss(features(11, count, 4), student)
    value.backward()
    assert float(value.detach()) == pytest.approx(0.0, abs=1e-15)
    assert student.grad is not None
    assert float(student.grad.abs().max()) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("level", [0.0, 0.1, 1e4])
def test_equal_features_give_finite_values_and_gradients(loss: Loss, level: float) -> None:
    student = torch.full((5, 7), level, requires_grad=True)
    value = loss(features(12, 5, 7).float(), student)
    value.backward()
    assert float(value.detach()) > 0
    assert student.grad is not None
    assert float(student.grad.abs().max()) < 100.0


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("factor", [1.0, 1.0 + 1e-6, 1.0015])
def test_a_duplicate_but_for_rounding_is_one(loss: Loss, factor: float) -> None:
    teacher, student = features(14, 6, 8), features(13, 6, 32)
    student[4] = student[1]
    rounded = student.float()
    rounded[4] *= factor
    rounded.requires_grad_()
    value = loss(teacher.float(), rounded)
    value.backward()
    assert float(value.detach()) == pytest.approx(float(loss(teacher, student)), rel=1e-3)
    assert rounded.grad is not None
    assert 0 < float(rounded.grad.abs().max()) < 0.1


def test_a_pair_of_duplicates_has_no_angle() -> None:
    teacher = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75**0.5]])
    student = torch.tensor([[1.0, 2.0], [1.0, 2.0], [3.0, -1.0]])
    # at 0 and 1 one of the two directions is missing; at 2 both are the same: 1/2 against 0, 0 and 1
    assert float(rkd_angle(teacher, student)) == pytest.approx(0.125, rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_half_precision_is_computed_in_float32(loss: Loss) -> None:
    teacher, student = features(15, 6, 8).bfloat16(), (100.0 * features(16, 6, 8)).half()
    value = loss(teacher, student)
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(float(loss(teacher.double(), student.double())), rel=1e-4)


@pytest.mark.parametrize("loss", LOSSES)
def test_each_has_the_gradient_of_its_values(loss: Loss) -> None:
    teacher, student = features(17, 5, 4), features(18, 5, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: loss(teacher, s), student)
