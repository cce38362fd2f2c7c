"""Online distillation with all its parts against static KD, one part at a time: Fashion-MNIST.

    python benchmarks/online.py [--arms static online ...] [--seeds 3] [--threads 2]

Run it alone on the machine. The convnet teacher and student of fashion_mnist.py; half of each batch are real images, of
which there are 100 a class, half are made by inversion of the teacher. `static`: the teacher is frozen. `online`: a
copy of it goes on learning beside the student, and both learn from each other. To that, one at a time and then all:
adaptive weights, role swap, replay by priority, averages of weights (which then answer, teach and are kept). Accuracy
is that of the student at the end on the 10,000 test images; stability the standard deviation of its accuracy at the
last five looks, 50 steps apart, at 500 images that nobody learns from. Arms share first weights and real images for one
seed. Finished cells are kept in benchmarks/runs/online; the table goes to benchmarks/results/online.json.
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

import fashion_mnist
from terms import compared

from synthkd.pipelines import distill
from synthkd.pipelines.config import DistillConfig
from synthkd.pipelines.run.result import Result
from synthkd.settings.load import load_config
from synthkd.system.files import write_atomically

RUNS, RESULTS = HERE / "runs" / "online", HERE / "results" / "online.json"
STEPS, EVERY, LOOKS = 600, 30, 50
PARTS = ("weights", "swap", "replay", "EMA")
ARMS: dict[str, tuple[str, ...]] = {
    "static": (),
    "online": ("peer",),
    **{f"online + {part}": ("peer", part) for part in PARTS},
    "online, all": ("peer", *PARTS),
}


def recipe(parts: tuple[str, ...]) -> dict[str, Any]:
    """What `synthkd distill` is told of the parts."""
    ema = 0.98 if "EMA" in parts else 0.0
    optimizer = {"kind": "adamw", "lr": 3e-3, "weight_decay": 0.05, "schedule": "one_cycle", "ema": ema}
    distilling: dict[str, Any] = {
        "batch_size": 128,
        "temperature": 4.0,
        "alpha": 0.3,
        "optimizer": optimizer,
        "adapt": {"every": LOOKS, "weights": {} if "weights" in parts else None},
    }
    asked: dict[str, Any] = {"distill": distilling}
    if "peer" in parts:
        asked["online"] = {
            "peers": [{"optimizer": {**optimizer, "lr": 3e-4}}],
            "averaged": "EMA" in parts,
            "swap": {} if "swap" in parts else None,
        }
    if "replay" in parts:
        asked["bank"] = {"policy": "prioritized"}
    return asked


def place(arm: str, seed: int) -> Path:
    """The run directory of a cell."""
    return RUNS / f"{arm.replace(' ', '-').replace(',', '')}-seed{seed}"


def cell(arm: str, seed: int, threads: int) -> dict[str, Any]:
    """Run a cell, or read it where it is finished."""
    pair = fashion_mnist.PAIRS["convnet"]
    out = place(arm, seed)
    data = {**fashion_mnist.DATA, "holdout": 0.1}
    rounds, discard = pair.rounds
    source = {
        "seed": seed,
        "threads": threads,
        "teacher": {"kind": "load", "model": str(fashion_mnist.teacher_of("convnet"))},
        "student": pair.student,
        "inherit": False,
        "data": {**data, "per_class": 100},
        "test": data,
        "difficulty": {"augment": False},
        "mix": {"real": 0.5},
        "phases": [
            {"kind": "pregenerate", "rounds": rounds, "discard": discard},
            {"kind": "joint", "steps": STEPS, "every": EVERY},
        ],
        "evaluate_every": STEPS,
        "checkpoint_every": 1000,
        "grid_every": 1000,
        **recipe(ARMS[arm]),
    }
    result = distill(load_config(DistillConfig, source, [f"out={out}"]))
    assert isinstance(result, Result)
    values = result.values
    return {
        "arm": arm,
        "seed": seed,
        "accuracy": values["student"]["accuracy"],
        "peer": values["peers"][0]["accuracy"] if "peers" in values else None,
        "teacher": values["teacher"]["accuracy"],
        "stability": values["evaluations"]["stability"],
        "transfer_efficiency": values["evaluations"]["transfer_efficiency"]["value"],
        "teaching": values["evaluations"].get("teaching"),
        "seconds": values["cost"]["seconds"]["distill"],
        "hardware": values["hardware"],
    }


def table(cells: list[dict[str, Any]]) -> str:
    """Accuracy, difference to static KD, stability and time of each arm."""
    static = {c["seed"]: 100 * c["accuracy"] for c in cells if c["arm"] == "static"}
    lines = [
        "| arm | seeds | student, %, mean (standard deviation) | difference to static, points | teacher's copy, % "
        "| stability, points | eta | time, of static |",
        "|" + "---|" * 8,
    ]
    seconds = {c["seed"]: c["seconds"] for c in cells if c["arm"] == "static"}
    for arm in ARMS:
        mine = [c for c in cells if c["arm"] == arm]
        if not mine:
            continue
        scores = {c["seed"]: 100 * c["accuracy"] for c in mine}
        peers = [100 * c["peer"] for c in mine if c["peer"] is not None]
        ratios = [c["seconds"] / seconds[c["seed"]] for c in mine if c["seed"] in seconds]
        lines.append(
            f"| {arm} | {len(mine)} | {compared(scores, static)} | "
            f"{f'{statistics.mean(peers):.2f}' if peers else ''} | "
            f"{100 * statistics.mean(c['stability'] for c in mine):.2f} | "
            f"{statistics.mean(c['transfer_efficiency'] for c in mine):.3f} | "
            f"{f'{statistics.median(ratios):.2f} x' if ratios else ''} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ... of each cell")
    parser.add_argument("--threads", type=int, default=2, help="of torch; fewer only for several at a time")
    arguments = parser.parse_args()
    cells = []
    for seed in range(max(arguments.seeds, 10)):
        for arm in ARMS:
            finished = (place(arm, seed) / "result.json").exists()
            if finished or (arm in arguments.arms and seed < arguments.seeds):
                cells.append(cell(arm, seed, arguments.threads))
                found = {"command": "python benchmarks/online.py", "cells": cells}
                write_atomically(RESULTS, json.dumps(found, indent=1).encode() + b"\n")
    print(table(cells))


if __name__ == "__main__":
    main()
