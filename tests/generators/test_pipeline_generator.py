"""Pipelines of diffusers itself, tiny, untrained, saved to a folder and sampled for a teacher of digits."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from diffusers import (
    AutoencoderKL,
    CMStochasticIterativeScheduler,
    ConsistencyModelPipeline,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    UNet2DModel,
)

from synthkd.errors import ConfigError, ModelError
from synthkd.generators.build import build_generator
from synthkd.generators.denoising import ClassConditionalPipeline, build_unet, noise_schedule
from synthkd.generators.pipeline import Pipeline
from synthkd.generators.settings import DiffusionSettings, PipelineSettings
from synthkd.models import Classifier, build
from synthkd.rng import Rows
from synthkd.settings import ZooModel
from synthkd.types import ImageSpec


@pytest.fixture(scope="module")
def teacher() -> Classifier:
    return build(ZooModel(arch="convnet", width=4), ImageSpec(1, 8, 8, 10)).eval()


def unet(classes: int | None) -> UNet2DModel:
    return UNet2DModel(
        sample_size=16,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        add_attention=False,
        num_class_embeds=classes,
    )


def dit(classes: int) -> DiTPipeline:
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=4,
        num_embeds_ada_norm=classes,
        norm_num_groups=4,
    )
    with torch.no_grad():  # its last layer starts at zero, and then the label says nothing
        for weight in transformer.parameters():
            weight += 0.05 * torch.randn_like(weight)
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        norm_num_groups=4,
        sample_size=8,
    )
    return DiTPipeline(transformer, vae, DDPMScheduler())


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.manual_seed(0)
    made = {
        "dit": dit(1000),
        "small dit": dit(10),
        "consistency": ConsistencyModelPipeline(unet(20), CMStochasticIterativeScheduler()),
        "unconditional": DDPMPipeline(unet(None), DDPMScheduler()),
        "own": ClassConditionalPipeline(
            build_unet(DiffusionSettings(kind="diffusion", channels=(8,)), ImageSpec(3, 12, 12, 10)),
            noise_schedule(),
            12,
            12,
            2,
        ),
    }
    root = tmp_path_factory.mktemp("pipelines")
    for name, pipeline in made.items():
        pipeline.save_pretrained(root / name)
    return {name: root / name for name in made}


def make(folders: dict[str, Path], name: str, teacher: Classifier, **changes: object) -> Pipeline:
    settings = PipelineSettings(kind="pipeline", path=str(folders[name]), sample_steps=2, batch_size=20, **changes)
    return Pipeline(settings, teacher.spec, Accelerator(cpu=True))


@pytest.mark.parametrize("name", ["dit", "small dit", "consistency", "own"])
def test_any_class_conditional_pipeline_makes_the_teachers_images_by_row(
    name: str, folders: dict[str, Path], teacher: Classifier
) -> None:
    changes = {"guidance": 1.0} if name == "small dit" else {}
    generator = make(folders, name, teacher, **changes)
    labels = torch.tensor([3, 1, 4, 1, 5])
    before = torch.get_rng_state()
    together = generator.sample(labels, 0.5, Rows(1, "x"))
    assert together.shape == (5, 1, 8, 8)
    assert 0.0 <= float(together.min()) < float(together.max()) <= 1.0
    torch.manual_seed(99)  # nothing may come from the global state
    parts = [generator.sample(labels[a:b], 0.5, Rows(1, "x", a)) for a, b in ((0, 2), (2, 5))]
    torch.set_rng_state(before)
    assert torch.allclose(torch.cat(parts), together, atol=1e-4)
    other = generator.sample(torch.tensor([7, 1, 4, 1, 5]), 0.5, Rows(1, "x"))
    assert not torch.allclose(other[0], together[0], atol=1e-5), "the label counts"
    assert torch.allclose(other[1:], together[1:], atol=1e-4)


def test_the_scheduler_of_a_dit_steps_from_each_of_its_times_to_the_next(
    folders: dict[str, Path], teacher: Classifier
) -> None:
    scheduler = make(folders, "dit", teacher)._pipeline.scheduler
    scheduler.set_timesteps(6)  # 1000 // 6 is less than the distance of two times
    clean, noise = torch.tensor([[0.5]]), torch.tensor([[-2.0]])
    x = None
    for t in scheduler.timesteps:
        a = scheduler.alphas_cumprod[t]
        expected = a.sqrt() * clean + (1 - a).sqrt() * noise
        x = expected if x is None else x
        assert torch.allclose(x, expected, atol=1e-3), "DDIM with the exact noise stays on its way"
        x = scheduler.step(noise, t, x).prev_sample


def test_a_round_is_only_sampling(folders: dict[str, Path], teacher: Classifier) -> None:
    settings = PipelineSettings(kind="pipeline", path=str(folders["consistency"]), sample_steps=2, batch_size=20)
    generator = build_generator(settings, teacher, 0, Accelerator(cpu=True))
    made = generator.round(0, 0.5)
    assert torch.equal(torch.bincount(made.labels), torch.full((10,), 2))
    assert torch.allclose(made.teacher_logits, teacher(made.images), atol=1e-5)
    assert not torch.equal(made.images, generator.round(1, 0.5).images)


def test_class_ids_choose_the_pipelines_classes(folders: dict[str, Path], teacher: Classifier) -> None:
    plain = make(folders, "consistency", teacher)
    moved = make(folders, "consistency", teacher, class_ids=tuple(range(19, 9, -1)))
    again = make(folders, "consistency", teacher, class_ids=tuple(range(9, -1, -1)))
    labels = torch.arange(10)
    expected = plain.sample(labels.flip(0), 0.5, Rows(0, "x"))
    assert torch.allclose(again.sample(labels, 0.5, Rows(0, "x")), expected, atol=1e-5)
    assert not torch.allclose(moved.sample(labels, 0.5, Rows(0, "x")), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "changes", "error", "message"),
    [
        ("unconditional", {}, ModelError, "takes no class labels"),
        ("small dit", {}, ConfigError, "guidance.*class 1000"),
        ("consistency", {"class_ids": (1, 2)}, ConfigError, "got 2 for 10 classes"),
        ("consistency", {"class_ids": tuple(range(11, 21))}, ConfigError, r"0\.\.19"),
    ],
)
def test_what_cannot_be_is_refused(
    name: str,
    changes: dict[str, object],
    error: type[Exception],
    message: str,
    folders: dict[str, Path],
    teacher: Classifier,
) -> None:
    with pytest.raises(error, match=message):
        make(folders, name, teacher, **changes)


def test_a_folder_without_a_pipeline_is_refused(teacher: Classifier, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model_index\.json"):
        make({"none": tmp_path}, "none", teacher)
