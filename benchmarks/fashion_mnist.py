"""Accuracy per minute on Fashion-MNIST: data-free distillation beside its ceiling, its baseline and its floor.

    python -m benchmarks.fashion_mnist [--only convnet/ours] [--seeds 3]

Run it alone on the machine. Every finished cell is kept in benchmarks/runs, so an interrupted table goes on where it
stopped; the table and the curves go to benchmarks/results/fashion_mnist.json and docs/images. A cell's number is the
accuracy of its last weights. `ours` is the student from the teacher alone, `fresh start` the same without inheriting
any of the teacher's weights, `real KD` distillation on the real images, `real labels` training on them without a
teacher, `noise` distillation on Gaussian noise; all but `real labels` and `fresh start` start alike. `seconds` is its
training time, without the evaluations on the test images within it.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from benchmarks import common, pairs
from benchmarks.common import Row
from benchmarks.pairs import DATA, PAIRS, directory, teacher_of
from synthkd.pipelines import distill, teach
from synthkd.pipelines.config import DistillConfig, TeachConfig
from synthkd.training.monitor import read_rows

LOWEST = 60
"""Accuracy in % at which the plots begin."""
COLOURS = {
    "ours": "#2563eb",
    "fresh start": "#d97706",
    "real KD": "#16a34a",
    "real labels": "#9ca3af",
    "noise": "#dc2626",
}
METHODS = tuple(COLOURS)
COLUMNS = "pair | method | budget | steps | seeds | accuracy, median [range] | seconds, median"


def cell(name: str, method: str, seed: int, budget: str, teacher: Path) -> Row:
    """Run one cell, or read it where it is finished."""
    pair = PAIRS[name]
    steps = pair.budgets[budget]
    out = directory(name, method, budget, seed)
    source: Row = {"seed": seed, "evaluate_every": max(1, steps // 10), "checkpoint_every": 2000}
    if method == "real labels":
        training = {key: pair.recipe["distill"][key] for key in ("batch_size", "optimizer")}
        source |= {"data": DATA, "model": pair.student, "training": {"steps": steps, **training}}
        values, network, stage = common.run(teach, TeachConfig, source, out).values, "teacher", "teacher"
    else:
        source |= distillation(pair, method, steps, teacher)
        values, network, stage = common.run(distill, DistillConfig, source, out).values, "student", "distill"
    evaluations = [row for row in read_rows(out / "metrics.jsonl") if "test/accuracy" in row]
    return {
        "pair": name,
        "method": method,
        "budget": budget,
        "seed": seed,
        "steps": steps,
        "accuracy": values[network]["accuracy"],
        "seconds": values["cost"]["seconds"][stage],
        "curve": [[round(r["seconds"] - r["watching"], 2), round(r["test/accuracy"], 4)] for r in evaluations],
        "hardware": json.loads((out / "result.json").read_text(encoding="utf-8"))["hardware"],
    }


def distillation(pair: pairs.Pair, method: str, steps: int, teacher: Path) -> Row:
    """The configuration of a distillation, without what all methods share."""
    rounds, discard = pair.rounds
    source: Row = {
        **pair.recipe,
        "teacher": {"kind": "load", "model": str(teacher)},
        "student": pair.student,
        "test": DATA,
        "phases": [
            {"kind": "pregenerate", "rounds": rounds, "discard": discard},
            {"kind": "joint", "steps": steps, "every": pair.every},
        ],
        "grid_every": max(1, steps // pair.every // 4),
    }
    refine = [{"kind": "refine", "steps": steps}]
    noise = {"kind": "python", "target": "benchmarks.noise:make"}
    changes: dict[str, Row] = {
        "fresh start": {"inherit": False},
        "real KD": {
            "transfer_set": {"kind": "real", "data": DATA},
            "inherit": True,
            "mix": {"mixup": 0.0},
            "phases": refine,
        },
        "noise": {"transfer_set": {**pair.recipe["transfer_set"], "generator": noise}},
    }
    return source | changes.get(method, {})


def tables(content: Row) -> str:
    """Median [lowest, highest] over seeds of each method and budget."""
    groups: dict[tuple[str, int, str], list[Row]] = {}
    for one in content["cells"]:
        groups.setdefault((one["pair"], METHODS.index(one["method"]), one["budget"]), []).append(one)
    rows = []
    for (pair, method, budget), cells in sorted(groups.items()):
        accuracy = common.spread([100 * one["accuracy"] for one in cells])
        seconds = f"{statistics.median(one['seconds'] for one in cells):.0f}"
        rows.append([pair, METHODS[method], budget, f"{cells[0]['steps']:,}", str(len(cells)), accuracy, seconds])
    return common.table(COLUMNS, rows)


def plot(cells: list[Row], pair: str, path: Path) -> None:
    """Draw accuracy over training time, one line a run."""
    labelled: set[str] = set()
    with common.figure(path) as axes:
        for one in cells:
            method, curve = one["method"], one["curve"]
            if one["pair"] != pair or not curve:
                continue
            hidden = max(accuracy for _, accuracy in curve) < LOWEST / 100
            label = None if method in labelled else method + (" (below the axis)" if hidden else "")
            labelled.add(method)
            seconds, accuracies = zip(*curve, strict=True)
            percents = [100 * accuracy for accuracy in accuracies]
            axes.plot(seconds, percents, color=COLOURS[method], label=label, linewidth=1.2, alpha=0.8)
        axes.set_xlabel("training seconds, two CPU cores")
        axes.set_ylabel("test accuracy, % (reported only)")
        axes.set_ylim(LOWEST, 93)


def keys_of(only: str, seeds: int) -> list[tuple[str, str, int, str]]:
    """Pair, method, seed and budget of the cells whose path in the table starts with `only`."""
    return [
        (name, method, seed, budget)
        for name, pair in PAIRS.items()
        for seed, budget, method in product(range(seeds), pair.budgets, METHODS)
        if f"{name}/{method}/{budget}/{seed}".startswith(only)
    ]


def _identity(one: Row) -> tuple[int, int, int, int]:
    budgets = list(PAIRS[one["pair"]].budgets)
    return list(PAIRS).index(one["pair"]), one["seed"], budgets.index(one["budget"]), METHODS.index(one["method"])


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is wanted, draw the curves, write the cells and print the table."""
    parser = common.options("fashion_mnist", __doc__)
    parser.add_argument("--only", default="", help="run only cells whose pair/method/budget/seed starts with this")
    common.add_seeds(parser)
    arguments = parser.parse_args(argv)
    keys = keys_of(arguments.only, arguments.seeds)
    cells = common.collect("fashion_mnist", keys, lambda key: cell(*key, teacher_of(key[0])), _identity)
    for name in PAIRS:
        plot(cells, name, common.IMAGES / f"fashion_mnist_{name}.png")
    print(tables({"cells": cells}))


if __name__ == "__main__":
    main()
