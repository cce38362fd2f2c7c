"""Teacher and student on generated images: signs of the terms, features, and networks left as they were."""

import pytest
import torch
from torch import nn

from synthkd.errors import ConfigError
from synthkd.generators.teacher_student import PENULTIMATE, STUDENT_TERMS, JointOutputs, joint_forward
from synthkd.models import Classifier, build
from synthkd.settings import ZooModel
from synthkd.types import ImageSpec, Outputs

SPEC = ImageSpec(1, 8, 8, 4)


def network(seed: int, width: int) -> Classifier:
    torch.manual_seed(seed)
    return build(ZooModel(arch="convnet", width=width), SPEC).train()


def outputs(difficulty: float = 0.5) -> JointOutputs:
    rng = torch.Generator().manual_seed(0)
    teacher, student = (
        Outputs(torch.randn(6, 4, generator=rng), {PENULTIMATE: torch.randn(6, d, generator=rng)}) for d in (5, 3)
    )
    return JointOutputs(teacher, student, torch.arange(6) % 4, difficulty)


def test_the_generator_is_rewarded_for_divergence_and_the_more_the_harder() -> None:
    joint = outputs()
    p = joint.teacher.logits.softmax(1)
    assert joint.student is not None
    divergence = float((p * (p.log() - joint.student.logits.log_softmax(1))).sum(1).mean())
    assert float(STUDENT_TERMS["distillation"](joint)) == pytest.approx(-0.5 * divergence, rel=1e-5)
    assert float(STUDENT_TERMS["distillation"](outputs(1.0))) == pytest.approx(-divergence, rel=1e-5)
    assert float(STUDENT_TERMS["distillation"](outputs(0.0))) == 0.0
    assert float(STUDENT_TERMS["semantic"](joint)) > 0.0


@pytest.mark.parametrize("name", STUDENT_TERMS)
def test_without_a_student_there_is_nothing_to_say(name: str) -> None:
    joint = outputs()
    assert float(STUDENT_TERMS[name](JointOutputs(joint.teacher, None, joint.labels, 1.0))) == 0.0


def test_gradients_reach_the_images_and_nothing_else() -> None:
    teacher, student = network(0, 8), network(1, 4)
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    images = torch.rand(6, *SPEC.shape, requires_grad=True)
    with joint_forward(teacher, student, penultimate=True, statistics=True) as forward:
        joint = forward(images, torch.arange(6) % 4, 0.7)
        assert joint.student is not None
        assert set(joint.teacher.features) == set(joint.student.features) == {PENULTIMATE}
        assert joint.teacher.statistics
        assert not joint.student.statistics
        total = sum(STUDENT_TERMS[name](joint) for name in STUDENT_TERMS)
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
        pytest.raises(ConfigError, match="the generator's semantic"),
        joint_forward(network(0, 8), other, penultimate=True),
    ):
        pass
    with joint_forward(network(0, 8), other) as forward:
        assert forward(torch.rand(2, *SPEC.shape), torch.zeros(2, dtype=torch.int64), 0.5).student is not None


def test_maps_before_a_last_convolution_are_pooled() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = Classifier(nn.Sequential(*layers), SPEC).eval()
    images = torch.rand(5, *SPEC.shape)
    with joint_forward(model, penultimate=True) as forward:
        features = forward(images, torch.arange(5) % 4, 0.5).teacher.features[PENULTIMATE]
    assert features.shape == (5, 6)
    # The last convolution and the mean can change places, since both are linear.
    torch.testing.assert_close(nn.Flatten()(layers[2](features[:, :, None, None])), model(images))
