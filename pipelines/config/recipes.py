"""The recipes that ship with synthkd: YAML files whose first line says `# <job>: <what it does>`.

The name of one in a folder has the folder's: `methods/dafl`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from synthkd.errors import ConfigError
from synthkd.settings.yaml_text import read_yaml

CONFIG = "config.yaml"
"""File of a run directory with the configuration of the run."""
KEYS = {
    "phases": "distill", "flow": "compress", "per_class": "generate", "subset_size": "evaluate", "members": "audit",
    "training": "teach",
}  # fmt: skip
"""A key at the top of every recorded configuration of a job, and of no other job's."""


@dataclass(frozen=True)
class Recipe:
    """A YAML file of configs/ or a folder there, with the job and the summary in its first line.

    Attributes:
        name: its path there, without its ending.
    """

    name: str
    job: str
    summary: str


def recipes() -> list[Recipe]:
    """All recipes, sorted by name."""
    every = []
    for name, file in _below(files("synthkd.configs")):
        first_line = file.read_text(encoding="utf-8").partition("\n")[0]
        job, _, summary = first_line.removeprefix("#").partition(":")
        every.append(Recipe(name, job.strip(), summary.strip()))
    return sorted(every, key=lambda recipe: recipe.name)


def _below(folder: Traversable, within: str = "") -> Iterator[tuple[str, Traversable]]:
    """The YAML files in a folder and in the folders there, with their names."""
    for entry in folder.iterdir():
        if entry.name.endswith(".yaml"):
            yield within + entry.name.removesuffix(".yaml"), entry
        elif entry.is_dir():
            yield from _below(entry, f"{within}{entry.name}/")


def find_config(name: str, job: str) -> Path:
    """The path of a configuration.

    Args:
        name: path of a file or of a run directory, or else the name of a recipe.
        job: name of the job that the configuration is for.

    Raises:
        ConfigError: when there is none, or the recipe or the run is of another job.
    """
    path = Path(name)
    if (recorded := path / CONFIG).is_file():
        keys = read_yaml(recorded)
        of = next((of for key, of in KEYS.items() if key in keys), "something else")
        if of != job:
            raise ConfigError(f"{name}: a run of `synthkd {of}`, not of `synthkd {job}`; name another run or a recipe")
        return recorded
    if path.exists() and not path.is_dir():
        return path
    every = {recipe.name: recipe for recipe in recipes()}
    if name not in every:
        names = ", ".join(recipe.name for recipe in every.values() if recipe.job == job) or "none"
        # A recipe in a folder is often asked for without it.
        inside = next((one for one in every if one.endswith(f"/{name}")), None)
        hint = "" if inside is None else f"; did you mean '{inside}'?"
        raise ConfigError(f"{name}: no such file and no such recipe (recipes of {job}: {names}){hint}")
    if every[name].job != job:
        raise ConfigError(f"{name}: this recipe is for `synthkd {every[name].job}`, not for `synthkd {job}`")
    return Path(str(files("synthkd.configs") / f"{name}.yaml"))
