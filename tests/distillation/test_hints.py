"""Feature hints: which places are compared, and that a perfect regressor leaves nothing."""

import pytest
import torch

from synthkd.distillation.hints import Hints
from synthkd.errors import ConfigError
from synthkd.losses.features import hint
from synthkd.models import build
from synthkd.settings import ZooModel
from synthkd.taps import observe
from synthkd.types import ImageSpec

SPEC = ImageSpec(1, 16, 16, 5)


def model(arch: str, width: int, depth: int | None = None):  # type: ignore[no-untyped-def]
    return build(ZooModel(arch=arch, width=width, depth=depth), SPEC)  # type: ignore[arg-type]


def test_hint_is_zero_for_equals_and_one_for_the_mean() -> None:
    target = torch.randn(50, 4, 3, 3, generator=torch.Generator().manual_seed(0)) * 7 + 2
    assert float(hint(target, target)) == 0.0
    assert float(hint(target, target.mean().expand_as(target))) == pytest.approx(1.0, abs=1e-2)
    assert float(hint(5 * target, 5 * (target + 1))) == pytest.approx(float(hint(target, target + 1)), rel=1e-5)


def test_last_stages_belong_together() -> None:
    hints = Hints(model("convnet", 8), model("lenet5", 3))
    assert [(p.teacher, p.student) for p in hints.pairs] == [
        ("body.stage2", "body.stage1"),
        ("body.stage3", "body.stage2"),
        ("body.head:input", "body.head:input"),
    ]


@pytest.mark.parametrize("student", [("convnet", 4, None), ("resnet", 4, 8), ("lenet5", 3, None), ("slim", 4, 1)])
def test_gradients_reach_the_student_and_not_the_teacher(student: tuple[str, int, int | None]) -> None:
    teacher, small = model("convnet", 8), model(*student)
    hints = Hints(teacher, small)
    images = torch.rand(4, *SPEC.shape)
    with torch.no_grad():
        targets = observe(teacher, images, [p.teacher for p in hints.pairs]).features
    loss = hints(targets, observe(small, images, [p.student for p in hints.pairs]).features)
    loss.backward()
    assert all(p.grad is None for p in teacher.parameters())
    reached = [p.grad for name, p in small.named_parameters() if "head" not in name]
    assert all(g is not None for g in reached)


def test_a_copy_with_identity_regressors_has_no_loss() -> None:
    teacher = model("convnet", 8).eval()
    hints = Hints(teacher, teacher)
    with torch.no_grad():
        for regressor in hints.regressors:
            weight = regressor.weight.flatten(1)  # type: ignore[operator,union-attr]
            weight.copy_(torch.eye(len(weight)))
            regressor.bias.zero_()  # type: ignore[operator,union-attr]
        seen = observe(teacher, torch.rand(4, *SPEC.shape), [p.teacher for p in hints.pairs]).features
        assert float(hints(seen, seen)) == pytest.approx(0.0, abs=1e-10)


def test_maps_and_tokens_are_not_compared() -> None:
    with pytest.raises(ConfigError, match=r"distill\.hint: the teacher's body\.stage.*set distill\.hint to 0"):
        Hints(model("convnet", 8), model("vit", 16, 2))
