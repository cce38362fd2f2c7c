"""What each term of the student's objective is worth: Fashion-MNIST, one student, one budget, several seeds.

    python -m benchmarks.terms [--tables full short few vit] [--arms alone KD ...] [--seeds 5] [--threads 2]

Run it alone on the machine. A cell is a `synthkd distill` on real images alone (transfer_set.kind real), of
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

import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks import common, pairs
from benchmarks.common import Row
from synthkd.pipelines import distill
from synthkd.pipelines.config import DistillConfig

RUNS = common.RUNS / "terms"
KD: Row = pairs.WITH_BATCH_NORM["distill"]


def with_terms(*terms: Row, **more: object) -> Row:
    """Plain KD and further terms."""
    return {"transfer": list(terms), **more}


ARMS: dict[str, Row] = {
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
TABLES: dict[str, Row] = {
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
COLUMNS = (
    "term | seeds | accuracy, %, mean (standard deviation) | difference to KD, points | to labels alone | eta | seconds"
)


def place(table: str, arm: str, seed: int) -> Path:
    """The run directory of a cell."""
    return RUNS / table / f"{arm.replace(' ', '-')}-seed{seed}"


def cell(table: str, arm: str, seed: int, threads: int) -> Row:
    """Run a cell, or read it where it is finished."""
    setting = TABLES[table]
    data = {**pairs.DATA, "holdout": 0.1}
    source = {
        "seed": seed,
        "threads": threads,
        "teacher": {"kind": "load", "model": str(pairs.teacher_of("convnet"))},
        "student": setting["student"],
        "inherit": False,
        "transfer_set": {"kind": "real", "data": {**data, "per_class": setting.get("per_class")}},
        "test": data,
        "mix": {"mixup": 0.0},
        "distill": {**KD, **setting.get("distill", {}), **ARMS[arm]},
        "phases": [{"kind": "refine", "steps": setting["steps"]}],
        "evaluate_every": setting["steps"],
        "checkpoint_every": 2000,
    }
    values = common.run(distill, DistillConfig, source, place(table, arm, seed)).values
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


def table(name: str, cells: list[Row]) -> str:
    """Accuracy of each arm and its paired differences to plain KD and to labels alone."""
    arms = {arm: [one for one in cells if (one["table"], one["arm"]) == (name, arm)] for arm in TABLES[name]["arms"]}
    scores = {arm: {one["seed"]: 100 * one["accuracy"] for one in seeds} for arm, seeds in arms.items()}
    rows = [
        [
            arm,
            str(len(seeds)),
            *common.compared(scores[arm], scores["KD"], scores["alone"]),
            f"{statistics.mean(one['transfer_efficiency'] for one in seeds):.3f}",
            f"{statistics.median(one['seconds'] for one in seeds):.0f}",
        ]
        for arm, seeds in arms.items()
        if seeds
    ]
    return common.table(COLUMNS, rows)


def tables(content: Row) -> str:
    """Every table under its name."""
    return "\n".join(f"\n{name}\n\n{table(name, content['cells'])}" for name in TABLES)


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is wanted, write the cells after each, and print the tables."""
    parser = common.options("terms", __doc__)
    parser.add_argument("--tables", nargs="*", default=list(TABLES), choices=list(TABLES))
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS))
    common.add_seeds(parser, 5)
    common.add_threads(parser)
    arguments = parser.parse_args(argv)
    every = [(name, arm) for name in arguments.tables for arm in TABLES[name]["arms"] if arm in arguments.arms]
    cells = common.collect(
        "terms",
        [(name, arm, seed) for seed in range(arguments.seeds) for name, arm in every],
        lambda key: cell(*key, arguments.threads),
        lambda one: (one["seed"], list(TABLES).index(one["table"]), list(ARMS).index(one["arm"])),
    )
    print(tables({"cells": cells}))


if __name__ == "__main__":
    main()
