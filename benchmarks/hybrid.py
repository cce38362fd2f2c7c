"""What synthetic images add to a few real ones: Fashion-MNIST with 10, 50 and 500 real images of each class.

    python benchmarks/hybrid.py [--sizes 10 50] [--arms "real KD" "real + cgan"] [--mixup 0 0.8] [--seeds 3] [--dry-run]
    python benchmarks/hybrid.py --budget 300s --sizes 50 --mixup 0 [...]    # five times the steps

Run it alone on the machine. Every finished cell is kept in benchmarks/runs/hybrid, so an interrupted table goes on
where it stopped. The convnet pair of fashion_mnist.py, whose teacher has seen all 60,000 images. All arms have the same
student, from random weights (one that inherits has the teacher's features, hence those images, before its first step),
the same optimiser, as many steps of 64 images (1,800, or 9,200 with --budget 300s), and the same flips and shifts; only
what is flipped and shifted differs. A
mixture of two images that the teacher answers is itself a synthetic image, so all arms are run twice: without any, and
with four fifths of each batch mixed. `real KD` has nothing but the few real images; `real + data-free` also images of
the inversion generator, trained beside the student; `real + cgan` and `real + diffusion` also samples of a generator
that was trained before, on the same few images. `data-free` has no real image; 6,000 a class are all. A seed draws the
real images too, so the range over seeds covers which images they are; the arms of a seed have the same ones. All
hybrids get the same number of synthetic images. An accuracy is that of the last weights on the 10,000 test images; the
best arm of a size is that of the best median of these. `seconds` is training time without evaluations, that of a
generator apart from the student's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import fashion_mnist

from synthkd.pipelines import distill, generate
from synthkd.pipelines.config import DistillConfig, GenerateConfig
from synthkd.pipelines.run.result import Result
from synthkd.settings.load import load_config
from synthkd.system.hardware import describe

RUNS, RESULTS = HERE / "runs" / "hybrid", HERE / "results" / "hybrid.json"
PAIR = fashion_mnist.PAIRS["convnet"]
AUGMENT = {"flip": True, "shift": 1}
"""Variation of every image in every arm, which is that of the teacher's training."""
MIXUP = (0.0, 0.8)
"""Shares of each batch that are mixtures of two images."""
SHARES = {10: 0.3, 50: 0.4, 500: 0.5}
"""Real images per class -> their share of each batch of a hybrid: the more there are, the less they repeat."""
ALL = 6000
"""Images of a class in the whole training set: the same student on all of it is what no hybrid is likely to pass."""
MOST_SEEDS = 10
"""Finished cells up to this seed are in the table, whatever --seeds asks for."""
ROUND = 64
"""Synthetic images of a round, in all arms."""

ALONE, FREE, DATA_FREE = "real KD", "real + data-free", "data-free"
LEARNED = {"real + cgan": "cgan", "real + diffusion": "diffusion"}
"""Arms with a generator that learns from the few images, and which."""
HYBRIDS = (FREE, *LEARNED)
ARMS = (ALONE, *HYBRIDS)


