"""Generators by themselves: without an accelerator, and with a plain network as teacher."""

from collections.abc import Callable

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from synthkd import generators
from synthkd.data.read.splits import Splits
from synthkd.errors import ConfigError, ModelError
from synthkd.generators.local import local_accelerator
from synthkd.models import Classifier
from synthkd.types import ImageSpec, TrainableGenerator

SPEC = ImageSpec(1, 8, 8, 10)
QUICK = {"batch_size": 20}
Make = Callable[..., TrainableGenerator]


def inversion(teacher: nn.Module, _: Splits, **more: object) -> TrainableGenerator:
    settings = generators.InversionSettings(latent=8, width=4, steps=2, **QUICK)
    return generators.Inversion(settings, teacher, **more)  # type: ignore[arg-type]


def pixels(teacher: nn.Module, _: Splits, **more: object) -> TrainableGenerator:
    return generators.Pixels(generators.PixelSettings(kind="pixels", **QUICK), teacher, **more)  # type: ignore[arg-type]


def cgan(teacher: nn.Module, digits: Splits, **more: object) -> TrainableGenerator:
    settings = generators.CGANSettings(kind="cgan", width=4, critic_width=4, steps=1, **QUICK)
    return generators.CGAN(settings, teacher, train=digits.train, **more)  # type: ignore[arg-type]


def diffusion(teacher: nn.Module, digits: Splits, **more: object) -> TrainableGenerator:
    settings = generators.DiffusionSettings(kind="diffusion", channels=(8,), steps=1, sample_steps=2, **QUICK)
    return generators.Diffusion(settings, teacher, train=digits.train, **more)  # type: ignore[arg-type]


def merf(teacher: nn.Module, digits: Splits, **more: object) -> TrainableGenerator:
    settings = generators.MerfSettings(kind="merf", noise_multiplier=0.0, features=64, width=8, **QUICK)
    return generators.Merf(settings, teacher, train=digits.train, **more)  # type: ignore[arg-type]


@pytest.fixture
def network(teacher: Classifier) -> nn.Module:
    """The teacher as somebody has it who never heard of classifiers here."""
    return nn.Sequential(teacher.normalize, teacher.body)


@pytest.mark.parametrize("make", [inversion, pixels, cgan, diffusion, merf])
def test_a_plain_network_without_accelerator_gives_what_a_job_gets(
    make: Make, network: nn.Module, digits: Splits
) -> None:
    needs_spec = {"spec": SPEC} if make in (inversion, pixels) else {}  # the others have it from the real images
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    alone = make(network, digits, **needs_spec)
    assert torch.equal(torch.random.get_rng_state(), before), "the random numbers of the caller"
    of_a_job = make(Classifier(network, SPEC).eval(), digits, seed=0, accelerator=Accelerator(cpu=True))
    one, other = (generator.round(0, 0.5) for generator in (alone, of_a_job))
    assert one.images.shape == (20, *SPEC.shape)
    assert torch.equal(one.images, other.images)
    assert torch.equal(one.teacher_logits, other.teacher_logits)


@pytest.mark.parametrize("make", [inversion, pixels])
def test_a_network_that_does_not_tell_its_images_needs_a_spec(make: Make, network: nn.Module, digits: Splits) -> None:
    with pytest.raises(ModelError, match=r"the teacher is a Sequential.*give spec=ImageSpec\(channels"):
        make(network, digits)


def test_a_spec_that_contradicts_a_classifier_is_refused(teacher: Classifier, digits: Splits) -> None:
    with pytest.raises(ModelError, match="takes 1x8x8 images, 10 classes, but spec says 3x8x8 images, 10 classes"):
        inversion(teacher, digits, spec=ImageSpec(3, 8, 8, 10))


def test_the_accelerator_is_for_the_device_of_the_network(network: nn.Module) -> None:
    own = Accelerator(cpu=True)
    assert local_accelerator(own, network) is own
    assert local_accelerator(None, network).device.type == "cpu"
    assert local_accelerator(None, nn.Identity()).device.type in ("cpu", "cuda", "mps")


def test_a_teacher_beside_the_accelerator_of_the_process_is_an_error_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def elsewhere(**_: object) -> Accelerator:
        raise ValueError("AcceleratorState has already been initialized and cannot be changed")

    teacher = nn.Linear(2, 2, device="meta")
    with pytest.raises(ConfigError, match=r"the teacher is on meta, and an accelerator .*: move the teacher"):
        local_accelerator(None, teacher)
    monkeypatch.setattr("synthkd.generators.local.Accelerator", elsewhere)
    with pytest.raises(ConfigError, match="the teacher is on cpu"):
        local_accelerator(None, teacher.to_empty(device="cpu"))
