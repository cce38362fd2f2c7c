"""Accuracy per minute on Fashion-MNIST: data-free distillation beside its ceiling, its baseline and its floor.

    python benchmarks/fashion_mnist.py [--only convnet/ours] [--seeds 3]

Run it alone on the machine. Every finished cell is kept in benchmarks/runs, so an interrupted table goes on where it
stopped; the table and the curves go to benchmarks/results/fashion_mnist.json and docs/images. A cell's number is the
accuracy of its last weights. `ours` is the student from the teacher alone, `fresh start` the same without inheriting
any of the teacher's weights, `real KD` distillation on the real images, `real labels` training on them without a
teacher, `noise` distillation on Gaussian noise; all but `real labels` and `fresh start` start alike. `seconds` is its
training time, without the evaluations on the test images within it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from synthkd.pipelines import distill, teach
from synthkd.pipelines.config import DistillConfig, TeachConfig
from synthkd.pipelines.run.result import Result
from synthkd.settings.load import load_config
from synthkd.training.monitor import read_rows

RUNS = HERE / "runs" / "fashion_mnist"
RESULTS = HERE / "results" / "fashion_mnist.json"
DATA = {"kind": "fashion_mnist", "root": "/usr/share/datasets/fashion-mnist", "holdout": 0.0}

PLAIN = {"difficulty": {"augment": False}, "mix": {"mixup": 0.8}, "bank": {"capacity": 60_000}}


@dataclass(frozen=True)
class Pair:
    """A teacher and a student, the recipe between them, and its budgets.

    Attributes:
        teacher: `model` and `training` of the teacher.
        student: the student's model.
        recipe: what `synthkd distill` is told beside them.
        rounds: generator rounds before the student's first step, and how many of them are discarded.
        every: student steps for each further round.
        budgets: name (the seconds it was sized for on two cores) -> student steps.
    """

    teacher: dict[str, Any]
    student: dict[str, Any]
    recipe: dict[str, Any]
    rounds: tuple[int, int]
    every: int
    budgets: dict[str, int]


WITH_BATCH_NORM: dict[str, Any] = {
    **PLAIN,
    "generator": {"adversarial": 10.0},
    "distill": {
        "batch_size": 64,
        "temperature": 20.0,
        "optimizer": {"kind": "sgd", "lr": 0.5, "weight_decay": 1e-4, "schedule": "one_cycle", "warmup": 0.2},
    },
}
"""The recipe of `configs/fashion_mnist.yaml`, for teachers with BatchNorm."""

PAIRS = {
    "convnet": Pair(
        teacher={
            "model": {"arch": "convnet", "width": 32},
            "training": {
                "steps": 3752,
                "batch_size": 128,
                "optimizer": {"kind": "sgd", "lr": 0.15, "weight_decay": 5e-4, "schedule": "one_cycle", "warmup": 0.25},
                "augment": {"shift": 1, "flip": True},
            },
        },
        student={"arch": "convnet", "width": 16},
        recipe=WITH_BATCH_NORM,
        rounds=(14, 7),
        every=24,
        budgets={"60s": 1800, "300s": 9200},
    ),
    "resnet": Pair(
        teacher={
            "model": {"arch": "resnet", "depth": 20, "width": 16},
            "training": {
                "steps": 2814,
                "batch_size": 128,
                "optimizer": {"kind": "sgd", "lr": 0.2, "weight_decay": 5e-4, "schedule": "one_cycle", "warmup": 0.25},
                "augment": {"shift": 1, "flip": True},
            },
        },
        student={"arch": "resnet", "depth": 8, "width": 16},
        recipe=WITH_BATCH_NORM,
        rounds=(14, 7),
        every=24,
        budgets={"300s": 3000},
    ),
    "lenet": Pair(
        teacher={
            "model": {"arch": "lenet5", "width": 6},
            "training": {
                "steps": 4690,
                "batch_size": 128,
                "optimizer": {"kind": "adam", "lr": 4e-3, "weight_decay": 1e-5, "schedule": "one_cycle"},
            },
        },
        student={"arch": "lenet5", "width": 3},
        recipe={
            **PLAIN,
            "generator": {"kind": "pixels"},
            "distill": {
                "batch_size": 64,
                "temperature": 1.0,
                "logit_match": 2.0,
                "hint": 6.0,
                "optimizer": {"kind": "adam", "lr": 4e-3, "schedule": "one_cycle", "warmup": 0.2, "clip": 2.0},
            },
        },
        rounds=(80, 0),
        every=40,
        budgets={"150s": 11_000},
    ),
}
LOWEST = 60
"""Accuracy in % at which the plots begin."""
MOST_SEEDS = 10
"""Finished cells up to this seed are in the table, whatever --seeds asks for."""
METHODS = ("ours", "fresh start", "real KD", "real labels", "noise")


def directory(pair: str, method: str, budget: str, seed: int) -> Path:
    """The run directory of a cell."""
    return RUNS / pair / f"{method.replace(' ', '-')}-{budget}-seed{seed}"


def teacher_of(name: str) -> Path:
    """The pair's teacher, trained once on the whole training split."""
    source = {"name": f"{name}-teacher", "data": DATA, "evaluate_every": 1000, **PAIRS[name].teacher}
    result = teach(load_config(TeachConfig, source, [f"out={RUNS / name / 'teacher'}"]))
    assert isinstance(result, Result)
    return result.directory


