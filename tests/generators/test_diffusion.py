"""The diffusion model, small and trained for a few seconds on real digits."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import torch
from accelerate import Accelerator

from synthkd.data.read.splits import Splits
from synthkd.errors import ConfigError, DataError, ModelError
from synthkd.generators.denoising import ClassConditionalPipeline
from synthkd.generators.diffusion import Diffusion
from synthkd.generators.settings import DiffusionSettings, Sampler
from synthkd.losses.logits import kl_divergence
from synthkd.models import Classifier, build
from synthkd.rng import Rows
from synthkd.settings import OptimizerSettings, ZooModel
from synthkd.types import ImageSpec, Round, TrainableGenerator

LEARNED = DiffusionSettings(
    kind="diffusion",
    channels=(16, 32),
    batch_size=30,
    steps=130,
    horizon=260,
    guidance=3.0,
    optimizer=OptimizerSettings(lr=4e-3, schedule="one_cycle", warmup=0.1, final=0.05, clip=1.0, ema=0.97),
)
FRESH = LEARNED.model_copy(update={"channels": (8,), "steps": 2, "horizon": 8, "real_batch": 16, "sample_steps": 2})


@pytest.fixture(scope="module")
def trained(digits: Splits, teacher: Classifier) -> Diffusion:
    generator = Diffusion(LEARNED, teacher, 0, Accelerator(cpu=True), digits.train, digits.holdout)
    first, last = (generator.fit(index, 0.3) for index in range(2))
    assert last["generator/denoise"] < 0.8 * first["generator/denoise"]
    return generator


def knowing(trained: Diffusion, teacher: Classifier, digits: Splits, **changes: object) -> Diffusion:
    """The trained generator with other settings."""
    settings = LEARNED.model_copy(update=changes)
    generator = Diffusion(settings, teacher, 0, Accelerator(cpu=True), digits.train)
    generator.load_state_dict(trained.state_dict())
    return generator


def fresh(digits: Splits, teacher: Classifier, seed: int = 0, **changes: object) -> Diffusion:
    settings = FRESH.model_copy(update=changes)
    return Diffusion(settings, teacher, seed, Accelerator(cpu=True), digits.train, digits.holdout)


def noisy_copy(teacher: Classifier) -> Classifier:
    torch.manual_seed(1)
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        for weight in student.parameters():
            weight += 0.3 * weight.abs().mean() * torch.randn_like(weight)
    return student


def right(teacher: Classifier, images: torch.Tensor, labels: torch.Tensor) -> float:
    with torch.no_grad():
        return float((teacher(images).argmax(1) == labels).float().mean())


@pytest.mark.parametrize("sampler", get_args(Sampler))
def test_samples_are_of_the_asked_class_and_a_function_of_label_and_row(
    sampler: Sampler, trained: Diffusion, teacher: Classifier, digits: Splits
) -> None:
    generator = knowing(trained, teacher, digits, sampler=sampler)
    labels = torch.arange(10).repeat(6)
    together = generator.sample(labels, 0.0, Rows(3, "x"))
    assert together.shape == (60, 1, 8, 8)
    assert together.dtype == torch.float32
    assert 0.0 <= float(together.min()) <= float(together.max()) <= 1.0
    assert right(teacher, together, labels) > 0.8
    apart = torch.cat([generator.sample(labels[i : i + 15], 0.0, Rows(3, "x", i)) for i in range(0, 60, 15)])
    assert torch.allclose(together, apart, atol=1e-5)
    assert not torch.allclose(together[:10], generator.sample(labels[:10], 0.0, Rows(4, "x")), atol=1e-2)


def test_the_higher_the_difficulty_the_larger_a_students_loss(
    trained: Diffusion, teacher: Classifier, digits: Splits
) -> None:
    student = noisy_copy(teacher)
    generator = knowing(trained, teacher, digits)
    labels = torch.arange(10).repeat(20)
    losses = []
    for difficulty in (0.0, 0.5, 1.0):
        images = generator.sample(labels, difficulty, Rows(0, "same"))
        with torch.no_grad():
            losses.append(float(torch.nn.functional.cross_entropy(student(images), labels)))
    assert losses[0] < losses[1] < losses[2]
    assert losses[2] > 1.2 * losses[0]


def test_teacher_guidance_seeks_the_label_when_easy_and_disagreement_when_hard(
    trained: Diffusion, teacher: Classifier, digits: Splits
) -> None:
    student = noisy_copy(teacher)
    without, guided = (
        knowing(trained, teacher, digits, guidance=1.0, steps=0, teacher_guidance=g, batch_size=60) for g in (0.0, 0.5)
    )
    labels = torch.arange(10).repeat(6)
    asked = [right(teacher, g.sample(labels, 0.0, Rows(0, "same")), labels) for g in (without, guided)]
    assert asked[1] > asked[0]

    def disagreement(generator: Diffusion) -> float:
        made = generator.round(0, 1.0, student)
        with torch.no_grad():
            return float(kl_divergence(made.teacher_logits, student(made.images)).mean())

    assert disagreement(guided) > 1.3 * disagreement(without)


def test_terms_of_the_student_are_named_and_leave_the_networks_as_they_were(
    digits: Splits, teacher: Classifier
) -> None:
    student = build(ZooModel(arch="convnet", width=4), teacher.spec).train()
    before = [{k: v.clone() for k, v in m.state_dict().items()} for m in (teacher, student)]
    generator = fresh(digits, teacher, distillation=0.1, semantic=0.1, teacher_guidance=0.1)
    made = generator.round(0, 0.5, student)
    assert made.terms["generator/distillation"] < 0.0 < made.terms["generator/semantic"]
    assert made.images.shape == (30, 1, 8, 8)
    assert torch.equal(torch.bincount(made.labels), torch.full((10,), 3))
    assert torch.allclose(made.teacher_logits, teacher(made.images), atol=1e-4)
    for module, state in zip((teacher, student), before, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in module.state_dict().items())
        assert all(p.requires_grad and p.grad is None for p in module.parameters())
    assert student.training
    alone = generator.round(1, 0.5)
    assert alone.terms["generator/distillation"] == alone.terms["generator/semantic"] == 0.0


def test_a_step_whose_images_are_all_too_noisy_to_judge_has_no_term_of_the_student(
    digits: Splits, teacher: Classifier
) -> None:
    generator = fresh(digits, teacher, distillation=0.1, semantic=0.1, real_batch=1, steps=4)
    terms = [generator.fit(index, 0.5, noisy_copy(teacher))["generator/distillation"] for index in range(4)]
    assert all(math.isfinite(term) for term in terms)
    assert any(term != 0.0 for term in terms)


def test_the_distillation_term_moves_the_network_away_from_the_student(digits: Splits, teacher: Classifier) -> None:
    student = noisy_copy(teacher)
    divergence = []
    for weight in (1e-6, 10.0):
        generator = fresh(digits, teacher, distillation=weight, steps=20, horizon=40)
        divergence.append([-generator.fit(i, 1.0, student)["generator/distillation"] for i in range(2)][-1])
    assert divergence[1] > 1.2 * divergence[0]


def test_a_restored_run_goes_on_bit_for_bit(
    digits: Splits, teacher: Classifier, resumed_rounds: Callable[[Callable[[], TrainableGenerator]], list[Round]]
) -> None:
    expected = resumed_rounds(lambda: fresh(digits, teacher, curriculum=0.5, min_snr=5.0))
    assert not torch.equal(fresh(digits, teacher, seed=1).round(0, 0.3).images, expected[0].images)


def test_a_saved_generator_samples_the_same_without_data(
    trained: Diffusion, teacher: Classifier, digits: Splits, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trained.save(tmp_path)
    labels = torch.arange(10)
    expected = trained.sample(labels, 0.2, Rows(0, "x"))
    restored = Diffusion(LEARNED, teacher, 7, Accelerator(cpu=True))
    restored.restore(tmp_path)
    assert torch.equal(restored.sample(labels, 0.2, Rows(0, "x")), expected)
    with pytest.raises(ConfigError, match="no real data to learn from"):
        restored.fit(0, 0.3)
    assert capfd.readouterr().err == "", "diffusers' progress bars and warnings stay away"

    pipeline = ClassConditionalPipeline.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    assert pipeline.spec == digits.train.spec
    assert tuple(pipeline.config.class_names) == digits.train.class_names
    made = pipeline(labels.tolist(), 2.0, generator=torch.Generator().manual_seed(0), output_type="pt").images
    assert right(teacher, made, labels) >= 0.7
    assert pipeline([3], num_inference_steps=1).images[0].mode == "L"

    with pytest.raises(ModelError, match="another"):
        Diffusion(LEARNED.model_copy(update={"unshuffle": 1}), teacher, 0, Accelerator(cpu=True)).restore(tmp_path)
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        restored.restore(tmp_path)
    with pytest.raises(ModelError, match="model_index"):
        restored.restore(tmp_path / "unet")


def test_what_cannot_be_is_refused(digits: Splits, teacher: Classifier) -> None:
    cpu = Accelerator(cpu=True)
    with pytest.raises(ConfigError, match=r"3x8x8.*1x8x8"):
        Diffusion(FRESH, build(ZooModel(arch="lenet5"), ImageSpec(3, 8, 8, 10)), 0, cpu, digits.train)
    with pytest.raises(DataError, match=r"0\.\.9"):
        fresh(digits, teacher).sample(torch.tensor([10]), 0.3, Rows(0, "x"))
