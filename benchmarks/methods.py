"""Published data-free methods and ours on one pair of networks, in equal CPU-seconds of training.

    python -m benchmarks.methods [--pair digits] [--seconds 60] [--methods dafl ...] [--seeds 1]
    python -m benchmarks.methods --pair fashion_mnist --root FOLDER --seconds 1200
    python -m benchmarks.methods --pair cifar10 --cifar10 FILE --teachers FOLDER --seconds 1200

One thread. The methods are the recipes of configs/methods: their losses, optimisers and rates. Teacher and student are
the same for all, and accuracy is that of the last weights. A student starts from random weights, but those of `ours`
and of methods `..., our start and hints` start from weights of the teacher.
All compute in float32, but for `ours, bf16`, which is for processors with bfloat16 units and runs where it is named.
First the CPU-seconds of a round of the generator and of a step of the student are measured, and the phases sized.
dafl, dfad, zskt and dfq keep the published number of steps for each round. The methods that keep their images spend
half of the time on images (published numbers of steps for each batch suit a GPU): a batch has fewer optimiser steps
than in the recipe where less than 20 batches would fit, but at least 20. `ours` has the phases of its recipe in
proportion. The CPU-seconds in the table are those of the whole run, with loading, test and report.
Cells of machines that differ in their platform have rows of their own.

FILE has CIFAR-10 as `images`, `labels`, `test_images` and `test_labels`; FOLDER has resnet20-12fca82f.th of
akamaster/pytorch_resnet_cifar10. Finished cells are kept in benchmarks/runs/methods, and one that was interrupted
begins again; the table goes to benchmarks/results/methods.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks import common, pairs
from benchmarks.common import Row
from synthkd.generators import build_generator
from synthkd.pipelines import distill, teach
from synthkd.pipelines.config import DistillConfig, TeachConfig
from synthkd.pipelines.run.device import make_accelerator
from synthkd.pipelines.student.assembly import assemble
from synthkd.pipelines.student.teachers import untrained_teacher
from synthkd.settings import GivenModel
from synthkd.settings.load import load_config

RUNS = common.RUNS / "methods"
CONFIGS = common.ROOT / "configs"
BF16: Row = {"inherit": True, "precision": "bf16"}
NO_HINTS: Row = {"distill": {"hint": 0.0, "optimizer": {"clip": None}}}
OURS: Mapping[str, Row] = {
    "ours": {"inherit": True},
    "ours, fresh start": {},
    "ours, bf16": BF16,
    "ours, no hints": {"inherit": True, **NO_HINTS},
    "ours, fresh start, no hints": NO_HINTS,
    "ours, bf16, no hints": {**BF16, **NO_HINTS},
    "ours, bf16, labelled once": {**BF16, "mix": {"logits": "stored"}, "distill": {"hint": 0}},
    "ours, bf16, pool by priority": {**BF16, "transfer_set": {"bank": {"capacity": 5000, "policy": "prioritized"}}},
    "ours, bf16, crops": {**BF16, "mix": {"crop": 0.5}},
}
"""Ours and its variants -> what they change of its recipe, from random weights and in float32."""
USUAL = ("ours", "ours, fresh start")
"""Of ours, what is run unless methods are named."""
ALTERNATING = ("dafl", "dfad", "zskt", "dfq")
"""Methods whose generator and student take turns, as often as published."""
ALONE = {"deepinversion": 0.0, "cmi": 0.0, "fastdfkd": 0.1, "nayer": 0.1, "sre2l": 1.0}
"""Methods that keep all images -> share of the batches that are made before the student's first step."""
OUR_START: Row = {"inherit": True, "distill": {"hint": "auto", "optimizer": {"clip": 5}}}
HELPED: Mapping[str, Row] = {
    "fastdfkd, our start and hints": OUR_START,
    "nayer, our start and hints": OUR_START,
}
"""Methods with what is not theirs: weights of the teacher and hints. They run where they are named."""
METHODS = (*ALTERNATING, *ALONE, *HELPED, *OURS)
SGD = {"kind": "sgd", "lr": 0.1, "weight_decay": 5e-4, "schedule": "cosine"}
PUBLISHED_FOR_CIFAR10: Mapping[str, Row] = {
    "dafl": {
        "transfer_set": {"generator": {"latent": 1000, "lr": 0.02, "one_hot": 0.05, "activation": 0.01}},
        "distill": {"optimizer": SGD},
    },
    "deepinversion": {"transfer_set": {"generator": {"steps": 10, "lr": 1.0}}},
    "zskt": {"distill": {"transfer": [{"kind": "attention", "weight": 750.0, "form": "authors"}]}},
    "sre2l": {
        "transfer_set": {
            "generator": {"crop": 1.0, "lr": 0.25, "batch_norm": 0.01, "total_variation": 0.0, "magnitude": 0.0}
        },
        "mix": {"mixup": 1.0, "cutmix": 0.0},
        "distill": {"temperature": 30},
    },
}
"""Method -> what its authors have for CIFAR in place of values for digits, MNIST or ImageNet.

That of DeepInversion is the fast version in the side-by-side code of Fang et al. 2022."""
LEAST_ROUNDS, LEAST_STEPS = 20, 20
"""Batches that the time of a method is to reach for, and optimiser steps that one has at least."""
COLUMNS = (
    "pair | CPU-seconds planned | machine | method | seeds | accuracy, %, mean (standard deviation) | batches of "
    "images | steps of a batch | student steps | CPU-seconds of the run"
)


