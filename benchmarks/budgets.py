"""What a budget buys: `synthkd distill RECIPE budget=...` on several pairs of teacher and student, beside baselines.

    python -m benchmarks.budgets --pair resnet20-resnet8 --budget 20m --cifar10 FILE --teachers DIR [--arms ours ...]
    python -m benchmarks.budgets --pair convnet --budget 120s [--root FOLDER] [--seeds 3] [--threads 2]

Run it alone on the machine. A budget is wall time of the whole distillation, with measuring this machine and testing; a
finished teacher is given. `ours` is the recipe as it ships, from the teacher alone, or with the 2,000 real images that
the name of the pair says in place of the recipe's pictures, if it has some. `mixed` has generated images, and crops
of two photographs as 30 % of a batch. `defaults` has the recipe's teacher and student, and nothing else of it, as a
first configuration of a user's own has. `procedural` and `pictures` have drawn pictures, or such crops, in the place of
generated ones, in as much time. `real` distils on all real images, or on those 2,000 alone, without mixtures.
`procedural` and `pictures` have mixtures where the recipe does not forbid them, also if `ours` has none. A student that
learns from no real image starts from weights of its teacher. Accuracy is that of the last weights on all 10,000 test
images.

In the pair `lenet, labels only` the teacher answers 50,000 images by labels, and shows nothing else: `ours` has drawn
pictures and crops, `real` has real images, and all start afresh. What asking takes is in the budget. It has no
`defaults`, whose generator would ask all the time, and no `mixed`, which `ours` is already.

FILE is a .npz with the images, labels, test_images and test_labels of CIFAR-10; DIR has the public teachers of
akamaster/pytorch_resnet_cifar10: resnet20-12fca82f.th, resnet32-d509ac18.th, resnet56-4bfd9763.th. FOLDER has
Fashion-MNIST. Finished cells are kept in benchmarks/runs/budgets; the table goes to benchmarks/results/budgets.json.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from benchmarks import common, pairs
from benchmarks.common import Row
from synthkd.pipelines import distill
from synthkd.pipelines.config import DistillConfig
from synthkd.pipelines.config.budget import seconds_of
from synthkd.settings.load import load_config

RUNS = common.RUNS / "budgets"
FEW = 200
"""Real images of each of the ten classes, where a pair has some."""
DECAY = 0.05
"""Weight decay of a student of labels alone, which would learn them by heart without one."""
REAL_SHARE, PICTURES_SHARE = 0.25, 0.3
"""Of a batch, beside the generated images."""
WEIGHTS = {20: "resnet20-12fca82f.th", 32: "resnet32-d509ac18.th", 56: "resnet56-4bfd9763.th"}
ARMS = ("ours", "defaults", "mixed", "procedural", "pictures", "real")
COLUMNS = (
    "pair | budget | threads | precision | images | seeds | accuracy, %, mean (standard deviation) | "
    "steps of the student | seconds, median"
)


@dataclass(frozen=True)
class Pair:
    """A teacher, a student, and the recipe between them.

    Attributes:
        recipe: name of a recipe that ships.
        changes: of the command line -> what takes the place of keys of the recipe.
        data: of the command line -> the real images.
        few: whether 2,000 real images are there beside the teacher.
        pictures: keys of the sources of drawn pictures and crops, where these are alone.
        arms: those that it can have.
    """

    recipe: str
    changes: Callable[[argparse.Namespace], Row]
    data: Callable[[argparse.Namespace], Row]
    few: bool = False
    pictures: Row = field(default_factory=dict)
    arms: Sequence[str] = ARMS


def public(teacher: int, student: int, few: bool = False) -> Pair:
    """Two ResNets of these depths on CIFAR-10; the larger one is public."""

    def changes(arguments: argparse.Namespace) -> Row:
        file = str(Path(arguments.teachers) / WEIGHTS[teacher])
        loaded = recipe_of("cifar10")["teacher"] | {"options": {"depth": teacher, "shortcut": "pad"}, "weights": file}
        return {"teacher": loaded, "student": {"arch": "resnet", "depth": student, "width": 16}}

    return Pair("cifar10", changes, lambda arguments: {"kind": "npz", "path": arguments.cifar10}, few)


def small(recipe: str, name: str, few: bool = False) -> Pair:
    """A pair on Fashion-MNIST, whose teacher is trained once."""

    def changes(_: argparse.Namespace) -> Row:
        return {"teacher": {"kind": "load", "model": str(pairs.teacher_of(name))}}

    return Pair(recipe, changes, lambda _: pairs.DATA, few)


def labels_only(name: str, queries: int) -> Pair:
    """A pair on Fashion-MNIST, whose teacher answers so many images by labels and shows nothing else."""

    pool = {"pool": queries}  # the queries that are there bound it

    def changes(_: argparse.Namespace) -> Row:
        pairs.teacher_of(name)  # the function below loads it
        pair = pairs.PAIRS[name]
        distill = {key: pair.recipe["distill"][key] for key in ("batch_size", "temperature", "optimizer")}
        distill["optimizer"] = distill["optimizer"] | {"kind": "adamw", "weight_decay": DECAY}
        box = {"function": f"benchmarks.pairs:{name}_labels", "answers": "labels", "queries": queries}
        return {
            "teacher": {"kind": "labels", **box, "batch_size": 500, "channels": 1, "size": 28, "classes": 10},
            "distill": distill,
            "transfer_set": [{"kind": "procedural", "share": 0.5, **pool}, {"kind": "pictures", **pool}],
            "phases": [{"kind": "refine", "steps": 11_000}],
        }

    arms = [arm for arm in ARMS if arm not in ("defaults", "mixed")]
    return Pair(name, changes, lambda _: pairs.DATA, pictures=pool, arms=arms)


PAIRS = {
    "resnet20-resnet8": public(20, 8),
    "resnet56-resnet20": public(56, 20),
    "resnet32-resnet20, 2000 real": public(32, 20, few=True),
    "convnet": small("fashion_mnist", "convnet"),
    "lenet": small("lenet", "lenet"),
    "lenet, 2000 real": small("lenet", "lenet", few=True),
    "lenet, labels only": labels_only("lenet", 50_000),
}


def recipe_of(name: str) -> Row:
    """A recipe as it ships."""
    recipe: Row = yaml.safe_load((common.ROOT / "configs" / f"{name}.yaml").read_text(encoding="utf-8"))
    return recipe


def source_of(pair: Pair, arm: str, arguments: argparse.Namespace) -> Row:
    """The configuration of a pair and an arm."""
    recipe, data = recipe_of(pair.recipe), pair.data(arguments)
    source = recipe | pair.changes(arguments) | {"test": data}
    if arm == "defaults":
        return {key: source[key] for key in ("teacher", "student", "test")}
    real = {"kind": "real", "data": data | ({"per_class": FEW} if pair.few else {})}
    # The defaults follow from the images; but for mixtures, all arms have those of the recipe.
    filled = load_config(DistillConfig, source, []).model_dump(mode="json")
    if arm in ("ours", "mixed"):
        beside = [real | {"share": REAL_SHARE}] if pair.few else []
        beside += [{"kind": "pictures", "share": PICTURES_SHARE}] if arm == "mixed" else []
        images = source["transfer_set"]
        if beside:
            images = [images[0] if isinstance(images, list) else images, *beside]
        return source | {"transfer_set": images, "distill": filled["distill"], "mix": filled["mix"]}
    steps = sum(phase.get("steps", 0) for phase in source["phases"])
    images = real if arm == "real" else {"kind": arm} | pair.pictures
    source |= {"transfer_set": images, "phases": [{"kind": "refine", "steps": steps}]}
    mixup = 0.0 if arm == "real" else load_config(DistillConfig, source, []).mix.mixup
    return source | {"distill": filled["distill"], "mix": filled["mix"] | {"mixup": mixup}}


def cell(name: str, arm: str, seed: int, arguments: argparse.Namespace) -> Row:
    """Run a cell, or read it where it is finished."""
    folder = f"{name.replace(', ', '-').replace(' ', '-')}-{arguments.budget}-{arguments.threads}"
    source = source_of(PAIRS[name], arm, arguments) | {
        "name": arm,
        "budget": arguments.budget,
        "seed": seed,
        "threads": arguments.threads,
        "device": "cpu",
    }
    result = common.run(distill, DistillConfig, source, RUNS / folder / f"{arm}-{seed}")
    values = result.values
    start = values["student"].get("start")  # of a student with its teacher's weights
    return {
        "pair": name,
        "budget": arguments.budget,
        "threads": arguments.threads,
        "arm": arm,
        "seed": seed,
        "accuracy": values["student"]["accuracy"],
        "start": start["accuracy"] if start else None,
        "agreement": values["student"]["agreement"],
        "teacher": values["teacher"]["accuracy"],
        "steps": values["cost"]["steps"],
        "generated": values["cost"]["images_generated"],
        "seconds": values["budget"]["seconds"],
        "hardware": values["hardware"],
    }


def _identity(one: Row) -> tuple[Any, ...]:
    place = list(PAIRS).index(one["pair"]), seconds_of(one["budget"]), one["threads"]
    return *place, _precision(one), ARMS.index(one["arm"]), one["seed"]


def _precision(one: Row) -> str:
    """What a cell computed in; where the recipe has `precision: auto` that is up to the processor."""
    return str(one["hardware"].get("precision") or "float32")


def tables(content: Row) -> str:
    """Each pair, budget and kind of images."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for one in content["cells"]:
        key = one["pair"], one["budget"], one["threads"], _precision(one), one["arm"]
        groups.setdefault(key, []).append(one)
    rows = []
    for (pair, budget, threads, precision, arm), cells in groups.items():
        scores = {one["seed"]: 100 * one["accuracy"] for one in cells}
        steps, seconds = (statistics.median(one[key] for one in cells) for key in ("steps", "seconds"))
        counts = f"{steps:,.0f}", f"{seconds:.0f}"
        rows.append([pair, budget, str(threads), precision, arm, str(len(cells)), *common.compared(scores), *counts])
    return common.table(COLUMNS, rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the cells of a pair and a budget, write them after each, and print the table."""
    parser = common.options("budgets", __doc__)
    parser.add_argument("--pair", required=True, choices=PAIRS)
    parser.add_argument("--budget", required=True, help="wall time of a cell, as 120s or 20m")
    parser.add_argument("--arms", nargs="*", choices=ARMS, help="all of the pair by default")
    parser.add_argument("--cifar10", help="the .npz file of CIFAR-10")
    parser.add_argument("--teachers", help="folder of the public teachers")
    pairs.add_root(parser)
    common.add_seeds(parser, 1)
    common.add_threads(parser)
    arguments = parser.parse_args(argv)
    if arguments.pair.startswith("resnet") and not (arguments.cifar10 and arguments.teachers):
        parser.error(f"--pair {arguments.pair} needs --cifar10 FILE and --teachers DIR")
    of_pair = PAIRS[arguments.pair].arms
    arms = arguments.arms or of_pair
    if missing := [arm for arm in arms if arm not in of_pair]:
        parser.error(f"--pair {arguments.pair} has no arm {', '.join(missing)}; it has {', '.join(of_pair)}")
    pairs.DATA["root"] = arguments.root  # also where a teacher is trained
    cells = common.collect(
        "budgets",
        product(range(arguments.seeds), arms),
        lambda key: cell(arguments.pair, key[1], key[0], arguments),
        _identity,
    )
    print(tables({"cells": cells}))


if __name__ == "__main__":
    main()
