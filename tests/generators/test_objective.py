"""What teacher and student say of generated images: signs, features, and what must stay as it was."""

import pytest
import torch
from torch import nn

from synthkd.errors import ConfigError
from synthkd.generators.objective import PENULTIMATE, STUDENT_TERMS, GeneratedView, judging
from synthkd.models import Classifier, build
from synthkd.settings import ZooModel
from synthkd.types import ImageSpec, Outputs

SPEC = ImageSpec(1, 8, 8, 4)


def network(seed: int, width: int) -> Classifier:
    torch.manual_seed(seed)
    return build(ZooModel(arch="convnet", width=width), SPEC).train()


def view(difficulty: float = 0.5) -> GeneratedView:
    rng = torch.Generator().manual_seed(0)
    teacher, student = (
        Outputs(torch.randn(6, 4, generator=rng), {PENULTIMATE: torch.randn(6, d, generator=rng)}) for d in (5, 3)
    )
    return GeneratedView(teacher, student, torch.arange(6) % 4, difficulty)


def test_the_generator_is_rewarded_for_divergence_and_the_more_the_harder() -> None:
    seen = view()
    p = seen.teacher.logits.softmax(1)
    assert seen.student is not None
    divergence = float((p * (p.log() - seen.student.logits.log_softmax(1))).sum(1).mean())
    assert float(STUDENT_TERMS["distillation"](seen)) == pytest.approx(-0.5 * divergence, rel=1e-5)
    assert float(STUDENT_TERMS["distillation"](view(1.0))) == pytest.approx(-divergence, rel=1e-5)
    assert float(STUDENT_TERMS["distillation"](view(0.0))) == 0.0
    assert float(STUDENT_TERMS["semantic"](seen)) > 0.0


@pytest.mark.parametrize("name", STUDENT_TERMS)
def test_without_a_student_there_is_nothing_to_say(name: str) -> None:
    seen = view()
    assert float(STUDENT_TERMS[name](GeneratedView(seen.teacher, None, seen.labels, 1.0))) == 0.0


def test_gradients_reach_the_images_and_nothing_else() -> None:
    teacher, student = network(0, 8), network(1, 4)
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    images = torch.rand(6, *SPEC.shape, requires_grad=True)
    with judging(teacher, student, penultimate=True, statistics=True) as look:
        seen = look(images, torch.arange(6) % 4, 0.7)
        assert seen.student is not None
        assert set(seen.teacher.features) == set(seen.student.features) == {PENULTIMATE}
        assert seen.teacher.statistics
        assert not seen.student.statistics
        total = sum(STUDENT_TERMS[name](seen) for name in STUDENT_TERMS)
        assert isinstance(total, torch.Tensor)
        total.backward()
    assert images.grad is not None
    assert float(images.grad.abs().sum()) > 0.0
    assert all(p.grad is None and p.requires_grad for m in (teacher, student) for p in m.parameters())
    assert teacher.training
    assert student.training
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())


def test_a_student_that_names_no_penultimate_layer_is_refused_where_it_is_needed() -> None:
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    with (
        pytest.raises(ConfigError, match=r"generator\.semantic"),
        judging(network(0, 8), other, penultimate=True),
    ):
        pass
    with judging(network(0, 8), other) as look:
        assert look(torch.rand(2, *SPEC.shape), torch.zeros(2, dtype=torch.int64), 0.5).student is not None