@dataclass(frozen=True)
class Pair:
    """A teacher, a student and real test images.

    Attributes:
        teacher: gives the section of a finished teacher.
        student: section of the student.
        test: section of the test images.
        ours: our recipe, without those three.
        shift: of the images, in pixels.
        flip: whether a mirrored image has the same class.
        published: method -> keys that its authors have for such images, where the recipe has others.
    """

    teacher: Callable[[], Row]
    student: Row
    test: Row
    ours: Row
    shift: int
    flip: bool
    published: Mapping[str, Row] = field(default_factory=dict)


def recipe_of(name: str) -> Row:
    """A recipe as it ships."""
    recipe: Row = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    return recipe


def _taught(name: str, settings: Row) -> Row:
    """The section of a teacher that is trained once."""
    source = {"threads": 1, **{key: settings[key] for key in ("data", "model", "training")}}
    return {"kind": "load", "model": str(common.run(teach, TeachConfig, source, RUNS / f"teacher-{name}").directory)}


def pair_of(arguments: argparse.Namespace) -> Pair:
    """The pair of the command line."""
    two_phases = {"phases": [{"kind": "pregenerate", "rounds": 14, "discard": 7}, {"kind": "joint", "steps": 1800}]}
    if arguments.pair == "digits":
        recipe = recipe_of("digits")
        return Pair(lambda: _taught("digits", recipe["teacher"]), recipe["student"], recipe["test"], recipe, 1, False)
    if arguments.pair == "fashion_mnist":
        data, pair = pairs.DATA | {"root": arguments.root}, pairs.PAIRS["convnet"]
        settings = {"data": data, **pair.teacher}
        ours = pair.recipe | two_phases
        return Pair(lambda: _taught("fashion_mnist", settings), pair.student, data, ours, 3, True)
    recipe = recipe_of("cifar10")
    file = recipe["teacher"] | {"weights": str(Path(arguments.teachers) / "resnet20-12fca82f.th")}
    test = {"kind": "npz", "path": arguments.cifar10}
    mix = recipe["mix"]
    return Pair(lambda: file, recipe["student"], test, recipe, mix["shift"], mix["flip"], PUBLISHED_FOR_CIFAR10)


def source_of(method: str, pair: Pair, seed: int) -> Row:
    """The configuration of a cell, with the phases of its recipe."""
    source = dict(pair.ours) if method in OURS else recipe_of(f"methods/{_published(method)}")
    source |= {"name": "cell", "teacher": pair.teacher(), "student": pair.student, "test": pair.test}
    source |= {"seed": seed, "threads": 1, "device": "cpu", "baseline": False, "inherit": False, "precision": "no"}
    if method in OURS:
        return merged(source, OURS[method])
    source = merged(merged(source, pair.published.get(_published(method), {})), HELPED.get(method, {}))
    for section in (source["transfer_set"]["generator"], source["mix"]):
        section |= {"shift": pair.shift, "flip": pair.flip} if "shift" in section else {}
    return source


def _published(method: str) -> str:
    """Name of the recipe of a method."""
    return method.partition(", ")[0]


