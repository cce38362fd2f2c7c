"""What a generator that learns from a few real images adds to them: the hybrid recipes and their arms.

    python -m benchmarks.flagship [--data digits] [--arms "real KD" cgan] [--seeds 5] [--threads 2]
    python -m benchmarks.flagship --data fashion_mnist --root FOLDER --per-class 10 50 [--seeds 3]
    python -m benchmarks.flagship --data cifar10 --root FOLDER --per-class 50 [--seeds 3]

Run it alone on the machine. The recipes are `hybrid_cgan_*` and `hybrid_diffusion_*` of configs/. Their teachers are
trained on the first half of the training images; generators and students learn from a few images of the second half, so
no arm has an image that the teacher has seen. All arms have the same student from random weights, as many steps of it,
and the same test images. `real KD` has the few real images and nothing else; `real KD, mixed` also shifts and mixes
them as the hybrids do, since a mixture that the teacher labels is a synthetic image too. `inversion` takes its images
from the teacher alone. An arm with a minus sign lacks one system of the recipe. `plain GAN` lacks all that the recipe
adds to the hinge loss: spectral normalisation, R1, augmentation, difficulty, the terms of teacher and student.
`generated alone` shows the student no real image, while the generator learns from them. Accuracy is that of the last
weights; differences are paired by seed, with a 95 % t-interval. Finished cells are kept in benchmarks/runs/flagship;
the table goes to benchmarks/results/flagship.json.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import yaml

from benchmarks import common
from benchmarks.common import Row
from synthkd.pipelines import distill, teach
from synthkd.pipelines.config import DistillConfig, TeachConfig

RUNS = common.RUNS / "flagship"
DATA = ("digits", "fashion_mnist", "cifar10")
ALONE, MIXED = "real KD", "real KD, mixed"
COLUMNS = (
    "data | real images per class | arm | seeds | accuracy, %, mean (standard deviation) | over real KD, points | "
    "over real KD, mixed, points | FD-teacher | seconds | scores, % of the run"
)

WITHOUT = (
    "data | real images per class | recipe | changed | seeds | accuracy, %, mean (standard deviation) | "
    "to the recipe, points | FD-teacher | of the recipe"
)
"""Columns of the table of arms that change one thing of their recipe."""


class Key(NamedTuple):
    """A cell."""

    data: str
    per_class: int
    arm: str
    seed: int


def _generator(recipe: Row) -> Row:
    """The settings of a recipe's generator."""
    generator: Row = recipe["transfer_set"][0]["generator"]
    return generator


def _alone(recipe: Row) -> None:
    """Learn from the few real images alone, in as many steps."""
    recipe["transfer_set"] = {key: value for key, value in recipe["transfer_set"][1].items() if key != "share"}
    steps = sum(phase.get("steps", 0) for phase in recipe["phases"])
    recipe["phases"] = [{"kind": "refine", "steps": steps}]
    recipe.pop("score")


def _unmixed(recipe: Row) -> None:
    """Learn from the few real images alone, as they are."""
    _alone(recipe)
    recipe["mix"] = {"mixup": 0.0}


def _inversion(recipe: Row) -> None:
    """Take the generated images from the teacher alone."""
    recipe["transfer_set"][0]["generator"] = {"width": 16, "latent": 64}


def _without(**changes: object) -> Callable[[Row], None]:
    """Other values for some settings of the generator."""
    return lambda recipe: _generator(recipe).update(changes)


def _plain_gan(recipe: Row) -> None:
    """Leave out everything that the recipe adds to the hinge loss."""
    settings = {"spectral_norm": False, "r1": 0.0, "augment": 0.0, "curriculum": False}
    _generator(recipe).update(settings, distillation=0.0, semantic=0.0)


def _generated_alone(recipe: Row) -> None:
    """Show the student generated images alone; the generator learns from the real ones."""
    generated, real = recipe["transfer_set"]
    recipe["transfer_set"] = generated | {"data": real["data"]}


