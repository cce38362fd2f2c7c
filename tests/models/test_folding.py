"""A folded network gives the same logits with fewer layers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from synthkd.losses.inversion import batch_norm, one_hot
from synthkd.models import Classifier, build_model, fold_batch_norm
from synthkd.models.channels_last import channels_last
from synthkd.settings import LoadedModel, ModelSettings, ZooModel
from synthkd.taps import has_statistics, observe
from synthkd.types import ImageSpec

SPEC = ImageSpec(3, 32, 32, 5)


def norms(model: nn.Module) -> int:
    return sum(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in model.modules())


def lively(model: nn.Module) -> None:
    """Give every BatchNorm layer statistics and weights that matter."""
    generator = torch.Generator().manual_seed(0)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor, low, high in (
                (m.running_mean, -1, 1),
                (m.bias, -1, 1),
                (m.running_var, 0.5, 2),
                (m.weight, 0.5, 2),
            ):
                if tensor is not None:
                    tensor.data.uniform_(low, high, generator=generator)


@pytest.mark.parametrize(
    ("settings", "left"),
    [
        (ZooModel(arch="convnet", width=8), 0),
        (ZooModel(arch="resnet", width=8, depth=14), 0),
        (ZooModel(arch="slim", width=8), 0),
        (ZooModel(arch="wide_resnet", depth=10), 3),  # those after an addition have no layer to go into
        (ZooModel(arch="vit", width=16), 0),
        (LoadedModel(kind="load", model="torchvision:resnet18"), 0),
    ],
    ids=lambda s: getattr(s, "arch", getattr(s, "model", None)),
)
def test_same_logits(settings: ModelSettings, left: int) -> None:
    model = build_model(settings, SPEC, (0.5,) * 3, (0.2,) * 3)
    lively(model)
    model.eval()
    before = norms(model)
    images = torch.rand((4, *SPEC.shape), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(images)
        folded = fold_batch_norm(model)
        scale = expected.abs().max()
        torch.testing.assert_close(folded(images) / scale, expected / scale, atol=1e-5, rtol=0)
        assert torch.equal(model(images), expected)
    assert norms(folded) == left
    assert norms(model) == before
    assert not folded.training
    assert not any(p.requires_grad for p in folded.parameters())
    assert all(p.requires_grad for p in model.parameters())


def norms_of_libraries() -> list[nn.Module]:
    from torchvision.ops import FrozenBatchNorm2d

    found = [FrozenBatchNorm2d(8, eps=1e-3), nn.SyncBatchNorm(8, eps=1e-3)]
    try:
        from timm.layers import BatchNormAct2d, FrozenBatchNormAct2d
    except ImportError:
        return found
    return [*found, BatchNormAct2d(8, eps=1e-3, act_layer=nn.GELU), FrozenBatchNormAct2d(8, eps=1e-3)]


@pytest.mark.parametrize("norm", norms_of_libraries(), ids=lambda norm: type(norm).__name__)
def test_norms_of_libraries_fold_too(norm: nn.Module) -> None:
    for name, low, high in (("running_mean", -1, 1), ("bias", -1, 1), ("running_var", 0.5, 2), ("weight", 0.5, 2)):
        getattr(norm, name).data.uniform_(low, high)
    layers = nn.Conv2d(3, 8, 3), norm, nn.Conv2d(8, 4, 3), nn.Flatten(), nn.LazyLinear(5)
    body = nn.Sequential(*layers).eval()
    images = torch.rand(4, *SPEC.shape)
    body(images)
    model = Classifier(body, SPEC)
    folded = fold_batch_norm(model, keep=("body.1",))
    assert not any(map(has_statistics, folded.modules()))
    before, after = (observe(one, images, ["body.1"]) for one in (model, folded))
    torch.testing.assert_close(after.logits, before.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(after.features["body.1"], before.features["body.1"], atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "hooked",
    [
        lambda layer: prune.l1_unstructured(layer, "weight", amount=0.5),
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        nn.utils.parametrizations.weight_norm,
    ],
    ids=["prune", "weight_norm", "spectral_norm", "parametrization"],
)
def test_layers_whose_weights_are_computed_keep_their_logits(hooked: Callable[[nn.Module], object]) -> None:
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 30 * 30, 5)
    model = Classifier(nn.Sequential(*layers), SPEC)
    hooked(model.body[0])
    lively(model)
    model.eval()
    images = torch.rand(4, *SPEC.shape)
    # The weight of a hook is a tensor with a graph, which deepcopy refuses.
    folded = fold_batch_norm(model)
    torch.testing.assert_close(folded(images), model(images), atol=1e-5, rtol=1e-5)


class Shared(nn.Module):
    """Whatever is used twice, or looked at in between, must not be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.norm1 = nn.Linear(12, 12), nn.BatchNorm1d(12)
        self.seen, self.norm2 = nn.Linear(12, 12), nn.BatchNorm1d(12)
        self.plain, self.norm3 = nn.Linear(12, 12), nn.BatchNorm1d(12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean(2).flatten(1)[:, :12]
        x = self.twice(self.norm1(self.twice(x)))
        y = self.seen(x)
        return self.head(self.norm3(self.plain(y + self.norm2(y))))


def test_layers_that_serve_two_places_stay() -> None:
    model = Classifier(Shared(), SPEC)
    lively(model)
    model.eval()
    folded = fold_batch_norm(model)
    images = torch.rand(4, *SPEC.shape)
    torch.testing.assert_close(folded(images), model(images), atol=1e-5, rtol=1e-5)
    assert norms(folded) == 2


def staged() -> Classifier:
    """A convolution that ends one stage, and its BatchNorm, which begins the next."""
    first, second = nn.Sequential(nn.Conv2d(3, 8, 3)), nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))
    body = nn.Sequential()
    end = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    for name, stage in (("first", first), ("second", second), ("end", end)):
        body.add_module(name, stage)
    model = Classifier(body, SPEC)
    lively(model)
    return model.eval()


