"""The recipes of published methods: each builds as it ships, and takes real steps."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synthkd.pipelines import distill, teach
from synthkd.pipelines.config import DistillConfig, TeachConfig
from synthkd.pipelines.config.recipes import find_config, recipes
from synthkd.pipelines.run.result import Plan, Result
from synthkd.pipelines.student import timing
from synthkd.settings.load import load_config

NAMES = [recipe.name for recipe in recipes() if recipe.name.startswith("methods/")]
ON_DIGITS = [name for name in NAMES if "/gpu/" not in name]
METHODS = {"cmi", "dafl", "deepinversion", "dfad", "dfq", "fastdfkd", "nayer", "sre2l", "zskt"}


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dry runs that take no steps for time and memory, which would take seconds for each recipe."""
    monkeypatch.setattr(timing, "measured", lambda *_: [])
    monkeypatch.setattr(sys.modules["synthkd.pipelines.distill"], "planned_lines", lambda *_: ())


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small teacher of digits."""
    source: dict[str, Any] = {
        "data": {"kind": "digits"},
        "model": {"arch": "convnet", "width": 4},
        "training": {"steps": 40, "batch_size": 64},
        "device": "cpu",
    }
    finished = teach(load_config(TeachConfig, source, [f"out={tmp_path_factory.mktemp('teacher') / 'run'}"]))
    assert isinstance(finished, Result)
    return str(finished.directory)


def test_every_method_has_a_recipe_that_can_be_named() -> None:
    assert {name.removeprefix("methods/") for name in ON_DIGITS} == METHODS
    assert find_config("methods/dafl", "distill").name == "dafl.yaml"


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("name", ON_DIGITS)
def test_it_builds_as_it_ships(name: str) -> None:
    plan = distill(load_config(DistillConfig, find_config(name, "distill"), ["device=cpu"]), dry_run=True)
    assert isinstance(plan, Plan)
    assert "real images: none" in str(plan)
    assert "freshly initialised" in str(plan)


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("name", [name for name in NAMES if "/gpu/" in name])
def test_those_for_a_gpu_build_on_stand_ins_for_their_data(name: str, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (200, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "cifar100.npz", images=images, labels=np.arange(200) % 100)
    data = f"{{kind: npz, path: {tmp_path / 'cifar100.npz'}}}"
    overrides = ["device=cpu", f"teacher.data={data}", f"test={data}", "transfer_set.generator.width=4"]
    plan = str(distill(load_config(DistillConfig, find_config(name, "distill"), overrides), dry_run=True))
    assert "3x32x32 images, 100 classes" in plan
    # WRN-40-2 and WRN-16-1 of CIFAR-100, less the paper's shortcut of the student's first block.
    assert "teacher: 2,255,156 parameters" in plan
    assert "student: 180,916 parameters" in plan


@pytest.mark.parametrize("name", ON_DIGITS)
def test_it_takes_real_steps(name: str, teacher: str, tmp_path: Path) -> None:
    path = find_config(name, "distill")
    generator = load_config(DistillConfig, path, ["device=cpu"]).generated
    assert generator is not None
    alone = "pregenerate" in path.read_text(encoding="utf-8")
    phases = ["phases.0.rounds=2", "phases.1.steps=2"] if alone else ["phases.0.steps=2"]
    small = ["transfer_set.generator.batch_size=20", "distill.batch_size=16"]
    small += [f"transfer_set.generator.steps={min(2, getattr(generator.named, 'steps', 1))}"]
    if hasattr(generator.named, "width"):
        small.append("transfer_set.generator.width=4")
    networks = [f"teacher={{kind: load, model: {teacher}}}", "student={arch: convnet, width: 2}", "device=cpu"]
    finished = distill(load_config(DistillConfig, path, [*networks, *small, *phases, f"out={tmp_path / 'run'}"]))
    assert isinstance(finished, Result)
    assert finished.values["cost"]["steps"] == 2
    assert finished.values["student"]["accuracy"] is not None
