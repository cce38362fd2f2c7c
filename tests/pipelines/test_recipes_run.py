"""Every recipe that comes with the package builds, from its data to its plan."""

from pathlib import Path

import pytest

from synthkd.errors import DataError
from synthkd.pipelines import compress, distill, generate
from synthkd.pipelines.config import CompressConfig, DistillConfig, GenerateConfig
from synthkd.pipelines.run.result import Plan
from synthkd.settings.load import load_config

RECIPES = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
JOBS = {
    "compress": (CompressConfig, compress, "export: onnx, int8, program"),
    "distill": (DistillConfig, distill, "student steps: "),
    "generate": (GenerateConfig, generate, "of each class"),
}


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
