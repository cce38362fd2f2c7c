"""The table of the articles' systems: every name in it is a class or a function of the package, or a recipe."""

import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest

from synthkd.pipelines.config import CompressConfig, DistillConfig
from synthkd.settings.load import load_config

TOP = Path(__file__).resolve().parents[1]
CONFIGS = TOP / "configs"
TABLE = (TOP / "docs" / "article.md").read_text(encoding="utf-8")
RECIPES = (TOP / "docs" / "recipes.md").read_text(encoding="utf-8")
ROWS = [line.split("|")[1:-1] for line in TABLE.splitlines() if line.startswith("| ")][1:]
SYSTEMS = (
    "DistillationLoss", "HybridDataset", "MemoryBank", "DifficultyScheduler", "SNCGAN", "Progressive diffusion",
    "OnlineDistiller", "Role swapping", "TemperatureScheduler", "PrioritizedReplay", "DiffAdapter",
    "HeterogeneousDistiller", "DynamicWidthRegulator", "3C-Quality (TeacherEvaluator)", "NSGA-II search",
)  # fmt: skip


def test_the_table_has_the_systems_of_the_articles() -> None:
    names = [row[0].strip() for row in ROWS]
    assert set(SYSTEMS) <= set(names)
    assert len(names) == len(set(names))
    assert all(len(row) == 4 and row[3].strip() for row in ROWS), "each row says what differs"


@pytest.mark.parametrize("row", ROWS, ids=[row[0].strip() for row in ROWS])
def test_each_name_leads_to_a_class_or_a_function(row: list[str]) -> None:
    paths = re.findall(r"`(synthkd\.[\w.]+)`", row[1])
    assert paths
    for path in paths:
        module, _, name = path.rpartition(".")
        thing = getattr(import_module(module), name)
        assert inspect.isclass(thing) or inspect.isfunction(thing), path
        assert thing.__module__.startswith("synthkd."), path
        assert inspect.getdoc(thing), path


@pytest.mark.parametrize("row", ROWS, ids=[row[0].strip() for row in ROWS])
def test_each_recipe_loads_and_stands_among_the_recipes(row: list[str]) -> None:
    names = re.findall(r"`(\w+)`", row[2])
    assert re.sub(r"[`\w, ]", "", row[2]) == "", "names of recipes alone"
    assert names or row[0].strip() not in SYSTEMS
    for name in names:
        recipe = CONFIGS / f"{name}.yaml"
        job = recipe.read_text(encoding="utf-8").removeprefix("# ").partition(":")[0]
        assert load_config({"distill": DistillConfig, "compress": CompressConfig}[job], recipe, []).name == name
        assert f"`{name}`" in RECIPES
