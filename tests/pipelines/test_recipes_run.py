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
