"""The conditional GAN on real digits, beside a teacher that has learned them and a student that has learned little."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from synthkd.data.read.splits import RealData, Splits
from synthkd.errors import ConfigError, ModelError
from synthkd.generators.cgan import CGAN
from synthkd.generators.gan_networks import ConditionalGenerator, Critic, critic_hinge, gradient_penalty, scales
from synthkd.generators.settings import CGANSettings
from synthkd.losses.logits import kl_divergence
from synthkd.models import Classifier, build
from synthkd.rng import Rows
from synthkd.settings import ZooModel
from synthkd.types import ImageSpec

SMALL = CGANSettings(
    kind="cgan", latent=32, embedding=8, width=16, critic_width=16, steps=10, batch_size=32, measure_every=40
)
TINY = SMALL.model_copy(update={"width": 4, "critic_width": 4, "batch_size": 20, "steps": 2})
ROUNDS = 40


@pytest.fixture(scope="module")
def student(taught: Callable[[ZooModel, float], Classifier]) -> Classifier:
    return taught(ZooModel(arch="mlp", width=12, depth=1), 1e-2)


def make(teacher: Classifier, digits: Splits, settings: CGANSettings = TINY, **changes: object) -> CGAN:
    accelerator = Accelerator(cpu=True)
    return CGAN(settings.model_copy(update=changes), teacher, 0, accelerator, digits.train, digits.holdout)


@pytest.fixture(scope="module")
def trained(teacher: Classifier, digits: Splits) -> CGAN:
    generator = make(teacher, digits, SMALL)
    for index in range(ROUNDS - 1):
        generator.fit(index, 0.5)
    return generator


def answers(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = network.eval()(images)
    return logits


def test_it_learns_to_make_the_class_it_is_asked_for_and_misses_none(trained: CGAN, teacher: Classifier) -> None:
    made = trained.round(ROUNDS - 1, 0.5)
    assert made.images.shape == (SMALL.batch_size, 1, 8, 8)
    assert 0.0 <= float(made.images.min()) <= float(made.images.max()) <= 1.0
    assert torch.allclose(made.teacher_logits, answers(teacher, made.images), atol=1e-4)
    assert made.terms["generator/mode_collapse"] == 0.0
    labels = torch.arange(10).repeat(40)
    seen = answers(teacher, trained.sample(labels, 0.5, Rows(0, "test"))).argmax(1)
    assert float((seen == labels).float().mean()) > 0.85


def test_samples_of_a_class_are_nearly_as_varied_as_real_ones(trained: CGAN, digits: Splits) -> None:
    labels = torch.arange(10).repeat_interleave(50)
    made = trained.sample(labels, 1.0, Rows(0, "varied")).flatten(1)
    real = digits.train.images.float().div(255).flatten(1)
    ratios = [
        float(torch.pdist(made[labels == c]).median() / torch.pdist(real[digits.train.labels == c]).median())
        for c in range(10)
    ]
    assert sum(ratios) / 10 > 0.65
    assert min(ratios) > 0.4


def test_harder_samples_cost_a_student_more(trained: CGAN, teacher: Classifier, student: Classifier) -> None:
    labels = torch.arange(10).repeat(60)
    losses = []
    for difficulty in (0.1, 0.5, 0.9):
        images = trained.sample(labels, difficulty, Rows(0, "harder"))
        losses.append(float(kl_divergence(answers(teacher, images), answers(student, images)).mean()))
    assert losses[0] < losses[1] < losses[2]
    assert losses[2] > 1.15 * losses[0]


def test_samples_depend_on_label_and_row_not_on_the_batch(trained: CGAN) -> None:
    labels = torch.arange(10)
    together = trained.sample(labels, 0.5, Rows(3, "x"))
    apart = torch.cat([trained.sample(labels[i : i + 1], 0.5, Rows(3, "x", i)) for i in range(10)])
    assert torch.allclose(together, apart, atol=1e-6)
    assert not torch.allclose(together, trained.sample(labels, 0.5, Rows(4, "x")), atol=1e-2)
    assert trained.network.training, "modes are as they were"


def test_a_saved_generator_samples_the_same_and_cannot_be_trained(
    trained: CGAN, teacher: Classifier, tmp_path: Path
) -> None:
    trained.save(tmp_path)
    accelerator = Accelerator(cpu=True)
    restored = CGAN(SMALL, teacher, 5, accelerator)
    restored.restore(tmp_path)
    labels = torch.arange(10)
    assert torch.equal(restored.sample(labels, 0.7, Rows(0, "x")), trained.sample(labels, 0.7, Rows(0, "x")))
    with pytest.raises(ConfigError, match="saved to be sampled from"):
        restored.fit(0, 0.5)
    with pytest.raises(ModelError, match="of another shape"):
        CGAN(TINY, teacher, 0, accelerator).restore(tmp_path)


def test_a_student_is_pulled_against_and_left_as_it_was(
    teacher: Classifier, student: Classifier, digits: Splits
) -> None:
    student.train()
    before = [{k: v.clone() for k, v in m.state_dict().items()} for m in (teacher, student)]
    divergence = []
    for weight in (0.0, 2.0):
        generator = make(teacher, digits, SMALL, distillation=weight, semantic=weight / 100, steps=5)
        terms = [generator.round(i, 1.0, student).terms for i in range(20)][-1]
        assert "generator/loss" in terms, "what the display shows"
        assert ("generator/distillation" in terms) == ("generator/semantic" in terms) == (weight > 0)
        images = generator.sample(torch.arange(10).repeat(20), 1.0, Rows(0, "x"))
        divergence.append(float(kl_divergence(answers(teacher, images), answers(student, images)).mean()))
        student.train()
    assert divergence[1] > 1.2 * divergence[0]
    for module, state in zip((teacher, student), before, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in module.state_dict().items())
        assert all(p.requires_grad and p.grad is None for p in module.parameters())
    assert student.training
    assert not teacher.training


@pytest.mark.parametrize(
    "changes",
    [
        {"augment": 0.5, "critic_steps": 2, "r1": 0.0},
        {"head": "auxiliary", "r1": 1.0},
        {"distillation": 1.0, "spectral_norm": True},
        {"spectral_norm": "both", "one_hot": 0.5},
    ],
)
def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(
    teacher: Classifier, student: Classifier, digits: Splits, changes: dict[str, object]
) -> None:
    straight, first, second = (make(teacher, digits, **changes) for _ in range(3))
    expected = [straight.round(i, 0.3, student) for i in range(4)]
    for i in range(2):
        first.round(i, 0.3, student)
    second.load_state_dict(first.state_dict())
    for i in (2, 3):
        made = second.round(i, 0.3, student)
        assert torch.equal(made.images, expected[i].images)
        assert made.terms == expected[i].terms


def test_without_the_curriculum_difficulty_changes_no_round(teacher: Classifier, digits: Splits) -> None:
    for curriculum in (True, False):
        easy, hard = (make(teacher, digits, curriculum=curriculum).round(0, d) for d in (0.1, 0.9))
        assert torch.equal(easy.images, hard.images) != curriculum
        assert (easy.terms == hard.terms) != curriculum


def test_without_the_curriculum_difficulty_changes_no_sample(teacher: Classifier, digits: Splits) -> None:
    labels = torch.arange(10)
    for curriculum in (True, False):
        generator = make(teacher, digits, curriculum=curriculum)
        easy, hard = (generator.sample(labels, d, Rows(0, "asked")) for d in (0.1, 0.9))
        assert torch.equal(easy, hard) != curriculum


def test_labels_are_balanced_over_rounds(teacher: Classifier, digits: Splits) -> None:
    generator = make(teacher, digits, batch_size=7, steps=1)
    labels = torch.cat([generator.round(i, 0.3).labels for i in range(10)])
    assert torch.equal(torch.bincount(labels, minlength=10), torch.full((10,), 7))


def test_a_generator_stuck_on_one_image_misses_modes(teacher: Classifier, digits: Splits) -> None:
    generator = make(teacher, digits, measure_every=1, steps=1, lr=1e-12, ema=0.0)
    with torch.no_grad():
        generator.network.project.weight.zero_()
    assert generator.fit(0, 1.0)["generator/mode_collapse"] > 0.7


def test_no_holdout_no_measurement(teacher: Classifier, digits: Splits) -> None:
    empty = RealData(digits.holdout.images[:0], digits.holdout.labels[:0], teacher.spec, teacher.class_names, "nothing")
    settings = TINY.model_copy(update={"measure_every": 1})
    terms = CGAN(settings, teacher, 0, Accelerator(cpu=True), digits.train, empty).fit(0, 0.5)
    assert set(terms) == {"generator/loss", "generator/critic", "generator/fooling", "generator/r1"}


def test_a_dozen_real_images_are_enough_to_start(teacher: Classifier, digits: Splits) -> None:
    train = digits.train
    rows = torch.cat([torch.nonzero(train.labels == c)[:1, 0] for c in range(10)])
    few = RealData(train.images[rows], train.labels[rows], train.spec, train.class_names, train.name)
    settings = TINY.model_copy(update={"augment": 0.7, "measure_every": 1})
    terms = CGAN(settings, teacher, 0, Accelerator(cpu=True), few, digits.holdout).fit(0, 0.5)
    assert 0.0 <= terms["generator/mode_collapse"] <= 1.0


@pytest.mark.parametrize(
    ("shape", "halvings"), [((1, 8, 8), 2), ((1, 28, 28), 2), ((3, 32, 32), 3), ((3, 64, 64), 4), ((1, 20, 36), 2)]
)
def test_sizes_that_are_multiples_of_four(shape: tuple[int, int, int], halvings: int) -> None:
    spec = ImageSpec(*shape, classes=3)
    assert scales(spec) == halvings
    labels = torch.tensor([0, 2])
    images = ConditionalGenerator(spec, 5, 2, 4)(torch.zeros(2, 5), labels)
    assert images.shape == (2, *shape)
    score, logits = Critic(spec, 4, "auxiliary", True)(images, labels)
    assert score.shape == (2,)
    assert logits is not None
    assert logits.shape == (2, 3)


@pytest.mark.parametrize("shape", [(1, 30, 28), (2, 28, 28)])
def test_other_images_are_refused_in_one_line(shape: tuple[int, int, int]) -> None:
    teacher = build(ZooModel(arch="lenet5"), ImageSpec(*shape, classes=3))
    with pytest.raises(ConfigError, match=r"multiples of 4, got .*; resize"):
        CGAN(TINY, teacher, 0, Accelerator(cpu=True))


def test_teacher_and_data_must_have_the_same_images(digits: Splits) -> None:
    other = build(ZooModel(arch="lenet5"), ImageSpec(1, 28, 28, 10))
    with pytest.raises(ConfigError, match=r"the teacher: 1x28x28.*the real data: 1x8x8"):
        make(other, digits)


def test_spectral_normalisation_bounds_every_convolution_of_the_critic() -> None:
    spec = ImageSpec(1, 8, 8, 3)
    images, labels = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    norms = []
    for normalised in (True, False):
        torch.manual_seed(0)
        critic = Critic(spec, 4, "projection", normalised)
        with torch.no_grad():
            for weight in critic.parameters():
                weight.mul_(5.0)
        for _ in range(50):
            critic(images, labels)
        layers = [m for m in critic.layers if isinstance(m, nn.Conv2d)]
        norms.append([float(torch.linalg.matrix_norm(m.weight.detach().flatten(1), 2)) for m in layers])
    assert all(norm == pytest.approx(1.0, abs=0.02) for norm in norms[0])
    assert max(norms[1]) > 2.0


def test_spectral_normalisation_of_both_bounds_the_averaged_generator_too(
    teacher: Classifier, digits: Splits, tmp_path: Path
) -> None:
    generator = make(teacher, digits, spectral_norm="both", steps=15)
    for index in range(3):
        generator.fit(index, 0.5)
    network = generator._averaged._average.module
    assert isinstance(network, ConditionalGenerator)
    network.eval()
    for layer in [*network.doublings, network.paint]:
        dim = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
        weight = layer.weight.detach().movedim(dim, 0).flatten(1)
        # The singular vectors are averaged as well, and lag behind the weights a little.
        assert float(torch.linalg.matrix_norm(weight, 2)) == pytest.approx(1.0, abs=0.1)
    generator.save(tmp_path)
    restored = CGAN(generator.settings, teacher, 0, Accelerator(cpu=True))
    restored.restore(tmp_path)
    labels = torch.arange(10)
    assert torch.equal(*(one.sample(labels, 0.5, Rows(0, "x")) for one in (generator, restored)))


def test_the_teacher_pulls_the_images_to_their_labels_without_a_student(teacher: Classifier, digits: Splits) -> None:
    values = []
    for weight in (1e-6, 5.0):
        generator = make(teacher, digits, SMALL, steps=5, one_hot=weight)
        values.append([generator.fit(i, 1.0)["generator/one_hot"] for i in range(15)][-1])
    assert values[1] < 0.8 * values[0]


def test_the_projection_head_scores_an_image_by_its_label() -> None:
    spec = ImageSpec(1, 8, 8, 3)
    images, labels = torch.rand(2, 1, 8, 8), torch.tensor([0, 1])
    for head, depends in (("projection", True), ("auxiliary", False)):
        critic = Critic(spec, 4, head, False).eval()
        first, second = critic(images, labels)[0], critic(images, labels.flip(0))[0]
        assert torch.equal(first, second) != depends


def test_hinge_and_gradient_penalty_in_closed_form() -> None:
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.5])
    assert float(critic_hinge(real, fake)) == pytest.approx((0 + 0.5) / 2 + (0 + 1.5) / 2)
    weight = torch.randn(1, 2, 2)
    images = torch.rand(5, 1, 2, 2, requires_grad=True)
    score = (3.0 * weight * images).sum((1, 2, 3))
    expected = 0.5 * 9.0 * float(weight.square().sum())
    assert float(gradient_penalty(score[:3], images)) == pytest.approx(expected, rel=1e-5)
