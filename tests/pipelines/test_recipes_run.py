"""Every recipe that comes with the package builds, from its data to its plan."""

from pathlib import Path

import numpy as np
import pytest
import torch

from synthkd.data.read import named
from synthkd.errors import DataError
from synthkd.models import build
from synthkd.pipelines import compress, distill, generate
from synthkd.pipelines.config import CompressConfig, DistillConfig, GenerateConfig
from synthkd.pipelines.run.result import Plan
from synthkd.pipelines.student import timing
from synthkd.settings import ZooModel
from synthkd.settings.load import load_config
from synthkd.types import ImageSpec

RECIPES = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
JOBS = {
    "compress": (CompressConfig, compress, "export: onnx, int8, program"),
    "distill": (DistillConfig, distill, "student steps: "),
    "generate": (GenerateConfig, generate, "of each class"),
}


@pytest.fixture
def cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the recipes of CIFAR-10 read: 500 images of noise in each file, and an untrained public teacher."""
    monkeypatch.setattr(named, "_BINARY_IMAGES", 500)
    folder = tmp_path / "data" / named.CIFAR10_BINARY
    folder.mkdir(parents=True)
    for number, name in enumerate(named._BINARY_BATCHES):
        records = np.random.default_rng(number).integers(0, 256, (500, 3073), dtype=np.uint8)
        records[:, 0] = np.arange(500) % 10
        (folder / name).write_bytes(records.tobytes())
    torch.manual_seed(0)
    public = build(ZooModel(arch="resnet", depth=20, width=16, shortcut="pad"), ImageSpec(3, 32, 32, 10))
    torch.save(public.body.state_dict(), tmp_path / "resnet20-12fca82f.th")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dry runs that take no steps, which would take seconds for each recipe."""
    monkeypatch.setattr(timing, "measured", lambda *_: [])


@pytest.mark.usefixtures("cifar10", "unmeasured")
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_builds(recipe: Path) -> None:
    settings, job, words = JOBS[recipe.read_text(encoding="utf-8").removeprefix("# ").partition(":")[0]]
    config = load_config(settings, recipe, ["device=cpu"])
    try:
        plan = job(config, dry_run=True)
    except DataError as error:
        if "fashion" in str(error).lower():
            pytest.skip(f"its dataset is not installed here: {error}")
        raise
    assert isinstance(plan, Plan)
    assert words in str(plan)


@pytest.mark.usefixtures("unmeasured")
def test_online_distillation_has_all_of_its_systems_on() -> None:
    config = load_config(DistillConfig, RECIPES[0].with_name("online_digits.yaml"), ["device=cpu"])
    plan = str(distill(config, dry_run=True))
    assert "swap: peer 1 teaches at first" in plan
    assert "adapts: weights, who teaches" in plan
    # The copy of the teacher does not learn from a student that has learned nothing yet.
    assert "term mutual: weight 0 to 1 (linear), the others' answers," in plan
    assert config.generated is not None
    assert config.generated.bank.policy == "prioritized"
    assert config.online is not None
    optimizers = [config.distill.optimizer, *(peer.optimizer for peer in config.online.peers)]
    assert all(optimizer is not None and optimizer.ema for optimizer in optimizers)
