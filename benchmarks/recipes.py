"""Every recipe of distillation on digits, run once on Fashion-MNIST.

    python -m benchmarks.recipes [--only NAME ...] [--threads 2]

Run it alone on the machine. A recipe is as it ships but for its data, for its teachers, which are trained once for all
recipes that ask for the same, and for four times the steps of both: there are forty times the images. One seed: this
shows that recipes work on other data than they were written for, not which is better. Finished cells are kept in
benchmarks/runs/recipes; the table goes to benchmarks/results/recipes.json.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import yaml

from benchmarks import common, pairs
from benchmarks.common import Row
from synthkd.pipelines import distill, teach
from synthkd.pipelines.config import DistillConfig, TeachConfig

RUNS = common.RUNS / "recipes"
DATA = {**pairs.DATA, "holdout": 0.1}
RECIPES = {path.stem: path for path in sorted((common.ROOT / "configs").glob("*_digits.yaml"))}
LONGER = 4
COLUMNS = "recipe | student, % [95 % interval] | parameters | teacher, % | steps | seconds"
NAMES = [name for name, path in RECIPES.items() if path.read_text(encoding="utf-8").startswith("# distill:")]


def longer(settings: Row) -> Row:
    """Settings with more steps, where they have any."""
    return settings | ({"steps": LONGER * settings["steps"]} if "steps" in settings else {})


def teacher_of(settings: Row, threads: int) -> Row:
    """The teacher of a recipe, trained on Fashion-MNIST once for all of them."""
    training = longer(settings["training"])
    source = {"data": DATA, "model": settings["model"], "training": training, "threads": threads}
    digest = hashlib.sha256(json.dumps([settings["model"], training]).encode()).hexdigest()[:12]
    directory = common.run(teach, TeachConfig, source, RUNS / f"teacher-{digest}").directory
    return {"kind": "load", "model": str(directory)}


def sources_of(recipe: Row) -> list[Row]:
    """The sources of a recipe's transfer set, one or several."""
    transfer_set = recipe.get("transfer_set", {})
    return transfer_set if isinstance(transfer_set, list) else [transfer_set]


def cell(name: str, threads: int) -> Row:
    """Run a recipe, or read it where it is finished."""
    source = yaml.safe_load(RECIPES[name].read_text(encoding="utf-8"))
    if "teacher" in source:
        source["teacher"] = teacher_of(source["teacher"], threads)
    source["teachers"] = [teacher_of(settings, threads) for settings in source.get("teachers", [])]
    source["phases"] = [longer(phase) for phase in source["phases"]]
    for images in sources_of(source):
        images |= {"data": DATA} if "data" in images else {}
    source |= {"test": DATA, "threads": threads}
    values = common.run(distill, DistillConfig, source, RUNS / name).values
    return {
        "recipe": name,
        "student": values["student"]["accuracy"],
        "interval": values["student"]["accuracy_interval"],
        "parameters": values["student"]["parameters"],
        "teacher": None if values["teacher"] is None else values["teacher"]["accuracy"],
        "steps": values["cost"]["steps"],
        "seconds": values["cost"]["seconds"]["distill"],
        "hardware": values["hardware"],
    }


def tables(content: Row) -> str:
    """What became of each recipe."""
    rows = [
        [
            f"`{one['recipe']}`",
            common.percent(one["student"], one["interval"]),
            f"{one['parameters']:,}",
            "none" if one["teacher"] is None else f"{100 * one['teacher']:.2f}",
            f"{one['steps']:,}",
            f"{one['seconds']:.0f}",
        ]
        for one in content["cells"]
    ]
    return common.table(COLUMNS, rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is wanted, write the cells after each, and print the table."""
    parser = common.options("recipes", __doc__)
    parser.add_argument("--only", nargs="*", default=NAMES, choices=NAMES)
    common.add_threads(parser)
    arguments = parser.parse_args(argv)
    cells = common.collect(
        "recipes",
        arguments.only,
        lambda name: cell(name, arguments.threads),
        lambda one: NAMES.index(one["recipe"]),
    )
    print(tables({"cells": cells}))


if __name__ == "__main__":
    main()
