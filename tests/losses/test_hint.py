"""The hint with weights of images, against a loop over them."""

import pytest
import torch

from synthkd.losses.features import hint


@pytest.mark.parametrize("shape", [(5, 4), (5, 3, 4), (5, 4, 2, 3)])
def test_weights_of_images_scale_their_squares(shape: tuple[int, ...]) -> None:
    rng = torch.Generator().manual_seed(0)
    teacher, student = 3.0 * torch.randn(shape, generator=rng) + 2.0, torch.randn(shape, generator=rng)
    weights = torch.tensor([0.2, 3.0, 0.0, 1.0, 0.5])
    values = teacher.flatten().tolist()
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    expected = 0.0
    for image, target, weight in zip(student, teacher, weights.tolist(), strict=True):
        pairs = zip(image.flatten().tolist(), target.flatten().tolist(), strict=True)
        expected += weight * sum((s - t) ** 2 for s, t in pairs) / len(values) / variance
    assert float(hint(teacher, student, weights)) == pytest.approx(expected, rel=1e-4)
    assert float(hint(teacher, student, torch.ones(5))) == pytest.approx(float(hint(teacher, student)), rel=1e-6)


def test_an_image_without_weight_has_no_gradient_and_one_of_weight_2_twice_its_own() -> None:
    rng = torch.Generator().manual_seed(1)
    teacher = torch.randn(3, 4, generator=rng)
    plain, weighed = (torch.zeros(3, 4, requires_grad=True) for _ in range(2))
    hint(teacher, plain).backward()
    hint(teacher, weighed, torch.tensor([1.0, 2.0, 0.0])).backward()
    assert plain.grad is not None
    assert weighed.grad is not None
    torch.testing.assert_close(weighed.grad, plain.grad * torch.tensor([[1.0], [2.0], [0.0]]))
