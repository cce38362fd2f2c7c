"""A student whose width changes while it trains, against students of fixed width: digits, one teacher, several seeds.

    python -m benchmarks.width [--arms changing "first width" ...] [--seeds 3] [--threads 2]

`changing` is the recipe `width_digits`: it begins at twice its base width, and linear CKA with the teacher's features
holds the width up; `changing, agreement` measures the similarity by the agreement of predictions. The other arms are
the same recipe with a fixed width: the base width, the first width of `changing`, and the width with which `changing`
ended at the same seed. The teacher is trained once, so a seed moves the student alone. There are 359 test images: one
image is 0.28 points. Finished cells are kept in benchmarks/runs/width; the table goes to benchmarks/results/width.json.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import yaml

from benchmarks import common
from benchmarks.common import Row
from synthkd.models import load
from synthkd.pipelines import distill, teach
from synthkd.pipelines.config import DistillConfig, TeachConfig

RUNS = common.RUNS / "width"
RECIPE: Row = yaml.safe_load((common.ROOT / "configs" / "width_digits.yaml").read_text(encoding="utf-8"))
BASE: int = RECIPE["student"]["width"]
ARMS = ("changing", "changing, agreement", "base width", "first width", "final width")
COLUMNS = (
    "arm | seeds | widths | parameters | accuracy, %, mean (standard deviation) | difference to the final width, points"
)


def place(arm: str, seed: int) -> Path:
    """The run directory of a cell."""
    return RUNS / f"{arm.replace(', ', '-').replace(' ', '-')}-seed{seed}"


def student_of(arm: str, seed: int, threads: int) -> Row:
    """The width and the student of an arm; the final width is that of `changing` at the same seed."""
    if arm.startswith("changing"):
        measure = "agreement" if "agreement" in arm else "features"
        return {"width": {**RECIPE["width"], "measure": measure}}
    widths = {"base width": BASE, "first width": int(BASE * RECIPE["width"]["start"])}
    width = widths[arm] if arm in widths else cell("changing", seed, threads)["width"]
    return {"width": None, "student": {**RECIPE["student"], "width": width}}


def cell(arm: str, seed: int, threads: int) -> Row:
    """Run a cell, or read it where it is finished."""
    taught = {key: RECIPE["teacher"][key] for key in ("data", "model", "training")}
    teacher = common.run(teach, TeachConfig, {**taught, "threads": threads}, RUNS / "teacher").directory
    source = {
        **RECIPE,
        **student_of(arm, seed, threads),
        "teacher": {"kind": "load", "model": str(teacher)},
        "seed": seed,
        "threads": threads,
    }
    result = common.run(distill, DistillConfig, source, place(arm, seed))
    student = result.values["student"]
    return {
        "arm": arm,
        "seed": seed,
        "width": load(result.directory / "student").recipe["width"],
        "parameters": student["parameters"],
        "accuracy": student["accuracy"],
        "hardware": result.values["hardware"],
    }


def tables(content: Row) -> str:
    """Final widths, parameters and accuracy of each arm, with its paired difference to the final width."""
    arms = {arm: [one for one in content["cells"] if one["arm"] == arm] for arm in ARMS}
    scores = {arm: {one["seed"]: 100 * one["accuracy"] for one in cells} for arm, cells in arms.items()}
    rows = [
        [
            arm,
            str(len(cells)),
            ", ".join(str(one["width"]) for one in cells),
            f"{statistics.median(one['parameters'] for one in cells):,.0f}",
            *common.compared(scores[arm], scores["final width"]),
        ]
        for arm, cells in arms.items()
        if cells
    ]
    return common.table(COLUMNS, rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is wanted, write the cells after each, and print the table."""
    common.run_arms(argv, "width", __doc__, ARMS, cell, tables)


if __name__ == "__main__":
    main()
