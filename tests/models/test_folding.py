"""A folded network gives the same logits with fewer layers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

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
            for tensor in (m.running_mean, m.bias):
                tensor.data.uniform_(-1, 1, generator=generator)
            for tensor in (m.running_var, m.weight):
                tensor.data.uniform_(0.5, 2, generator=generator)


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
