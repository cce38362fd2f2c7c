"""What synthetic images add to a few real ones: Fashion-MNIST with 10, 50 and 500 real images of each class.

    python -m benchmarks.hybrid [--sizes 10 50] [--arms "real KD" "real + cgan"] [--mixup 0 0.8] [--seeds 3] [--dry-run]
    python -m benchmarks.hybrid --budget 300s --sizes 50 --mixup 0 [...]    # five times the steps

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

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from benchmarks import common, pairs
from benchmarks.common import Row
from synthkd.pipelines import distill, generate
from synthkd.pipelines.config import DistillConfig, GenerateConfig
from synthkd.pipelines.run.result import Result
from synthkd.reports.results import JobResult

RUNS = common.RUNS / "hybrid"
PAIR = pairs.PAIRS["convnet"]
AUGMENT = {"flip": True, "shift": 1}
"""Variation of every image in every arm, which is that of the teacher's training."""
MIXUP = (0.0, 0.8)
"""Shares of each batch that are mixtures of two images."""
SHARES = {10: 0.3, 50: 0.4, 500: 0.5}
"""Real images per class -> their share of each batch of a hybrid: the more there are, the less they repeat."""
ALL = 6000
"""Images of a class in the whole training set: the same student on all of it is what no hybrid is likely to pass."""
ROUND = 64
"""Synthetic images of a round, in all arms."""

