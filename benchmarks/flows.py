"""What each flow of `synthkd compress` costs in accuracy, and what it leaks: Fashion-MNIST, audited.

    python benchmarks/flows.py [--cells "F1" "F3, epsilon 1"] [--seeds 1] [--root FOLDER] [--threads 2]

Run it alone on the machine. A cell is a `synthkd compress` with an audit of 1,000 canaries and two references: the
pipeline runs once as it is handed over, once with the canaries that a coin put in, and twice without any. The teacher
of F1 is the convnet of fashion_mnist.py, trained for 1,500 steps, its student learns from the teacher alone; that of F2
is LeNet-5 with tanh by DP-SGD; F3 releases one noisy mean embedding of the 60,000 images, teacher and student learn
from images of a generator that was trained on it. All normalise by what their flow allows. Delta is 1e-5. Noise and
batches of DP runs come from the operating system, so these cells cannot be repeated exactly. Finished cells are kept in
benchmarks/runs/flows; the table goes to benchmarks/results/flows.json.

Accuracies are of the models that are handed over, on the 10,000 test images. Attacks are those with the largest area
under the ROC curve of a half of the canaries; true positives at 1 % false positives have exact 95 % intervals.
`epsilon found` is the rigorous lower bound of one run at 95 % over all four, the larger half of teacher or student;
beside it stands the most that a perfect attack could have shown.
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import fashion_mnist

from synthkd.pipelines import compress
from synthkd.pipelines.config import CompressConfig
from synthkd.pipelines.run.result import Result
from synthkd.settings.load import load_config
from synthkd.system.files import write_atomically
from synthkd.system.hardware import describe

RUNS, RESULTS = HERE / "runs" / "flows", HERE / "results" / "flows.json"
PAIR = fashion_mnist.PAIRS["convnet"]
AUDIT = {"canaries": 1000, "references": 2}
WHOS, HALVES = ("teacher", "student"), ("natural", "mislabelled")


def taught(model: dict[str, Any], training: dict[str, Any]) -> dict[str, Any]:
    """A teacher of the private images."""
    return {"kind": "train", "data": fashion_mnist.DATA, "model": model, "training": training}


def f1() -> dict[str, Any]:
    return {
        **PAIR.recipe,
        "flow": "plain",
        "teacher": taught(PAIR.teacher["model"], {**PAIR.teacher["training"], "steps": 1500}),
        "student": PAIR.student,
        "phases": [
            {"kind": "pregenerate", "rounds": PAIR.rounds[0], "discard": PAIR.rounds[1]},
            {"kind": "joint", "steps": PAIR.budgets["60s"], "every": PAIR.every},
        ],
    }


def f2(epsilon: float) -> dict[str, Any]:
    lenet = fashion_mnist.PAIRS["lenet"]
    private = {
        "steps": 300,
        "batch_size": 1024,
        "optimizer": {
            "kind": "sgd",
            "lr": 2.0,
            "weight_decay": 0.0,
            "schedule": "one_cycle",
            "warmup": 0.1,
            "ema": 0.99,
        },
        "dp": {"epsilon": epsilon, "clip": 0.5},
    }
    return {
        **lenet.recipe,
        "flow": "dp_teacher",
        "inherit": True,  # the teacher's weights are as private as all that is made of them
        "teacher": taught({"arch": "lenet5", "width": 6, "activation": "tanh"}, private),
        "student": {"arch": "lenet5", "width": 3, "activation": "tanh"},
        "phases": [{"kind": "pregenerate", "rounds": 80}, {"kind": "joint", "steps": 5500, "every": 40}],
    }


def f3(epsilon: float) -> dict[str, Any]:
    optimizer = {"kind": "adamw", "lr": 3e-3, "weight_decay": 0.05, "schedule": "one_cycle", "ema": 0.99}
    return {
        "flow": "dp_generator",
        "generator": {"kind": "merf", "epsilon": epsilon},
        "teacher": taught(PAIR.teacher["model"], {"steps": 400, "batch_size": 128, "optimizer": optimizer}),
        "student": PAIR.student,
        "difficulty": {"start": 1.0, "high": 1.0, "low": 1.0, "augment": False},
        "mix": {"mixup": 0.8},
        "distill": PAIR.recipe["distill"],
        "phases": [{"kind": "pregenerate", "rounds": 40}, {"kind": "joint", "steps": 1500, "every": 75}],
    }


CELLS: dict[str, dict[str, Any]] = {
    "F1": f1(),
    **{f"F2, epsilon {epsilon}": f2(epsilon) for epsilon in (8, 3)},
    **{f"F3, epsilon {epsilon}": f3(epsilon) for epsilon in (8, 3, 1)},
}


def run(name: str, seed: int, threads: int) -> dict[str, Any]:
    """Run a cell, or read it where it is finished."""
    source = {
        **CELLS[name],
        "seed": seed,
        "threads": threads,
        "test": fashion_mnist.DATA,
        "audit": AUDIT,
        "export": {"formats": []},
        "evaluate_every": 2000,
        "checkpoint_every": 500,
        "grid_every": 1000,
    }
    out = RUNS / f"{name.replace(', ', '-').replace(' ', '-')}-seed{seed}"
    result = compress(load_config(CompressConfig, source, [f"out={out}"]))
    assert isinstance(result, Result)
    values = result.values
    report = json.loads((out / "privacy_report.json").read_text(encoding="utf-8"))
    claims = report["dp"]["claims"] if report["dp"] else []
    models = report["audit"]["models"]
    return {
        "flow": name,
        "seed": seed,
        "verdict": values["verdict"]["text"],
        "claimed": claims[0]["epsilon"] if claims else None,
        "checks": {check["name"]: check["passed"] for check in report["checks"]},
        "models": {who: model(values[who], models[who]) for who in WHOS},
        "seconds": values["cost"]["seconds"],
        "hardware": values["hardware"],
    }


def model(scored: dict[str, Any], halves: dict[str, Any]) -> dict[str, Any]:
    """Accuracy of a model, and what the audit found on each half of the canaries."""
    found: dict[str, Any] = {"accuracy": scored["accuracy"], "interval": scored["accuracy_interval"]}
    for half in HALVES:
        best = max(halves[half]["attacks"], key=lambda attack: float(attack["auc"]["value"]))
        found[half] = {
            "attack": best["name"],
            "auc": best["auc"],
            "tpr": next(point for point in best["tpr"] if point["error"] == 0.01),
            "one_run": halves[half]["one_run"],
        }
    return found


def table(cells: list[dict[str, Any]]) -> str:
    """A row for each model of each cell."""
    lines = [
        "| flow | model | accuracy, % | average: AUC | TPR at 1 % FPR, % | mislabelled: AUC | TPR at 1 % FPR, % "
        "| epsilon claimed | epsilon found, of at most | minutes |",
        "|" + "---|" * 10,
    ]
    for cell in cells:
        for who in WHOS:
            one = cell["models"][who]
            low, high = one["interval"]
            row = [cell["flow"], who, f"{100 * one['accuracy']:.2f} [{100 * low:.2f}, {100 * high:.2f}]"]
            for half in HALVES:
                row += [f"{one[half]['auc']['value']:.3f}", rate(one[half]["tpr"])]
            bounds = [one[half]["one_run"] for half in HALVES if one[half]["one_run"]]
            best = max(bounds, key=lambda bound: float(bound["epsilon"]))
            row.append("none" if cell["claimed"] is None else f"{cell['claimed']:.3g}")
            row.append(f"{best['epsilon']:.2f} of {best['ceiling']:.2f}")
            row.append(f"{sum(cell['seconds'].values()) / 60:.0f}" if who == WHOS[0] else "")
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def rate(point: dict[str, Any]) -> str:
    """True positives with their interval."""
    found = point["rate"]
    if found is None:
        return "-"
    return f"{100 * found['value']:.1f} [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="*", default=list(CELLS), choices=list(CELLS), help="run only these")
    parser.add_argument("--seeds", type=int, default=1, help="seeds 0, 1, ... of each cell")
    parser.add_argument("--root", default=fashion_mnist.DATA["root"], help="folder with the dataset's files")
    parser.add_argument("--threads", type=int, default=2, help="of torch; fewer only for several at a time")
    arguments = parser.parse_args()
    fashion_mnist.DATA["root"] = arguments.root
    cells = []
    for name in CELLS:
        for seed in range(arguments.seeds):
            finished = (RUNS / f"{name.replace(', ', '-').replace(' ', '-')}-seed{seed}" / "result.json").exists()
            if finished or name in arguments.cells:
                cells.append(run(name, seed, arguments.threads))
    print(table(cells))
    content = {
        "command": "python benchmarks/flows.py",
        "audit": AUDIT,
        "cells": cells,
        "versions": {name: version(name) for name in ("torch", "opacus", "dp-accounting", "numpy")},
        "hardware": describe(torch.device("cpu")),
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(RESULTS, json.dumps(content, indent=1).encode() + b"\n")


if __name__ == "__main__":
    main()
