"""Pictures that cost no gradient beside those of a generator: transfer sets on CIFAR-10 at equal seconds of one core.

    python -m benchmarks.sources --cifar10 FILE --teachers DIR [--budget 100s] [--arms inversion pictures] [--seeds 1]

FILE is a .npz with `test_images` and `test_labels` of CIFAR-10, DIR has the public `resnet20-12fca82f.th`. The student
is a ResNet-8 from random weights, which learns with the settings of `configs/fashion_mnist.yaml`. The steps of each arm
are sized for a budget of seconds of one core: an arm without a generator has the time of its rounds for steps. The
seconds are those of the processor, without the test. The test images select nothing, and the weights are the last ones.
Finished cells are kept in benchmarks/runs/sources; the table goes to benchmarks/results/sources.json.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import torch

from benchmarks import common
from benchmarks.common import Row
from benchmarks.pairs import WITH_BATCH_NORM
from synthkd.metrics.utility import accuracy, predict
from synthkd.models import load
from synthkd.pipelines import distill
from synthkd.pipelines.config import DistillConfig

RUNS = common.RUNS / "sources"
GENERATED = {"kind": "generated", **WITH_BATCH_NORM["transfer_set"]}
PICTURES, PROCEDURAL = {"kind": "pictures"}, {"kind": "procedural"}
ARMS: dict[str, list[Row]] = {
    "inversion": [GENERATED],
    "pictures": [PICTURES],
    "procedural": [PROCEDURAL],
    "pictures and procedural": [{**PICTURES, "share": 0.5}, PROCEDURAL],
    "inversion, 25 % pictures": [{**PICTURES, "share": 0.25}, GENERATED],
    "inversion, 50 % pictures": [{**PICTURES, "share": 0.5}, GENERATED],
    "inversion, 25 % procedural": [{**PROCEDURAL, "share": 0.25}, GENERATED],
}
BUDGETS = {"100s": (360, 640), "300s": (1320, 1920)}
"""Steps of the student with rounds of a generator, and without."""
ALONE, EVERY = 14, 24
"""Rounds before the first step, of which half are discarded, and steps of the student for each further round."""
COLUMNS = "budget | transfer set | steps | rounds | seeds | accuracy, % | agreement, % | on | CPU-seconds"


def recipe(arm: str, budget: str, teachers: Path, seed: int) -> Row:
    """What `synthkd distill` is told for an arm."""
    beside, alone = BUDGETS[budget]
    phases: list[Row] = [{"kind": "refine", "steps": alone}]
    if GENERATED in ARMS[arm]:
        phases = [{"kind": "pregenerate", "rounds": ALONE, "discard": ALONE // 2}]
        phases += [{"kind": "joint", "steps": beside, "every": EVERY}]
    return {
        **WITH_BATCH_NORM,
        "seed": seed,
        "threads": 1,
        "teacher": {
            "kind": "load",
            "model": "zoo:resnet",
            "options": {"depth": 20, "shortcut": "pad"},
            "weights": str(teachers / "resnet20-12fca82f.th"),
            "size": 32,
            "classes": 10,
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
        },
        "student": {"arch": "resnet", "depth": 8, "width": 16},
        "inherit": False,
        "transfer_set": ARMS[arm],
        "phases": phases,
        "grid_every": 1000,
    }


def cell(arm: str, budget: str, cifar10: Path, teachers: Path, seed: int) -> Row:
    """The accuracy of an arm, and what it took."""
    place = RUNS / budget / f"{arm.replace(',', '').replace(' %', '').replace(' ', '-')}-seed{seed}"
    taken = place / "cpu_seconds.json"
    start = time.process_time()
    values = common.run(distill, DistillConfig, recipe(arm, budget, teachers, seed), place).values
    if not taken.exists():  # else the run was finished before
        common.write(taken, round(time.process_time() - start, 1))
    with np.load(cifar10) as arrays:
        images = torch.from_numpy(arrays["test_images"])
        labels = torch.from_numpy(arrays["test_labels"].astype(np.int64))
    images = images if images.shape[1] == 3 else images.permute(0, 3, 1, 2).contiguous()
    right = accuracy(predict(load(place / "student"), images, torch.device("cpu"), 250), labels)
    student = values["student"]
    return {
        "arm": arm,
        "budget": budget,
        "seed": seed,
        "accuracy": right.value,
        "agreement": student["agreement"],
        "agreement_on": student["agreement_on"],
        "steps": values["cost"]["steps"],
        "images": values["cost"]["images_generated"],
        "cpu_seconds": json.loads(taken.read_text()),
        "hardware": values["hardware"],
    }


def tables(content: Row) -> str:
    """A row for each arm."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for one in content["cells"]:
        groups.setdefault((one["budget"], one["arm"]), []).append(one)
    rows = []
    for (budget, arm), cells in groups.items():
        steps = cells[0]["steps"]
        row = [budget, arm, f"{steps:,}", str(ALONE + steps // EVERY if GENERATED in ARMS[arm] else 0), str(len(cells))]
        row += [common.spread([100 * one[key] for one in cells]) for key in ("accuracy", "agreement")]
        rows.append([*row, cells[0]["agreement_on"], f"{max(one['cpu_seconds'] for one in cells):.0f}"])
    return common.table(COLUMNS, rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the arms, write the cells after each, and print the table."""
    order, parser = list(ARMS), common.options("sources", __doc__)
    parser.add_argument("--cifar10", type=Path, required=True, help=".npz of CIFAR-10")
    parser.add_argument("--teachers", type=Path, required=True, help="folder with resnet20-12fca82f.th")
    parser.add_argument("--budget", default="300s", choices=BUDGETS, help="seconds of one core")
    parser.add_argument("--arms", nargs="*", default=order, choices=order)
    common.add_seeds(parser, 1)
    arguments = parser.parse_args(argv)
    cells = common.collect(
        "sources",
        product(range(arguments.seeds), arguments.arms),
        lambda key: cell(key[1], arguments.budget, arguments.cifar10, arguments.teachers, key[0]),
        lambda one: ([*BUDGETS].index(one["budget"]), order.index(one["arm"]), one["seed"]),
    )
    print(tables({"cells": cells}))


if __name__ == "__main__":
    main()
