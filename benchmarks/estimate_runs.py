"""Short distillations without test data, of several datasets, generators, students and budgets; see `estimate.py`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks import common, pairs
from benchmarks.common import Row
from synthkd.pipelines import distill, teach
from synthkd.pipelines.config import DistillConfig, TeachConfig

RUNS = common.RUNS / "estimate"
ONE_CYCLE: Row = {"kind": "sgd", "weight_decay": 5e-4, "schedule": "one_cycle", "warmup": 0.25}
TAUGHT: dict[str, Row] = {
    "digits": {
        "model": {"arch": "resnet", "width": 16, "depth": 8},
        "training": {"steps": 400, "batch_size": 64},
    },
    "fashion": {
        "model": {"arch": "convnet", "width": 32},
        "training": {"steps": 1200, "batch_size": 128, "optimizer": {**ONE_CYCLE, "lr": 0.15}},
    },
    "lenet": {
        "model": {"arch": "lenet5", "width": 6},
        "training": {
            "steps": 2000,
            "batch_size": 128,
            "optimizer": {"kind": "adam", "lr": 4e-3, "weight_decay": 1e-5, "schedule": "one_cycle"},
        },
    },
}
"""Teachers that are trained first; that of CIFAR-10 is a public file."""
DIGITS: Row = {
    "transfer_set": {"generator": {"width": 16, "latent": 64}},
    "mix": {"mixup": 0.8},
    "distill": {
        "temperature": 20.0,
        "optimizer": {"kind": "sgd", "lr": 0.3, "weight_decay": 1e-4, "schedule": "one_cycle", "warmup": 0.2},
    },
}
RECIPES: dict[str, Row] = {
    "digits": DIGITS,
    "fashion": pairs.WITH_BATCH_NORM,
    "lenet": pairs.PAIRS["lenet"].recipe,
    "cifar10": pairs.WITH_BATCH_NORM,
}
REAL: Row = {
    "mix": {"mixup": 0.5},
    "distill": {
        "temperature": 4.0,
        "optimizer": {"kind": "adamw", "lr": 3e-3, "weight_decay": 0.05, "schedule": "one_cycle"},
    },
}
PREGENERATED = {"digits": (14, 7), "fashion": (10, 5), "lenet": (40, 0), "cifar10": (8, 4)}
"""Rounds before the student, and how many of them are discarded."""
NOISY = ("noisy", "hinted")
"""Images of the generator `noisy_label`."""
NOISY_ROUNDS = 6
"""Rounds of `noisy_label` before the student."""
VIEWS: dict[str, Row] = {"cifar10": {"shift": 4, "flip": True}}
"""How the images were shifted and flipped from which a teacher learned; not at all where nothing stands."""
EVERY = {"digits": 15, "fashion": 24, "lenet": 40, "cifar10": 24}


@dataclass(frozen=True)
class Cell:
    """A run.

    Attributes:
        data: its dataset and teacher.
        student: the student's model.
        steps: of the student.
        images: "recipe": that of the data; "drawn": the same with the generator `procedural`; "default": the defaults
            of a student of real images, with those of the generator; "noisy": the generator `noisy_label`, without
            mixtures; "hinted": the same with the hints of the recipe `cifar10` (its weight, its clipping).
        seed: of the run.
    """

    data: str
    student: Row
    steps: int
    images: str = "recipe"
    seed: int = 0

    @property
    def name(self) -> str:
        """Name of the run, unique among the cells."""
        size = "-".join(str(value) for value in self.student.values())
        return f"{self.data}-{size}-{self.images}-{self.steps}-{self.seed}"


def _convnet(width: int) -> Row:
    return {"arch": "convnet", "width": width}


def _resnet(width: int) -> Row:
    return {"arch": "resnet", "width": width, "depth": 8}


LENET: Row = {"arch": "lenet5", "width": 3}
CELLS = (
    Cell("digits", _convnet(12), 100),
    Cell("digits", _convnet(12), 400),
    Cell("digits", _convnet(12), 1500),
    Cell("digits", _convnet(4), 600),
    Cell("digits", _convnet(12), 600, "drawn"),
    Cell("digits", {"arch": "mlp", "width": 64}, 600, seed=1),
    Cell("lenet", LENET, 800),
    Cell("lenet", LENET, 3000),
    Cell("lenet", LENET, 1500, "drawn", seed=1),
    Cell("cifar10", _resnet(16), 150),
    Cell("cifar10", _resnet(16), 400, "drawn", seed=1),
    Cell("fashion", _convnet(16), 300),
    Cell("fashion", _convnet(16), 800),
    Cell("fashion", _convnet(16), 800, "drawn", seed=1),
    Cell("cifar10", _resnet(16), 400),
    Cell("fashion", _convnet(16), 500, "default", seed=3),
    Cell("cifar10", _resnet(16), 150, "default", seed=3),
    Cell("digits", _convnet(12), 100, "noisy"),
    Cell("digits", _convnet(12), 400, "noisy"),
    Cell("cifar10", _resnet(16), 400, "noisy"),
    Cell("fashion", _convnet(16), 300, "noisy"),
    Cell("fashion", _convnet(16), 800, "noisy"),
    Cell("digits", _convnet(12), 1500, "noisy"),
    Cell("cifar10", _resnet(16), 1500, "noisy"),
    Cell("cifar10", _resnet(16), 400, "hinted"),
    Cell("cifar10", _resnet(16), 1500, "hinted"),
)
"""In the order in which they run; every dataset has its turn early."""
EARLIER = 11
"""Number of the runs that were there when the estimate was chosen."""


@dataclass(frozen=True)
class Files:
    """Where the images and the public teacher are.

    Attributes:
        fashion: folder of Fashion-MNIST.
        cifar10: .npz of CIFAR-10 with `test_images` and `test_labels`.
        teacher: public ResNet-20 of CIFAR-10.
    """

    fashion: str
    cifar10: str
    teacher: str

    def data(self, name: str) -> Row:
        """The settings of a dataset, of which the teacher learns all but the test images."""
        if name == "digits":
            return {"kind": "digits"}
        if name == "cifar10":
            return {"kind": "npz", "path": self.cifar10}
        return {**pairs.DATA, "root": self.fashion}


def teacher_settings(name: str, files: Files, threads: int) -> Row:
    """The section `teacher` of a run; the teacher is trained where that is needed."""
    if name in TAUGHT:
        source = {"name": f"{name}-teacher", "data": files.data(name), "threads": threads, **TAUGHT[name]}
        place = common.run(teach, TeachConfig, source, RUNS / f"teacher-{name}").directory
        return {"kind": "load", "model": str(place)}
    return {
        "kind": "load",
        "model": "zoo:resnet",
        "options": {"depth": 20, "shortcut": "pad"},
        "weights": files.teacher,
        "channels": 3,
        "size": 32,
        "classes": 10,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }


def _noisy(recipe: Row, views: Row, hinted: bool) -> Row:
    changes: Row = {
        "transfer_set": {"generator": {"kind": "noisy_label", **views}, "difficulty": {"augment": False}},
        "mix": {"mixup": 0.0, **views},
    }
    if hinted:
        hint = {"kind": "cosine", "start": 50.0, "end": 0.0}
        optimizer = {**recipe["distill"]["optimizer"], "clip": 5.0}
        changes["distill"] = {**recipe["distill"], "hint": hint, "optimizer": optimizer}
    return {**recipe, **changes}


def run(cell: Cell, files: Files, threads: int) -> Path:
    """Run a cell without test data, or find it finished: its run directory."""
    rounds, discard = PREGENERATED[cell.data]
    recipe = REAL if cell.images == "default" else RECIPES[cell.data]
    if cell.images in NOISY:
        rounds, discard = NOISY_ROUNDS, 0
        recipe = _noisy(recipe, VIEWS.get(cell.data, {}), cell.images == "hinted")
    if cell.images == "drawn":
        given = {key: value for key, value in recipe["transfer_set"].items() if key != "generator"}
        recipe = {**recipe, "transfer_set": {**given, "generator": {"kind": "procedural"}}}
    source: Row = {
        **recipe,
        "name": cell.name,
        "seed": cell.seed,
        "threads": threads,
        "teacher": teacher_settings(cell.data, files, threads),
        "student": cell.student,
        "phases": [
            {"kind": "pregenerate", "rounds": rounds, "discard": discard},
            {"kind": "joint", "steps": cell.steps, "every": EVERY[cell.data]},
        ],
        "evaluate_every": cell.steps,
        "checkpoint_every": 5000,
        "grid_every": 1000,
    }
    return common.run(distill, DistillConfig, source, RUNS / cell.name).directory
