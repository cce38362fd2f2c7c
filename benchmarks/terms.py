"""What each term of the student's objective is worth: Fashion-MNIST, one student, one budget, several seeds.

    python benchmarks/terms.py [--tables full short few vit] [--arms alone KD ...] [--seeds 5] [--threads 2]

Run it alone on the machine. A cell is a `synthkd distill` on real images alone (generator.kind none, no mixtures), of
which a tenth is held out, from the convnet teacher of fashion_mnist.py (91.8 %). Table `full`: 54,000 real images, the
convnet student, plain KD as in `configs/fashion_mnist.yaml` (T = 20); `short`: the same in a quarter of the steps;
`few`: the same with 100 real images of each class, which are all that the student ever sees; `vit`: a small
transformer, T = 4 (T2: 2) and half the weight on hard labels. All arms of a table have the same first weights, batches,
steps and learning-rate curve for one seed, so that their differences are taken seed by seed: the mean difference to
plain KD has a 95 % t-interval over seeds. Weights of terms are those of papers and recipes, not tuned on this dataset,
but for the adapter's, and the steps of `vit`: those were chosen by trials with a seed of their own (100). Finished
cells are kept in benchmarks/runs/terms; the tables go to benchmarks/results/terms.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from scipy import stats

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import fashion_mnist

from synthkd.pipelines import distill
from synthkd.pipelines.config import DistillConfig
from synthkd.pipelines.run.result import Result
from synthkd.settings.load import load_config
from synthkd.system.files import write_atomically

RUNS, RESULTS = HERE / "runs" / "terms", HERE / "results" / "terms.json"
KD: dict[str, Any] = fashion_mnist.WITH_BATCH_NORM["distill"]


def with_terms(*terms: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Plain KD and further terms."""
    return {"transfer": list(terms), **more}


ARMS: dict[str, dict[str, Any]] = {
    "alone": {"alpha": 1.0},
    "KD": {},
    "standardised KD": {"temperature": 2.0, "standardise": True, "soft": 9.0},
    "DKD": with_terms({"kind": "dkd", "alpha": 1.0, "beta": 2.0}, soft=0.0, temperature=4.0),
    "logit match": {"logit_match": 2.0},
    "hint": with_terms({"kind": "hint", "weight": 1.0}),
    "attention": with_terms({"kind": "attention", "weight": 1000}),
    "RKD": with_terms({"kind": "rkd_distance", "weight": 25}, {"kind": "rkd_angle", "weight": 50}),
    "similarity": with_terms({"kind": "similarity", "weight": 1000}),
    "CRD": with_terms({"kind": "crd", "weight": 0.8, "negatives": 0}),
    "SSKD": with_terms({"kind": "sskd", "weight": 100}),
    "adapter": with_terms({"kind": "adapter", "weight": 10.0}),
    "alignment": with_terms({"kind": "alignment", "weight": 1.0}),
    "KD T2": {"temperature": 2.0},
    "adapter T2": with_terms({"kind": "adapter", "weight": 10.0}, temperature=2.0),
}

ADAMW = {"optimizer": {"kind": "adamw", "lr": 3e-3, "weight_decay": 0.05, "schedule": "one_cycle"}}
CONVNET = {"student": {"arch": "convnet", "width": 16}, "arms": list(ARMS)[:11]}
TABLES: dict[str, dict[str, Any]] = {
    "full": {**CONVNET, "steps": 1800},
    "short": {**CONVNET, "steps": 450},
    "few": {**CONVNET, "steps": 900, "per_class": 100},
    "vit": {
        "student": {"arch": "vit", "width": 32, "depth": 2},
        "steps": 2400,
        "distill": {**ADAMW, "temperature": 4.0, "alpha": 0.5},
        "arms": ["alone", "KD", "similarity", "adapter", "alignment", "KD T2", "adapter T2"],
    },
}


