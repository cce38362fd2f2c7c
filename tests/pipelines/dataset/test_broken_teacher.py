"""`generate` finds a broken teacher before it makes an image, as `distill` does."""

import sys
from pathlib import Path
from typing import Any

import pytest

from synthkd.errors import ModelError
from synthkd.pipelines import generate
from synthkd.pipelines.config import GenerateConfig
from synthkd.pipelines.run.result import Plan, Result
from synthkd.settings.load import load_config

CODE = """
import torch
from torch import nn


def built(*last):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3), *last)


def sigmoid():
    return built(nn.Sigmoid())


def relu():
    network = built(nn.ReLU())
    network[1].bias.data += 1.0
    return network


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = built()

    def forward(self, images):
        return self.inner(images.detach())


class Unnamed(nn.Module):
    def __init__(self, holds):
        super().__init__()
        holds(self, torch.randn(3, 64, generator=torch.Generator().manual_seed(0)))

    def forward(self, images):
        return nn.functional.linear(images.flatten(1), self.v)


def parameter():
    return Unnamed(lambda network, v: setattr(network, "v", nn.Parameter(v)))


def buffer():
    return Unnamed(lambda network, v: network.register_buffer("v", v))
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_nets.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "broken_nets", raising=False)


def config(function: str, generator: dict[str, Any], out: Path, **more: Any) -> GenerateConfig:
    teacher = {"kind": "load", "model": f"broken_nets:{function}", "channels": 1, "size": 8, "classes": 3}
    recipe = {"teacher": teacher, "generator": generator, "per_class": 2, "device": "cpu", **more}
    return load_config(GenerateConfig, recipe, [f"out={out}"])


INVERSION: dict[str, Any] = {"rounds": 2, "generator": {"kind": "inversion", "batch_size": 4, "width": 4, "latent": 4}}
PIXELS: dict[str, Any] = {"generator": {"kind": "pixels", "batch_size": 4, "steps": 2}}


@pytest.mark.parametrize("recipe", [INVERSION, PIXELS])
@pytest.mark.parametrize(("function", "message"), [("sigmoid", "sigmoid"), ("Detached", "gradient")])
@pytest.mark.parametrize("dry_run", [True, False])
def test_it_is_refused(tmp_path: Path, recipe: dict[str, Any], function: str, message: str, dry_run: bool) -> None:
    with pytest.raises(ModelError, match=message):
        generate(config(function, out=tmp_path / "run", **recipe), dry_run=dry_run)
    assert not (tmp_path / "run" / "dataset").exists()


def test_an_odd_one_is_a_warning_in_plan_and_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plan = generate(config("relu", out=tmp_path / "run", **PIXELS), dry_run=True)
    (line,) = [line for line in str(plan).splitlines() if line.startswith("  warning: ")]
    assert "never negative" in line
    generate(config("relu", out=tmp_path / "run", **PIXELS))
    assert line.removeprefix("  warning: ") in [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("function", ["parameter", "buffer"])
def test_a_network_without_a_last_layer_or_parameters_labels_images(tmp_path: Path, function: str) -> None:
    recipe = {**INVERSION, "generator": {**INVERSION["generator"], "batch_norm": 0}}
    plan = generate(config(function, out=tmp_path / "run", **recipe), dry_run=True)
    assert isinstance(plan, Plan)
    assert plan.time is not None
    assert "statistics" not in {one.name for one in plan.time.timed}
    result = generate(config(function, out=tmp_path / "run", **recipe))
    assert isinstance(result, Result)
    assert (result.content.dataset.count, result.content.dataset.scores.vendi) == (6, None)