def merged(source: Row, changes: Row) -> Row:
    """The configuration with these changes, key by key."""
    return source | {
        key: merged(source.get(key, {}), value) if isinstance(value, dict) else value for key, value in changes.items()
    }


@dataclass(frozen=True)
class Costs:
    """CPU-seconds of the parts of a run.

    Attributes:
        step: of a step of the student.
        fixed: of a round of the generator, whatever its optimiser steps.
        each: of each optimiser step of a round.
        steps: optimiser steps of a round in the recipe.
    """

    step: float
    fixed: float
    each: float
    steps: int

    def round(self, steps: int) -> float:
        """Of a round of so many optimiser steps."""
        return self.fixed + steps * self.each


def _seconds(once: Callable[[int], object], calls: int) -> float:
    once(0)  # sets things up
    started = time.process_time()
    for call in range(calls):
        once(call + 1)
    return (time.process_time() - started) / calls


def costs_of(source: Row) -> Costs:
    """Measure the parts of a run by a few of its rounds and steps, which are lost."""
    config = load_config(DistillConfig, source, [])
    accelerator, given = make_accelerator(config), config.every_teacher[0]
    assert not isinstance(given, GivenModel)
    teacher = untrained_teacher(given, config)
    assembly = assemble(config, [teacher], accelerator, None)
    generated = assembly.transfer_set.generated
    assert generated is not None
    assert config.generated is not None
    settings, student = config.generated.named, assembly.learner.synchronise()

    def rounds(steps: int) -> float:
        few = settings.model_copy(update={"steps": steps})
        generator = build_generator(few, teacher, config.seed, accelerator)

        def once(index: int) -> None:
            made = generator.round(index, 1.0, student)
            generated.bank.add(made.images, made.labels, made.teacher_logits)

        return _seconds(once, 4)

    few, many = rounds(1), rounds(5)
    each = max(1e-6, (many - few) / 4)
    return Costs(_seconds(assembly.step, 12), max(0.0, few - each), each, settings.model_dump()["steps"])


