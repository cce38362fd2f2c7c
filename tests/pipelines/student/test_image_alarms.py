"""Alarms about generated images: their remedies, and their comparison with real images."""

import re

import pytest
import torch
from torch import nn

from synthkd.data.sources import RealImages
from synthkd.generators.method_settings import (
    ContinuousSettings,
    ContrastiveSettings,
    NoisyLabelSettings,
    PixelInversionSettings,
)
from synthkd.generators.settings import (
    CGANSettings,
    DiffusionSettings,
    GeneratorSettings,
    InversionSettings,
    MerfSettings,
    PipelineSettings,
    PixelSettings,
)
from synthkd.models import Classifier
from synthkd.models.zoo import build
from synthkd.pipelines.config import GeneratedSet, StoredSet
from synthkd.pipelines.student.image_alarms import Advice, ImageAlarms, advice_for
from synthkd.settings import ZooModel
from synthkd.types import Batch, ImageSpec

GENERATORS: list[GeneratorSettings] = [
    InversionSettings(),
    PixelSettings(kind="pixels"),
    CGANSettings(kind="cgan"),
    DiffusionSettings(kind="diffusion"),
    MerfSettings(kind="merf", epsilon=1.0),
    PipelineSettings(kind="pipeline", path="p"),
    ContinuousSettings(kind="continuous", one_hot=1.0),
    ContrastiveSettings(kind="contrastive"),
    NoisyLabelSettings(kind="noisy_label"),
    PixelInversionSettings(kind="pixel_inversion"),
]


@pytest.mark.parametrize("generator", GENERATORS, ids=lambda settings: settings.kind)
def test_a_remedy_names_only_keys_that_the_generator_has(generator: GeneratorSettings) -> None:
    advice = advice_for(GeneratedSet(generator=generator), "transfer_set.0")
    keys = re.findall(r"transfer_set\.0\.generator\.(\w+)", " ".join(vars(advice).values()))
    assert set(keys) <= {"kind", *type(generator).model_fields}


def test_the_remedy_of_a_stored_dataset_names_no_generator() -> None:
    advice = advice_for(StoredSet(kind="stored", path="p"), "transfer_set")
    assert "transfer_set.bank.policy" in advice.imbalance
    assert "generator." not in " ".join(vars(advice).values())


def test_images_as_alike_as_the_real_ones_raise_no_alarm() -> None:
    torch.manual_seed(0)
    teacher = build(ZooModel(arch="convnet", width=4), ImageSpec(1, 8, 8, 10)).eval()
    labels = torch.arange(40) % 10
    prototypes = torch.rand(10, 1, 8, 8)[labels]
    images = (prototypes + 0.02 * torch.rand(40, 1, 8, 8)).clamp(0, 1)
    advice = Advice("a", "b", "c")
    batch, device = Batch(images, labels), torch.device("cpu")
    alone = [alarm for alarm in ImageAlarms(teacher, device, advice)(batch) if alarm is not None]
    assert "collapse" in {alarm.name for alarm in alone}
    real = RealImages((images * 255).byte(), labels)
    beside = [alarm for alarm in ImageAlarms(teacher, device, advice, real)(batch) if alarm is not None]
    assert "collapse" not in {alarm.name for alarm in beside}


class Normed(nn.Module):
    """A network whose last layer is none that is found, or one that does not run as a layer."""

    def __init__(self, linear: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.last = nn.Linear(4, 10) if linear else nn.Conv2d(4, 10, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(self.conv(images).mean((2, 3))) @ self.last.weight.flatten(1)[:, :4].T


class Flipped(nn.Module):
    """A network that averages its logits of an image and of the mirror image, two rows of its last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(64, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        both = self.last(torch.cat([images, images.flip(-1)]).flatten(1))
        return both.unflatten(0, (2, len(images))).mean(0)


@pytest.mark.parametrize("network", [Normed(False), Normed(True), Flipped()], ids=["none", "unused", "two rows"])
def test_a_teacher_without_features_of_each_image_has_the_other_alarms(network: nn.Module) -> None:
    teacher = Classifier(network, ImageSpec(1, 8, 8, 10)).eval()
    batch = Batch(torch.rand(40, 1, 8, 8), torch.arange(40) % 10)
    raised = ImageAlarms(teacher, torch.device("cpu"), Advice("a", "b", "c"))(batch)
    assert len(raised) == 2, "of the predictions and the statistics, none of the features"


def test_the_remedy_of_a_generator_that_the_teacher_chose_keeps_that_choice() -> None:
    source = GeneratedSet().choose(NoisyLabelSettings(kind="noisy_label"))
    text = advice_for(source, "transfer_set").imbalance
    assert "raise transfer_set.generator.one_hot (with transfer_set.generator.kind=auto), or" in text
