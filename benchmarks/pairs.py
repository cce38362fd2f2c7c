"""Teachers and students on Fashion-MNIST that several benchmarks share, with their recipes and budgets."""

from __future__ import annotations

import argparse
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import common
from synthkd.models import Classifier, load
from synthkd.pipelines import teach
from synthkd.pipelines.config import TeachConfig
from synthkd.types import to_float

RUNS = common.RUNS / "fashion_mnist"
DATA = {"kind": "fashion_mnist", "root": "/usr/share/datasets/fashion-mnist", "holdout": 0.0}
"""The real images; a script with the option --root puts another folder in."""

GENERATED = {"difficulty": {"augment": False}, "bank": {"capacity": 60_000}}


@dataclass(frozen=True)
class Pair:
    """A teacher and a student, the recipe between them, and its budgets.

    Attributes:
        teacher: `model` and `training` of the teacher.
        student: the student's model.
        recipe: what `synthkd distill` is told beside them.
        rounds: generator rounds before the student's first step, and how many of them are discarded.
        every: student steps for each further round.
        budgets: name (the seconds it was sized for on two cores) -> student steps.
    """

    teacher: dict[str, Any]
    student: dict[str, Any]
    recipe: dict[str, Any]
    rounds: tuple[int, int]
    every: int
    budgets: dict[str, int]


WITH_BATCH_NORM: dict[str, Any] = {
    "transfer_set": {**GENERATED, "generator": {"adversarial": 10.0}},
    "mix": {"mixup": 0.8},
    "distill": {
        "batch_size": 64,
        "temperature": 20.0,
        "optimizer": {"kind": "sgd", "lr": 0.5, "weight_decay": 1e-4, "schedule": "one_cycle", "warmup": 0.2},
    },
}
"""The recipe of `configs/fashion_mnist.yaml` without its hints, for teachers with BatchNorm."""

PAIRS = {
    "convnet": Pair(
        teacher={
            "model": {"arch": "convnet", "width": 32},
            "training": {
                "steps": 3752,
                "batch_size": 128,
                "optimizer": {"kind": "sgd", "lr": 0.15, "weight_decay": 5e-4, "schedule": "one_cycle", "warmup": 0.25},
                "augment": {"shift": 1, "flip": True},
            },
        },
        student={"arch": "convnet", "width": 16},
        recipe=WITH_BATCH_NORM,
        rounds=(14, 7),
        every=24,
        budgets={"60s": 1800, "300s": 9200},
    ),
    "resnet": Pair(
        teacher={
            "model": {"arch": "resnet", "depth": 20, "width": 16},
            "training": {
                "steps": 2814,
                "batch_size": 128,
                "optimizer": {"kind": "sgd", "lr": 0.2, "weight_decay": 5e-4, "schedule": "one_cycle", "warmup": 0.25},
                "augment": {"shift": 1, "flip": True},
            },
        },
        student={"arch": "resnet", "depth": 8, "width": 16},
        recipe=WITH_BATCH_NORM,
        rounds=(14, 7),
        every=24,
        budgets={"300s": 3000},
    ),
    "lenet": Pair(
        teacher={
            "model": {"arch": "lenet5", "width": 6},
            "training": {
                "steps": 4690,
                "batch_size": 128,
                "optimizer": {"kind": "adam", "lr": 4e-3, "weight_decay": 1e-5, "schedule": "one_cycle"},
            },
        },
        student={"arch": "lenet5", "width": 3},
        recipe={
            "transfer_set": {**GENERATED, "generator": {"kind": "pixels"}},
            "mix": {"mixup": 0.8},
            "distill": {
                "batch_size": 64,
                "temperature": 1.0,
                "logit_match": 2.0,
                "hint": 6.0,
                "optimizer": {
                    "kind": "adam",
                    "lr": 4e-3,
                    "weight_decay": 0.0,
                    "schedule": "one_cycle",
                    "warmup": 0.2,
                    "clip": 2.0,
                },
            },
        },
        rounds=(80, 0),
        every=40,
        budgets={"150s": 11_000},
    ),
}


def add_root(parser: argparse.ArgumentParser) -> None:
    """The option --root."""
    parser.add_argument("--root", default=DATA["root"], help="folder with the dataset's files")


@functools.cache
def _lenet() -> Classifier:
    return load(RUNS / "lenet" / "teacher")


def lenet_labels(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """What the teacher of the pair lenet shows as a black box: the classes int64 `[N]` of images `[N, 1, 28, 28]`."""
    with torch.no_grad():
        labels: NDArray[np.int64] = _lenet()(to_float(torch.from_numpy(images))).argmax(1).numpy()
    return labels


def directory(pair: str, method: str, budget: str, seed: int) -> Path:
    """The run directory of a cell of `benchmarks.fashion_mnist`."""
    return RUNS / pair / f"{method.replace(' ', '-')}-{budget}-seed{seed}"


def teacher_of(name: str) -> Path:
    """Run directory of the pair's teacher, which is trained once on the whole training split."""
    source = {"name": f"{name}-teacher", "data": DATA, "evaluate_every": 1000, **PAIRS[name].teacher}
    return common.run(teach, TeachConfig, source, RUNS / name / "teacher").directory