def sized(method: str, source: Row, costs: Costs, seconds: float) -> Row:
    """The configuration with phases that take so many CPU-seconds."""
    if method in ALTERNATING:
        every = source["phases"][0]["every"]
        learn = max(1, round(seconds / (costs.step + costs.round(costs.steps) / every)))
        return _planned(source, [{"kind": "joint", "steps": learn, "every": every}], costs.steps)
    if method in OURS:
        phases = _in_proportion(source["phases"], costs.round(costs.steps), costs.step, seconds)
        return _planned(source, phases, costs.steps)
    fitting = int((seconds / 2 / LEAST_ROUNDS - costs.fixed) / costs.each)
    steps = min(costs.steps, max(LEAST_STEPS, fitting))
    rounds = max(2, int(seconds / 2 / costs.round(steps)))
    before = round(ALONE[_published(method)] * rounds)
    learn = max(1, round((seconds - rounds * costs.round(steps)) / costs.step))
    phases = [{"kind": "pregenerate", "rounds": before}] if before else []
    if before == rounds:
        phases.append({"kind": "refine", "steps": learn})
    else:
        every = max(1, -(-learn // (rounds - before)))
        phases.append({"kind": "joint", "steps": learn, "every": every})
    return _planned(source, phases, steps)


def _planned(source: Row, phases: list[Row], steps: int) -> Row:
    """The configuration with these phases, and rounds of so many optimiser steps."""
    generator = source["transfer_set"]["generator"] | {"steps": steps}
    return source | {"phases": phases, "transfer_set": source["transfer_set"] | {"generator": generator}}


def _in_proportion(phases: list[Row], of_round: float, of_step: float, seconds: float) -> list[Row]:
    """Phases of the same shape that take so many seconds."""
    total = 0.0
    for phase in phases:
        per_step = of_step + of_round / phase.get("every", 15)
        total += phase["rounds"] * of_round if "rounds" in phase else phase["steps"] * per_step
    factor = seconds / total
    sizes = ("rounds", "steps", "discard")
    return [
        {key: max(1, round(factor * value)) if key in sizes else value for key, value in phase.items()}
        for phase in phases
    ]


def cell(method: str, pair: Pair, arguments: argparse.Namespace, seed: int) -> Row:
    """Run a cell, or read it where it is finished."""
    out = (
        RUNS / f"{arguments.pair}-{arguments.seconds:g}s" / f"{method.replace(', ', '-').replace(' ', '-')}-seed{seed}"
    )
    plan = out.with_suffix(".json")
    source = source_of(method, pair, seed)
    if not plan.exists():  # measured once, so that a finished cell is found again
        source = sized(method, source, costs_of(source), arguments.seconds)
        plan.parent.mkdir(parents=True, exist_ok=True)
        common.write(plan, {key: source[key] for key in ("phases", "transfer_set")})
    source |= json.loads(plan.read_text(encoding="utf-8"))
    learning = max(phase["steps"] for phase in source["phases"] if "steps" in phase)
    source |= {"evaluate_every": learning, "grid_every": 10**6}
    spent = out.with_suffix(".seconds.json")
    if out.exists() and not spent.exists():
        shutil.rmtree(out)  # from the beginning, for the seconds of a part would say little
    started = time.process_time()
    values = common.run(distill, DistillConfig, source, out).values
    if not spent.exists():
        common.write(spent, time.process_time() - started)
    rounds = sum(
        phase.get("rounds", -(-phase.get("steps", 0) // phase.get("every", 15)))
        for phase in source["phases"]
        if phase["kind"] != "refine"
    )
    return {
        "pair": arguments.pair,
        "planned": arguments.seconds,
        "method": method,
        "seed": seed,
        "accuracy": values["student"]["accuracy"],
        "teacher": values["teacher"]["accuracy"],
        "rounds": rounds,
        "generator_steps": source["transfer_set"]["generator"]["steps"],
        "steps": values["cost"]["steps"],
        "cpu_seconds": json.loads(spent.read_text(encoding="utf-8")),
        "hardware": values["hardware"],
    }


def _identity(one: Row) -> tuple[Any, ...]:
    return one["pair"], one["planned"], METHODS.index(one["method"]), one["seed"], one["hardware"]["platform"]


def tables(content: Row) -> str:
    """The methods of each pair, budget and machine, the best one first; machines are numbered as the cells name them.

    A CPU-second of another machine holds another number of steps, so no mean is of several.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    numbers: dict[str, int] = {}
    for one in content["cells"]:
        machine = numbers.setdefault(one["hardware"]["platform"], len(numbers) + 1)
        groups.setdefault((one["pair"], one["planned"], machine, one["method"]), []).append(one)
    rows = []
    for (*place, method), cells in groups.items():
        scores = {one["seed"]: 100 * one["accuracy"] for one in cells}
        counts = [f"{round(sum(one[key] for one in cells) / len(cells)):,}" for key in COUNTED]
        rows.append((*place, -sum(scores.values()) / len(scores), method, scores, counts))
    return common.table(
        COLUMNS,
        (
            [pair, f"{planned:g}", str(machine), method, str(len(scores)), *common.compared(scores), *counts]
            for pair, planned, machine, _, method, scores, counts in sorted(rows, key=lambda row: row[:5])
        ),
    )


COUNTED = ("rounds", "generator_steps", "steps", "cpu_seconds")


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is wanted, write the cells after each, and print the table."""
    parser = common.options("methods", __doc__)
    parser.add_argument("--pair", default="digits", choices=("digits", "fashion_mnist", "cifar10"))
    parser.add_argument("--seconds", type=float, default=60.0, help="CPU-seconds of the training of a cell")
    parser.add_argument("--methods", nargs="*", default=(*ALTERNATING, *ALONE, *USUAL), choices=METHODS)
    parser.add_argument("--cifar10", help="the .npz file of CIFAR-10")
    parser.add_argument("--teachers", help="folder of the public teacher")
    common.add_seeds(parser, 1)
    pairs.add_root(parser)
    arguments = parser.parse_args(argv)
    if arguments.pair == "cifar10" and not (arguments.cifar10 and arguments.teachers):
        parser.error("--pair cifar10 needs --cifar10 FILE and --teachers FOLDER")
    torch.set_num_threads(1)
    pair = pair_of(arguments)
    cells = common.collect(
        "methods",
        product(arguments.methods, range(arguments.seeds)),
        lambda key: cell(key[0], pair, arguments, key[1]),
        _identity,
    )
    print(tables({"cells": cells}))


if __name__ == "__main__":
    main()
