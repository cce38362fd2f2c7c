"""Teachers that keep the contract, and each way to break it."""

from __future__ import annotations

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
            case "tuple":
                return z, z
            case "classes index":
                return z.argmax(1)
            case "chance":
                return F.dropout(z, 0.5)
        return z


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("probabilities", "gives probabilities, not logits .*take the softmax off"),
        ("nan", "not finite"),
        ("classes", r"logits \[N, 4\] for .*, got \[8, 7\] for N=8; set `classes`"),
        ("tuple", "float tensor of logits, got tuple"),
        ("classes index", r"float tensor of logits, got torch\.int64"),
        ("size", "cannot take 1x8x8 images, 4 classes: .*mat1 and mat2"),
        ("batch", "with the rest of the batch"),
        ("chance", "with the rest of the batch or by chance"),
    ],
)
def test_broken_contracts(how: str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        probe(Classifier(Broken(how), SPEC))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("how", ["none", "log probabilities"])
def test_log_probabilities_are_logits_too(how: str) -> None:
    assert probe(Classifier(Broken(how), SPEC)).spec == SPEC
