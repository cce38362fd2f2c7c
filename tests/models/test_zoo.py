"""Every architecture at every size, its parameter counts, its stages."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from synthkd.errors import ConfigError, ModelError
from synthkd.models import Classifier, build, head, parameters, stages
from synthkd.settings import Architecture, ZooModel
from synthkd.taps import observe
from synthkd.types import ImageSpec

SMALL = {
    "mlp": {"width": 32},
    "lenet5": {"width": 3},
    "convnet": {"width": 4},
    "resnet": {"width": 4, "depth": 8},
    "wide_resnet": {"width": 1, "depth": 10},
    "slim": {"width": 4, "depth": 1},
    "vit": {"width": 32, "depth": 2},
}
STAGES = {"mlp": 2, "lenet5": 2, "convnet": 3, "resnet": 3, "wide_resnet": 3, "slim": 3, "vit": 2}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(8, 8), (28, 28), (32, 32), (9, 13)])
@pytest.mark.parametrize("arch", SMALL)
def test_every_architecture_takes_every_size(arch: str, size: tuple[int, int], channels: int) -> None:
    spec = ImageSpec(channels, *size, 5)
    model = build(ZooModel(arch=arch, **SMALL[arch]), spec)
    images = torch.rand(3, *spec.shape)
    out = observe(model, images, [*stages(model), f"{head(model)}:input"])
    assert out.logits.shape == (3, 5)
    assert torch.isfinite(out.logits).all()
    assert len(stages(model)) == STAGES[arch]
    for path in stages(model):
        feature = out.features[path]
        assert feature.dim() == {"mlp": 2, "vit": 3}.get(arch, 4)
        assert min(feature.shape[2:], default=2) >= 2
        assert arch == "vit" or (feature >= 0).all()  # after the activation
    assert isinstance(model.get_submodule(head(model)), nn.Linear)
    assert out.features["body.head:input"].dim() == 2
    out.logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("arch", "width", "depth", "spec", "count"),
    [
        # LeNet-5 and its half as in zero-shot knowledge distillation; the pair of the Fashion-MNIST comparison
        ("lenet5", None, None, ImageSpec(1, 28, 28, 10), 61_706),
        ("lenet5", 3, None, ImageSpec(1, 28, 28, 10), 35_820),
        ("convnet", None, None, ImageSpec(1, 28, 28, 10), 98_026),
        ("convnet", 16, None, ImageSpec(1, 28, 28, 10), 25_978),
        ("mlp", None, None, ImageSpec(1, 28, 28, 10), 785 * 512 + 513 * 256 + 257 * 10),
        # published sizes on CIFAR-10
        ("resnet", 16, 8, ImageSpec(3, 32, 32, 10), 78_042),
        ("wide_resnet", 1, 16, ImageSpec(3, 32, 32, 10), 175_066),
        ("wide_resnet", 2, 40, ImageSpec(3, 32, 32, 10), 2_243_546),
    ],
)
def test_parameter_counts(arch: str, width: int | None, depth: int | None, spec: ImageSpec, count: int) -> None:
    assert parameters(build(ZooModel(arch=arch, width=width, depth=depth), spec)) == count


def test_shared_parameters_count_once() -> None:
    layer = nn.Linear(3, 3)
    assert parameters(nn.Sequential(layer, layer)) == 12


@pytest.mark.parametrize("arch", ["resnet", "wide_resnet"])
@pytest.mark.parametrize("depth", [1, 9, 21])
def test_a_depth_that_does_not_exist_is_refused_with_its_neighbours(arch: str, depth: int) -> None:
    with pytest.raises(ConfigError, match=r"6n \+ [24] layers, got depth=\d+; take \d+ or \d+"):
        build(ZooModel(arch=arch, depth=depth), ImageSpec(1, 8, 8, 10))


@pytest.mark.parametrize("arch", ["lenet5", "convnet"])
def test_an_architecture_without_depth_refuses_one(arch: str) -> None:
    with pytest.raises(ConfigError, match="no depth to choose, got depth=3"):
        build(ZooModel(arch=arch, depth=3), ImageSpec(1, 8, 8, 10))


def test_too_small_images_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 8x8 pixels, got 7x8"):
        build(ZooModel(arch="mlp"), ImageSpec(1, 7, 8, 10))


COMMON = {"norm": "batch", "activation": "relu", "shortcut": "projection"}


def test_the_recipe_holds_the_defaults_taken() -> None:
    model = build(ZooModel(arch="resnet"), ImageSpec(1, 8, 8, 10))
    assert model.recipe == {
        "kind": "zoo",
        "arch": "resnet",
        "width": 16,
        "depth": 20,
        **COMMON,
    }


def test_residual_blocks_start_as_the_identity() -> None:
    model = build(ZooModel(arch="resnet", width=4, depth=14), ImageSpec(1, 8, 8, 3)).eval()
    block = model.body.stage1[1]
    x = torch.rand(2, 4, 8, 8)
    assert torch.equal(block(x), x)


def test_a_vit_of_any_width_finds_heads_that_divide_it() -> None:
    for width in (7, 24, 56, 100):
        model = build(ZooModel(arch="vit", width=width, depth=1), ImageSpec(1, 8, 8, 3))
        assert model(torch.rand(2, 1, 8, 8)).shape == (2, 3)


def test_the_classifier_normalises_its_own_input() -> None:
    spec = ImageSpec(3, 8, 8, 3)
    seen: list[torch.Tensor] = []

    class Body(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x)
            return x.mean(dim=(2, 3))

    model = Classifier(Body(), spec, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0))
    model(torch.full((1, 3, 8, 8), 0.5))
    assert seen[0][0, :, 0, 0].tolist() == [0.0, 1.0, 0.5]
    assert not model.state_dict()


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 1, 8, 9),
        torch.zeros(1, 8, 8),
        torch.zeros(2, 3, 8, 8),
        torch.zeros(2, 1, 8, 8, dtype=torch.uint8),
    ],
    ids=["size", "no batch", "channels", "uint8"],
)
def test_the_wrong_images_are_refused_at_the_door(images: torch.Tensor) -> None:
    model = build(ZooModel(arch="mlp", width=4), ImageSpec(1, 8, 8, 3))
    with pytest.raises(ModelError, match=r"images must be float32 \[N, 1, 8, 8\] in \[0, 1\], got"):
        model(images)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mean": (0.5,)}, "one number per channel: the images have 3, got 1 and 3"),
        ({"std": (1.0, 0.0, 1.0)}, "std positive"),
        ({"mean": (float("nan"), 0.0, 0.0)}, "mean must be finite"),
        ({"class_names": ("a", "b")}, "each of the 3 classes, got 2 names"),
    ],
)
def test_what_does_not_fit_the_spec_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build(ZooModel(arch="mlp", width=4), ImageSpec(3, 8, 8, 3), **arguments)


@pytest.mark.parametrize("arch", ["convnet", "resnet", "wide_resnet", "slim"])
def test_with_group_norm_no_image_sees_the_others_of_its_batch(arch: str) -> None:
    spec = ImageSpec(1, 16, 16, 10)
    torch.manual_seed(0)
    model = build(ZooModel(arch=arch, width=2, norm="group"), spec).train()
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())
    assert any(isinstance(m, torch.nn.GroupNorm) for m in model.modules())
    images = torch.rand(4, 1, 16, 16)
    assert torch.allclose(model(images)[:1], model(images[:1]), atol=1e-5)
    batch = build(ZooModel(arch=arch, width=2), spec)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in batch.parameters())
    if arch == "resnet":  # a block starts as the identity either way
        zeroed = [m for m in model.modules() if isinstance(m, torch.nn.GroupNorm) and not m.weight.any()]
        assert len(zeroed) == 9


@pytest.mark.parametrize("arch", ["mlp", "lenet5", "convnet", "resnet", "wide_resnet", "slim"])
def test_with_tanh_no_relu_is_left_and_the_recipe_says_so(arch: Architecture) -> None:
    model = build(ZooModel(arch=arch, width=4, activation="tanh"), ImageSpec(1, 16, 16, 10))
    assert not any(isinstance(m, torch.nn.ReLU) for m in model.modules())
    assert any(isinstance(m, torch.nn.Tanh) for m in model.modules())
    assert model.recipe["activation"] == "tanh"
