"""The data-free generator against a small teacher that has learned real digits."""

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from synthkd.data.augment import shift
from synthkd.errors import ModelError
from synthkd.generators.inversion import Inversion
from synthkd.generators.local import folded
from synthkd.generators.settings import InversionSettings
from synthkd.losses.inversion import batch_norm
from synthkd.losses.logits import kl_divergence
from synthkd.models import Classifier, build
from synthkd.rng import Rows
from synthkd.settings import ZooModel
from synthkd.taps import observe
from synthkd.types import ImageSpec, Round, TrainableGenerator

SMALL = InversionSettings(latent=32, width=8, batch_size=30, steps=5, latent_lr=0.05, one_hot=2.0)


def make(teacher: Classifier, seed: int = 0, **changes: object) -> Inversion:
    return Inversion(SMALL.model_copy(update=changes), teacher, seed, Accelerator(cpu=True))


def test_rounds_learn_to_be_what_the_teacher_asks_for(teacher: Classifier) -> None:
    def asked() -> float:
        labels = torch.arange(10).repeat(20)
        sampled = generator.sample(labels, 0.5, Rows(0, "test"))
        return float((teacher(sampled).argmax(1) == labels).float().mean())

    generator = make(teacher)
    assert asked() < 0.3, "an untrained network gives much the same image, whatever it is asked for"
    made = [generator.round(i, 0.3) for i in range(40)]
    first, last = made[0], made[-1]
    assert last.images.shape == (30, 1, 8, 8)
    assert 0.0 <= float(last.images.min()) <= float(last.images.max()) <= 1.0
    # over 3 teachers, 3 seeds and 3 instruction sets: 0.08 to 0.18
    assert last.terms["generator/batch_norm"] < 0.5 * first.terms["generator/batch_norm"]
    right = [float((m.teacher_logits.argmax(1) == m.labels).float().mean()) for m in made[-5:]]
    assert sum(right) / 5 > 0.5
    assert torch.allclose(last.teacher_logits, teacher(last.images), atol=1e-4)
    # over the same: 0.825 to 0.93, with a standard deviation of 0.03
    assert asked() > 0.7, "the finished network gives the class it is asked for"


def test_the_teacher_and_the_student_are_left_as_they_were(teacher: Classifier) -> None:
    student = build(ZooModel(arch="convnet", width=4), teacher.spec).train()
    before = [{k: v.clone() for k, v in m.state_dict().items()} for m in (teacher, student)]
    make(teacher).round(0, 0.9, student)
    for module, state in zip((teacher, student), before, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in module.state_dict().items())
        assert all(p.requires_grad and p.grad is None for p in module.parameters())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    assert student.training
    assert not teacher.training


def test_folded_copies_of_the_networks_change_no_round(teacher: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    student = build(ZooModel(arch="resnet", width=4, depth=8), teacher.spec)
    terms = {"adversarial": 5.0, "distillation": 1.0, "semantic": 1.0, "activation": 0.1, "steps": 2}

    def two_rounds() -> tuple[Round, Round]:
        generator = make(teacher, **terms)
        return generator.round(0, 0.5, student), generator.round(1, 0.5, student)

    folded = two_rounds()
    monkeypatch.setattr(Inversion, "_folded", lambda _, network, statistics: network)  # noqa: ARG005
    for one, other in zip(folded, two_rounds(), strict=True):
        assert one.terms == pytest.approx(other.terms, rel=1e-3, abs=1e-5)
        torch.testing.assert_close(one.images, other.images, rtol=0, atol=1e-3)
        assert torch.equal(one.labels, other.labels)


def test_networks_are_folded_on_a_cpu_alone(teacher: Classifier) -> None:
    student = build(ZooModel(arch="convnet", width=4), teacher.spec)
    generator = make(teacher)
    assert not any(
        isinstance(m, nn.BatchNorm2d)
        for one in (generator._teacher, generator._folded(student, False))
        for m in one.modules()
    )
    gpu: Any = SimpleNamespace(device=torch.device("cuda"), mixed_precision="no")
    assert folded(student, gpu) is student


def test_in_half_precision_the_moments_of_a_folded_teacher_are_as_good_as_those_of_the_teacher(
    teacher: Classifier,
) -> None:
    images = torch.rand(100, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    def loss_and_slope(network: Classifier, in_half: bool) -> tuple[Tensor, Tensor]:
        leaf = images.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=in_half):
            loss = batch_norm(observe(network, leaf, statistics=True).statistics)
        return loss.detach(), torch.autograd.grad(loss, leaf)[0]

    half: Any = SimpleNamespace(device=torch.device("cpu"), mixed_precision="bf16")
    copy = folded(teacher, half, statistics=True)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in copy.modules()) < 3
    (exact, slope), of_teacher, of_copy = (
        loss_and_slope(*one) for one in ((teacher, False), (teacher, True), (copy, True))
    )
    errors = [float((loss - exact).abs() + (found - slope).norm()) for loss, found in (of_teacher, of_copy)]
    assert errors[1] < 1.5 * errors[0] + 1e-3 * float(exact + slope.norm())