ALONE, FREE, DATA_FREE = "real KD", "real + data-free", "data-free"
LEARNED = {"real + cgan": "cgan", "real + diffusion": "diffusion"}
"""Arms with a generator that learns from the few images, and which."""
HYBRIDS = (FREE, *LEARNED)
ARMS = (ALONE, *HYBRIDS)
COLUMNS = (
    "steps | real images per class | mixed | arm | real share of a batch | seeds | accuracy, median [range] | "
    "95 % interval of the median run | seconds, student | seconds, generator | asked label seen"
)
DIFFERENCE_COLUMNS = (
    "steps | real images per class | mixed | hybrid | points over real KD, medians | by seed, lowest to highest | "
    "intervals apart"
)


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
    def synthetic(self) -> int:
        """Rounds of synthetic images that a hybrid's student gets."""
        return self.before[0] - self.before[1] + -(-self.steps // self.every)


FULL = Budget(PAIR.budgets["60s"], PAIR.rounds, PAIR.every, {"cgan": 120, "diffusion": 32}, 20, RUNS)
BUDGETS: dict[str, Budget] = {"60s": FULL, "300s": replace(FULL, steps=PAIR.budgets["300s"])}
SMOKE = Budget(12, (2, 1), 6, {"cgan": 2, "diffusion": 1}, 1, common.RUNS / "hybrid_smoke")


Key = tuple[str, int, int, float, str]
"""Budget, seed, real images per class, mixup and arm of a cell."""


def few(size: int, seed: int) -> Row:
    """The real images of a cell."""
    return {**pairs.DATA, "per_class": size, "split_seed": seed}


def learner(kind: str, rounds: int) -> Row:
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


def generator_of(budget: Budget, kind: str, size: int, seed: int, teacher: Path) -> Result[JobResult]:
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
    return common.run(generate, GenerateConfig, source, directory(budget, size, f"generator {kind}", seed))


def arms_of(size: int) -> tuple[str, ...]:
    """The arms that make sense with so many real images of each class."""
    return {0: (DATA_FREE,), ALL: (ALONE,)}.get(size, ARMS)


def share_of(arm: str, size: int) -> float:
    """Share of real images in a batch."""
    return {ALONE: 1.0, DATA_FREE: 0.0}.get(arm, SHARES.get(size, 0.4))


def cell(budget: Budget, size: int, arm: str, mixup: float, seed: int, teacher: Path) -> Row:
    """Run one cell, or read it where it is finished."""
    share = share_of(arm, size)
    generator = generator_of(budget, LEARNED[arm], size, seed, teacher) if arm in LEARNED else None
    images: Row = {**PAIR.recipe["transfer_set"]}
    if generator is None:
        rounds, discard = budget.before
        phases: list[Row] = [
            {"kind": "pregenerate", "rounds": rounds, "discard": discard},
            {"kind": "joint", "steps": budget.steps, "every": budget.every},
        ]
    else:  # it is finished, so half of its images may as well be there from the start
        later = budget.synthetic // 2
        images["generator"] = {"kind": "saved", "path": str(generator.directory)}
        phases = [
            {"kind": "pregenerate", "rounds": budget.synthetic - later},
            {"kind": "joint", "steps": budget.steps, "every": -(-budget.steps // later)},
        ]
    real = {"kind": "real", "data": few(size, seed)}
    sets: dict[str, object] = {DATA_FREE: images, ALONE: real}
    source: Row = {
        "transfer_set": sets.get(arm, [images, {**real, "share": share}]),
        "mix": {**AUGMENT, "mixup": mixup},
        "distill": PAIR.recipe["distill"],
        "phases": [{"kind": "refine", "steps": budget.steps}] if arm == ALONE else phases,
        "inherit": False,
        "seed": seed,
        "teacher": {"kind": "load", "model": str(teacher)},
        "student": PAIR.student,
        "test": pairs.DATA,
        "evaluate_every": budget.steps,
        "checkpoint_every": 2000,
        "grid_every": 1000,
    }
    result = common.run(distill, DistillConfig, source, place(budget, size, arm, mixup, seed))
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
        "generator": None if generator is None else training_of(generator),
        "hardware": result.values["hardware"],
    }


def training_of(generator: Result[JobResult]) -> Row:
    """What a generator cost, and how often the teacher sees the asked label in its samples."""
    dataset = generator.values["dataset"]
    return {
        "rounds": dataset["rounds"],
        "seconds": generator.values["cost"]["seconds"]["generator"],
        "agreement": dataset["scores"]["agreement"],
        "samples": dataset["count"],
    }


def of(cells: list[Row], steps: int, size: int, mixup: float, arm: str) -> list[Row]:
    """The cells of all seeds."""
    return [c for c in cells if (c["steps"], c["per_class"], c["mixup"], c["arm"]) == (steps, size, mixup, arm)]


def median_cell(rows: list[Row]) -> Row:
    """The run in the middle, the lower of two."""
    return sorted(rows, key=lambda c: float(c["accuracy"]))[(len(rows) - 1) // 2]


def comparisons(cells: list[Row]) -> list[Row]:
    """Each hybrid against the real images alone, in points.

    `difference` is that of the medians, `by_seed` that of runs with the same images, and `apart` says whether the 95 %
    Wilson intervals of the two median runs have nothing in common, the hybrid's above. `best` has the best median of
    the hybrids of its size.
    """
    rows_of_arms = []
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
            rows_of_arms.append(
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
    return rows_of_arms


def table(cells: list[Row]) -> str:
    """Median [lowest, highest] over seeds of each arm."""
    keys = {(one["steps"], one["per_class"], one["mixup"], one["arm"]) for one in cells}
    ordered = sorted(keys, key=lambda key: (*key[:3], (DATA_FREE, *ARMS).index(key[3])))
    rows = []
    for steps, size, mixup, arm in ordered:
        seeds = of(cells, steps, size, mixup, arm)
        low, high = median_cell(seeds)["interval"]
        generators = [one["generator"] for one in seeds if one["generator"] is not None]
        rows.append(
            [
                f"{steps:,}",
                str(size),
                f"{mixup:g}",
                arm,
                f"{seeds[0]['share']:g}",
                str(len(seeds)),
                common.spread([100 * one["accuracy"] for one in seeds]),
                f"{100 * low:.2f} to {100 * high:.2f}",
                f"{statistics.median(one['seconds'] for one in seeds):.0f}",
                f"{statistics.median(one['seconds'] for one in generators):.0f}" if generators else "-",
                f"{100 * statistics.median(one['agreement'] for one in generators):.0f} %" if generators else "-",
            ]
        )
    return common.table(COLUMNS, rows)


def difference_table(rows: list[Row]) -> str:
    """Each hybrid's lead over real images alone."""
    texts = [
        [
            f"{row['steps']:,}",
            str(row["per_class"]),
            f"{row['mixup']:g}",
            f"**{row['arm']}**" if row["best"] else row["arm"],
            f"{row['difference']:+.2f}",
            f"{min(row['by_seed']):+.2f} to {max(row['by_seed']):+.2f}" if row["by_seed"] else "-",
            "yes" if row["apart"] else "no",
        ]
        for row in rows
    ]
    return common.table(DIFFERENCE_COLUMNS, texts)


def tables(content: Row) -> str:
    """Every arm, then the lead of the hybrids."""
    return f"{table(content['cells'])}\n\n{difference_table(content['comparisons'])}"


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is wanted, print the tables and write them."""
    parser = common.options("hybrid", __doc__)
    pairs.add_root(parser)
    sizes_help = f"real images per class; 0: data-free, {ALL}: all"
    parser.add_argument("--sizes", type=int, nargs="*", default=[0, *SHARES, ALL], help=sizes_help)
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=ARMS, help="run only these")
    parser.add_argument("--mixup", type=float, nargs="*", default=list(MIXUP), choices=MIXUP, help="run only these")
    parser.add_argument("--budget", default="60s", choices=BUDGETS, help="of the student's training")
    common.add_seeds(parser)
    parser.add_argument("--dry-run", action="store_true", help="list the cells, run none")
    parser.add_argument("--smoke", action="store_true", help="a few steps of everything, kept apart; writes no result")
    arguments = parser.parse_args(argv)
    pairs.DATA["root"] = arguments.root  # also where its teacher is trained
    budgets = {"smoke": SMOKE} | BUDGETS

    def place_of(key: Key) -> Path:
        name, seed, size, mixup, arm = key
        return place(budgets[name], size, arm, mixup, seed)

    budget = "smoke" if arguments.smoke else arguments.budget
    keys = [
        (budget, seed, size, mixup, arm)
        for seed, size, mixup in product(range(arguments.seeds), arguments.sizes, arguments.mixup)
        for arm in arms_of(size)
        if arm in arguments.arms or not size
    ]
    if arguments.dry_run:
        for key in keys:
            print(line(key, budgets[key[0]], common.is_finished(place_of(key))))
        return

    def run(key: Key) -> Row:
        name, seed, size, mixup, arm = key
        return cell(budgets[name], size, arm, mixup, seed, pairs.teacher_of("convnet"))

    cells = [run(key) for key in keys] if arguments.smoke else common.collect("hybrid", keys, run, _identity, settings)
    print(tables(settings(cells) | {"cells": cells}))


def _identity(one: Row) -> tuple[int, int, int, float, int]:
    arm = (DATA_FREE, *ARMS).index(one["arm"])
    return one["steps"], one["seed"], one["per_class"], one["mixup"], arm


def settings(cells: list[Row]) -> Row:
    """What the results file has beside the cells."""
    return {
        "student": PAIR.student,
        "inherit": False,
        "augment": AUGMENT,
        "generators": {kind: learner(kind, rounds) for kind, rounds in FULL.rounds.items()},
        "comparisons": comparisons(cells),
        **common.environment("torch", "numpy", "diffusers"),
    }


def line(key: Key, budget: Budget, finished: bool) -> str:
    """A cell in the list of --dry-run."""
    _, seed, size, mixup, arm = key
    state = "finished" if finished else "to run  "
    return f"{state}  {budget.steps:,} steps, {size} per class, {arm}, mixup {mixup:g}, seed {seed}"


if __name__ == "__main__":
    main()
