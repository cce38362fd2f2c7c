"""A wrong mean and std show in the first BatchNorm layer of networks that saw photographs; right ones do not."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthkd.models import Classifier, build
from synthkd.pipelines.student.normalisation import USUAL, Normalisation, better_normalisation
from synthkd.settings import ZooModel
from synthkd.types import ImageSpec

SPEC = ImageSpec(3, 32, 32, 10)
BY_NAME = {one.name: one for one in USUAL}
NONE, IMAGENET, HALF = BY_NAME["none"], BY_NAME["that of ImageNet"], BY_NAME["0.5 and 0.5"]
RAW = BY_NAME["none, of images in 0 to 255"]


@pytest.fixture(scope="module")
def photographs() -> Tensor:
    """Patches float32 `[N, 3, 32, 32]` of two photographs at a quarter of their size."""
    from sklearn.datasets import load_sample_images

    found = []
    for photograph in load_sample_images().images:
        image = torch.tensor(photograph).permute(2, 0, 1)[None] / 255
        small = F.interpolate(image, scale_factor=0.25, mode="area")
        found.append(F.unfold(small, 32, stride=12)[0].T.reshape(-1, 3, 32, 32))
    return torch.cat(found)


def network(photographs: Tensor, mean: tuple[float, ...], std: tuple[float, ...], seed: int) -> nn.Module:
    """A network whose BatchNorm layers know normalised photographs."""
    torch.manual_seed(seed)
    first = nn.Conv2d(3, 16, 3, bias=False)
    body = nn.Sequential(first, nn.BatchNorm2d(16, momentum=None), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10))
    images = photographs if seed % 2 else photographs.flip(0)[: len(photographs) // 2]
    with torch.no_grad():
        body((images - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1))
    return body.eval()


SPEAKS = {"none": (RAW,), "that of ImageNet": (NONE, RAW), "0.5 and 0.5": (RAW,), RAW.name: (NONE, IMAGENET, HALF)}
"""Right normalisation -> those whose error is large enough. Datasets of dim or hard images lie as near as others."""


@pytest.mark.parametrize("right", [NONE, IMAGENET, HALF, RAW], ids=lambda one: one.name)
def test_the_right_normalisation_is_left_alone_and_a_wrong_one_is_named(
    photographs: Tensor, right: Normalisation
) -> None:
    for seed in range(6):
        body = network(photographs, right.mean, right.std, seed)
        for given in (NONE, IMAGENET, RAW, HALF):
            mean, std = (values * (3 // len(values)) for values in (given.mean, given.std))
            warning = better_normalisation(Classifier(body, SPEC, mean, std))
            if given is right:
                assert warning is None
            if given not in SPEAKS[right.name]:
                continue
            assert warning is not None
            assert "\n" not in warning
            fitting = [one for one in USUAL if f", {one.name} fits best: write {one.written(3)} if" in warning]
            assert len(fitting) == 1
            assert 0.45 < fitting[0].std[0] / right.std[0] < 2.2, "steps of 2 cannot be told apart by any pictures"


@pytest.mark.parametrize("contrast", [0.4, 1.6])
def test_dim_and_hard_images_are_left_alone(photographs: Tensor, contrast: float) -> None:
    images = (contrast * photographs).clamp(0, 1)
    mean, std = (tuple(getattr(images, name)((0, 2, 3)).tolist()) for name in ("mean", "std"))
    for seed in range(6):
        assert better_normalisation(Classifier(network(images, mean, std, seed), SPEC, mean, std)) is None


def test_networks_without_statistics_of_images_are_left_alone() -> None:
    for arch in ("convnet", "vit", "resnet"):
        assert better_normalisation(build(ZooModel(arch=arch, width=8), SPEC)) is None


def test_the_teacher_and_the_random_state_stay_as_they_are(photographs: Tensor) -> None:
    teacher = Classifier(network(photographs, NONE.mean * 3, NONE.std * 3, 0), SPEC, (0.5,) * 3, (1 / 255,) * 3).train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    random = torch.get_rng_state()
    assert better_normalisation(teacher) is not None
    assert teacher.training
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module._forward_pre_hooks for module in teacher.modules())
