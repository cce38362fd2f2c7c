"""Stages and heads of models from elsewhere; those of the zoo are in test_zoo."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from synthkd.errors import ModelError
from synthkd.models import Classifier, build_model, head, stages
from synthkd.models.layout import blank_features
from synthkd.settings import LoadedModel
from synthkd.taps import observe
from synthkd.types import ImageSpec

SPEC = ImageSpec(3, 64, 64, 7)

FOREIGN = {
    "torchvision:resnet18": (["relu", "layer1", "layer2", "layer3", "layer4"], "fc"),
    "torchvision:mobilenet_v2": ([f"features.{i}" for i in (1, 3, 6, 13)] + ["features"], "classifier.1"),
    # squeeze-and-excitation and a global pooling layer must not look like stages
    "timm:mobilenetv3_small_050": (["bn1", "blocks.0", "blocks.1", "blocks.3", "blocks"], "classifier"),
    "timm:convnext_atto": (["stages.0", "stages.1", "stages.2", "norm_pre"], "head.fc"),
    "timm:vit_tiny_patch16_224": ([f"blocks.{i}" for i in (2, 5, 8, 11)], "head"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_models_of_libraries(name: str) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    options = {"img_size": 64} if "vit" in name else {}
    model = build_model(LoadedModel(kind="load", model=name, options=options), SPEC)
    paths, last = FOREIGN[name]
    assert stages(model) == tuple(f"body.{p}" for p in paths)
    assert head(model) == f"body.{last}"
    assert model.training
    out = observe(model.eval(), torch.rand(2, 3, 64, 64), [*stages(model), f"{head(model)}:input"])
    sizes = [f.shape[2] for p, f in out.features.items() if f.dim() == 4 and p in stages(model)]
    assert sizes == sorted(set(sizes), reverse=True)
    penultimate = out.features[f"{head(model)}:input"]
    assert torch.equal(model.get_submodule(head(model))(penultimate), out.logits)


def test_a_network_inside_a_wrapper() -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(
                nn.Conv2d(1, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 8, 3, 2), nn.ReLU()
            )
            self.pool = nn.AdaptiveAvgPool2d(1)
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.pool(self.net(x)).flatten(1))

    model = Classifier(Wrapper(), ImageSpec(1, 16, 16, 3))
    assert stages(model) == ("body.net.2", "body.net")
    assert head(model) == "body.head"


def test_the_head_is_the_linear_layer_with_the_classes() -> None:
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Linear(5, 3), nn.Linear(3, 8))
    assert head(Classifier(body, ImageSpec(1, 8, 8, 3))) == "body.2"
    assert head(Classifier(body, ImageSpec(1, 8, 8, 9))) == "body.3"


def test_a_convolutional_classifier_has_its_head_in_a_convolution() -> None:
    layers = [nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = Classifier(nn.Sequential(*layers), ImageSpec(1, 8, 8, 3))
    assert head(model) == "body.2"
    other = Classifier(nn.Sequential(*layers, nn.Linear(3, 7)), ImageSpec(1, 8, 8, 3))
    assert head(other) == "body.5", "a convolution with a layer after it is no head"
    stem = [nn.Conv2d(1, 3, 1), nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 6), nn.Flatten()]
    with pytest.raises(ModelError, match=r"Conv2d of 1x1"):
        head(Classifier(nn.Sequential(*stem), ImageSpec(1, 8, 8, 3)))
    linear = Classifier(nn.Sequential(*layers, nn.Linear(3, 3)), ImageSpec(1, 8, 8, 3))
    assert head(linear) == "body.5"


def test_a_model_without_either() -> None:
    model = Classifier(nn.Sequential(nn.Flatten(), nn.Identity()), ImageSpec(1, 8, 8, 64))
    assert stages(model) == ()
    with pytest.raises(ModelError, match="no linear layer"):
        head(model)


def test_a_model_without_parameters_has_features() -> None:
    model = Classifier(nn.Sequential(nn.Flatten(), nn.Identity()), ImageSpec(1, 8, 8, 64))
    assert blank_features(model, ["body.1"])["body.1"].shape == (1, 64)
