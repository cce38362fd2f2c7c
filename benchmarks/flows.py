"""What each flow of `synthkd compress` costs in accuracy, and what it leaks: Fashion-MNIST, audited.

    python -m benchmarks.flows [--cells "F1" "F3, epsilon 1"] [--seeds 1] [--root FOLDER] [--threads 2]

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

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from benchmarks import common, pairs
from benchmarks.common import Row
from synthkd.pipelines import compress
from synthkd.pipelines.config import CompressConfig

RUNS = common.RUNS / "flows"
PAIR = pairs.PAIRS["convnet"]
AUDIT = {"canaries": 1000, "references": 2}
WHOS, HALVES = ("teacher", "student"), ("natural", "mislabelled")


def private_teacher(model: Row, training: Row) -> Row:
    """A teacher of the private images."""
    return {"kind": "train", "data": pairs.DATA, "model": model, "training": training}


def plain() -> Row:
    """Nothing is private: the student learns from the teacher alone."""
    phases = [
        {"kind": "pregenerate", "rounds": PAIR.rounds[0], "discard": PAIR.rounds[1]},
        {"kind": "joint", "steps": PAIR.budgets["60s"], "every": PAIR.every},
    ]
    return {
        "flow": "plain",
        "teacher": private_teacher(PAIR.teacher["model"], {**PAIR.teacher["training"], "steps": 1500}),
        "student": PAIR.student,
        "distillation": {**PAIR.recipe, "phases": phases},
    }


def dp_teacher(epsilon: float) -> Row:
    """The teacher is trained by DP-SGD."""
    lenet = pairs.PAIRS["lenet"]
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
        "flow": "dp_teacher",
        "teacher": private_teacher({"arch": "lenet5", "width": 6, "activation": "tanh"}, private),
        "student": {"arch": "lenet5", "width": 3, "activation": "tanh"},
        "distillation": {
            **lenet.recipe,
            "inherit": True,  # the teacher's weights are as private as all that is made of them
            "phases": [{"kind": "pregenerate", "rounds": 80}, {"kind": "joint", "steps": 5500, "every": 40}],
        },
    }


def dp_generator(epsilon: float) -> Row:
    """One noisy mean embedding of the private images is released; a generator learns from it."""
    optimizer = {"kind": "adamw", "lr": 3e-3, "weight_decay": 0.05, "schedule": "one_cycle", "ema": 0.99}
    return {
        "flow": "dp_generator",
        "teacher": private_teacher(PAIR.teacher["model"], {"steps": 400, "batch_size": 128, "optimizer": optimizer}),
        "student": PAIR.student,
        "distillation": {
            "transfer_set": {
                "generator": {"kind": "merf", "epsilon": epsilon},
                "difficulty": {"start": 1.0, "high": 1.0, "low": 1.0, "augment": False},
            },
            "mix": {"mixup": 0.8},
            "distill": PAIR.recipe["distill"],
            "phases": [{"kind": "pregenerate", "rounds": 40}, {"kind": "joint", "steps": 1500, "every": 75}],
        },
    }


CELLS: dict[str, Row] = {
    "F1": plain(),
    **{f"F2, epsilon {epsilon}": dp_teacher(epsilon) for epsilon in (8, 3)},
    **{f"F3, epsilon {epsilon}": dp_generator(epsilon) for epsilon in (8, 3, 1)},
}


COLUMNS = (
    "flow | model | accuracy, % | average: AUC | TPR at 1 % FPR, % | mislabelled: AUC | TPR at 1 % FPR, % | "
    "epsilon claimed | epsilon found, of at most | minutes"
)


def place(name: str, seed: int) -> Path:
    """The run directory of a cell."""
    return RUNS / f"{name.replace(', ', '-').replace(' ', '-')}-seed{seed}"


def cell(name: str, seed: int, threads: int) -> Row:
    """Run a cell, or read it where it is finished."""
    distillation = {**CELLS[name]["distillation"], "evaluate_every": 2000, "grid_every": 1000}
    source = {
        **CELLS[name],
        "distillation": distillation,
        "seed": seed,
        "threads": threads,
        "test": pairs.DATA,
        "audit": AUDIT,
        "export": {"formats": []},
        "checkpoint_every": 500,
    }
    out = place(name, seed)
    values = common.run(compress, CompressConfig, source, out).values
    report = json.loads((out / "privacy_report.json").read_text(encoding="utf-8"))
    claims = report["dp"]["claims"] if report["dp"] else []
    return {
        "flow": name,
        "seed": seed,
        "verdict": values["verdict"]["text"],
        "claimed": claims[0]["epsilon"] if claims else None,
        "checks": {check["name"]: check["passed"] for check in report["checks"]},
        "models": {who: audited(values[who], report["audit"]["models"][who]) for who in WHOS},
        "seconds": values["cost"]["seconds"],
        "hardware": values["hardware"],
    }


def audited(scores: Row, halves: Row) -> Row:
    """Accuracy of a model, and what the audit found on each half of the canaries."""
    row: Row = {"accuracy": scores["accuracy"], "interval": scores["accuracy_interval"]}
    for half in HALVES:
        best = max(halves[half]["attacks"], key=lambda attack: float(attack["auc"]["value"]))
        row[half] = {
            "attack": best["name"],
            "auc": best["auc"],
            "tpr": next(point for point in best["tpr"] if point["error"] == 0.01),
            "one_run": halves[half]["one_run"],
        }
    return row


def tables(content: Row) -> str:
    """A row for each model of each cell."""
    return common.table(COLUMNS, (columns(one, who) for one in content["cells"] for who in WHOS))


def columns(one: Row, who: str) -> list[str]:
    """The row of a model."""
    model = one["models"][who]
    attacks = [text for half in HALVES for text in (f"{model[half]['auc']['value']:.3f}", rate(model[half]["tpr"]))]
    bounds = [model[half]["one_run"] for half in HALVES if model[half]["one_run"]]
    best = max(bounds, key=lambda bound: float(bound["epsilon"]))
    return [
        one["flow"],
        who,
        common.percent(model["accuracy"], model["interval"]),
        *attacks,
        "none" if one["claimed"] is None else f"{one['claimed']:.3g}",
        f"{best['epsilon']:.2f} of {best['ceiling']:.2f}",
        f"{sum(one['seconds'].values()) / 60:.0f}" if who == WHOS[0] else "",
    ]


def rate(point: Row) -> str:
    """True positives with their interval, in %."""
    share = point["rate"]
    return "-" if share is None else common.between(*(100 * share[key] for key in ("value", "low", "high")), digits=1)


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is wanted, print the table and write it."""
    parser = common.options("flows", __doc__)
    parser.add_argument("--cells", nargs="*", default=list(CELLS), choices=list(CELLS), help="run only these")
    common.add_seeds(parser, 1)
    pairs.add_root(parser)
    common.add_threads(parser)
    arguments = parser.parse_args(argv)
    pairs.DATA["root"] = arguments.root
    environment = common.environment("torch", "opacus", "dp-accounting", "numpy")
    cells = common.collect(
        "flows",
        product(arguments.cells, range(arguments.seeds)),
        lambda key: cell(*key, arguments.threads),
        lambda one: (list(CELLS).index(one["flow"]), one["seed"]),
        lambda _: {"audit": AUDIT, **environment},
    )
    print(tables({"audit": AUDIT, "cells": cells}))


if __name__ == "__main__":
    main()
