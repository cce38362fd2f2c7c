"""Hooks see what a brute-force computation sees, and leave nothing behind."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from synthkd.errors import ModelError
from synthkd.models import Classifier, build, head, stages
from synthkd.settings import ZooModel
from synthkd.taps import Taps, evaluating, frozen, has_statistics, observe
from synthkd.types import ImageSpec

SPEC = ImageSpec(1, 8, 8, 4)


@pytest.fixture
def model() -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built = build(ZooModel(arch="convnet", width=4), SPEC)
        for norm in built.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.uniform_(-1, 1)
                norm.running_var.uniform_(0.5, 2)
    return built.eval()


@pytest.fixture
def images() -> Tensor:
    return torch.rand((5, 1, 8, 8), generator=torch.Generator().manual_seed(1))


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_features_are_the_outputs_and_inputs_of_modules(model: Classifier, images: Tensor) -> None:
    out = observe(model, images, ["body.stage1", "body.head:input"])
    x = model.normalize(images)
    by_hand = {}
    for name, child in model.body.named_children():
        by_hand[f"{name}:input"] = x
        x = child(x)
        by_hand[name] = x
    assert list(out.features) == ["body.stage1", "body.head:input"]
    assert torch.equal(out.logits, model(images))
    assert torch.equal(out.features["body.stage1"], by_hand["stage1"])
    assert torch.equal(out.features["body.head:input"], by_hand["head:input"])
    assert out.statistics == {}
    assert hooks(model) == 0


def test_statistics_equal_brute_force_with_gradient(model: Classifier, images: Tensor) -> None:
    images.requires_grad_()
    out = observe(model, images, statistics=True)
    assert list(out.statistics) == ["body.stage1.1", "body.stage2.1", "body.stage3.1"]
    for path, seen in out.statistics.items():
        norm = model.get_submodule(path)
        x = observe(model, images, [f"{path}:input"]).features[f"{path}:input"].transpose(0, 1).flatten(1)
        torch.testing.assert_close(seen.mean, torch.stack([c.sum() / c.numel() for c in x]))
        torch.testing.assert_close(seen.var, torch.stack([((c - c.mean()) ** 2).sum() / c.numel() for c in x]))
        assert torch.equal(seen.running_mean, norm.running_mean)
        assert torch.equal(seen.running_var, norm.running_var)
        slow = torch.autograd.grad((x.mean(1) ** 2).sum() + (x.var(1, correction=0) ** 3).sum(), images)[0]
        quick = torch.autograd.grad((seen.mean**2).sum() + (seen.var**3).sum(), images, retain_graph=True)[0]
        torch.testing.assert_close(quick, slow)


@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 5)])
def test_statistics_of_batch_norm_1d(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3 + 100
    seen = observe(nn.Sequential(nn.BatchNorm1d(3)).eval(), x, statistics=True).statistics["0"]
    over = [d for d in range(x.dim()) if d != 1]
    torch.testing.assert_close(seen.mean, x.double().mean(over).float())
    torch.testing.assert_close(seen.var, x.double().var(over, correction=0).float())


def test_a_frozen_norm_has_statistics_whatever_its_class(images: Tensor) -> None:
    from torchvision.ops import FrozenBatchNorm2d

    net = nn.Sequential(nn.Conv2d(1, 3, 3), FrozenBatchNorm2d(3), nn.Conv2d(3, 3, 3), nn.SyncBatchNorm(3)).eval()
    net[1].running_mean.uniform_(-1, 1)
    seen = observe(net, images, statistics=True).statistics
    assert list(seen) == ["1", "3"]
    torch.testing.assert_close(seen["1"].mean, net[0](images).mean((0, 2, 3)))
    assert torch.equal(seen["1"].running_mean, net[1].running_mean)


def test_running_statistics_are_those_before_a_training_pass(model: Classifier, images: Tensor) -> None:
    before = model.body.stage1[1].running_mean.clone()
    seen = observe(model.train(), images, statistics=True).statistics["body.stage1.1"]
    assert torch.equal(seen.running_mean, before)
    assert not torch.equal(model.body.stage1[1].running_mean, before)


def test_layers_without_running_statistics_are_left_out() -> None:
    net = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.BatchNorm1d(3)).eval()
    assert list(observe(net, torch.rand(4, 3), statistics=True).statistics) == ["1"]


def test_moments_of_single_images_are_no_statistics() -> None:
    assert not has_statistics(nn.InstanceNorm2d(3, track_running_stats=True))


def test_a_loop_sets_hooks_once_and_takes_them_off(model: Classifier, images: Tensor) -> None:
    with Taps(model, stages(model), statistics=True) as taps:
        during = hooks(model)
        first, second = taps(images), taps(images * 0.5)
        assert during == hooks(model) == 6
        model(images)  # a pass of one's own inside is none of the taps' business
    assert hooks(model) == 0
    assert not torch.equal(first.features["body.stage1"], second.features["body.stage1"])
    assert torch.equal(first.features["body.stage1"], observe(model, images, ["body.stage1"]).features["body.stage1"])


def test_hooks_are_gone_after_errors(model: Classifier, images: Tensor) -> None:
    with pytest.raises(ModelError, match="images must be float32"):
        observe(model, images[:, :, :7], stages(model), statistics=True)
    assert hooks(model) == 0
    with pytest.raises(KeyError), Taps(model, stages(model)):
        raise KeyError
    assert hooks(model) == 0


def test_mode_and_gradients_are_left_alone(model: Classifier, images: Tensor) -> None:
    model.train()
    model.body.stage2.eval()
    model.body.head.requires_grad_(False)
    modes = [m.training for m in model.modules()]
    grads = [p.requires_grad for p in model.parameters()]
    observe(model, images, stages(model), statistics=True)
    assert modes == [m.training for m in model.modules()]
    assert grads == [p.requires_grad for p in model.parameters()]


def test_a_wrong_path_names_the_closest(model: Classifier, images: Tensor) -> None:
    with pytest.raises(ModelError, match=r"no module 'body\.stage9'; the closest are: .*body\.stage1"):
        observe(model, images, ["body.stage9"])


def test_what_cannot_be_a_feature_is_refused(images: Tensor) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.idle = nn.Identity()
            self.recurrent = nn.GRU(8, 8, batch_first=True)
            self.norm = nn.BatchNorm1d(8)
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            y, _ = self.recurrent(x[:, 0])
            return self.relu(self.norm(y))

    odd = Odd().eval()
    for name, message in [("idle", "did not run"), ("recurrent", "gives a tuple"), ("norm", "overwritten in place")]:
        with pytest.raises(ModelError, match=message):
            observe(odd, images, [name])
    with torch.inference_mode():
        assert observe(odd, images, ["relu"]).features["relu"].shape == (5, 8, 8)


def test_evaluating_and_frozen_restore_each_flag(model: Classifier, images: Tensor) -> None:
    model.train()
    model.body.stage2[1].eval()
    model.body.head.bias.requires_grad_(False)
    modes = [m.training for m in model.modules()]
    grads = [p.requires_grad for p in model.parameters()]
    with evaluating(model, model.body), frozen(model, model.body.head):
        assert not any(m.training for m in model.modules())
        assert not any(p.requires_grad for p in model.parameters())
        images.requires_grad_()
        model(images).sum().backward()
        assert images.grad is not None
    assert modes == [m.training for m in model.modules()]
    assert grads == [p.requires_grad for p in model.parameters()]
    with pytest.raises(KeyError), evaluating(model), frozen(model):
        raise KeyError
    assert modes == [m.training for m in model.modules()]
    assert grads == [p.requires_grad for p in model.parameters()]


def test_penultimate_features_give_the_logits(model: Classifier, images: Tensor) -> None:
    out = observe(model, images, [f"{head(model)}:input"])
    last = model.get_submodule(head(model))
    assert torch.equal(last(out.features["body.head:input"]), out.logits)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_program_has_no_statistics_that_can_be_seen() -> None:
    program = torch.jit.trace(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).eval(), torch.zeros(1, 1, 8, 8))
    assert not any(has_statistics(module) for module in program.modules())
    out = observe(program, torch.rand(2, 1, 8, 8), statistics=True)
    assert out.statistics == {}