def test_statistics_of_shifted_images_ask_for_images_that_are_shifted() -> None:
    # The teacher knew white images, of which shifts left 72 % in view. Those match when they are shifted again.
    white = shift(torch.ones(2000, 1, 8, 8), 2, torch.Generator().manual_seed(0))
    body = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 10))
    with torch.no_grad():
        body[0].running_mean.fill_(white.mean())
        body[0].running_var.fill_(white.var())
        body[2].weight.zero_()
    teacher = Classifier(body, ImageSpec(1, 8, 8, 10)).eval()

    def brightness(pixels: int) -> float:
        generator = make(teacher, shift=pixels)
        return float([generator.round(index, 0.3) for index in range(40)][-1].images.mean())

    assert brightness(2) > 0.95
    assert brightness(0) < 0.8


def test_logits_are_those_of_the_images_and_not_of_a_view(teacher: Classifier) -> None:
    made = make(teacher, shift=2, flip=True).round(0, 0.3)
    assert torch.allclose(made.teacher_logits, teacher(made.images), atol=1e-4)
    assert not torch.equal(made.images, make(teacher).round(0, 0.3).images)


def test_labels_are_balanced_over_rounds(teacher: Classifier) -> None:
    generator = make(teacher, batch_size=7, steps=1, batch_norm=0.0)
    labels = torch.cat([generator.round(i, 0.3).labels for i in range(10)])
    assert torch.equal(torch.bincount(labels, minlength=10), torch.full((10,), 7))


def test_difficulty_makes_images_on_which_the_student_disagrees_more(teacher: Classifier) -> None:
    """The higher the difficulty, the larger the student's divergence: same rounds, same student, only d differs."""
    torch.manual_seed(1)
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        for weight in student.parameters():
            weight += 0.3 * weight.abs().mean() * torch.randn_like(weight)
    divergence = []
    for difficulty in (0.0, 1.0):
        generator = make(teacher, adversarial=5.0)
        made = [generator.round(i, difficulty, student) for i in range(25)][-8:]
        with torch.no_grad():
            parts = [kl_divergence(m.teacher_logits, student(m.images)).mean() for m in made]
        divergence.append(float(torch.stack(parts).mean()))
    assert divergence[1] > 1.3 * divergence[0]


def test_a_restored_generator_goes_on_bit_for_bit(
    teacher: Classifier, resumed_rounds: Callable[[Callable[[], TrainableGenerator]], list[Round]]
) -> None:
    resumed_rounds(lambda: make(teacher))


def test_samples_depend_on_label_and_row_not_on_the_batch(teacher: Classifier) -> None:
    generator = make(teacher)
    generator.round(0, 0.3)
    labels = torch.arange(10)
    together = generator.sample(labels, 0.5, Rows(3, "x"))
    apart = torch.cat([generator.sample(labels[i : i + 2], 0.5, Rows(3, "x", i)) for i in range(0, 10, 2)])
    assert torch.allclose(together, apart, atol=1e-6)
    assert not torch.allclose(together, generator.sample(labels, 0.5, Rows(4, "x")), atol=1e-3)


def test_a_teacher_without_batch_norm_is_refused_with_the_remedy() -> None:
    lenet = build(ZooModel(arch="lenet5"), ImageSpec(1, 8, 8, 10)).eval()
    with pytest.raises(ModelError, match=r"no BatchNorm statistics.*the generator's kind to pixels"):
        make(lenet)
    made = make(lenet, batch_norm=0.0, activation=0.1, entropy=1.0).round(0, 0.3)
    assert {"generator/activation", "generator/entropy"} <= set(made.terms)
