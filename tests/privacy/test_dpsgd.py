"""DP-SGD keeps each part of its guarantee, and equals plain gradient descent where nothing is clipped or noised."""

import copy
import json
import sys
from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthkd.errors import CheckpointError, ConfigError, MissingExtraError, TrainingError
from synthkd.models import Classifier, build
from synthkd.privacy.dpsgd import (
    Mechanism,
    PoissonSource,
    PrivateLearner,
    plan_mechanism,
    statement,
)
from synthkd.privacy.journal import Journal
from synthkd.privacy.own_gradients import require_trainable
from synthkd.settings import AugmentSettings, DPSettings, OptimizerSettings, ZooModel
from synthkd.types import Batch, ImageSpec

pytest.importorskip("opacus")
pytest.importorskip("dp_accounting")

SPEC = ImageSpec(1, 8, 8, 4)
SGD = OptimizerSettings(kind="sgd", lr=1.0, momentum=0.0, schedule="constant")
CPU = torch.device("cpu")


def model(arch: Literal["convnet", "vit"] = "convnet", width: int = 4) -> Classifier:
    torch.manual_seed(0)
    return build(ZooModel(arch=arch, width=width, norm="group"), SPEC)


def images(count: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1)
    return torch.randint(256, (count, 1, 8, 8), dtype=torch.uint8, generator=rng), torch.arange(count) % 4


def batch(count: int) -> Batch:
    found, labels = images(count)
    return Batch(found.float() / 255.0, labels)


def mechanism(**changes: float) -> Mechanism:
    values = {"examples": 8, "sample_rate": 1.0, "noise_multiplier": 0.0, "clip": 1e6, "steps": 10, "delta": 1e-3}
    return Mechanism(**{**values, **changes}, insecure=False)  # type: ignore[arg-type]


def learner(module: nn.Module, of: Mechanism, journal: Journal | None = None, **dp: object) -> PrivateLearner:
    settings = DPSettings.model_validate({"noise_multiplier": of.noise_multiplier, **dp})
    return PrivateLearner("teacher", module, SGD, of, settings, CPU, journal or Journal(None))


def moved(before: nn.Module, after: nn.Module) -> Tensor:
    pairs = zip(before.parameters(), after.parameters(), strict=True)
    return torch.cat([(b - a).detach().flatten() for a, b in pairs])


@pytest.mark.parametrize("physical", [256, 3])
def test_without_clipping_and_noise_it_is_gradient_descent_however_the_batch_is_cut(physical: int) -> None:
    ours, plain = model(), model()
    start = copy.deepcopy(plain)
    learner(ours, mechanism(), physical_batch=physical).update(lambda: batch(8), F.cross_entropy, 0)
    F.cross_entropy(plain(batch(8).images), batch(8).labels).backward()
    gradient = torch.cat([p.grad.flatten() for p in plain.parameters() if p.grad is not None])
    assert torch.allclose(moved(start, ours), -gradient, atol=1e-5)
    assert gradient.norm() > 0.1


def test_an_example_moves_the_weights_by_its_clipped_gradient_at_most() -> None:
    ours, start = model(), model()
    learner(ours, mechanism(clip=0.01)).update(lambda: batch(1), F.cross_entropy, 0)
    assert float(moved(start, ours).norm()) == pytest.approx(0.01 / 8, rel=1e-4), "over the expected batch size"


@pytest.mark.parametrize("arch", ["convnet", "vit"])
def test_the_noise_has_the_stated_size_and_comes_with_an_empty_batch_too(arch: Literal["convnet", "vit"]) -> None:
    ours, start = model(arch, 24), model(arch, 24)  # so many numbers that the bound is 10 standard deviations away
    learner(ours, mechanism(noise_multiplier=3.0, clip=2.0)).update(lambda: batch(0), F.cross_entropy, 0)
    assert float(moved(start, ours).std()) == pytest.approx(3.0 * 2.0 / 8, rel=0.05)


def test_noise_of_the_operating_system_differs_and_that_of_a_test_does_not() -> None:
    def once(**dp: object) -> Tensor:
        module = model()
        learner(module, mechanism(noise_multiplier=1.0, clip=1.0), **dp).update(lambda: batch(4), F.cross_entropy, 0)
        return torch.cat([p.detach().flatten() for p in module.parameters()])

    assert not torch.equal(once(), once())
    assert torch.equal(once(test_seed=1), once(test_seed=1))
    assert not torch.equal(once(test_seed=1), once(test_seed=2))


def test_batches_are_drawn_by_independent_coins() -> None:
    found, labels = images(400)
    of = mechanism(examples=400, sample_rate=0.1)
    entropy = learner(model(), of).entropy("batch")
    source = PoissonSource(found, labels, of, AugmentSettings(), entropy, CPU)
    sizes = torch.tensor([float(len(source.batch(0))) for _ in range(200)])
    # the entropy is that of the operating system: both bounds are 6 standard deviations or more away
    assert float(sizes.mean()) == pytest.approx(40, abs=3)
    assert float(sizes.var()) == pytest.approx(400 * 0.1 * 0.9, rel=0.65), "binomial: a fixed size would have none"


