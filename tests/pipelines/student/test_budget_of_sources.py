"""A budget with images of every kind of source: all works of such a run are measured, and the run follows its plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from synthkd.data.read.real import load_splits
from synthkd.models import build, save
from synthkd.pipelines import distill, generate
from synthkd.pipelines.config import DistillConfig, GenerateConfig
from synthkd.pipelines.distill import Distilled
from synthkd.pipelines.run.result import Plan
from synthkd.pipelines.run.timing import Timed
from synthkd.pipelines.student import budget, timing
from synthkd.settings import DigitsData, Refine, ZooModel
from synthkd.settings.load import load_config
from synthkd.types import ImageSpec
from tests.faults.test_budget import Still

RECIPE: dict[str, Any] = {
    "student": {"arch": "convnet", "width": 4},
    "distill": {"batch_size": 16},
    "test": {"kind": "digits"},
    "phases": [{"kind": "refine", "steps": 4}],
    "evaluate_every": 10,
    "device": "cpu",
}


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """All works are done, and a step or a test takes a second of a clock that stands still; the rest takes nothing."""

    def measure(*arguments: Any, **options: Any) -> Sequence[Timed]:
        timed = timing.distill_time(*arguments, **options)
        return [replace(one, seconds=1.0 if one.name in ("steps", "tests") else 0.0) for one in timed]

    monkeypatch.setattr(budget, "time", Still)
    monkeypatch.setattr(budget, "MOST_PASSES", 2)
    monkeypatch.setattr(budget, "distill_time", measure)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("teacher") / "model"
    save(build(ZooModel(arch="convnet", width=4), ImageSpec(1, 8, 8, 10)).eval(), path)
    return {"kind": "load", "model": str(path)}


@pytest.fixture(scope="module")
def there(teacher: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated dataset in `made`, a file that arrived in `arriving`, pictures in `pictures`."""
    top = tmp_path_factory.mktemp("there")
    generator = {"width": 4, "latent": 8, "batch_size": 20, "steps": 1}
    source = {"teacher": teacher, "generator": generator, "rounds": 1, "per_class": 4, "device": "cpu"}
    generate(load_config(GenerateConfig, source, [f"out={top / 'made'}"]))
    train = load_splits(DigitsData(kind="digits")).train
    (top / "arriving").mkdir()
    images = train.images[torch.arange(60)].permute(0, 2, 3, 1).numpy()
    np.savez(top / "arriving" / "001.npz", images=images, labels=train.labels[:60].numpy())
    return top


SOURCES: dict[str, Any] = {
    "stored": {"kind": "stored", "path": "made"},
    "real": {"kind": "real", "data": {"kind": "digits"}},
    "a stream": {"kind": "real", "data": {"kind": "stream", "path": "arriving"}},
}


@pytest.mark.parametrize(
    ("kind", "logits"), [(kind, "fresh") for kind in SOURCES] + [("stored", "stored"), ("real", "stored")]
)
def test_a_run_fills_its_budget_without_a_generator(
    teacher: dict[str, Any], there: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, logits: str
) -> None:
    monkeypatch.chdir(there)
    recipe = RECIPE | {"teacher": teacher, "transfer_set": SOURCES[kind], "mix": {"logits": logits}}
    config = load_config(DistillConfig, recipe, ["budget=23s"])
    # Tests after 10 and after 20 steps; a step more would need a third one.
    plan = distill(config, dry_run=True)
    assert isinstance(plan, Plan)
    assert "  budget: 23s, planned 22 s, 0 s of them measuring" in plan.lines
    result = distill(config.model_copy(update={"out": str(tmp_path / "run")}))
    assert isinstance(result, Distilled)
    assert load_config(DistillConfig, tmp_path / "run/config.yaml", []).phases == (Refine(kind="refine", steps=20),)
    assert result.content.cost.steps == 20
    again = load_config(DistillConfig, recipe, ["budget=23s", f"out={tmp_path / 'run'}"])
    assert "was complete already" in str(distill(again))
