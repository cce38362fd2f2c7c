"""The recipes that ship with synthkd: YAML files whose first line says `# <job>: <what it does>`."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from synthkd.errors import ConfigError


@dataclass(frozen=True)
class Recipe:
    """A YAML file of configs/, without its ending, with the job and the summary in its first line."""

    name: str
    job: str
    summary: str


def recipes() -> list[Recipe]:
    """All recipes, sorted by name."""
    every = []
    for file in files("synthkd.configs").iterdir():
        if file.name.endswith(".yaml"):
            first_line = file.read_text(encoding="utf-8").partition("\n")[0]
            job, _, summary = first_line.removeprefix("#").partition(":")
            every.append(Recipe(file.name.removesuffix(".yaml"), job.strip(), summary.strip()))
    return sorted(every, key=lambda recipe: recipe.name)


def find_config(name: str, job: str) -> Path:
    """The path of a configuration.

    Args:
        name: path of a file, or else the name of a recipe.
        job: name of the job that the configuration is for.

    Raises:
        ConfigError: when there is neither, or the recipe is for another job.
    """
    path = Path(name)
    if path.exists() and not path.is_dir():
        return path
    every = {recipe.name: recipe for recipe in recipes()}
    if name not in every:
        names = ", ".join(recipe.name for recipe in every.values() if recipe.job == job) or "none"
        raise ConfigError(f"{name}: no such file and no such recipe (recipes of {job}: {names})")
    if every[name].job != job:
        raise ConfigError(f"{name}: this recipe is for `synthkd {every[name].job}`, not for `synthkd {job}`")
    return Path(str(files("synthkd.configs") / f"{name}.yaml"))
