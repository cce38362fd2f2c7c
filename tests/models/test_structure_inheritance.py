"""A student whose teacher computes the same under other module paths."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthkd.models import Classifier, build, inherit, parameters
from synthkd.models.filling import reset_statistics
from synthkd.settings import ZooModel
from synthkd.types import ImageSpec

SPEC = ImageSpec(channels=3, height=8, width=8, classes=5)
IMAGES = torch.rand(16, *SPEC.shape, generator=torch.Generator().manual_seed(1))


class Block(nn.Module):
    """A basic block as public code has it: in-place ReLU, and a shortcut before the branch."""

    def __init__(self, planes: int, out: int, stride: int, padded: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(planes, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.downsample = None
        self.added = out - planes if padded else 0
        if stride > 1 and not padded:
            self.downsample = nn.Sequential(nn.Conv2d(planes, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        short = x if self.downsample is None else self.downsample(x)
        if self.added:
            short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.added // 2, self.added - self.added // 2))
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        y += short
        return F.relu(y, inplace=True)


class Net(nn.Module):
    """A ResNet of somebody's own file, with `count` blocks a stage."""

    def __init__(self, width: int, count: int, padded: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(SPEC.channels, width, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        widths = (width, width, 2 * width, 4 * width)
        blocks = [
            Block(widths[stage] if place == 0 else out, out, 2 if stage and place == 0 else 1, padded)
            for stage, out in enumerate(widths[1:])
            for place in range(count)
        ]
        self.parts = nn.ModuleList(blocks)
        self.fc = nn.Linear(4 * width, SPEC.classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        for part in self.parts:
            x = part(x)
        return self.fc(F.avg_pool2d(x, x.shape[-1]).view(len(x), -1))


def trained(network: nn.Module, seed: int = 0) -> Classifier:
    """A network with the statistics and weights that BatchNorm layers have after a training."""
    torch.manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.3)
            nn.init.normal_(module.running_mean, 0.0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    made = network if isinstance(network, Classifier) else Classifier(network, SPEC)
    return made.eval()


def zoo(width: int, depth: int, shortcut: str = "projection", arch: str = "resnet", seed: int = 7) -> Classifier:
    torch.manual_seed(seed)
    settings = {"arch": arch, "width": width, "depth": depth, "shortcut": shortcut}
    return build(ZooModel.model_validate({key: value for key, value in settings.items() if value}), SPEC).eval()


@pytest.mark.parametrize("padded", [False, True])
def test_a_network_of_somebodys_own_file_gives_all_of_its_weights(padded: bool) -> None:
    teacher, student = trained(Net(4, 1, padded)), zoo(4, 8, "pad" if padded else "projection")
    teacher.to(memory_format=torch.channels_last)
    assert not torch.allclose(student(IMAGES), teacher(IMAGES), atol=1e-2)
    found = inherit(student, teacher)
    assert (found.parameters, found.by, found.why) == (parameters(student), "structure", "")
    assert torch.allclose(student(IMAGES), teacher(IMAGES), atol=1e-5)


def test_of_each_stage_the_first_blocks() -> None:
    teacher, student = trained(Net(4, 3)), zoo(4, 14)
    assert inherit(student, teacher).parameters == parameters(student)
    for stage in range(3):
        for block in range(2):
            ours = student.get_submodule(f"body.stage{stage + 1}.{block}.branch.0").weight
            theirs = teacher.body.get_submodule(f"parts.{3 * stage + block}.conv1").weight
            assert torch.equal(ours, theirs)
    assert torch.equal(student.get_submodule("body.head").weight, teacher.body.fc.weight)


@pytest.mark.parametrize("depth", [8, 20])
def test_evenly_spaced_channels_are_those_that_paths_give(depth: int) -> None:
    """The same teacher in the zoo's code and in somebody's: the students have the same bytes."""
    theirs, by_path, by_structure = trained(Net(8, 3)), zoo(4, depth), zoo(4, depth)
    same = zoo(8, 20)
    assert inherit(same, theirs).by == "structure"
    assert inherit(by_path, same).by == "path"
    assert inherit(by_structure, theirs).by == "structure"
    for one, other in zip(by_path.state_dict().values(), by_structure.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_a_projection_does_what_a_shortcut_without_weights_does() -> None:
    teacher, student = trained(Net(4, 2, padded=True)), zoo(4, 14)
    reset_statistics(teacher, [IMAGES])
    found = inherit(student, teacher, images=lambda: IMAGES)
    assert found.parameters == parameters(zoo(4, 14, "pad")), "the projections are not the teacher's weights"
    assert torch.allclose(student(IMAGES), teacher(IMAGES), atol=1e-4)
    # Also with the moments of the batch; stored variances are those of a sample, a little larger.
    assert torch.allclose(student.train()(IMAGES), teacher.train()(IMAGES), atol=1e-2)


class PreActivated(nn.Module):
    """The layers of `Net(4, 1)`, with each BatchNorm before its convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net(4, 1)
        self.first = nn.ModuleList([nn.BatchNorm2d(n) for n in (4, 4, 8)])

    def forward(self, x: Tensor) -> Tensor:
        net = self.net
        x = net.conv(x)
        for norm, part in zip(self.first, net.parts, strict=True):
            y = F.relu(norm(x))
            short = x if part.downsample is None else part.downsample[0](y)
            x = part.conv2(F.relu(part.bn1(part.conv1(y)))) + short
        return net.fc(F.relu(x).mean((2, 3)))


class Wider(Net):
    """A network with a larger first kernel."""

    def __init__(self) -> None:
        super().__init__(4, 1)
        self.conv = nn.Conv2d(SPEC.channels, 4, 5, 1, 2, bias=False)


class Grouped(Net):
    """A network with a convolution in groups."""

    def __init__(self) -> None:
        super().__init__(4, 1)
        self.parts[0].conv1 = nn.Conv2d(4, 4, 3, 1, 1, bias=False, groups=2)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (PreActivated, "at the student's add that gives 4x8x8, the teacher has another block"),
        (Wider, "another block"),
        (Grouped, "a convolution in groups"),
        (lambda: Net(2, 1), "the student has a wider layer"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), "conv"),
        (lambda: zoo(8, 0, "", "vit").body, "the teacher cannot be followed"),
    ],
)
def test_other_structures_give_nothing_and_say_why(make: Callable[[], nn.Module], why: str) -> None:
    student = zoo(4, 8)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    found = inherit(student, trained(make()))
    assert (found.parameters, found.by) == (0, "")
    assert why in found.why
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_a_shallower_teacher_gives_nothing() -> None:
    assert inherit(zoo(4, 14), trained(Net(4, 1))).parameters == 0


def test_merging_equal_channels_loses_nothing() -> None:
    """A teacher whose channels come in equal pairs, in an order of its own: half the width computes the same."""
    narrow, wide = trained(Net(4, 1)), Net(8, 1)
    order = {n: torch.randperm(n, generator=torch.Generator().manual_seed(n)) for n in (8, 16, 32)}
    with torch.no_grad():
        for (name, value), (_, large) in zip(narrow.body.state_dict().items(), wide.state_dict().items(), strict=True):
            if "num" in name:
                continue
            repeated = value
            for dim in range(min(2, value.dim())):
                if large.shape[dim] == 2 * value.shape[dim]:
                    repeated = repeated.repeat_interleave(2, dim) / (2 if dim else 1)
                    repeated = repeated.index_select(dim, order[large.shape[dim]])
            large.copy_(repeated)
    teacher, student = Classifier(wide, SPEC).eval(), zoo(4, 8)
    assert torch.allclose(teacher(IMAGES), narrow(IMAGES), atol=1e-4)
    found = inherit(student, teacher, merge=True)
    assert (found.parameters, found.by) == (parameters(student), "structure")
    assert torch.allclose(student(IMAGES), narrow(IMAGES), atol=1e-3)
    taken = zoo(4, 8)
    inherit(taken, teacher)
    assert not torch.allclose(taken(IMAGES), narrow(IMAGES), atol=1e-2)


class Everything(nn.Module):
    """What is followed beside residual blocks: depthwise layers, squeeze and excitation, flattened maps, dropout."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, width, 3, padding=1)
        self.b = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.c = nn.BatchNorm2d(width)
        self.d = nn.Conv2d(width, 2, 1)
        self.e = nn.Conv2d(2, width, 1)
        self.f = nn.Linear(16 * width, 6)
        self.g = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.c(self.b(F.relu6(self.a(x)))))
        x = x * torch.sigmoid(self.e(F.relu(self.d(F.adaptive_avg_pool2d(x, 1)))))
        x = F.dropout(F.max_pool2d(x, 2).flatten(1), 0.5, self.training)
        return self.g(torch.tanh(self.f(x)))


class Renamed(nn.Module):
    """A network as a part of another, so that every path differs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.network(x)}


@pytest.mark.parametrize("merge", [False, True])
def test_depthwise_layers_products_and_flattened_maps_are_followed(merge: bool) -> None:
    """A teacher whose second half of channels are copies of the first: both rules give the narrow network again."""
    narrow, wide = trained(Everything(4)), Everything(8)
    small, large = narrow.body.state_dict(), wide.state_dict()
    for name, value in small.items():
        repeated = value
        for dim in range(min(2, value.dim())):
            if large[name].shape[dim] == 2 * value.shape[dim]:
                # Positions of a flattened map stay together.
                area = 16 if name == "f.weight" and dim == 1 else 1
                parts = repeated.unflatten(dim, (-1, area))
                # The copies give as much as the channels: so merged inputs are sums, taken ones the half.
                repeated = parts.repeat_interleave(2, dim).flatten(dim, dim + 1) / (2 if dim and merge else 1)
        large[name].copy_(repeated)
    student = trained(Everything(4), seed=3)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.normal_()
    found = inherit(student, Classifier(Renamed(wide), SPEC).eval(), merge)
    assert (found.parameters, found.by) == (parameters(student), "structure")
    assert torch.allclose(student(IMAGES), narrow(IMAGES), atol=1e-4)


def test_channels_are_similar_by_what_their_batch_norm_makes_of_them() -> None:
    """Channels 0 and 2 give the same from other weights; channels 0 and 1 give the opposite from the same."""

    def network(channels: int) -> nn.Sequential:
        layers = (nn.Conv2d(3, channels, 3, bias=False), nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels, 5))

    narrow, wide = network(2), network(4)
    with torch.no_grad():
        kernel, signs, factors = torch.randn(1, 3, 3, 3), torch.tensor([1.0, -1.0]), torch.tensor([1.0, 1.0, 3.0, 0.5])
        narrow[0].weight.copy_(kernel.expand(2, -1, -1, -1))
        narrow[1].weight.copy_(signs)
        wide[0].weight.copy_(kernel * factors[:, None, None, None])
        wide[1].weight.copy_(signs.repeat(2) / factors)
        wide[5].weight.copy_(narrow[5].weight.repeat(1, 2) / 2)
        wide[5].bias.copy_(narrow[5].bias)
    student = Classifier(Renamed(network(2)), SPEC).eval()
    assert inherit(student, Classifier(wide, SPEC).eval(), merge=True).by == "structure"
    assert torch.allclose(student(IMAGES), Classifier(narrow, SPEC).eval()(IMAGES), atol=1e-4)