def cell(name: str, method: str, seed: int, budget: str, teacher: Path) -> dict[str, Any]:
    """Run one cell, or read it where it is finished."""
    pair = PAIRS[name]
    steps = pair.budgets[budget]
    out = directory(name, method, budget, seed)
    shared = {"seed": seed, "evaluate_every": max(1, steps // 10), "checkpoint_every": 2000}
    if method == "real labels":
        training = {key: pair.recipe["distill"][key] for key in ("batch_size", "optimizer")}
        source = {**shared, "data": DATA, "model": pair.student, "training": {"steps": steps, **training}}
        taught = teach(load_config(TeachConfig, source, [f"out={out}"]))
        assert isinstance(taught, Result)
        accuracy, seconds = taught.values["teacher"]["accuracy"], taught.values["cost"]["seconds"]["teacher"]
    else:
        rounds, discard = pair.rounds
        source = {
            **shared,
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
        if method == "fresh start":
            source["inherit"] = False
        elif method == "real KD":
            source |= {"data": DATA, "mix": {"real": 1.0, "mixup": 0.0}, "phases": [{"kind": "refine", "steps": steps}]}
        elif method == "noise":
            source["generator"] = {"kind": "python", "target": "noise:make"}
        distilled = distill(load_config(DistillConfig, source, [f"out={out}"]))
        assert isinstance(distilled, Result)
        accuracy, seconds = distilled.values["student"]["accuracy"], distilled.values["cost"]["seconds"]["distill"]
    rows = read_rows(out / "metrics.jsonl")
    measured = [row for row in rows if "test/accuracy" in row]
    curve = [[round(row["seconds"] - row["watching"], 2), round(row["test/accuracy"], 4)] for row in measured]
    return {
        "pair": name,
        "method": method,
        "budget": budget,
        "seed": seed,
        "steps": steps,
        "accuracy": accuracy,
        "seconds": seconds,
        "curve": curve,
        "hardware": json.loads((out / "result.json").read_text())["hardware"],
    }


def table(cells: list[dict[str, Any]]) -> str:
    """Median [lowest, highest] over seeds of each method and budget."""
    lines = [
        "| pair | method | budget | steps | seeds | accuracy, median [range] | seconds, median |",
        "|" + "---|" * 7,
    ]
    keys = sorted(
        {(c["pair"], c["method"], c["budget"]) for c in cells}, key=lambda k: (k[0], METHODS.index(k[1]), k[2])
    )
    for pair, method, budget in keys:
        rows = [c for c in cells if (c["pair"], c["method"], c["budget"]) == (pair, method, budget)]
        scores = [100 * c["accuracy"] for c in rows]
        lines.append(
            f"| {pair} | {method} | {budget} | {rows[0]['steps']:,} | {len(rows)} | {statistics.median(scores):.2f} "
            f"[{min(scores):.2f}, {max(scores):.2f}] | {statistics.median(c['seconds'] for c in rows):.0f} |"
        )
    return "\n".join(lines)


def plot(cells: list[dict[str, Any]], pair: str, path: Path) -> None:
    """Accuracy over training time, one line a run."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colours = dict(zip(METHODS, ("#2563eb", "#d97706", "#16a34a", "#9ca3af", "#dc2626"), strict=True))
    figure, axes = plt.subplots(figsize=(7, 4), dpi=120)
    seen: set[str] = set()
    for c in cells:
        if c["pair"] != pair or not c["curve"]:
            continue
        hidden = max(v for _, v in c["curve"]) < LOWEST / 100
        label = None if c["method"] in seen else c["method"] + (" (below the axis)" if hidden else "")
        seen.add(c["method"])
        seconds, values = zip(*c["curve"], strict=True)
        axes.plot(seconds, [100 * v for v in values], color=colours[c["method"]], label=label, linewidth=1.2, alpha=0.8)
    axes.set_xlabel("training seconds, two CPU cores")
    axes.set_ylabel("test accuracy, % (reported only)")
    axes.set_ylim(LOWEST, 93)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="run only cells whose pair/method/budget/seed starts with this")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    cells: list[dict[str, Any]] = []
    for name, pair in PAIRS.items():
        teacher = teacher_of(name)
        for seed in range(max(arguments.seeds, MOST_SEEDS)):
            for budget in pair.budgets:
                for method in METHODS:
                    finished = (directory(name, method, budget, seed) / "result.json").exists()
                    wanted = f"{name}/{method}/{budget}/{seed}".startswith(arguments.only) and seed < arguments.seeds
                    if finished or wanted:
                        cells.append(cell(name, method, seed, budget, teacher))
        plot(cells, name, HERE.parent / "docs" / "images" / f"fashion_mnist_{name}.png")
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps({"command": "python benchmarks/fashion_mnist.py", "cells": cells}, indent=1) + "\n")
    print(table(cells))


if __name__ == "__main__":
    main()
