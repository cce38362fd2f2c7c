"""Every recipe of distillation on digits, run once on Fashion-MNIST.

    python benchmarks/recipes.py [--only NAME ...] [--threads 2]

Run it alone on the machine. A recipe is as it ships but for its data, for its teachers, which are trained once for all
recipes that ask for the same, and for four times the steps of both: there are forty times the images. One seed: this
shows that recipes work on other data than they were written for, not which is better. Finished cells are kept in
benchmarks/runs/recipes; the table goes to benchmarks/results/recipes.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import fashion_mnist

from synthkd.pipelines import distill, teach
from synthkd.pipelines.config import DistillConfig, TeachConfig
from synthkd.pipelines.run.result import Result
from synthkd.settings.load import load_config
from synthkd.system.files import write_atomically

RUNS, RESULTS = HERE / "runs" / "recipes", HERE / "results" / "recipes.json"
DATA = {**fashion_mnist.DATA, "holdout": 0.1}
RECIPES = {path.stem: path for path in sorted((HERE.parent / "configs").glob("*_digits.yaml"))}
LONGER = 4
NAMES = [name for name, path in RECIPES.items() if path.read_text(encoding="utf-8").startswith("# distill:")]


def longer(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with more steps, where they have any."""
    return settings | ({"steps": LONGER * settings["steps"]} if "steps" in settings else {})


def taught(settings: dict[str, Any], threads: int) -> dict[str, Any]:
    """The teacher of a recipe, trained on Fashion-MNIST once for all of them."""
    training = longer(settings["training"])
    source = {"data": DATA, "model": settings["model"], "training": training, "threads": threads}
    digest = hashlib.sha256(json.dumps([settings["model"], training]).encode()).hexdigest()[:12]
    out = RUNS / f"teacher-{digest}"
    result = teach(load_config(TeachConfig, source, [f"out={out}"]))
    assert isinstance(result, Result)
    return {"kind": "load", "model": str(result.directory)}


def cell(name: str, threads: int) -> dict[str, Any]:
    """Run a recipe, or read it where it is finished."""
    source = yaml.safe_load(RECIPES[name].read_text(encoding="utf-8"))
    if "teacher" in source:
        source["teacher"] = taught(source["teacher"], threads)
    source["teachers"] = [taught(settings, threads) for settings in source.get("teachers", [])]
    source["phases"] = [longer(phase) for phase in source["phases"]]
    source |= {"data": DATA if "data" in source else None, "test": DATA, "threads": threads}
    result = distill(load_config(DistillConfig, source, [f"out={RUNS / name}"]))
    assert isinstance(result, Result)
    values = result.values
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


def table(cells: list[dict[str, Any]]) -> str:
    """What became of each recipe."""
    lines = ["| recipe | student, % [95 % interval] | parameters | teacher, % | steps | seconds |", "|" + "---|" * 6]
    for one in cells:
        low, high = one["interval"]
        teacher = "none" if one["teacher"] is None else f"{100 * one['teacher']:.2f}"
        lines.append(
            f"| `{one['recipe']}` | {100 * one['student']:.2f} [{100 * low:.2f}, {100 * high:.2f}] | "
            f"{one['parameters']:,} | {teacher} | {one['steps']:,} | {one['seconds']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=NAMES, choices=NAMES)
    parser.add_argument("--threads", type=int, default=2, help="of torch; fewer only for several at a time")
    arguments = parser.parse_args()
    cells = []
    for name in NAMES:
        if name in arguments.only or (RUNS / name / "result.json").exists():
            cells.append(cell(name, arguments.threads))
            found = {"command": "python benchmarks/recipes.py", "cells": cells}
            write_atomically(RESULTS, json.dumps(found, indent=1).encode() + b"\n")
    print(table(cells))


if __name__ == "__main__":
    main()
