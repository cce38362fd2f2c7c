"""The recipes that ship with synthkd: YAML files whose first line says `# <job>: <what it does>`."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from synthkd.errors import ConfigError


@dataclass(frozen=True)
class Recipe:
    """One YAML file of configs/: the job it is for and what it does, by its first line."""

    name: str
    job: str
    summary: str


def recipes() -> list[Recipe]:
    """All recipes, sorted by name."""
    found = []
    for file in files("synthkd.configs").iterdir():
        name, dot, ending = file.name.rpartition(".")
        if f"{dot}{ending}" == ".yaml":
            first = file.read_text(encoding="utf-8").partition("\n")[0]
            job, _, summary = first.removeprefix("#").partition(":")
            found.append(Recipe(name, job.strip(), summary.strip()))
    return sorted(found, key=lambda recipe: recipe.name)


def find_config(name: str, job: str) -> Path:
    """The YAML file called `name`: a path where such a file exists, else a recipe of that job.

    Raises:
        ConfigError: when there is neither, or the recipe is for another job.
    """
    path = Path(name)
    if path.exists() and not path.is_dir():
        return path
    known = {recipe.name: recipe for recipe in recipes()}
    if name not in known:
        names = ", ".join(recipe.name for recipe in known.values() if recipe.job == job) or "none"
        raise ConfigError(f"{name}: no such file and no such recipe (recipes of {job}: {names})")
    if known[name].job != job:
        raise ConfigError(f"{name}: this recipe is for `synthkd {known[name].job}`, not for `synthkd {job}`")
    return Path(str(files("synthkd.configs") / f"{name}.yaml"))
