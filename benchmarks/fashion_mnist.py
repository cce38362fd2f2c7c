"""Accuracy per minute on Fashion-MNIST: data-free distillation beside its ceiling, its baseline and its floor.

    python benchmarks/fashion_mnist.py [--only convnet/ours] [--seeds 3]

Run it alone on the machine. Every finished cell is kept in benchmarks/runs, so an interrupted table goes on where it
stopped; the table and the curves go to benchmarks/results/fashion_mnist.json and docs/images. A cell's number is the
accuracy of its last weights; `seconds` is its training time, the evaluations within it included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from synthkd.configuration import load_config  # noqa: E402
from synthkd.monitor import read_rows, series  # noqa: E402
from synthkd.pipelines import distill, teach  # noqa: E402
from synthkd.pipelines.config import DistillConfig, TeachConfig  # noqa: E402
from synthkd.pipelines.job import Result  # noqa: E402

RUNS = HERE / "runs" / "fashion_mnist"
RESULTS = HERE / "results" / "fashion_mnist.json"
DATA = {"kind": "fashion_mnist", "root": "/usr/share/datasets/fashion-mnist", "holdout": 0.0}

TEACHERS: dict[str, dict[str, Any]] = {
    "convnet": {
        "model": {"arch": "convnet", "width": 32},
        "training": {
            "steps": 3752,
            "batch_size": 128,
            "optimizer": {"kind": "sgd", "lr": 0.15, "weight_decay": 5e-4, "schedule": "one_cycle", "warmup": 0.25},
            "augment": {"shift": 1, "flip": True},
        },
    },
}
STUDENTS = {"convnet": {"arch": "convnet", "width": 16}}
DISTILL = {
    "batch_size": 64,
    "temperature": 20.0,
    "optimizer": {"kind": "sgd", "lr": 0.5, "weight_decay": 1e-4, "schedule": "one_cycle", "warmup": 0.2},
}
# Student steps of each budget, named by the seconds they were sized to take on two cores (data-free).
BUDGETS: dict[str, dict[str, int]] = {"convnet": {"60s": 1800, "300s": 9200}}
EVERY = 24
METHODS = ("ours", "real KD", "real labels", "noise")


def teacher_directory(pair: str) -> Path:
    """The pair's teacher, trained once; a real one, on the whole training split."""
    source = {"name": f"{pair}-teacher", "data": DATA, "evaluate_every": 1000, **TEACHERS[pair]}
    result = teach(load_config(TeachConfig, source, [f"out={RUNS / pair / 'teacher'}"]))
    assert isinstance(result, Result)
    return result.directory


def cell(pair: str, method: str, seed: int, budget: str, teacher: Path) -> dict[str, Any]:
    """Run one cell, or read it where it is finished."""
    steps = BUDGETS[pair][budget]
    out = RUNS / pair / f"{method.replace(' ', '-')}-{budget}-seed{seed}"
    if method == "real labels":
        optimizer = DISTILL["optimizer"]
        source: dict[str, Any] = {
            "data": DATA,
            "model": STUDENTS[pair],
            "training": {"steps": steps, "batch_size": DISTILL["batch_size"], "optimizer": optimizer},
            "seed": seed,
            "evaluate_every": max(1, steps // 10),
        }
        taught = teach(load_config(TeachConfig, source, [f"out={out}"]))
        assert isinstance(taught, Result)
        accuracy, seconds = taught.values["teacher"]["accuracy"], taught.values["cost"]["seconds"]["teacher"]
    else:
        source = {
            "teacher": {"kind": "load", "model": str(teacher)},
            "student": STUDENTS[pair],
            "test": DATA,
            "distill": DISTILL,
            "bank": {"capacity": 60_000},
            "difficulty": {"augment": False},
            "mix": {"mixup": 0.8},
            "phases": [
                {"kind": "pregenerate", "rounds": 14, "discard": 7},
                {"kind": "joint", "steps": steps, "every": EVERY},
            ],
            "seed": seed,
            "evaluate_every": max(1, steps // 10),
            "grid_every": max(1, steps // 4),
            "checkpoint_every": 2000,
        }
        if method == "real KD":
            source |= {"data": DATA, "mix": {"real": 1.0, "mixup": 0.0}, "phases": [{"kind": "refine", "steps": steps}]}
        elif method == "noise":
            source["generator"] = {"kind": "python", "target": "noise:make"}
        distilled = distill(load_config(DistillConfig, source, [f"out={out}"]))
        assert isinstance(distilled, Result)
        accuracy, seconds = distilled.values["student"]["accuracy"], distilled.values["cost"]["seconds"]["distill"]
    rows = read_rows(out / "metrics.jsonl")
    when = {int(row["step"]): float(row["seconds"]) for row in rows}
    at, values = series(rows, "test/accuracy")
    curve = [[when[s], round(v, 4)] for s, v in zip(at, values, strict=True)]
    return {
        "pair": pair,
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

    colours = dict(zip(METHODS, ("#2563eb", "#16a34a", "#9ca3af", "#dc2626"), strict=True))
    figure, axes = plt.subplots(figsize=(7, 4), dpi=120)
    seen: set[str] = set()
    for c in cells:
        if c["pair"] != pair or not c["curve"]:
            continue
        label = None if c["method"] in seen else c["method"]
        seen.add(c["method"])
        seconds, values = zip(*c["curve"], strict=True)
        axes.plot(seconds, [100 * v for v in values], color=colours[c["method"]], label=label, linewidth=1.2, alpha=0.8)
    axes.set_xlabel("training seconds, two CPU cores")
    axes.set_ylabel("test accuracy, % (reported only)")
    axes.set_ylim(60, 93)
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
    for pair in TEACHERS:
        teacher = teacher_directory(pair)
        for seed in range(arguments.seeds):
            for budget in BUDGETS[pair]:
                for method in METHODS:
                    name = f"{pair}/{method}/{budget}/{seed}"
                    finished = (
                        RUNS / pair / f"{method.replace(' ', '-')}-{budget}-seed{seed}" / "result.json"
                    ).exists()
                    if finished or name.startswith(arguments.only):
                        cells.append(cell(pair, method, seed, budget, teacher))
        plot(cells, pair, HERE.parent / "docs" / "images" / f"fashion_mnist_{pair}.png")
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps({"command": "python benchmarks/fashion_mnist.py", "cells": cells}, indent=1) + "\n")
    print(table(cells))


if __name__ == "__main__":
    main()
