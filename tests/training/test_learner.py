"""One optimiser step: what it refuses, and that averages and resumes are exact."""

import math

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from synthkd.errors import ModelError, TrainingError
from synthkd.losses.objective import Loss
from synthkd.settings import OptimizerSettings
from synthkd.training.ema import WeightAverage
from synthkd.training.learner import Learner


def make(scaler: torch.amp.GradScaler | None = None, **settings: object) -> Learner:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    options = {"schedule": "constant", "lr": 0.1, **settings}
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = scaler
    return Learner("student", module, OptimizerSettings(**options), 10, accelerator)  # type: ignore[arg-type]


def loss_of(learner: Learner, step: int, factor: float = 1.0) -> Loss:
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
    total = factor * learner.model(x).square().mean()
    return Loss(total, {"square": total})


def weights(learner: Learner) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in learner.module.parameters()]).clone()


def test_a_frozen_network_is_refused_also_beside_helpers_that_learn() -> None:
    frozen, accelerator = nn.Linear(2, 2).requires_grad_(False), Accelerator(cpu=True)
    for helpers in (None, nn.Linear(2, 2)):
        with pytest.raises(ModelError, match=r"the student has no parameter that requires a gradient; call"):
            Learner("student", frozen, OptimizerSettings(), 10, accelerator, helpers)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_and_changes_nothing(bad: float) -> None:
    learner = make()
    before = weights(learner)
    with pytest.raises(TrainingError, match=r"student: the loss is not finite at step 7 \(square=(nan|inf)\); lower"):
        learner.update(loss_of(learner, 7, bad), 7)
    assert torch.equal(weights(learner), before)


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change() -> None:
    learner = make()
    before = weights(learner)
    root = (learner.model(torch.ones(4, 3)) * 0).sum().abs().sqrt()  # 0, with the derivative 0/0
    with pytest.raises(TrainingError, match="gradient of root is not finite at step 2"):
        learner.update(Loss(root, {"root": root}), 2)
    assert torch.equal(weights(learner), before)


def test_with_a_scaler_a_gradient_that_is_finite_at_no_scale_stops() -> None:
    learner = make(torch.amp.GradScaler("cpu", init_scale=4.0))
    before = weights(learner)
    for step in range(4):
        root = (learner.model(torch.ones(4, 3)) * 0).sum().abs().sqrt()
        loss = Loss(root, {"root": root})
        if step < 3:  # skipped, at the scales 4, 2 and 1
            assert not math.isfinite(learner.update(loss, step)["student/gradient_norm"])
        else:
            with pytest.raises(TrainingError, match="gradient of root is not finite at step 3"):
                learner.update(loss, step)
        assert torch.equal(weights(learner), before)


def test_clip_bounds_the_step_of_plain_sgd() -> None:
    learner = make(kind="sgd", momentum=0.0, clip=0.5)
    before = weights(learner)
    logged = learner.update(loss_of(learner, 0, 1e6), 0)
    assert float(logged["student/gradient_norm"]) > 1.0
    assert float((weights(learner) - before).norm()) == pytest.approx(0.1 * 0.5, rel=1e-4)


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_five_and_five_resumed_equal_ten(kind: str) -> None:
    straight, first, second = (make(kind=kind, ema=0.9, schedule="cosine") for _ in range(3))
    for step in range(10):
        straight.update(loss_of(straight, step), step)
    for step in range(5):
        first.update(loss_of(first, step), step)
    second.load_state_dict(first.state_dict())
    for step in range(5, 10):
        second.update(loss_of(second, step), step)
    assert torch.equal(weights(straight), weights(second))
    for a, b in zip(straight.evaluated.state_dict().values(), second.evaluated.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_average_follows_its_formula() -> None:
    module = nn.Linear(1, 1, bias=False)
    average = WeightAverage(module, 0.5)
    expected = None
    for n, value in enumerate([4.0, 8.0, -2.0, 1.0, 1.0]):
        with torch.no_grad():
            module.weight.fill_(value)
        average.update(module)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = value if expected is None else decay * expected + (1 - decay) * value
    assert float(average.module.weight.detach()) == pytest.approx(expected, rel=1e-6)  # type: ignore[arg-type]


def test_biases_are_not_decayed() -> None:
    learner = make(kind="sgd", momentum=0.0, weight_decay=0.1)
    nothing = sum((p * 0).sum() for p in learner.module.parameters())
    with torch.no_grad():
        for p in learner.module.parameters():
            p.fill_(1.0)
    learner.update(Loss(nothing, {"nothing": nothing}), 0)  # type: ignore[arg-type]
    values = {p.ndim: float(p.detach().flatten()[0]) for p in learner.module.parameters()}
    assert values[1] == 1.0
    assert values[2] == pytest.approx(1.0 - 0.1 * 0.1)