@dataclass(frozen=True)
class Budget:
    """How much is trained.

    Attributes:
        steps: of the student.
        before: rounds of the inversion generator before the student's first step, and how many of them are discarded.
        every: student steps for each of its further rounds.
        rounds: generator that learns from real images -> rounds of its training, about two minutes on two cores.
        probes: samples per class from which the generator's labels are judged.
        root: the finished runs.
    """

    steps: int
    before: tuple[int, int]
    every: int
    rounds: dict[str, int]
    probes: int
    root: Path

    @property
    def kept(self) -> int:
        """Rounds of synthetic images that a hybrid's student gets."""
        return self.before[0] - self.before[1] + -(-self.steps // self.every)


FULL = Budget(PAIR.budgets["60s"], PAIR.rounds, PAIR.every, {"cgan": 120, "diffusion": 32}, 20, RUNS)
BUDGETS = {"60s": FULL, "300s": replace(FULL, steps=PAIR.budgets["300s"])}
SMOKE = Budget(12, (2, 1), 6, {"cgan": 2, "diffusion": 1}, 1, HERE / "runs" / "hybrid_smoke")


def few(size: int, seed: int) -> dict[str, Any]:
    """The real images of a cell."""
    return {**fashion_mnist.DATA, "per_class": size, "split_seed": seed}


def learner(kind: str, rounds: int) -> dict[str, Any]:
    """The generator that learns from few real images."""
    if kind == "cgan":
        return {"kind": kind, "augment": 0.5, "batch_size": ROUND, "ema": 0.998}
    steps = 25  # of a round
    return {"kind": kind, "augment": AUGMENT, "batch_size": ROUND, "steps": steps, "horizon": steps * rounds}


def directory(budget: Budget, size: int, name: str, seed: int) -> Path:
    """The run directory of something for one choice of real images."""
    return budget.root / f"{size}-per-class" / f"{name.replace(' + ', '-and-').replace(' ', '-')}-seed{seed}"


def place(budget: Budget, size: int, arm: str, mixup: float, seed: int) -> Path:
    """The run directory of a cell."""
    longer = f" {budget.steps} steps" if budget.steps == BUDGETS["300s"].steps else ""
    return directory(budget, size, f"{arm} mixup {mixup:g}{longer}", seed)


def generator_of(budget: Budget, kind: str, size: int, seed: int, teacher: Path) -> Result:
    """The generator trained on the real images of a cell, in a run of its own."""
    rounds = budget.rounds[kind]
    source = {
        "seed": seed,
        "threads": None,
        "teacher": {"kind": "load", "model": str(teacher)},
        "generator": learner(kind, rounds),
        "data": few(size, seed),
        "rounds": rounds,
        "per_class": budget.probes,
        "checkpoint_every": 2000,
    }
    out = directory(budget, size, f"generator {kind}", seed)
    result = generate(load_config(GenerateConfig, source, [f"out={out}"]))
    assert isinstance(result, Result)
    return result


def arms_of(size: int) -> tuple[str, ...]:
    """The arms that make sense with so many real images of each class."""
    return {0: (DATA_FREE,), ALL: (ALONE,)}.get(size, ARMS)


def share_of(arm: str, size: int) -> float:
    """Share of real images in a batch."""
    return {ALONE: 1.0, DATA_FREE: 0.0}.get(arm, SHARES.get(size, 0.4))


def cell(budget: Budget, size: int, arm: str, mixup: float, seed: int, teacher: Path) -> dict[str, Any]:
    """Run one cell, or read it where it is finished."""
    share = share_of(arm, size)
    made = generator_of(budget, LEARNED[arm], size, seed, teacher) if arm in LEARNED else None
    source: dict[str, Any] = {
        **PAIR.recipe,
        "inherit": False,
        "seed": seed,
        "teacher": {"kind": "load", "model": str(teacher)},
        "student": PAIR.student,
        "test": fashion_mnist.DATA,
        "mix": {**AUGMENT, "mixup": mixup, "real": share},
        "evaluate_every": budget.steps,
        "checkpoint_every": 2000,
        "grid_every": 1000,
    }
    if arm != DATA_FREE:
        source["data"] = few(size, seed)
    if arm == ALONE:
        source["phases"] = [{"kind": "refine", "steps": budget.steps}]
    elif made is None:
        rounds, discard = budget.before
        source["phases"] = [
            {"kind": "pregenerate", "rounds": rounds, "discard": discard},
            {"kind": "joint", "steps": budget.steps, "every": budget.every},
        ]
    else:  # it is finished, so half of its images may as well be there from the start
        later = budget.kept // 2
        source["generator"] = {"kind": "saved", "path": str(made.directory)}
        source["phases"] = [
            {"kind": "pregenerate", "rounds": budget.kept - later},
            {"kind": "joint", "steps": budget.steps, "every": -(-budget.steps // later)},
        ]
    out = place(budget, size, arm, mixup, seed)
    result = distill(load_config(DistillConfig, source, [f"out={out}"]))
    assert isinstance(result, Result)
    student, cost = result.values["student"], result.values["cost"]
    return {
        "per_class": size,
        "arm": arm,
        "mixup": mixup,
        "seed": seed,
        "share": share,
        "steps": budget.steps,
        "accuracy": student["accuracy"],
        "interval": student["accuracy_interval"],
        "seconds": cost["seconds"]["distill"],
        "images_generated": cost["images_generated"],
        "real_images_used": result.values["real_images_used"],
        "generator": None if made is None else trained(made),
        "hardware": result.values["hardware"],
    }


def trained(made: Result) -> dict[str, Any]:
    """What a generator cost, and how often the teacher sees the asked label in its samples."""
    dataset = made.values["dataset"]
    return {
        "rounds": dataset["rounds"],
        "seconds": made.values["cost"]["seconds"]["generator"],
        "agreement": dataset["scores"]["agreement"],
        "samples": dataset["count"],
    }


def of(cells: list[dict[str, Any]], steps: int, size: int, mixup: float, arm: str) -> list[dict[str, Any]]:
    """The cells of all seeds."""
    return [c for c in cells if (c["steps"], c["per_class"], c["mixup"], c["arm"]) == (steps, size, mixup, arm)]


def median_cell(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The run in the middle, the lower of two."""
    return sorted(rows, key=lambda c: float(c["accuracy"]))[(len(rows) - 1) // 2]


def comparisons(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each hybrid against the real images alone, in points.

    `difference` is that of the medians, `by_seed` that of runs with the same images, and `apart` says whether the 95 %
    Wilson intervals of the two median runs have nothing in common, the hybrid's above. `best` has the best median of
    the hybrids of its size.
    """
    found = []
    for steps, size, mixup in sorted({(c["steps"], c["per_class"], c["mixup"]) for c in cells}):
        alone = of(cells, steps, size, mixup, ALONE)
        arms = {arm: rows for arm in HYBRIDS if (rows := of(cells, steps, size, mixup, arm))}
        if not alone or not arms:
            continue
        middle = {arm: 100 * statistics.median(c["accuracy"] for c in rows) for arm, rows in arms.items()}
        base = 100 * statistics.median(c["accuracy"] for c in alone)
        by_seed = {c["seed"]: c["accuracy"] for c in alone}
        for arm, rows in arms.items():
            paired = [100 * (c["accuracy"] - by_seed[c["seed"]]) for c in rows if c["seed"] in by_seed]
            found.append(
                {
                    "steps": steps,
                    "per_class": size,
                    "arm": arm,
                    "mixup": mixup,
                    "best": middle[arm] == max(middle.values()),
                    "difference": round(middle[arm] - base, 3),
                    "by_seed": [round(value, 3) for value in paired],
                    "apart": median_cell(rows)["interval"][0] > median_cell(alone)["interval"][1],
                }
            )
    return found


def table(cells: list[dict[str, Any]]) -> str:
    """Median [lowest, highest] over seeds of each arm."""
    lines = [
        "| steps | real images per class | mixed | arm | real share of a batch | seeds | accuracy, median [range] "
        "| 95 % interval of the median run | seconds, student | seconds, generator | asked label seen |",
        "|" + "---|" * 11,
    ]
    for steps, size, mixup, arm in sorted(
        {(c["steps"], c["per_class"], c["mixup"], c["arm"]) for c in cells}, key=_order
    ):
        rows = of(cells, steps, size, mixup, arm)
        scores = [100 * c["accuracy"] for c in rows]
        low, high = median_cell(rows)["interval"]
        made = [c["generator"] for c in rows if c["generator"] is not None]
        spent = statistics.median(c["seconds"] for c in rows)
        cost = f"{statistics.median(g['seconds'] for g in made):.0f}" if made else "-"
        seen = f"{100 * statistics.median(g['agreement'] for g in made):.0f} %" if made else "-"
        lines.append(
            f"| {steps:,} | {size} | {mixup:g} | {arm} | {rows[0]['share']:g} | {len(rows)} "
            f"| {statistics.median(scores):.2f} [{min(scores):.2f}, {max(scores):.2f}] "
            f"| {100 * low:.2f} to {100 * high:.2f} | {spent:.0f} | {cost} | {seen} |"
        )
    return "\n".join(lines)


def difference_table(compared: list[dict[str, Any]]) -> str:
    """Each hybrid's lead over real images alone."""
    lines = [
        "| steps | real images per class | mixed | hybrid | points over real KD, medians | by seed, lowest to highest "
        "| intervals apart |",
        "|" + "---|" * 7,
    ]
    for c in compared:
        arm = f"**{c['arm']}**" if c["best"] else c["arm"]
        ends = f"{min(c['by_seed']):+.2f} to {max(c['by_seed']):+.2f}" if c["by_seed"] else "-"
        apart = "yes" if c["apart"] else "no"
        lines.append(
            f"| {c['steps']:,} | {c['per_class']} | {c['mixup']:g} | {arm} "
            f"| {c['difference']:+.2f} | {ends} | {apart} |"
        )
    return "\n".join(lines)


def _order(key: tuple[int, int, float, str]) -> tuple[int, int, float, int]:
    steps, size, mixup, arm = key
    return steps, size, mixup, (DATA_FREE, *ARMS).index(arm)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default=fashion_mnist.DATA["root"], help="folder with the dataset's files")
    parser.add_argument(
        "--sizes",
        type=int,
        nargs="*",
        default=[0, *SHARES, ALL],
        help=f"real images per class; 0: data-free, {ALL}: all",
    )
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=ARMS, help="run only these")
    parser.add_argument("--mixup", type=float, nargs="*", default=list(MIXUP), choices=MIXUP, help="run only these")
    parser.add_argument("--budget", default="60s", choices=BUDGETS, help="of the student's training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--dry-run", action="store_true", help="list the cells, run none")
    parser.add_argument("--smoke", action="store_true", help="a few steps of everything, kept apart; writes no result")
    arguments = parser.parse_args()
    fashion_mnist.DATA["root"] = arguments.root  # also where its teacher is trained
    budgets = {"smoke": SMOKE} if arguments.smoke else BUDGETS
    teacher: Path | None = None
    cells: list[dict[str, Any]] = []
    seeds, sizes = range(max(arguments.seeds, MOST_SEEDS)), sorted({0, *SHARES, ALL, *arguments.sizes})
    for (name, budget), seed, size in product(budgets.items(), seeds, sizes):
        for mixup, arm in product(MIXUP, arms_of(size)):
            finished = (place(budget, size, arm, mixup, seed) / "result.json").exists()
            asked = size in arguments.sizes and mixup in arguments.mixup and (arm in arguments.arms or not size)
            wanted = asked and seed < arguments.seeds and name in (arguments.budget, "smoke")
            if arguments.dry_run and (finished or wanted):
                print(
                    f"{'finished' if finished else 'to run  '}  {budget.steps:,} steps, {size} per class, {arm}, mixup "
                    f"{mixup:g}, seed {seed}"
                )
            elif finished or wanted:
                teacher = teacher or fashion_mnist.teacher_of("convnet")
                cells.append(cell(budget, size, arm, mixup, seed, teacher))
    if arguments.dry_run:
        return
    compared = comparisons(cells)
    print(table(cells), difference_table(compared), sep="\n\n")
    if arguments.smoke:
        return
    content = {
        "command": "python benchmarks/hybrid.py",
        "student": PAIR.student,
        "inherit": False,
        "augment": AUGMENT,
        "generators": {kind: learner(kind, rounds) for kind, rounds in FULL.rounds.items()},
        "cells": cells,
        "comparisons": compared,
        "versions": {name: version(name) for name in ("torch", "numpy", "diffusers")},
        "hardware": describe(torch.device("cpu")),
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
