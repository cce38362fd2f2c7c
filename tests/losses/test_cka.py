"""Linear CKA without bias, against a mean over all quadruples of different images."""

from itertools import permutations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from synthkd.losses import linear_cka


def features(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_hsic(k: NDArray[np.float64], m: NDArray[np.float64]) -> float:
    """The U-statistic of Song et al. 2012 (theorem 3): `K_ij L_ij + K_ij L_qr - 2 K_ij L_iq` over quadruples."""
    quadruples = permutations(range(len(k)), 4)
    return float(np.mean([k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]) for i, j, q, r in quadruples]))


def slow_cka(teacher: torch.Tensor, student: torch.Tensor) -> float:
    k, m = ((x.flatten(1) @ x.flatten(1).T).numpy() for x in (teacher, student))
    return max(0.0, slow_hsic(k, m) / (slow_hsic(k, k) * slow_hsic(m, m)) ** 0.5)


@pytest.mark.parametrize("related", [0.0, 1.0, 3.0])
def test_it_is_the_mean_over_quadruples(related: float) -> None:
    teacher = features(0, 8, 5)
    student = features(1, 8, 3, 2) + related * (teacher @ features(2, 5, 6)).reshape(8, 3, 2) + 3.0
    expected = slow_cka(teacher, student)
    assert (expected > 0.2) == (related > 0.0)
    assert float(linear_cka(teacher, student)) == pytest.approx(expected, abs=1e-9)
    assert float(linear_cka(teacher.float(), student.float())) == pytest.approx(expected, abs=1e-5)
    assert float(linear_cka(student, teacher)) == pytest.approx(expected, abs=1e-9)


def test_rotation_shift_and_scale_change_nothing_and_a_copy_is_1() -> None:
    teacher = features(0, 20, 6)
    rotation = torch.linalg.qr(features(1, 6, 6)).Q
    assert float(linear_cka(teacher, 7.0 * teacher @ rotation + 40.0)) == pytest.approx(1.0, abs=1e-9)
    assert float(linear_cka(teacher.half(), teacher.half())) == pytest.approx(1.0, abs=1e-5)


def test_unrelated_features_of_many_dimensions_are_not_similar() -> None:
    """The biased form gives 0.9 here."""
    values = [float(linear_cka(features(2 * n, 64, 512), features(2 * n + 1, 64, 512))) for n in range(20)]
    assert np.mean(values) < 0.03


@pytest.mark.parametrize("value", [0.0, 0.1, 1e4])
def test_a_side_without_differences_is_like_nothing(value: float) -> None:
    same, other = torch.full((64, 5), value), features(0, 64, 3).float()
    assert [float(linear_cka(*pair)) for pair in ((same, other), (other, same), (same, same))] == [0.0, 0.0, 0.0]


def test_fewer_than_four_images_are_too_few() -> None:
    assert float(linear_cka(features(0, 3, 5), features(0, 3, 5))) == 0.0
    assert float(linear_cka(features(0, 4, 5), features(0, 4, 5))) == pytest.approx(1.0)