@pytest.mark.parametrize("path", ["body.first", "body.first.0", "body.second:input", "body.second.0:input"])
def test_what_is_kept_is_kept_at_the_end_of_a_stage_too(path: str) -> None:
    model, images = staged(), torch.rand(4, *SPEC.shape)
    folded = fold_batch_norm(model, keep=[path])
    assert norms(folded) == 1
    assert norms(fold_batch_norm(model, keep=["body.second", "body.first:input", "body"])) == 0
    torch.testing.assert_close(folded(images), model(images), atol=1e-5, rtol=1e-5)


class Borrowed(nn.Module):
    """A layer whose weight serves a second place, which the module itself does not run in."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.head = nn.Linear(12, 12), nn.BatchNorm1d(12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.layer(x.mean(2).flatten(1)[:, :12]))
        return self.head(nn.functional.linear(x, self.layer.weight))


def test_a_layer_whose_weight_serves_two_places_stays() -> None:
    model, images = Classifier(Borrowed(), SPEC), torch.rand(4, *SPEC.shape)
    lively(model)
    model.eval()
    folded = fold_batch_norm(model)
    torch.testing.assert_close(folded(images), model(images), atol=1e-5, rtol=1e-5)
    assert norms(folded) == 1


class TwoPaths(nn.Module):
    """A layer has a second path, by which the module does not call it, but by which torch.fx knows it."""

    def __init__(self, place: int) -> None:
        super().__init__()
        layers = nn.Linear(12, 12), nn.BatchNorm1d(12)
        self.first_path = layers[place]
        self.layer, self.norm = layers
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.layer(x.mean(2).flatten(1)[:, :12])))


@pytest.mark.parametrize("place", [0, 1])
def test_a_layer_that_has_two_paths_stays(place: int) -> None:
    model, images = Classifier(TwoPaths(place), SPEC), torch.rand(4, *SPEC.shape)
    lively(model)
    model.eval()
    folded = fold_batch_norm(model)
    torch.testing.assert_close(folded(images), model(images), atol=1e-5, rtol=1e-5)
    assert norms(folded) == 1


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.linear = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x).mean(dim=(2, 3))
        return self.linear(x if x.sum() > 0 else -x)


def test_what_cannot_be_traced_is_copied() -> None:
    model = Classifier(Untraceable(), SPEC).eval()
    folded = fold_batch_norm(model)
    images = torch.rand(4, *SPEC.shape)
    assert torch.equal(folded(images), model(images))
    assert folded.body is not model.body
    assert norms(folded) == 1


def test_a_network_in_channels_last_folds_as_any_other() -> None:
    """Its strided 1x1 convolutions have hooks for the memory order, which compute no weights."""
    model = channels_last(build_model(ZooModel(arch="resnet", width=4, depth=8), SPEC).eval())
    assert any(module._forward_hooks for module in model.modules())
    folded = fold_batch_norm(model)
    assert not any(map(has_statistics, folded.modules()))
    images = torch.rand(3, *SPEC.shape)
    torch.testing.assert_close(folded(images), model(images), rtol=1e-4, atol=1e-5)


class InPlace(nn.Module):
    """Changes what its BatchNorm layers give: by `+=`, a method, a function and a layer, some behind a view."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(5))
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(5))
        self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        first = self.norms[0](self.convs[0](x))
        first += x
        second = self.norms[1](self.convs[1](first)).view(first.shape).mul_(2.0)
        third = nn.functional.relu(self.norms[2](self.convs[2](second)), inplace=True)
        fourth = torch.relu_(self.norms[3](self.convs[3](third)))
        return self.head(self.relu(self.norms[4](self.convs[4](fourth))).mean((2, 3)))


def body_of(name: str) -> nn.Module:
    """A network of 8-pixel images of 3 channels and 5 classes."""
    match name:
        case "in place":
            return InPlace()
        case "before":
            return nn.Sequential(
                nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(288, 5)
            )
        case "plain":
            norm = nn.BatchNorm2d(8, affine=False)
            return nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(288, 5))
        case "rows":
            return nn.Sequential(nn.Flatten(), nn.Linear(192, 9), nn.BatchNorm1d(9), nn.ReLU(True), nn.Linear(9, 5))
    arch, depth = name.split()
    return build_model(ZooModel(arch=arch, width=4, depth=int(depth) or None), TINY).body


