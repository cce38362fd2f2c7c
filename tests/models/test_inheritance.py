"""A student that starts from the part of its teacher's weights that fits it."""

import pytest
import torch
from torch import nn

from synthkd.models import build_model, inherit, parameters
from synthkd.settings import ZooModel
from synthkd.types import ImageSpec

SPEC = ImageSpec(channels=1, height=28, width=28, classes=10)


def model(arch: str, seed: int, width: int | None = None, depth: int | None = None) -> nn.Module:
    torch.manual_seed(seed)
    made = build_model(ZooModel.model_validate({"arch": arch, "width": width, "depth": depth}), SPEC, [0.3], [0.35])
    for module in made.modules():  # as after a training: statistics that are not those of the start
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return made.eval()


@pytest.mark.parametrize(
    ("arch", "width", "depth"),
    [("mlp", 32, 2), ("lenet5", 6, None), ("convnet", 8, None), ("resnet", 4, 14), ("wide_resnet", 1, 10),
     ("slim", 4, 2), ("vit", 32, 2)],
)  # fmt: skip
def test_a_student_of_the_same_size_is_the_teacher(arch: str, width: int, depth: int | None) -> None:
    teacher, student = model(arch, 0, width, depth), model(arch, 1, width, depth)
    images = torch.rand(4, *SPEC.shape)
    assert not torch.allclose(student(images), teacher(images))
    assert inherit(student, teacher).parameters == parameters(student)
    assert torch.equal(student(images), teacher(images))


def test_every_second_channel_with_all_its_positions() -> None:
    teacher, student = model("lenet5", 0, 6), model("lenet5", 1, 3)
    assert inherit(student, teacher).parameters == parameters(student)
    theirs, own = teacher.state_dict(), student.state_dict()
    assert torch.equal(own["body.stage1.0.weight"], theirs["body.stage1.0.weight"][::2])
    assert torch.equal(own["body.stage2.0.weight"], theirs["body.stage2.0.weight"][::2, ::2])
    flattened = theirs["body.hidden1.0.weight"].view(120, 16, 25)
    assert torch.equal(own["body.hidden1.0.weight"], flattened[:, ::2].reshape(120, 200))
    assert torch.equal(own["body.head.weight"], theirs["body.head.weight"])


def test_repeated_channels_are_no_loss() -> None:
    """A teacher whose channels come in equal pairs: the student of half the width computes the same in train mode."""
    narrow, wide = model("resnet", 0, 4, 8), model("resnet", 1, 8, 8)
    small, large = narrow.state_dict(), wide.state_dict()
    for name, value in small.items():
        repeated = value
        for dim in range(min(2, value.dim())):
            if large[name].shape[dim] == 2 * value.shape[dim]:
                repeated = repeated.repeat_interleave(2, dim)
        large[name].copy_(repeated)
    student = model("resnet", 2, 4, 8)
    assert inherit(student, wide).parameters == parameters(student)
    images = torch.rand(8, *SPEC.shape)
    got, wanted = student.train()(images), wide.train()(images)
    weight, bias = large["body.head.weight"], large["body.head.bias"]
    assert weight.abs().sum() > 0
    assert torch.allclose((got - bias) * 2, wanted - bias, atol=1e-4)


def test_of_a_deeper_teacher_the_first_blocks() -> None:
    teacher, student = model("resnet", 0, 4, 20), model("resnet", 1, 4, 8)
    assert inherit(student, teacher).parameters == parameters(student)
    theirs = teacher.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in student.state_dict().items())


def test_what_does_not_fit_stays_as_it_was() -> None:
    wider = model("convnet", 1, 16)
    before = {name: value.clone() for name, value in wider.state_dict().items()}
    assert inherit(wider, model("mlp", 0)).parameters == 0
    assert all(torch.equal(value, before[name]) for name, value in wider.state_dict().items())
    # a narrower teacher: of its first layer the inputs fit, the outputs do not
    assert inherit(wider, model("convnet", 0, 8)).parameters == 0
    assert all(torch.equal(value, before[name]) for name, value in wider.state_dict().items())


def test_the_teacher_is_only_read() -> None:
    teacher, student = model("convnet", 0, 8), model("convnet", 1, 4)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    inherit(student, teacher)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


class Joined(nn.Module):
    """A convolution in groups, or maps that are joined, before a linear layer."""

    def __init__(self, width: int, groups: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, width, 1)
        self.second = nn.Conv2d(width, width, 1, groups=groups)
        self.norm = nn.BatchNorm2d(2 * width)
        self.head = nn.Linear(2 * width, 10)


def test_convolutions_in_other_groups_keep_their_weights() -> None:
    torch.manual_seed(0)
    teacher, student = Joined(8, groups=4), Joined(4, groups=4)
    inherit(student, teacher)
    assert torch.equal(student.second.weight, teacher.second.weight[::2, :1]), "as many groups"
    teacher, student = Joined(8, groups=4), Joined(4, groups=2)
    before = student.second.weight.clone()
    inherit(student, teacher)
    assert torch.equal(student.second.weight, before), "groups of other channels"
    depthwise = Joined(8, groups=8), Joined(4, groups=4)
    inherit(depthwise[1], depthwise[0])
    assert torch.equal(depthwise[1].second.weight, depthwise[0].second.weight[::2])


def test_joined_maps_are_no_flattened_map() -> None:
    teacher, student = Joined(8), Joined(4)
    inherit(student, teacher)
    assert torch.equal(student.norm.running_mean, teacher.norm.running_mean[::2])
    assert torch.equal(student.head.weight, teacher.head.weight[:, ::2])


class Scaled(Joined):
    """With a scalar under the name of a weight."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.norm = nn.Module()
        self.norm.weight = nn.Parameter(torch.tensor(float(width)))


def test_a_scalar_weight_is_taken() -> None:
    teacher, student = Scaled(8), Scaled(4)
    inherit(student, teacher)
    assert float(student.norm.weight.detach()) == 8.0
