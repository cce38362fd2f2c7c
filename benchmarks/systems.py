"""What each system of the articles is worth: its recipe on digits against the same run without it.

    python -m benchmarks.systems [--systems "adaptive temperature" ...] [--seeds 5] [--threads 1]

Run it alone on the machine; a cell takes a minute or less. The teacher of a recipe is trained once, with seed 0, for
all its cells. Accuracy is that of the last weights on the 359 test images, so one image is 0.28 points; differences are
paired by seed, with a 95 % t-interval. The systems of the generators are in flagship.py, a changing width in width.py.
Finished cells are kept in benchmarks/runs/systems; the table goes to benchmarks/results/systems.json.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

import yaml

from benchmarks import common
from benchmarks.common import Row
from synthkd.pipelines import distill, teach
from synthkd.pipelines.config import DistillConfig, TeachConfig

RUNS = common.RUNS / "systems"
WITH, WITHOUT = "with", "without"
COLUMNS = (
    "system | recipe | seeds | with, %, mean (standard deviation) | without, %, mean (standard deviation) | "
    "difference, points"
)


def _no_control(*names: str) -> Callable[[Row], None]:
    """Take controllers out of `distill.adapt`."""

    def change(recipe: Row) -> None:
        for name in names:
            recipe["distill"]["adapt"].pop(name)

    return change


def _no_term(*kinds: str) -> Callable[[Row], None]:
    """Take terms out of `distill.transfer`."""

    def change(recipe: Row) -> None:
        recipe["distill"]["transfer"] = [term for term in recipe["distill"]["transfer"] if term["kind"] not in kinds]

    return change


def _other_bank(**bank: str) -> Callable[[Row], None]:
    """Other settings of the memory bank."""
    return lambda recipe: recipe["transfer_set"]["bank"].update(bank)


SYSTEMS: dict[str, tuple[str, Callable[[Row], None]]] = {
    "adaptive temperature": ("adaptive_digits", _no_control("temperature")),
    "adaptive weights": ("adaptive_digits", _no_control("weights")),
    "strength by capacity": ("adaptive_digits", _no_control("strength")),
    "all three": ("adaptive_digits", _no_control("temperature", "weights", "strength")),
    "semantic term": ("semantic_digits", _no_term("semantic")),
    "difference of features": ("semantic_digits", _no_term("hint")),
    "alignment of distributions": ("alignment_digits", _no_term("alignment")),
    "eviction by priority": ("replay_digits", _other_bank(evict="oldest")),
    "prioritized replay": ("replay_digits", _other_bank(policy="fifo", evict="oldest")),
}
"""Name -> the recipe that has it, and the change that takes it out."""


def recipe_of(name: str) -> Row:
    """A recipe as it ships."""
    recipe: Row = yaml.safe_load((common.ROOT / "configs" / f"{name}.yaml").read_text(encoding="utf-8"))
    return recipe


def teacher_of(settings: Row, threads: int) -> Row:
    """The teacher of a recipe, trained once for all recipes that have the same."""
    source = {key: value for key, value in settings.items() if key != "kind"}
    digest = hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()[:12]
    taught = common.run(teach, TeachConfig, source | {"threads": threads}, RUNS / f"teacher-{digest}").directory
    return {"kind": "load", "model": str(taught)}


def place(system: str, arm: str, seed: int) -> Path:
    """The run directory of a cell; all systems of a recipe share the runs of the recipe itself."""
    name = SYSTEMS[system][0] if arm == WITH else f"without-{system.replace(' ', '-')}"
    return RUNS / f"{name}-seed{seed}"


def cell(system: str, seed: int, arm: str, threads: int) -> Row:
    """Run a cell, or read it where it is finished."""
    name, change = SYSTEMS[system]
    recipe = recipe_of(name)
    if arm == WITHOUT:
        change(recipe)
    recipe |= {"teacher": teacher_of(recipe["teacher"], threads), "seed": seed, "threads": threads}
    values = common.run(distill, DistillConfig, recipe, place(system, arm, seed)).values
    return {
        "system": system,
        "recipe": name,
        "arm": arm,
        "seed": seed,
        "accuracy": values["student"]["accuracy"],
        "hardware": values["hardware"],
    }


def tables(content: Row) -> str:
    """Each system with and without, and the paired difference."""
    rows = []
    for system, (recipe, _) in SYSTEMS.items():
        cells = [one for one in content["cells"] if one["system"] == system]
        scores = {arm: {c["seed"]: 100 * c["accuracy"] for c in cells if c["arm"] == arm} for arm in (WITH, WITHOUT)}
        if scores[WITH] and scores[WITHOUT]:
            ours, difference = common.compared(scores[WITH], scores[WITHOUT])
            (theirs,) = common.compared(scores[WITHOUT])
            rows.append([system, f"`{recipe}`", str(len(scores[WITH])), ours, theirs, difference or "0"])
    return common.table(COLUMNS, rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is wanted, write the cells after each, and print the table."""
    parser = common.options("systems", __doc__)
    parser.add_argument("--systems", nargs="*", default=list(SYSTEMS), choices=list(SYSTEMS))
    common.add_seeds(parser, 5)
    common.add_threads(parser)
    arguments = parser.parse_args(argv)
    cells = common.collect(
        "systems",
        product(arguments.systems, range(arguments.seeds), (WITH, WITHOUT)),
        lambda key: cell(*key, arguments.threads),
        lambda one: (list(SYSTEMS).index(one["system"]), one["seed"], one["arm"] == WITHOUT),
    )
    print(tables({"cells": cells}))


if __name__ == "__main__":
    main()
