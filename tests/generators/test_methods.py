"""The generators of published methods against a small teacher that has learned real digits."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from synthkd.errors import ConfigError, ModelError, TrainingError
from synthkd.generators.batchwise import Batchwise
from synthkd.generators.build import build_generator
from synthkd.generators.contrastive import ChannelMeans, Contrastive
from synthkd.generators.files import save_generator
from synthkd.generators.inversion_network import Normalised
from synthkd.generators.method_settings import ContinuousSettings
from synthkd.generators.noisy_label import NoisyLabel
from synthkd.generators.settings import GeneratorSettings, SavedSettings
from synthkd.losses.logits import kl_divergence
from synthkd.models import Classifier, build
from synthkd.rng import Rows
from synthkd.settings import Settings, ZooModel
from synthkd.settings.load import load_config
from synthkd.taps import observe
from synthkd.types import ImageSpec, Round, TrainableGenerator

COMMON = {"batch_size": 20}
NETWORK = {"width": 4, "steps": 5, "lr": 5e-3, "batch_norm": 10.0, "adversarial": 1.0, "shift": 1}
KINDS: dict[str, dict[str, Any]] = {
    "continuous": {"latent": 16, "width": 4, "one_hot": 1.0, "entropy": 5.0, "activation": 0.1, "distillation": 0.1},
    "contrastive": {"latent": 16, **NETWORK, "dimension": 8, "negatives": 30},
    "noisy_label": {"noise": 16, **NETWORK, "memory": 0.9, "life": 3},
    "pixel_inversion": {"steps": 5, "competition": 1.0, "total_variation": 1e-3, "magnitude": 1e-3, "shift": 1},
}
BATCHWISE = [kind for kind in KINDS if kind != "continuous"]


class _Holder(Settings):
    generator: GeneratorSettings


def make(kind: str, teacher: Classifier, seed: int = 0, rounds: int | None = None, **changes: object) -> Any:
    settings = load_config(_Holder, {"generator": {"kind": kind, **COMMON, **KINDS[kind], **changes}}, []).generator
    return build_generator(settings, teacher, seed, Accelerator(cpu=True), rounds=rounds)


@pytest.mark.parametrize("kind", KINDS)
def test_a_round_gives_images_with_labels_and_the_teachers_logits(kind: str, teacher: Classifier) -> None:
    student = build(ZooModel(arch="convnet", width=4), teacher.spec).train()
    before = [copy.deepcopy(network.state_dict()) for network in (teacher, student)]
    made = make(kind, teacher).round(3, 1.0, student)
    assert made.images.shape == (20, 1, 8, 8)
    assert 0.0 <= float(made.images.min()) < float(made.images.max()) <= 1.0
    assert torch.allclose(made.teacher_logits, teacher(made.images), atol=1e-4)
    assert not made.images.requires_grad
    expected = made.teacher_logits.argmax(1) if kind == "continuous" else (torch.arange(20) + 60) % 10
    assert torch.equal(made.labels, expected)
    for network, state in zip((teacher, student), before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
        assert not any(module._forward_pre_hooks or module._forward_hooks for module in network.modules())
    assert student.training


@pytest.mark.parametrize("kind", BATCHWISE)
def test_folded_copies_of_the_networks_change_no_round(
    kind: str, teacher: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = build(ZooModel(arch="resnet", width=4, depth=8), teacher.spec)
    passed: list[bool] = []

    def round_of(folds: bool) -> Round:
        monkeypatch.setattr(Batchwise, "folds", folds)
        generator = make(kind, teacher, steps=2)
        ran, _ = generator._in_a_round(student)
        passed.append(any(isinstance(module, nn.BatchNorm2d) for module in ran.modules()))
        return generator.round(0, 0.5, student)

    one, other = round_of(True), round_of(False)
    assert one.terms == pytest.approx(other.terms, rel=1e-3, abs=1e-5)
    torch.testing.assert_close(one.images, other.images, rtol=0, atol=1e-3)
    # The features that the contrastive generator compares are those at BatchNorm layers.
    assert passed == [kind == "contrastive", True]


@pytest.mark.parametrize("kind", KINDS)
def test_a_restored_generator_goes_on_bit_for_bit(
    kind: str, teacher: Classifier, resumed_rounds: Callable[[Callable[[], TrainableGenerator]], list[Round]]
) -> None:
    rounds = resumed_rounds(lambda: make(kind, teacher))
    assert not torch.equal(rounds[0].images, rounds[1].images)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_depend_on_label_and_row_and_survive_a_save(kind: str, teacher: Classifier, tmp_path: Path) -> None:
    generator = make(kind, teacher)
    generator.round(0, 1.0)
    labels = torch.arange(20) % 10
    together = generator.sample(labels, 1.0, Rows(3, "x"))
    apart = torch.cat([generator.sample(labels[i : i + 5], 1.0, Rows(3, "x", i)) for i in range(0, 20, 5)])
    assert torch.allclose(together, apart, atol=1e-6)
    assert save_generator(generator, generator.settings, tmp_path, teacher.spec, (), 0, 0)
    saved = SavedSettings(kind="saved", path=str(tmp_path))
    restored = build_generator(saved, teacher, 0, Accelerator(cpu=True))
    assert torch.allclose(restored.sample(labels, 1.0, Rows(3, "x")), together, atol=1e-6)


@pytest.mark.parametrize("kind", BATCHWISE)
def test_more_steps_bring_a_batch_nearer_to_what_is_asked(kind: str, teacher: Classifier) -> None:
    few, many = (make(kind, teacher, steps=steps).round(0, 1.0) for steps in (1, 60))
    # Where sixty steps end depends on a machine's rounding, by a third for the labels.
    assert many.terms["generator/one_hot"] < 0.8 * few.terms["generator/one_hot"]
    assert many.terms["generator/batch_norm"] < 0.5 * few.terms["generator/batch_norm"]
    assert many.terms["generator/loss"] < 0.5 * few.terms["generator/loss"]


def test_a_continuous_generator_learns_over_rounds(teacher: Classifier) -> None:
    generator = make("continuous", teacher, lr=0.02)
    made = [generator.round(index, 1.0) for index in range(60)]
    # At first all images are of one class, which is an entropy near 0; -log 10 is perfect balance of ten classes.
    assert made[0].terms["generator/entropy"] > -1.0
    assert made[-1].terms["generator/entropy"] < -1.8
    assert made[-1].terms["generator/one_hot"] < 0.7, "and each image is of one of them"


def test_the_rate_of_a_continuous_generator_falls_over_the_rounds_of_the_run(teacher: Classifier) -> None:
    def flat(network: nn.Module) -> Tensor:
        return torch.cat([weight.detach().flatten() for weight in network.parameters()])

    def moved(rounds: int | None) -> list[float]:
        generator = make("continuous", teacher, rounds=rounds, lr={"kind": "cosine", "start": 0.02, "end": 0.0})
        moves = []
        for index in range(3):
            before = flat(generator.network)
            generator.round(index, 1.0)
            after = flat(generator.network)
            moves.append(float((after - before).abs().max()))
        return moves

    start, middle, end = moved(3)
    assert start == pytest.approx(0.02, rel=1e-2), "the first step of Adam is as long as its rate"
    assert 0.0 < middle < 0.02
    assert end == 0.0
    assert moved(None)[-1] > 0.0, "no run follows, so the rate stays where it starts"
    with pytest.raises(ConfigError, match="lr: must be above 0, at the start of a curve"):
        make("continuous", teacher, lr=0)


def test_the_gradient_of_a_continuous_generator_can_be_clipped(teacher: Classifier) -> None:
    generator = make("continuous", teacher, clip=1e-3)
    generator.round(0, 1.0)
    gradient = torch.cat([weight.grad.flatten() for weight in generator.network.parameters()])
    assert float(gradient.norm()) == pytest.approx(1e-3, rel=1e-3)


def test_a_normalised_output_has_the_teachers_mean_and_deviation(teacher: Classifier) -> None:
    mean, std = torch.tensor([0.5, 0.4, 0.6]), torch.tensor([0.2, 0.1, 0.3])
    network = Normalised(mean.view(3, 1, 1), std.view(3, 1, 1))
    maps = 0.5 + 0.5 * torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    uncut = network.norm(maps.tanh()) * network.std + network.mean
    torch.testing.assert_close(uncut.mean((0, 2, 3)), mean)
    torch.testing.assert_close(uncut.std((0, 2, 3)), std, rtol=0.01, atol=0.0)
    torch.testing.assert_close(network(maps).max(), torch.tensor(1.0))
    generator = make("continuous", teacher, output="normalised", lr=0.2)
    for index in range(5):
        images = generator.round(index, 1.0).images
        assert 0.0 <= float(images.min()) <= float(images.max()) <= 1.0
        assert float(images.std()) > 0.3 * float(teacher.normalize.std), "not one grey, however large the rate"


def test_adversarial_terms_alone_need_a_student(teacher: Classifier) -> None:
    generator = make("continuous", teacher, one_hot=0.0, entropy=0.0, activation=0.0, distillation=0.0, logit_gap=1.0)
    with pytest.raises(ConfigError, match="there is none: give one_hot a weight"):
        generator.round(0, 1.0)
    student = build(ZooModel(arch="convnet", width=4), teacher.spec)
    gap = [generator.round(index, 1.0, student).terms["generator/logit_gap"] for index in range(30)]
    assert gap[-1] < gap[0] < 0.0, "the generator raises the difference, whose negative it minimises"
    with pytest.raises(ValueError, match="all terms have weight 0"):
        ContinuousSettings(kind="continuous")


def test_competition_makes_the_student_disagree(teacher: Classifier) -> None:
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        for weight in student.parameters():
            weight += 0.2 * weight.abs().mean() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    with_it, without = (
        make("pixel_inversion", teacher, steps=40, competition=weight).round(0, 1.0, student) for weight in (20.0, 0.0)
    )
    with torch.no_grad():
        divergence = [
            float(kl_divergence(one.teacher_logits, student(one.images)).mean()) for one in (with_it, without)
        ]
    assert divergence[0] > 1.2 * divergence[1]


def test_the_first_layer_can_weigh_more(teacher: Classifier) -> None:
    plain, heavy = (
        make("pixel_inversion", teacher, steps=1, shift=0, first_layer=weight).round(0, 1.0) for weight in (1, 10)
    )
    with torch.no_grad():
        first = next(iter(observe(teacher, plain.images, statistics=True).statistics.values()))
    distance = float((first.mean - first.running_mean).norm() + (first.var - first.running_var).norm())
    gained = heavy.terms["generator/batch_norm"] - plain.terms["generator/batch_norm"]
    assert gained == pytest.approx(9 * distance, rel=1e-3)


def test_pixels_end_with_the_last_step_under_crops_and_with_a_falling_rate(teacher: Classifier) -> None:
    assert [make("pixel_inversion", teacher, **one)._keeps_last for one in ({}, {"crop": 0.5}, {"decay": True})] == [
        False,
        True,
        True,
    ]
    generator = make("pixel_inversion", teacher, crop=0.5, decay=True, steps=4)
    assert [round(generator._rate(step), 3) for step in range(4)] == [0.1, 0.085, 0.05, 0.015]
    assert generator.round(0, 1.0).images.shape == (20, 1, 8, 8)


def test_a_noisy_layer_is_new_for_every_batch_and_the_network_only_after_its_life(teacher: Classifier) -> None:
    generator: NoisyLabel = make("noisy_label", teacher)
    begun = []
    for index in range(4):
        generator._begin(index, torch.arange(20) % 10)
        begun.append({name: value.clone() for name, value in generator.network.state_dict().items()})
        generator.round(index, 1.0)
    noisy, kept = "noisy.0.weight", "images.project.weight"
    # Training moves them by hundredths; unrelated normal numbers lie 1.13 apart on average.
    assert all(float((one[noisy] - other[noisy]).abs().mean()) > 0.8 for one, other in pairwise(begun))
    assert len(generator.network.noisy) == 2, "20 images of 10 classes take two layers"
    fresh: NoisyLabel = make("noisy_label", teacher)
    fresh._begin(0, torch.arange(20) % 10)
    assert torch.equal(begun[0][kept], fresh.network.state_dict()[kept])
    assert not torch.equal(begun[1][kept], begun[0][kept]), "it goes on from what it has learned"
    fresh._begin(3, torch.arange(20) % 10)
    assert torch.equal(begun[3][kept], fresh.network.state_dict()[kept]), "a life of three rounds is over"


def test_the_network_that_has_lived_gives_new_images_of_the_labels(teacher: Classifier) -> None:
    generator: NoisyLabel = make("noisy_label", teacher, noise=64, width=8, life=10, steps=15)
    made = [generator.round(index, 0.3) for index in range(10)]
    grown = generator.network.images
    labels = torch.arange(40) % 10
    before = generator.sample(labels, 0.3, Rows(0, "test"))
    generator.round(10, 0.3)
    assert generator._grown is grown, "the one that begins gives none"
    images = generator.sample(labels, 0.3, Rows(0, "test"))
    assert torch.equal(images, before)
    assert float((teacher(images).argmax(1) == labels).float().mean()) > 0.8
    known = torch.cat([one.images for one in made]).flatten(1)
    assert float(torch.cdist(images.flatten(1), known).min()) > 0.1, "none is an image of a round"


@pytest.mark.parametrize("rounds", [2, 4])
def test_samples_are_the_same_after_a_resume_in_every_life(rounds: int, teacher: Classifier) -> None:
    straight, resumed = make("noisy_label", teacher), make("noisy_label", teacher)
    for index in range(rounds):
        straight.round(index, 0.3)
    resumed.load_state_dict(copy.deepcopy(straight.state_dict()))
    labels = torch.arange(20) % 10
    for index in range(rounds, rounds + 2):
        samples = []
        for generator in (straight, resumed):
            generator.round(index, 0.3)
            samples.append(generator.sample(labels, 0.3, Rows(0, "x")))
        assert torch.equal(*samples)


def test_channel_means_are_those_of_the_layers_inputs(teacher: Classifier) -> None:
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    # An auxiliary head that an evaluation passes over.
    teacher = copy.deepcopy(teacher)
    teacher.add_module("auxiliary", nn.BatchNorm2d(3))
    with ChannelMeans(teacher, images[:1]) as means, torch.no_grad():
        teacher(images)
        each = means.newest
    statistics = observe(teacher, images, statistics=True).statistics
    assert each.shape == (3, means.size)
    assert torch.allclose(each.mean(0), torch.cat([one.mean for one in statistics.values()]), atol=1e-5)


def test_contrast_sees_earlier_batches(teacher: Classifier) -> None:
    generator: Contrastive = make("contrastive", teacher, steps=2)
    made = [generator.round(index, 1.0) for index in range(3)]
    # log of the number of images among which one is found, about: 20, then 20 + 20, then 20 + 30, counted twice.
    contrast = [one.terms["generator/contrast"] for one in made]
    assert contrast[0] < 3.5
    assert contrast[1] > 4.0
    assert generator._bank.shape == (60, 2, generator._means.size)


def test_a_teacher_without_batch_norm_is_refused_with_the_remedy() -> None:
    lenet = build(ZooModel(arch="lenet5"), ImageSpec(1, 8, 8, 10)).eval()
    with pytest.raises(ModelError, match=r"the generator's kind to pixels, or its batch_norm to 0"):
        make("pixel_inversion", lenet)
    assert make("pixel_inversion", lenet, batch_norm=0.0).round(0, 1.0).images.shape == (20, 1, 8, 8)
    with pytest.raises(ModelError, match="compares features at BatchNorm layers"):
        make("contrastive", lenet, batch_norm=0.0)
    with pytest.raises(ModelError, match=r"compares features at BatchNorm layers.*set the generator's kind to pixels"):
        make("contrastive", lenet)


def test_processes_do_not_divide_the_views_that_contrast_compares(teacher: Classifier) -> None:
    cpu = torch.device("cpu")
    of_two: Any = SimpleNamespace(
        process_index=0, num_processes=2, device=cpu, mixed_precision="no", autocast=nullcontext
    )
    settings = make("contrastive", teacher).settings
    ours, theirs = (build_generator(settings, teacher, 0, one).round(0, 1.0) for one in (of_two, Accelerator(cpu=True)))
    assert torch.equal(ours.images, theirs.images)


@pytest.mark.parametrize("kind", BATCHWISE)
def test_samples_of_a_saved_generator_need_no_statistics(kind: str, teacher: Classifier, tmp_path: Path) -> None:
    generator = make(kind, teacher)
    assert save_generator(generator, generator.settings, tmp_path, teacher.spec, (), 0, 0)
    lenet = build(ZooModel(arch="lenet5"), teacher.spec).eval()
    restored = build_generator(SavedSettings(kind="saved", path=str(tmp_path)), lenet, 0, Accelerator(cpu=True))
    assert restored.round(0, 0.5).images.shape == (20, 1, 8, 8)


def test_images_of_no_class_have_the_teachers_predictions_as_labels(teacher: Classifier, tmp_path: Path) -> None:
    generator = make("continuous", teacher)
    assert save_generator(generator, generator.settings, tmp_path, teacher.spec, (), 0, 0)
    made = build_generator(SavedSettings(kind="saved", path=str(tmp_path)), teacher, 0, Accelerator(cpu=True)).round(
        0, 0.5
    )
    assert torch.equal(made.labels, made.teacher_logits.argmax(1))


@pytest.mark.parametrize("kind", ["noisy_label", "contrastive"])
def test_weights_that_are_not_finite_go_into_no_checkpoint(kind: str, teacher: Classifier) -> None:
    generator = make(kind, teacher)
    network = generator.network if kind == "noisy_label" else generator._head
    with torch.no_grad():
        next(network.parameters()).fill_(float("nan"))
    with pytest.raises(TrainingError, match="generator"):
        generator.state_dict()


def test_a_pixel_that_rounding_takes_below_black_can_leave_it() -> None:
    network = build(ZooModel(arch="convnet", width=4), ImageSpec(1, 8, 8, 10), [0.4465], [0.2010]).eval()
    generator = make("pixel_inversion", network)
    canvas = generator._begin(0, torch.arange(20) % 10)
    (pixels,) = canvas.parameters
    low = -generator._mean / generator._std
    assert float(low * generator._std + generator._mean) < 0.0
    assert (pixels == low).any()
    canvas.paint().sum().backward()
    assert (pixels.grad > 0).all()


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.5, 0.5), (0.0, 1 / 255)])
def test_a_change_of_range_is_not_taken_for_the_moments_of_images(mean: float, std: float) -> None:
    network = build(ZooModel(arch="convnet", width=4), ImageSpec(1, 8, 8, 10), [mean], [std]).eval()
    assert not network.normalize.is_of_images
    canvas = make("pixel_inversion", network)._begin(0, torch.arange(20) % 10)
    assert 0.15 < float(canvas.paint().detach().std()) < 0.3
    assert build(ZooModel(arch="convnet", width=4), network.spec, [0.1307], [0.3081]).normalize.is_of_images


def test_samples_start_from_latent_vectors_as_long_as_those_of_a_round() -> None:
    many = build(ZooModel(arch="convnet", width=4), ImageSpec(1, 8, 8, 50)).eval()
    generator = make("noisy_label", many)
    network = generator._begin(0, torch.arange(20)).parameters and generator.network
    lengths: list[float] = []
    network.images.register_forward_pre_hook(lambda _, inputs: lengths.append(float(inputs[0].std())))
    network.train()(torch.arange(20))
    generator.sample(torch.arange(20), 1.0, Rows(0, "x"))
    assert lengths[1] == pytest.approx(lengths[0], rel=0.25)