TINY = ImageSpec(3, 8, 8, 5)


def loss_and_slope(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """What a generator minimises, and its gradient by the images."""
    images = images.clone().requires_grad_()
    outputs = observe(model, images, statistics=True)
    loss = batch_norm(outputs.statistics) + one_hot(outputs.logits, torch.arange(len(images)) % 5)
    return loss.detach(), torch.autograd.grad(loss, images)[0]


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("convnet 0", 0),
        ("resnet 8", 0),
        ("wide_resnet 10", 3),
        ("slim 0", 0),
        ("in place", 0),
        ("before", 1),
        ("plain", 0),
        ("rows", 0),
    ],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_a_folded_network_tells_the_moments_that_came_into_its_batch_norms(
    name: str, left: int, dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(0)
    model = Classifier(body_of(name), TINY, (0.5,) * 3, (0.2,) * 3)
    lively(model)
    model.eval().to(dtype)
    folded = fold_batch_norm(model, statistics=True).to(dtype)
    assert norms(folded) == left
    images = torch.rand((6, *TINY.shape), dtype=dtype)
    before, after = (observe(one, images, statistics=True).statistics for one in (model, folded))
    assert list(after) == list(before)
    for path in before:
        torch.testing.assert_close(after[path], before[path], rtol=10 * tolerance, atol=10 * tolerance)
    (loss, slope), (expected, expected_slope) = (loss_and_slope(one, images) for one in (folded, model))
    torch.testing.assert_close(loss / expected, torch.ones_like(loss), rtol=0, atol=tolerance)
    scale = expected_slope.abs().max()
    torch.testing.assert_close(slope / scale, expected_slope / scale, rtol=0, atol=10 * tolerance)


def beside_a_bias_of_1(weight: float) -> Classifier:
    """A network, one channel of which has this BatchNorm weight."""
    model = Classifier(body_of("convnet 0"), TINY)
    lively(model)
    norm = model.get_submodule("body.stage1.1")
    assert isinstance(norm, nn.BatchNorm2d)
    norm.weight.data[1], norm.bias.data[1] = weight, 1.0
    return model.eval()


@pytest.mark.parametrize(("weight", "left"), [(0.0, 1), (1e-9, 1), (1e-4, 1), (-0.1, 0), (2e-3, 0)])
def test_a_batch_norm_with_a_weight_near_0_stays(weight: float, left: int) -> None:
    model = beside_a_bias_of_1(weight).double()
    folded = fold_batch_norm(model, statistics=True).double()
    assert norms(folded) == left
    assert norms(fold_batch_norm(model)) == 0, "without statistics nothing is lost"
    images = torch.rand((6, *TINY.shape), dtype=torch.float64)
    for one, other in zip(loss_and_slope(folded, images), loss_and_slope(model, images), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("weight", "left"), [(0.01, 1), (0.03, 0)])
def test_in_half_precision_less_is_near_0(weight: float, left: int) -> None:
    model = beside_a_bias_of_1(weight)
    assert norms(fold_batch_norm(model, statistics=True, in_half=True)) == left
    assert norms(fold_batch_norm(model, statistics=True)) == 0


def test_only_what_is_changed_in_place_is_copied() -> None:
    """A copy costs a pass over the map, which a sum of its own does not need."""

    def copies(name: str) -> list[str]:
        folded = fold_batch_norm(Classifier(body_of(name), TINY).eval(), statistics=True)
        return [path for path, module in folded.named_modules() if type(module).__name__ == "_Copy"]

    assert copies("convnet 0") == []
    assert copies("in place") == [f"body.norms.{i}.rest.0" for i in range(4)]
    network = build_model(ZooModel(arch="resnet", width=4, depth=8), TINY)
    lively(network)
    assert not any(type(module).__name__ == "_Copy" for module in fold_batch_norm(network, statistics=True).modules())


class Frozen(nn.Module):
    """As DETR has it: the four buffers, and eps in the code alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.1), ("running_var", 2.0)):
            self.register_buffer(name, torch.full((width,), value))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        return (x - self.running_mean[:, None, None]) * scale[:, None, None] + self.bias[:, None, None]


Frozen.__name__ = "FrozenBatchNorm2d"


@pytest.mark.parametrize("statistics", [False, True])
def test_a_frozen_layer_without_eps_is_left_as_it_is(statistics: bool) -> None:
    shape = ImageSpec(1, 8, 8, 10)
    body = nn.Sequential(nn.Conv2d(1, 4, 3), Frozen(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    model, images = Classifier(body, shape).eval(), torch.rand(3, *shape.shape)
    torch.testing.assert_close(fold_batch_norm(model, statistics=statistics)(images), model(images))
