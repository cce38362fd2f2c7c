"""Online distillation with all its parts against static KD, one part at a time: Fashion-MNIST.

    python -m benchmarks.online [--arms static online ...] [--seeds 3] [--threads 2]

Run it alone on the machine. The convnet teacher and student of fashion_mnist.py; half of each batch are real images, of
which there are 100 a class, half are made by inversion of the teacher. `static`: the teacher is frozen. `online`: a
copy of it goes on learning beside the student, and both learn from each other. To that, one at a time and then all:
adaptive weights, role swap, replay by priority, averages of weights (which then answer, teach and are kept). Accuracy
is that of the student at the end on the 10,000 test images; stability the standard deviation of its accuracy at the
last five evaluations, 50 steps apart, on 500 images that nobody learns from. Arms share first weights and real images
for one seed. Finished cells are kept in benchmarks/runs/online; the table goes to benchmarks/results/online.json.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks import common, pairs
from benchmarks.common import Row
from synthkd.pipelines import distill
from synthkd.pipelines.config import DistillConfig

RUNS = common.RUNS / "online"
DATA = {**pairs.DATA, "holdout": 0.1}
STEPS, EVERY, EVALUATE_EVERY = 600, 30, 50
PARTS = ("weights", "swap", "replay", "EMA")
ARMS: dict[str, tuple[str, ...]] = {
    "static": (),
    "online": ("peer",),
    **{f"online + {part}": ("peer", part) for part in PARTS},
    "online, all": ("peer", *PARTS),
}
COLUMNS = (
    "arm | seeds | student, %, mean (standard deviation) | difference to static, points | teacher's copy, % | "
    "stability, points | eta | time, of static"
)


def recipe(parts: tuple[str, ...]) -> Row:
    """The part of the configuration that differs between arms."""
    ema = 0.98 if "EMA" in parts else 0.0
    optimizer = {"kind": "adamw", "lr": 3e-3, "weight_decay": 0.05, "schedule": "one_cycle", "ema": ema}
    generated: Row = {"difficulty": {"augment": False}}
    source: Row = {
        "transfer_set": [generated, {"kind": "real", "data": {**DATA, "per_class": 100}, "share": 0.5}],
        "distill": {
            "batch_size": 128,
            "temperature": 4.0,
            "alpha": 0.3,
            "optimizer": optimizer,
            "adapt": {"every": EVALUATE_EVERY, "weights": {} if "weights" in parts else None},
        },
    }
    if "peer" in parts:
        source["online"] = {
            "peers": [{"optimizer": {**optimizer, "lr": 3e-4}}],
            "averaged": "EMA" in parts,
            "swap": {} if "swap" in parts else None,
        }
    if "replay" in parts:
        generated["bank"] = {"policy": "prioritized"}
    return source


def place(arm: str, seed: int) -> Path:
    """The run directory of a cell."""
    return RUNS / f"{arm.replace(' ', '-').replace(',', '')}-seed{seed}"


def cell(arm: str, seed: int, threads: int) -> Row:
    """Run a cell, or read it where it is finished."""
    pair = pairs.PAIRS["convnet"]
    rounds, discard = pair.rounds
    source = {
        "seed": seed,
        "threads": threads,
        "teacher": {"kind": "load", "model": str(pairs.teacher_of("convnet"))},
        "student": pair.student,
        "inherit": False,
        "test": DATA,
        "phases": [
            {"kind": "pregenerate", "rounds": rounds, "discard": discard},
            {"kind": "joint", "steps": STEPS, "every": EVERY},
        ],
        "evaluate_every": STEPS,
        "checkpoint_every": 1000,
        "grid_every": 1000,
        **recipe(ARMS[arm]),
    }
    values = common.run(distill, DistillConfig, source, place(arm, seed)).values
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


def tables(content: Row) -> str:
    """Accuracy, difference to static KD, stability and time of each arm."""
    arms = {arm: [one for one in content["cells"] if one["arm"] == arm] for arm in ARMS}
    scores = {arm: {one["seed"]: 100 * one["accuracy"] for one in seeds} for arm, seeds in arms.items()}
    static = {one["seed"]: one["seconds"] for one in arms["static"]}
    rows = []
    for arm, seeds in arms.items():
        if not seeds:
            continue
        peers = [100 * one["peer"] for one in seeds if one["peer"] is not None]
        ratios = [one["seconds"] / static[one["seed"]] for one in seeds if one["seed"] in static]
        rows.append(
            [
                arm,
                str(len(seeds)),
                *common.compared(scores[arm], scores["static"]),
                f"{statistics.mean(peers):.2f}" if peers else "",
                f"{100 * statistics.mean(one['stability'] for one in seeds):.2f}",
                f"{statistics.mean(one['transfer_efficiency'] for one in seeds):.3f}",
                f"{statistics.median(ratios):.2f} x" if ratios else "",
            ]
        )
    return common.table(COLUMNS, rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is wanted, write the cells after each, and print the table."""
    common.run_arms(argv, "online", __doc__, ARMS, cell, tables)


if __name__ == "__main__":
    main()