def cell(table: str, arm: str, seed: int, threads: int) -> dict[str, Any]:
    """Run a cell, or read it where it is finished."""
    setting = TABLES[table]
    out = place(table, arm, seed)
    data = {**fashion_mnist.DATA, "holdout": 0.1}
    source = {
        "seed": seed,
        "threads": threads,
        "teacher": {"kind": "load", "model": str(fashion_mnist.teacher_of("convnet"))},
        "student": setting["student"],
        "inherit": False,
        "data": {**data, "per_class": setting.get("per_class")},
        "test": data,
        "generator": {"kind": "none"},
        "difficulty": {"augment": False},
        "mix": {"real": 1.0, "mixup": 0.0},
        "distill": {**KD, **setting.get("distill", {}), **ARMS[arm]},
        "phases": [{"kind": "refine", "steps": setting["steps"]}],
        "evaluate_every": setting["steps"],
        "checkpoint_every": 2000,
    }
    result = distill(load_config(DistillConfig, source, [f"out={out}"]))
    assert isinstance(result, Result)
    values = result.values
    return {
        "table": table,
        "arm": arm,
        "seed": seed,
        "steps": setting["steps"],
        "accuracy": values["student"]["accuracy"],
        "transfer_efficiency": (values["evaluations"]["transfer_efficiency"] or {}).get("value"),
        "seconds": values["cost"]["seconds"]["distill"],
        "hardware": values["hardware"],
    }


def interval(values: list[float]) -> str:
    """Mean [95 % t-interval] of values over seeds."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:+.2f}"
    half = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:+.2f} [{mean - half:+.2f}, {mean + half:+.2f}]"


def compared(scores: dict[int, float], *others: dict[int, float]) -> str:
    """Cells of a row: mean (standard deviation) of scores by seed, and paired differences to each of the others."""
    spread = f" ({statistics.stdev(scores.values()):.2f})" if len(scores) > 1 else ""
    cells = [f"{statistics.mean(scores.values()):.2f}{spread}"]
    for other in others:
        paired = [] if scores == other else [score - other[seed] for seed, score in scores.items() if seed in other]
        cells.append(interval(paired) if paired else "")
    return " | ".join(cells)


def place(table: str, arm: str, seed: int) -> Path:
    """The run directory of a cell."""
    return RUNS / table / f"{arm.replace(' ', '-')}-seed{seed}"


def table(name: str, cells: list[dict[str, Any]]) -> str:
    """Accuracy of each arm and its paired differences to plain KD and to labels alone."""
    rows = [c for c in cells if c["table"] == name]
    plain, alone = ({c["seed"]: 100 * c["accuracy"] for c in rows if c["arm"] == arm} for arm in ("KD", "alone"))
    lines = [
        "| term | seeds | accuracy, %, mean (standard deviation) | difference to KD, points | to labels alone | eta "
        "| seconds |",
        "|" + "---|" * 7,
    ]
    for arm in TABLES[name]["arms"]:
        mine = [c for c in rows if c["arm"] == arm]
        if not mine:
            continue
        scores = {c["seed"]: 100 * c["accuracy"] for c in mine}
        lines.append(
            f"| {arm} | {len(mine)} | {compared(scores, plain, alone)} | "
            f"{statistics.mean(c['transfer_efficiency'] for c in mine):.3f} | "
            f"{statistics.median(c['seconds'] for c in mine):.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="*", default=list(TABLES), choices=list(TABLES))
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0, 1, ... of each cell")
    parser.add_argument("--threads", type=int, default=2, help="of torch; fewer only for several at a time")
    arguments = parser.parse_args()
    cells = []
    for seed in range(max(arguments.seeds, 10)):
        for name, setting in TABLES.items():
            for arm in setting["arms"]:
                finished = (place(name, arm, seed) / "result.json").exists()
                wanted = name in arguments.tables and arm in arguments.arms and seed < arguments.seeds
                if finished or wanted:
                    cells.append(cell(name, arm, seed, arguments.threads))
                    found = {"command": "python benchmarks/terms.py", "cells": cells}
                    write_atomically(RESULTS, json.dumps(found, indent=1).encode() + b"\n")
    for name in TABLES:
        print(f"\n{name}\n\n{table(name, cells)}")


if __name__ == "__main__":
    main()
