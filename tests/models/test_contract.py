"""Teachers that keep the contract, and each way to break it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthkd.errors import ModelError
from synthkd.models import Classifier, TeacherContract, build, parameters, probe
from synthkd.settings import ZooModel
from synthkd.types import ImageSpec

SPEC = ImageSpec(1, 8, 8, 4)


@pytest.mark.parametrize(("arch", "norms"), [("convnet", 3), ("resnet", 21), ("lenet5", 0), ("vit", 0)])
def test_a_good_teacher(arch: str, norms: int) -> None:
    model = build(ZooModel(arch=arch), SPEC).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert probe(model) == TeacherContract(SPEC, parameters(model), norms)
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


class Broken(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.linear = nn.Linear(64, 7 if how == "classes" else 4)
        self.norm = nn.BatchNorm1d(64, track_running_stats=False)

    def forward(self, x: Tensor) -> object:
        if self.how == "size":
            return self.linear(x.flatten(1)[:, 1:])
        if self.how == "batch":
            return self.linear(self.norm(x.flatten(1)))
        z = self.linear(x.flatten(1))
        match self.how:
            case "probabilities":
                return z.softmax(1)
            case "log probabilities":
                return z.log_softmax(1)
            case "nan":
                return z / 0
            case "dict":
                return {"scores": z, "boxes": z}
            case "number":
                return (3, [z])
            case "classes index":
                return z.argmax(1)
            case "chance":
                return F.dropout(z, 0.5)
            case "squeeze":
                return z.squeeze(0)
            case "sigmoid":
                return z.sigmoid()
            case "clamp":
                return (z / 6 + 0.5).clamp(0, 1)
        return z


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("probabilities", "gives probabilities, not logits .*take the softmax off"),
        ("nan", "not finite"),
        ("classes", r"logits \[N, 4\] for .*, got \[8, 7\] for N=8; set `classes`"),
        ("dict", "the teacher: .*got a dict, keys scores, boxes; wrap it"),
        ("number", "the teacher: .*got a tuple; wrap it"),
        ("classes index", r"float tensor of logits, got torch\.int64"),
        ("size", "cannot take 1x8x8 images, 4 classes: .*mat1 and mat2"),
        ("batch", "with the rest of the batch"),
        ("chance", "with the rest of the batch or by chance"),
        ("squeeze", r"logits \[4\] for one image, not \[1, 4\]: its forward drops the batch dimension, as squeeze"),
        ("sigmoid", r"values in \[0, 1\] that do not sum to 1.* sigmoid .*take it off"),
        ("clamp", r"values in \[0, 1\] that do not sum to 1"),
    ],
)
def test_broken_contracts(how: str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        probe(Classifier(Broken(how), SPEC))
    assert "\n" not in str(caught.value)


class Rows(NamedTuple):
    """As torchvision's GoogLeNet in training mode: auxiliary logits beside the logits, and here before them."""

    aux: Tensor
    logits: Tensor


@dataclass
class Output:
    logits: Tensor
    hidden_states: Tensor | None = None


class ModelOutput(OrderedDict):
    """As that of transformers: a mapping with attributes."""

    def __getattr__(self, key: str) -> Tensor:
        return self[key]


class Holding(nn.Module):
    def __init__(self, how: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.linear, self.how = nn.Linear(64, 4), how

    def forward(self, x: Tensor) -> object:
        return self.how(self.linear(x.flatten(1)))


@pytest.mark.parametrize(
    ("how", "place"),
    [
        (lambda z: z, ""),
        (lambda z: (z, z + 1), "tensor 1 of its tuple"),
        (lambda z: [None, z], "tensor 2 of its list"),
        (lambda z: {"loss": z.sum(), "logits": z}, "key logits of its dict"),
        (lambda z: ModelOutput(logits=z), ".logits of its ModelOutput"),
        (Output, ".logits of its Output"),
        (lambda z: Rows(z + 1, z), ".logits of its Rows"),
    ],
)
def test_logits_are_taken_out_of_what_holds_them(how: Callable[[Tensor], object], place: str) -> None:
    teacher = Classifier(Holding(how), SPEC)
    assert probe(teacher).logits_from == place
    images = torch.rand(3, 1, 8, 8)
    assert torch.equal(teacher(images), teacher.body.linear(images.flatten(1)))


class Scaled(nn.Module):
    """Logits after a function, of a linear map whose values are near 0."""

    def __init__(self, after: Callable[[Tensor], Tensor], bias: float = 0.0) -> None:
        super().__init__()
        self.linear, self.after = nn.Linear(64, 4), after
        nn.init.constant_(self.linear.bias, bias)
        nn.init.normal_(self.linear.weight, std=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.linear(x.flatten(1)))


def test_logits_that_lie_in_0_to_1_on_noise_are_not_taken_for_probabilities() -> None:
    teacher = Classifier(Scaled(lambda z: z, bias=0.5), SPEC)
    logits = teacher(torch.rand(100, 1, 8, 8))
    assert 0 < logits.min() < logits.max() < 1
    assert not probe(teacher).warnings


def test_logits_of_an_empty_head_are_accepted() -> None:
    teacher = build(ZooModel(arch="lenet5"), ImageSpec(1, 28, 28, 4))
    for parameter in teacher.body[-1].parameters():
        nn.init.zeros_(parameter)
    assert not probe(teacher).warnings


def test_logits_that_are_never_negative_are_a_warning() -> None:
    (warning,) = probe(Classifier(Scaled(F.relu), SPEC)).warnings
    assert "never negative" in warning


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("arch", ["mlp", "lenet5", "convnet", "resnet", "vit"])
def test_untrained_networks_of_any_seed_pass(arch: str, classes: int) -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        assert not probe(build(ZooModel(arch=arch, width=8), ImageSpec(3, 16, 16, classes)), gradients=True).warnings


class Cut(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.linear, self.how = nn.Linear(64, 4), how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "no_grad":
            with torch.no_grad():
                return self.linear(x.flatten(1))
        if self.how == "detach":  # the logits still have the gradient of the weights
            return self.linear(x.detach().flatten(1))
        hidden = self.linear(x.flatten(1)).exp()
        logits = hidden.sin()
        hidden.zero_()
        return logits


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no_grad", "cuts the gradient .*torch.no_grad"),
        ("detach", "cuts the gradient"),
        ("in place", "no gradient to its images, .*: one of the variables .*modified by an inplace operation"),
    ],
)
def test_a_forward_without_gradient_is_refused_where_it_is_needed(how: str, message: str) -> None:
    teacher = Classifier(Cut(how), SPEC)
    assert probe(teacher).spec == SPEC
    with pytest.raises(ModelError, match=message) as caught:
        probe(teacher, gradients=True)
    assert "\n" not in str(caught.value)
    assert all(parameter.requires_grad for parameter in teacher.parameters())


@pytest.mark.parametrize("how", ["none", "log probabilities"])
def test_log_probabilities_are_logits_too(how: str) -> None:
    assert probe(Classifier(Broken(how), SPEC)).spec == SPEC


def test_one_output_is_refused_with_what_makes_two_of_it() -> None:
    model = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 1)), ImageSpec(1, 8, 8, 1))
    with pytest.raises(ModelError, match="the teacher has one output, of which nothing can be learned"):
        probe(model)


def test_logits_behind_features_are_named() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x.flatten(1), self.linear(x.flatten(1))

    with pytest.raises(
        ModelError, match=r"it gives tensors \[8, 64\], \[8, 4\]: wrap it so that the logits come first"
    ):
        probe(Classifier(Two(), SPEC))