def _no_difficulty(recipe: Row) -> None:
    """Keep the difficulty where it starts."""
    difficulty = recipe["transfer_set"][0].setdefault("difficulty", {})
    difficulty |= {"up": 1.0, "down": 1.0}


def _no_joint(recipe: Row) -> None:
    """Make all images before the student begins."""
    steps = sum(phase.get("steps", 0) for phase in recipe["phases"])
    joint = recipe["phases"][-1]
    rounds = recipe["phases"][0]["rounds"] + -(-joint["steps"] // joint["every"])
    recipe["phases"] = [recipe["phases"][0] | {"rounds": rounds}, {"kind": "refine", "steps": steps}]


def _plain(recipe: Row) -> None:
    """The recipe as it ships."""


ARMS: dict[str, tuple[str, Callable[[Row], None]]] = {
    ALONE: ("cgan", _unmixed),
    MIXED: ("cgan", _alone),
    "inversion": ("cgan", _inversion),
    "cgan": ("cgan", _plain),
    "diffusion": ("diffusion", _plain),
    "plain GAN": ("cgan", _plain_gan),
    "generated alone": ("cgan", _generated_alone),
    "cgan - spectral norm": ("cgan", _without(spectral_norm=False, r1=0.3)),
    "cgan - adversarial distillation": ("cgan", _without(distillation=0.0)),
    "cgan - semantic term": ("cgan", _without(semantic=0.0)),
    "cgan - difficulty": ("cgan", _no_difficulty),
    "cgan - joint phase": ("cgan", _no_joint),
    "diffusion - curriculum": ("diffusion", _without(curriculum=0.0)),
    "diffusion - semantic term": ("diffusion", _without(semantic=0.0)),
}
"""Name -> the recipe it starts from, and what it changes in it."""
CHANGE_ONE = ("plain GAN", "generated alone", *(arm for arm in ARMS if " - " in arm))
"""Arms that are compared with their recipe."""


def recipe_of(key: Key, root: str | None) -> Row:
    """The configuration of a cell, without its teacher's run."""
    base, change = ARMS[key.arm]
    path = common.ROOT / "configs" / f"hybrid_{base}_{key.data}.yaml"
    recipe: Row = yaml.safe_load(path.read_text(encoding="utf-8"))
    for images in (
        recipe["teacher"]["data"],
        recipe["transfer_set"][1]["data"],
        recipe["test"],
        recipe["score"]["real"],
    ):
        images |= {} if root is None else {"root": root}
    recipe["transfer_set"][1]["data"] |= {"per_class": key.per_class}
    # Digits have no test split of their own: another split seed would test on images that the teacher has seen.
    if key.data != "digits":
        recipe["transfer_set"][1]["data"] |= {"split_seed": key.seed}
    change(recipe)
    return recipe | {"seed": key.seed, "grid_every": 1000, "evaluate_every": 10_000}


def place(key: Key) -> Path:
    """The run directory of a cell."""
    name = "".join(character if character.isalnum() else "-" for character in key.arm)
    return RUNS / f"{key.data}-{key.per_class}" / f"{name}-seed{key.seed}"


def teacher_of(data: str) -> Path:
    """The run directory of the teacher that all cells of a dataset share."""
    return RUNS / f"teacher-{data}"


def ready_teacher(data: str, root: str | None, threads: int) -> Row:
    """A recipe's `teacher` that loads the shared teacher of a dataset; trains it first where that is not done."""
    recipe = recipe_of(Key(data, 10, "cgan", 0), root)["teacher"]
    settings = {name: value for name, value in recipe.items() if name != "kind"}
    common.run(teach, TeachConfig, settings | {"threads": threads}, teacher_of(data))
    return {"kind": "load", "model": str(teacher_of(data))}


def cell(key: Key, root: str | None, threads: int) -> Row:
    """Run a cell, or read it where it is finished."""
    if not common.is_finished(place(key)):
        recipe = recipe_of(key, root) | {"threads": threads}
        recipe["teacher"] = ready_teacher(key.data, root, threads)
        common.run(distill, DistillConfig, recipe, place(key))
    values = common.result_of(place(key))
    scores = values.get("scores")
    seconds = values["cost"]["seconds"]
    return {
        **key._asdict(),
        "accuracy": values["student"]["accuracy"],
        "interval": values["student"]["accuracy_interval"],
        "teacher": values["teacher"]["accuracy"],
        "scores": None if scores is None else scores["last"],
        "seconds": seconds["distill"],
        "score_seconds": None if scores is None else scores["seconds"],
        "real_images_used": values["real_images_used"],
        "hardware": values["hardware"],
    }


def tables(content: Row) -> str:
    """Accuracy of each arm, and its lead over the real images alone."""
    cells = content["cells"]
    rows, changed = list[list[str]](), list[list[str]]()
    for data, size in sorted(
        {(one["data"], one["per_class"]) for one in cells}, key=lambda key: (DATA.index(key[0]), key[1])
    ):
        arms = {arm: [c for c in cells if (c["data"], c["per_class"], c["arm"]) == (data, size, arm)] for arm in ARMS}
        scores = {arm: {one["seed"]: 100 * one["accuracy"] for one in seeds} for arm, seeds in arms.items()}
        for arm, seeds in arms.items():
            if seeds:
                compared = common.compared(scores[arm], scores[ALONE], scores[MIXED])
                rows.append([data, str(size), arm, str(len(seeds)), *compared, *_costs(seeds)])
            recipe = ARMS[arm][0]
            if seeds and recipe != arm and arm in CHANGE_ONE:
                compared = common.compared(scores[arm], scores[recipe])
                distances = [
                    _costs([one for one in arms[name] if one["seed"] in scores[arm]])[0] for name in (arm, recipe)
                ]
                what = arm.removeprefix(recipe).strip()
                changed.append([data, str(size), recipe, what, str(len(seeds)), *compared, *distances])
    return f"{common.table(COLUMNS, rows)}\n\n{common.table(WITHOUT, changed)}"


def _costs(seeds: list[Row]) -> list[str]:
    """Median distance at the end, seconds, and the share of them that scoring took."""
    seconds = f"{statistics.median(one['seconds'] for one in seeds):.0f}"
    scored = [one for one in seeds if one["scores"] is not None]
    if not scored:
        return ["", seconds, ""]
    distance = statistics.median(one["scores"]["FD-teacher"] for one in scored)
    share = statistics.median(100 * one["score_seconds"] / one["seconds"] for one in scored)
    return [f"{distance:.2f}", seconds, f"{share:.1f}"]


def _identity(cell: Row) -> tuple[int, int, int, int]:
    return DATA.index(cell["data"]), cell["per_class"], cell["seed"], list(ARMS).index(cell["arm"])


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is wanted, write the cells after each, and print the table."""
    parser = common.options("flagship", __doc__)
    parser.add_argument("--data", default="digits", choices=DATA)
    parser.add_argument("--root", help="folder of the images, for all but digits")
    parser.add_argument("--per-class", type=int, nargs="*", default=[10], help="real images of each class")
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS))
    common.add_seeds(parser, 5)
    common.add_threads(parser)
    arguments = parser.parse_args(argv)
    root, threads = arguments.root, arguments.threads
    # All arms of a seed before the next seed, so that an interrupted benchmark has pairs.
    wanted = product(arguments.per_class, range(arguments.seeds), arguments.arms)
    keys = [Key(arguments.data, size, arm, seed) for size, seed, arm in wanted]
    cells = common.collect("flagship", keys, lambda key: cell(key, root, threads), _identity)
    print(tables({"cells": cells}))


if __name__ == "__main__":
    main()
