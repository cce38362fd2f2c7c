"""Contrastive distillation and similarities over views, against loops over pairs."""

import math

import numpy as np
import pytest
import torch

from synthkd.errors import ConfigError
from synthkd.losses.contrast import crd, instance_contrast, sskd


def features(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    x, y = a.flatten().tolist(), b.flatten().tolist()
    lengths = math.sqrt(sum(v * v for v in x)) * math.sqrt(sum(v * v for v in y))
    return sum(p * q for p, q in zip(x, y, strict=True)) / lengths


def exponentials(
    teacher: torch.Tensor, student: torch.Tensor, negatives: torch.Tensor, temperature: float
) -> list[list[float]]:
    """Of each image, e^s of the positive first, then of its negatives."""
    return [
        [math.exp(cosine(s, x) / temperature) for x in (t, *others)]
        for t, s, others in zip(teacher, student, negatives, strict=True)
    ]


def test_contrast_equals_its_definition() -> None:
    teacher, student, negatives = features(6, 4, 6), features(7, 4, 6), features(8, 4, 3, 6)
    losses = [-math.log(row[0] / sum(row)) for row in exponentials(teacher, student, negatives, 0.5)]
    value = crd(teacher, student, negatives, 0.5)
    assert float(value) == pytest.approx(np.mean(losses), rel=1e-9)


def test_a_found_image_against_one_unlike_other_by_hand() -> None:
    image, other = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 0.2]])
    # s = 1 and 0
    assert float(crd(image, 2.0 * image, other, 1.0)) == pytest.approx(math.log1p(math.exp(-1)))


def test_shared_negatives_equal_the_same_for_each() -> None:
    teacher, student, shared = features(9, 3, 4), features(10, 3, 4), features(11, 5, 4)
    expected = crd(teacher, student, shared.expand(3, 5, 4))
    assert float(crd(teacher, student, shared)) == pytest.approx(float(expected), rel=1e-12)


def test_lengths_rotation_and_the_order_of_negatives_change_nothing() -> None:
    teacher, student, negatives = features(12, 3, 4), features(13, 3, 4), features(14, 5, 4)
    rotation = torch.linalg.qr(features(15, 4, 4)).Q
    lengths = torch.tensor([[0.01], [7.0], [100.0]], dtype=torch.float64)
    value = float(crd(teacher, student, negatives))
    moved = crd(lengths * teacher @ rotation, student @ rotation, 5.0 * negatives.flip(0) @ rotation)
    assert float(moved) == pytest.approx(value, rel=1e-9)
    assert float(crd(teacher.flip(0), student, negatives)) != pytest.approx(value, rel=1e-3)


def test_the_student_is_drawn_to_the_teacher_and_pushed_from_the_negatives() -> None:
    teacher, negatives = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    student = torch.tensor([[0.0, 0.0, 1.0]], requires_grad=True)
    crd(teacher, student, negatives).backward()
    assert student.grad is not None
    assert float(student.grad[0, 0]) < 0 < float(student.grad[0, 1])


@pytest.mark.parametrize("shape", [(0, 4), (2, 0, 4)])
def test_without_negatives_there_is_nothing_to_learn(shape: tuple[int, ...]) -> None:
    student = features(16, 2, 4).requires_grad_()
    value = crd(features(17, 2, 4), student, torch.zeros(shape, dtype=torch.float64))
    value.backward()
    assert float(value.detach()) == 0.0
    assert student.grad is not None
    assert bool((student.grad == 0).all())


def test_zeros_half_precision_and_low_temperatures_are_finite() -> None:
    student = torch.zeros(2, 4, dtype=torch.float16, requires_grad=True)
    value = crd(features(18, 2, 4).half(), student, features(19, 6, 4).bfloat16())
    value.backward()
    assert value.dtype == torch.float32
    # every cosine is 0
    assert float(value.detach()) == pytest.approx(math.log(7))
    assert student.grad is not None
    assert bool(student.grad.isfinite().all())
    one = torch.tensor([[1.0, 0.0]])
    far = crd(one, -one, one, 1e-4)
    assert float(far) == pytest.approx(math.log(2))
    worse = crd(one, -one, -one, 1e-4)
    assert float(worse) == pytest.approx(2e4)


def test_contrast_has_the_gradient_of_its_values_on_both_sides() -> None:
    teacher, student = features(20, 3, 4).requires_grad_(), features(21, 3, 4).requires_grad_()
    negatives = features(22, 5, 4)
    assert torch.autograd.gradcheck(lambda t, s: crd(t, s, negatives, 0.3), (teacher, student))


def slow_view_rows(plain: torch.Tensor, view: torch.Tensor, temperature: float) -> list[list[float]]:
    rows = []
    for altered in view:
        scores = [math.exp(cosine(altered, other) / temperature) for other in plain]
        rows.append([score / sum(scores) for score in scores])
    return rows


def test_similarities_over_views_equal_their_loop() -> None:
    teacher, teacher_view = features(23, 5, 3, 2), features(24, 5, 3, 2)
    student, student_view = features(25, 5, 4), features(26, 5, 4)
    theirs, ours = slow_view_rows(teacher, teacher_view, 0.5), slow_view_rows(student, student_view, 0.5)
    rows = [sum(p * math.log(p / q) for p, q in zip(t, s, strict=True)) for t, s in zip(theirs, ours, strict=True)]
    value = float(sskd(teacher, student, teacher_view, student_view))
    assert value == pytest.approx(0.25 * float(np.mean(rows)), rel=1e-9)
    # a row is an altered image among the plain ones, not the reverse
    assert float(sskd(teacher_view, student_view, teacher, student)) != pytest.approx(value, rel=1e-3)


