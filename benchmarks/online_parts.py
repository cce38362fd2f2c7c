"""Why online distillation with all its parts loses: each part with and without each other, on digits.

    python -m benchmarks.online_parts [--arms static all ...] [--seeds 5] [--threads 1]

Run it alone on the machine with one thread; a cell takes 5 to 10 seconds. The teacher learns from one half of the
digits; the student has 10 images a class of the other half, which are half of each batch, the rest is made by
inversion. A copy of the teacher goes on learning beside the student. All 16 subsets of four parts are run: adaptive
weights, swap (the copy's answers are the soft labels), replay by priority, EMA (averages of weights answer, teach and
are kept). An effect is the mean difference with and without a part, over the 8 subsets of the other parts; the
interaction of two is half the difference between the effects of one with and without the other. Then come changes of
the whole. `rising` lets the weight of the peers' answers rise from 0 to 1 during the run; `raw` keeps the averages but
lets networks teach by their present weights; `slow copy` has a tenth of the copy's learning rate. Agreement is that of
the finished student with the teacher on all 1,797 digits. The copy's drift is the largest T^2 KL(teacher || copy) on a
logged batch. Finished cells are kept in benchmarks/runs/online_parts; the tables go to
benchmarks/results/online_parts.json.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import torch

from benchmarks import common
from benchmarks.common import Row
from synthkd.data.read.real import load_splits
from synthkd.metrics.utility import predict
from synthkd.models import load
from synthkd.pipelines import distill, teach
from synthkd.pipelines.config import DistillConfig, TeachConfig
from synthkd.settings.data import DigitsData
from synthkd.training.monitor import FILE_NAME, read_rows, series

RUNS = common.RUNS / "online_parts"
DIGITS = {"kind": "digits", "split_seed": 1}
STEPS, EVERY, EVALUATE_EVERY = 400, 20, 25
PARTS = ("weights", "swap", "replay", "EMA")
SUBSETS = [subset for count in range(len(PARTS) + 1) for subset in combinations(PARTS, count)]


def name_of(subset: Sequence[str]) -> str:
    """The arm with these parts beside the copy of the teacher."""
    return {0: "online", len(PARTS): "all"}.get(len(subset), "online + " + ", ".join(subset))


ARMS: dict[str, tuple[str, ...]] = {
    "static": (),
    **{name_of(subset): ("peer", *subset) for subset in SUBSETS},
    "online + swap, rising": ("peer", "swap", "rising"),
    "all, rising": ("peer", *PARTS, "rising"),
    "all, raw": ("peer", *PARTS, "raw"),
    "all, rising, raw": ("peer", *PARTS, "rising", "raw"),
    "all, slow copy, raw": ("peer", *PARTS, "slow copy", "raw"),
}
MEASURES = ("accuracy", "agreement")
EFFECTS = "part | seeds | test accuracy, points | agreement with the teacher, points"
COLUMNS = (
    "arm | seeds | test accuracy, %, mean (standard deviation) | to static, points | to all, points | "
    "agreement, %, mean (standard deviation) | to static, points | to all, points | copy's drift"
)


def recipe(parts: Sequence[str]) -> Row:
    """The part of the configuration that differs between arms."""
    ema = 0.98 if "EMA" in parts else 0.0
    optimizer = {"kind": "adamw", "lr": 3e-3, "weight_decay": 0.05, "schedule": "one_cycle", "ema": ema}
    generated: Row = {"difficulty": {"augment": False}, "generator": {"width": 16, "latent": 64}}
    few = {**DIGITS, "half": "second", "per_class": 10}
    source: Row = {
        "transfer_set": [generated, {"kind": "real", "data": few, "share": 0.5}],
        "distill": {
            "alpha": 0.3,
            "optimizer": optimizer,
            "adapt": {"every": EVALUATE_EVERY, "weights": {} if "weights" in parts else None},
        },
    }
    if "peer" in parts:
        source["online"] = {
            "peers": [{"optimizer": {**optimizer, "lr": 3e-5 if "slow copy" in parts else 3e-4}}],
            "mutual": {"kind": "linear", "start": 0.0, "end": 1.0} if "rising" in parts else 1.0,
            "averaged": "EMA" in parts and "raw" not in parts,
            "swap": {} if "swap" in parts else None,
        }
    if "replay" in parts:
        generated["bank"] = {"policy": "prioritized"}
    return source


def teacher(threads: int) -> Path:
    """Run directory of the teacher, which is trained once."""
    source = {
        "data": {**DIGITS, "half": "first"},
        "model": {"arch": "resnet", "width": 16, "depth": 8},
        "training": {"steps": 400, "batch_size": 64},
        "threads": threads,
    }
    return common.run(teach, TeachConfig, source, RUNS / "teacher").directory


def place(arm: str, seed: int) -> Path:
    """The run directory of a cell."""
    return RUNS / f"{arm.replace(' ', '-').replace(',', '')}-seed{seed}"


def cell(arm: str, seed: int, threads: int) -> Row:
    """Run a cell, or read it where it is finished."""
    taught = teacher(threads)
    source = {
        "seed": seed,
        "threads": threads,
        "teacher": {"kind": "load", "model": str(taught)},
        "student": {"arch": "convnet", "width": 4},
        "inherit": False,
        "test": DIGITS,
        "phases": [
            {"kind": "pregenerate", "rounds": 10, "discard": 5},
            {"kind": "joint", "steps": STEPS, "every": EVERY},
        ],
        "evaluate_every": STEPS,
        "checkpoint_every": 10_000,
        "grid_every": 10_000,
        **recipe(ARMS[arm]),
    }
    directory = place(arm, seed)
    values = common.run(distill, DistillConfig, source, directory).values
    _, drift = series(read_rows(directory / FILE_NAME), "peer 1/soft")
    return {
        "arm": arm,
        "seed": seed,
        "accuracy": values["student"]["accuracy"],
        "agreement": agreement(taught, directory / "student"),
        "drift": max(drift, default=None),
        "teaching": values["evaluations"].get("teaching"),
        "hardware": values["hardware"],
    }


def agreement(*models: Path) -> float:
    """Share of all digits of which two models say the same."""
    splits = load_splits(DigitsData(kind="digits"))
    images = torch.cat([part.images[:] for part in (splits.train, splits.holdout, splits.test)])
    ours, theirs = (predict(load(model).eval(), images, torch.device("cpu")) for model in models)
    return float((ours == theirs).float().mean())


def effect(parts: Sequence[str], scores: Mapping[str, float]) -> float:
    """The effect of a part, or the interaction of two, from the scores of all 16 arms of one seed."""
    total = 0.0
    for subset in SUBSETS:
        absent = sum(part not in subset for part in parts)
        total += (-1) ** absent * scores[name_of(subset)]
    return total / (len(SUBSETS) / 2)


def _by_seed(cells: Sequence[Row], measure: str) -> dict[int, dict[str, float]]:
    scores: dict[int, dict[str, float]] = {}
    for one in cells:
        scores.setdefault(one["seed"], {})[one["arm"]] = 100 * one[measure]
    return scores


def effects(cells: Sequence[Row]) -> str:
    """Effects of the parts and interactions of two, over the seeds that have all 16 arms."""
    rows = []
    names = {name_of(subset) for subset in SUBSETS}
    for parts in [subset for subset in SUBSETS if len(subset) in (1, 2)]:
        values = [
            [effect(parts, arms) for arms in _by_seed(cells, measure).values() if names <= arms.keys()]
            for measure in MEASURES
        ]
        if values[0]:
            rows.append([" x ".join(parts), str(len(values[0])), *map(common.mean_interval, values)])
    return common.table(EFFECTS, rows)


def arms_table(cells: Sequence[Row]) -> str:
    """The arms with at most one part, all but one, all, and all with a change."""
    shown = [arm for arm, parts in ARMS.items() if len(parts) != 3 or "rising" in parts]
    scores = {
        measure: {arm: {one["seed"]: 100 * one[measure] for one in cells if one["arm"] == arm} for arm in shown}
        for measure in MEASURES
    }
    rows = []
    for arm in shown:
        if not scores["accuracy"][arm]:
            continue
        drifts = [one["drift"] for one in cells if one["arm"] == arm and one["drift"] is not None]
        compared = [common.compared(by_arm[arm], by_arm["static"], by_arm["all"]) for by_arm in scores.values()]
        drift = f"{statistics.mean(drifts):.2f}" if drifts else ""
        rows.append([arm, str(len(scores["accuracy"][arm])), *compared[0], *compared[1], drift])
    return common.table(COLUMNS, rows)


def tables(content: Row) -> str:
    """The effects, and the arms."""
    return f"{effects(content['cells'])}\n\n{arms_table(content['cells'])}"


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is wanted, write the cells after each, and print the tables."""
    common.run_arms(argv, "online_parts", __doc__, ARMS, cell, tables, 5)


if __name__ == "__main__":
    main()