def test_every_step_is_charged_before_it_is_taken_and_a_resumed_run_charges_them_all(tmp_path: Path) -> None:
    first = learner(model(), mechanism(), Journal(tmp_path))
    state = None
    for step in range(5):
        first.update(lambda: batch(4), F.cross_entropy, step)
        if step == 2:
            state = copy.deepcopy(first.state_dict())
    assert state is not None
    again = learner(model(), mechanism(), Journal(tmp_path))
    again.load_state_dict(state)
    again.update(lambda: batch(4), F.cross_entropy, 3)
    assert again.ledger.to_json()[0]["steps"] == 6, "5 before the kill, of which 2 were lost, and 1 after"

    def fails(_logits: Tensor, _labels: Tensor) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        again.update(lambda: batch(4), fails, 4)
    assert Journal(tmp_path).steps == 7


def test_a_checkpoint_that_knows_of_more_steps_than_the_journal_is_not_gone_on_from(tmp_path: Path) -> None:
    first = learner(model(), mechanism(), Journal(tmp_path))
    for step in range(3):
        first.update(lambda: batch(4), F.cross_entropy, step)
    state = first.state_dict()
    fresh = learner(model(), mechanism(), Journal(tmp_path / "lost"))
    with pytest.raises(CheckpointError, match="steps: 3 taken, 0 written down"):
        fresh.load_state_dict(state)
    with pytest.raises(CheckpointError, match="does not say how many private steps"):
        fresh.load_state_dict({"module": {}})


def test_a_batch_is_drawn_once_its_step_is_charged(tmp_path: Path) -> None:
    def draw() -> Batch:
        assert Journal(tmp_path).steps == 1
        return batch(4)

    learner(model(), mechanism(), Journal(tmp_path)).update(draw, F.cross_entropy, 0)


def test_the_budget_is_kept_by_the_planned_steps_and_broken_by_more() -> None:
    settings = DPSettings(epsilon=3.0, delta=1e-4)
    planned = plan_mechanism(settings, examples=1000, batch_size=100, steps=20)
    assert planned.sample_rate == 0.1
    ours = PrivateLearner("teacher", model(), SGD, planned, settings, CPU, Journal(None))
    for step in range(20):
        ours.update(lambda: batch(2), F.cross_entropy, step)
    spent = ours.spent()
    assert 2.9 < spent.pld <= 3.0
    claim = statement(planned, ours.ledger, spent)
    assert json.loads(json.dumps(claim))["epsilon"] == spent.pld
    assert not claim["insecure"]
    assert (claim["examples"], claim["sample_rate"], claim["steps_planned"], claim["clip"]) == (1000, 0.1, 20, 1.0)
    assert claim["noise_multiplier"] == planned.noise_multiplier
    ours.update(lambda: batch(2), F.cross_entropy, 20)
    assert ours.spent().pld > 3.0


def test_no_noise_claims_nothing() -> None:
    of = mechanism()
    ours = learner(model(), of)
    ours.update(lambda: batch(2), F.cross_entropy, 0)
    assert statement(of, ours.ledger, ours.spent())["epsilon"] is None


def test_without_opacus_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opacus", None)
    with pytest.raises(MissingExtraError, match=r"training.dp needs .*: pip install 'synthkd\[dp\]'"):
        learner(model(), mechanism())


def test_layers_in_place_work_out_of_place() -> None:
    def module(inplace: bool) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(inplace), nn.Linear(8, 4))

    ours, same = module(True), module(False)
    for each in (ours, same):
        learner(each, mechanism()).update(lambda: batch(8), F.cross_entropy, 0)
    assert torch.equal(moved(ours, same), torch.zeros(556))


class Counting(nn.Module):
    """A model with a buffer that sees its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 4)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += x.sum()
        y: Tensor = self.linear(x.flatten(1))
        return y


def test_what_would_leak_past_the_noise_is_refused_in_a_line() -> None:
    torch.manual_seed(0)
    with pytest.raises(ConfigError, match=r"stage1\.1 is a BatchNorm.*set model\.norm=group"):
        require_trainable(build(ZooModel(arch="convnet", width=4), SPEC))
    with pytest.raises(ConfigError, match="turn track_running_stats off"):
        require_trainable(nn.InstanceNorm2d(3, track_running_stats=True))
    clipped = SGD.model_copy(update={"clip": 1.0})
    with pytest.raises(ConfigError, match=r"set training\.dp\.clip"):
        PrivateLearner("t", model(), clipped, mechanism(), DPSettings(noise_multiplier=1.0), CPU, Journal(None))
    with pytest.raises(ConfigError, match="delta must be above 0 and below 1 / 1000"):
        plan_mechanism(DPSettings(epsilon=1.0, delta=0.01), 1000, 10, 10)
    with pytest.raises(ConfigError, match="take fewer"):
        plan_mechanism(DPSettings(epsilon=1.0), 100, 101, 10)
    with pytest.raises(TrainingError, match="buffer seen changed in training, which no noise covers"):
        learner(Counting(), mechanism()).update(lambda: batch(2), F.cross_entropy, 0)


def test_settings_have_a_budget_or_a_noise() -> None:
    for values in ({}, {"epsilon": 1.0, "noise_multiplier": 1.0}):
        with pytest.raises(ValueError, match="one of the two"):
            DPSettings.model_validate(values)


def test_a_finished_model_is_an_ordinary_one() -> None:
    ours = learner(model(), mechanism())
    ours.update(lambda: batch(4), F.cross_entropy, 0)
    finished = ours.finished()
    assert set(finished.state_dict()) == set(model().state_dict())
    assert all(not hasattr(p, "grad_sample") and p.grad is None for p in finished.parameters())
    finished(batch(2).images).sum().backward()
    assert all(not hasattr(p, "grad_sample") for p in finished.parameters())