def test_a_student_that_sees_all_images_alike_by_hand() -> None:
    apart, alike = torch.eye(2), torch.ones(2, 3)
    p = 1 / (1 + math.exp(-2))
    entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
    assert float(sskd(apart, alike, apart, alike)) == pytest.approx(0.25 * (math.log(2) - entropy), rel=1e-5)


def test_a_rotated_and_scaled_copy_of_the_teacher_costs_nothing() -> None:
    plain, view = features(27, 4, 3), features(28, 4, 3)
    rotation = torch.linalg.qr(features(29, 3, 3)).Q
    assert float(sskd(plain, 0.1 * plain @ rotation, view, 9.0 * view @ rotation)) == pytest.approx(0.0, abs=1e-14)


def test_of_wrong_rows_the_least_wrong_are_kept() -> None:
    plain = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    # row 0 is right, row 1 takes 0 for itself (rank 1), row 2 is nearest to 0, then to 1 (rank 2)
    view = torch.tensor([[1.0, 0.1], [1.0, 0.9], [1.0, 0.5]])
    ours = features(30, 3, 4).float(), features(31, 3, 4).float()
    rows = []
    for kept in (0, 1, 2):
        weights = torch.zeros(3)
        weights[kept] = 1.0
        student = ours[1].clone().requires_grad_()
        theirs = torch.softmax(torch.nn.functional.normalize(view) @ plain.T / 0.5, dim=1)
        similar = torch.nn.functional.normalize(student) @ torch.nn.functional.normalize(ours[0]).T
        log_ours = torch.log_softmax(similar / 0.5, dim=1)
        rows.append(0.25 * float((weights[:, None] * theirs * (theirs.log() - log_ours)).sum().detach()))
    values = [float(sskd(plain, ours[0], view, ours[1], keep=keep)) for keep in (0.0, 0.5, 0.99, 1.0)]
    expected = [rows[0], (rows[0] + rows[1]) / 2, (rows[0] + rows[1]) / 2, sum(rows) / 3]
    assert values == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_weights_of_images_scale_the_rows_that_are_kept(keep: float) -> None:
    teacher, teacher_view = features(40, 6, 3), features(41, 6, 3)
    student, student_view = features(42, 6, 4), features(43, 6, 4)
    weights = torch.tensor([0.2, 3.0, 0.0, 1.0, 0.5, 1.3], dtype=torch.float64)
    theirs, ours = slow_view_rows(teacher, teacher_view, 0.5), slow_view_rows(student, student_view, 0.5)
    ranks = [sum(p > row[i] for p in row) for i, row in enumerate(theirs)]
    wrong = sum(rank > 0 for rank in ranks)
    assert 1 < wrong < 6
    kept = sorted(range(6), key=ranks.__getitem__)[: 6 - wrong + math.floor(keep * wrong)]
    rows = [0.25 * sum(p * math.log(p / q) for p, q in zip(theirs[i], ours[i], strict=True)) for i in kept]
    four = (teacher, student, teacher_view, student_view)
    expected = float(np.mean([float(weights[i]) * row for i, row in zip(kept, rows, strict=True)]))
    assert float(sskd(*four, keep=keep, weights=weights)) == pytest.approx(expected, rel=1e-9)
    ones = sskd(*four, keep=keep, weights=torch.ones(6))
    assert float(ones) == pytest.approx(float(sskd(*four, keep=keep)), rel=1e-12)


def test_one_image_no_kept_row_and_equal_features_are_finite() -> None:
    single = features(32, 1, 3).requires_grad_()
    lone = sskd(features(33, 1, 2), single, features(34, 1, 2), features(35, 1, 3))
    lone.backward()
    assert float(lone.detach()) == pytest.approx(0.0, abs=1e-15)
    swapped = torch.eye(2)
    student = torch.ones(2, 2, dtype=torch.float16, requires_grad=True)
    none = sskd(swapped, student, swapped.flip(0), student, keep=0.0)
    none.backward()
    assert none.dtype == torch.float32
    assert float(none.detach()) == 0.0
    zeros = torch.zeros(2, 2, requires_grad=True)
    sskd(swapped, zeros, swapped, zeros).backward()
    for side in (single, student, zeros):
        assert side.grad is not None
        assert bool(side.grad.isfinite().all())


def test_similarities_have_the_gradient_of_their_values() -> None:
    teacher, view = features(36, 4, 3), features(37, 4, 3)
    ours = features(38, 4, 2).requires_grad_(), features(39, 4, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda s, v: sskd(teacher, s, view, v, keep=0.5), ours)


def test_an_unknown_fraction_is_refused() -> None:
    one = torch.ones(2, 2)
    with pytest.raises(ConfigError, match=r"\[0, 1\], got 1.5"):
        sskd(one, one, one, one, keep=1.5)


def test_each_view_must_find_its_own_image_among_all() -> None:
    rng = torch.Generator().manual_seed(0)
    views, anchors = (torch.randn(7, 4, generator=rng, dtype=torch.float64) for _ in range(2))
    each = []
    for i in range(7):  # a slow oracle, image by image
        scores = [cosine(views[i], anchors[j]) / 0.2 for j in range(7)]
        each.append(math.log(sum(math.exp(score) for score in scores)) - scores[i])
    expected = sum(each[:3]) / 3 + sum(each[3:]) / 4
    assert float(instance_contrast(views, anchors, 3, 0.2)) == pytest.approx(expected, rel=1e-12)
    assert float(instance_contrast(views, anchors, 7, 0.2)) == pytest.approx(sum(each) / 7, rel=1e-12)


def test_anchors_are_targets() -> None:
    views, anchors = torch.randn(3, 2, requires_grad=True), torch.randn(3, 2, requires_grad=True)
    instance_contrast(views, anchors, 2).backward()
    assert views.grad is not None
    assert anchors.grad is None
