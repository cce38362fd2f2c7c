"""Every recipe that comes with the package builds, from its data to its plan."""

from pathlib import Path

import pytest

from synthkd.configuration import load_config
from synthkd.errors import DataError
from synthkd.pipelines import distill
from synthkd.pipelines.config import DistillConfig
from synthkd.pipelines.run import Plan

RECIPES = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_builds(recipe: Path) -> None:
    config = load_config(DistillConfig, recipe, ["device=cpu"])
    try:
        plan = distill(config, dry_run=True)
    except DataError as error:
        if "fashion" in str(error).lower():
            pytest.skip(f"its dataset is not installed here: {error}")
        raise
    assert isinstance(plan, Plan)
    assert "of the teacher's" in str(plan)
