"""Where a student starts: what it knows before its first step, and after a short distillation.

    python -m benchmarks.start --cifar10 FILE --teachers DIR [--only "half width/merged"] [--threads 1]

FILE is a .npz with the images, labels, test_images and test_labels of CIFAR-10; DIR has the public resnet20-12fca82f.th
(akamaster/pytorch_resnet_cifar10), the teacher. A cell is a student and its start: evenly spaced channels (`true`),
or similar channels that are merged (`merged`). The first table has the accuracy on 2,000 test
images before the first step: with the BatchNorm statistics of the teacher's channels, and with those of 512 procedural
pictures, of noise, and of real images, which no run has. The second has that with the newest generated images of a
distillation, and the accuracy after its 400 steps. Finished cells are kept in benchmarks/runs/start; the tables go to
benchmarks/results/start.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks import common, pairs
from benchmarks.common import Row
from synthkd.data.read.real import load_splits
from synthkd.generators.procedural import draw
from synthkd.metrics.utility import accuracy, predict
from synthkd.models import Classifier, build_model, inherit, load_model
from synthkd.models.classifier import copied
from synthkd.models.filling import reset_statistics
from synthkd.pipelines import distill
from synthkd.pipelines.config import DistillConfig
from synthkd.rng import Rows, stream
from synthkd.settings import LoadedModel, NpzData, ZooModel
from synthkd.types import to_float

RUNS = common.RUNS / "start"
WEIGHTS = "resnet20-12fca82f.th"
STUDENTS: dict[str, Row] = {
    "ResNet-8": {"arch": "resnet", "depth": 8},
    "3/4 width": {"arch": "resnet", "depth": 20, "width": 12},
    "half width": {"arch": "resnet", "depth": 20, "width": 8},
}
"""Students of the teacher of depth 20 and width 16, all with projections, which the teacher has not."""
STARTS = {"true": True, "merged": "merged"}
TRAINED = [("half width", "true")]
"""The cells that are trained, too: add one here to compare."""
STEPS, EVERY, RESET, TESTED = 400, 24, 512, 2000
IMAGES = ("procedural", "noise", "real")
BEFORE = "student | parameters from the teacher | start | by | as it is, % | " + " | ".join(
    f"{name}, %" for name in IMAGES
)
AFTER = "student | start | before the first step, % | after 400 steps, %"


def teacher_of(teachers: Path) -> Row:
    """The settings of the public teacher."""
    return {
        "kind": "load",
        "model": "zoo:resnet",
        "options": {"depth": 20, "shortcut": "pad"},
        "weights": str(teachers / WEIGHTS),
        "size": 32,
        "classes": 10,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
    }


def _tested(network: Classifier, images: Tensor, labels: Tensor) -> float:
    return accuracy(predict(network.eval(), images, torch.device("cpu"), 250), labels).value


def tested(cifar10: Path) -> Path:
    """A file of the test images that are used."""
    path = RUNS / "tested.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with np.load(cifar10) as arrays:
            np.savez(path, images=arrays["test_images"][:TESTED], labels=arrays["test_labels"][:TESTED])
    return path


def before(key: tuple[str, str], cifar10: Path, teachers: Path) -> Row:
    """The accuracies of a student before its first step."""
    name, start = key
    teacher = load_model(LoadedModel.model_validate(teacher_of(teachers)))
    mean, std = (part.flatten().tolist() for part in (teacher.normalize.mean, teacher.normalize.std))
    splits = load_splits(NpzData(kind="npz", path=str(cifar10)))
    torch.manual_seed(0)
    student = build_model(ZooModel.model_validate(STUDENTS[name]), teacher.spec, mean, std)
    pictures = draw(RESET, teacher.spec, Rows(0, "benchmark"))
    inherited = inherit(student, teacher, start == "merged", lambda: pictures[:64])
    noise = torch.rand(pictures.shape, generator=stream(0, "benchmark"))
    sets = dict(zip(IMAGES, (pictures, noise, to_float(splits.train.images[:RESET])), strict=True))
    row: Row = {"student": name, "start": start, "by": inherited.by, "parameters": inherited.parameters}
    images, labels = splits.test.images[:TESTED], splits.test.labels[:TESTED]
    row["as it is"] = _tested(student, images, labels)
    for kind, some in sets.items():
        network = copied(student)
        reset_statistics(network, some.split(64))
        row[kind] = _tested(network, images, labels)
    return row


def after(key: tuple[str, str], cifar10: Path, teachers: Path, threads: int) -> Row:
    """What a short distillation makes of a student."""
    name, start = key
    source = {
        **pairs.WITH_BATCH_NORM,
        "seed": 0,
        "threads": threads,
        "teacher": teacher_of(teachers),
        "student": STUDENTS[name],
        "inherit": STARTS[start],
        "test": {"kind": "npz", "path": str(tested(cifar10)), "test": 1.0},
        "phases": [
            {"kind": "pregenerate", "rounds": 14, "discard": 7},
            {"kind": "joint", "steps": STEPS, "every": EVERY},
        ],
        "evaluate_every": STEPS,
        "grid_every": 10_000,
    }
    out = RUNS / f"{name}-{start}".replace(" ", "-").replace("/", "-")
    values = common.run(distill, DistillConfig, source, out).values
    student = values["student"]
    return {
        "trained": True,
        "student": name,
        "start": start,
        "before": (student.get("start") or {}).get("accuracy"),
        "accuracy": student["accuracy"],
        "seconds": values["cost"]["seconds"]["distill"],
    }


def _identity(one: Row) -> tuple[bool, int, int]:
    return bool(one.get("trained")), list(STUDENTS).index(one["student"]), list(STARTS).index(one["start"])


def tables(content: Row) -> str:
    """A table of the students before their first step, and one of those that were trained."""
    starts = [
        [one["student"], f"{one['parameters']:,}", one["start"], one["by"]]
        + [f"{100 * one[kind]:.2f}" for kind in ("as it is", *IMAGES)]
        for one in content["cells"]
        if not one.get("trained")
    ]
    trained = [
        [
            one["student"],
            one["start"],
            "" if one["before"] is None else f"{100 * one['before']:.2f}",
            f"{100 * one['accuracy']:.2f}",
        ]
        for one in content["cells"]
        if one.get("trained")
    ]
    return common.table(BEFORE, starts) + "\n\n" + common.table(AFTER, trained)


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is wanted, write the cells and print the tables."""
    parser = common.options("start", __doc__)
    parser.add_argument("--cifar10", type=Path, required=True, help=".npz of CIFAR-10")
    parser.add_argument("--teachers", type=Path, required=True, help=f"folder of {WEIGHTS}")
    parser.add_argument("--only", default="", help="run only cells whose student/start starts with this")
    parser.add_argument("--part", choices=("before", "after"), help="run only cells of one table")
    common.add_threads(parser)
    given = parser.parse_args(argv)
    torch.set_num_threads(given.threads)
    starts = [(name, start) for name in STUDENTS for start in ("true", "merged")]
    # Channels of a student that is only shallower are neither taken nor merged.
    starts = [key for key in starts if key[1] == "true" or "width" in STUDENTS[key[0]]]
    keys = [] if given.part == "after" else [(False, *key) for key in starts]
    keys += [] if given.part == "before" else [(True, *key) for key in TRAINED]
    cells = common.collect(
        "start",
        [key for key in keys if f"{key[1]}/{key[2]}".startswith(given.only)],
        lambda key: (
            after(key[1:], given.cifar10, given.teachers, given.threads)
            if key[0]
            else before(key[1:], given.cifar10, given.teachers)
        ),
        _identity,
    )
    print(tables({"cells": cells}))


if __name__ == "__main__":
    main()
