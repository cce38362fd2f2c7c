"""How good is a student that nobody can test? Estimates from what a run itself holds, beside the truth.

    python -m benchmarks.estimate --cifar10 FILE.npz --teachers FOLDER [--fashion FOLDER] [--threads 1]

A cell is a short distillation without test data (`estimate_runs.py`): digits, Fashion-MNIST with two teachers, and
CIFAR-10 with the public ResNet-20; images of generators that learn from the teacher, or drawn ones; students of several
sizes, budgets from 100 to 3,000 steps. The truth is the agreement of student and teacher on test images (2,000 at
most), which no estimate sees. An estimate is the mean of logits of agreements, moved by the mean of its differences to
the truth over the runs of the other datasets. Its interval has the deviation that the other datasets have among
themselves, each left out once. Finished cells are kept in benchmarks/runs/estimate; the tables go to
benchmarks/results/estimate.json.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from scipy import stats
from torch import Tensor

from benchmarks import common
from benchmarks.common import Row
from benchmarks.estimate_runs import CELLS, Cell, Files, run, teacher_settings
from synthkd.data.bank_sample import BANK_SAMPLE
from synthkd.data.read.real import load_splits
from synthkd.distillation.advice import gain_of_longer
from synthkd.generators import procedural
from synthkd.generators.build import build_generator
from synthkd.generators.settings import ProceduralSettings, SavedSettings
from synthkd.metrics.untested import agreement_logits
from synthkd.models import Classifier, load, load_model
from synthkd.passes import in_chunks, sample_in_chunks
from synthkd.pipelines.config import TeachConfig
from synthkd.pipelines.student.held_out import FRESH_IMAGES
from synthkd.rng import Rows
from synthkd.settings import DifficultySettings, LoadedModel
from synthkd.settings.load import load_config
from synthkd.training.monitor import read_rows, series
from synthkd.types import ImageSpec, balanced_labels, to_float

MOST_TESTED = 2000
CONFIDENCE = 0.9
DATASETS = {"digits": "digits", "lenet": "Fashion-MNIST", "fashion": "Fashion-MNIST", "cifar10": "CIFAR-10"}
ESTIMATES: dict[str, tuple[str, ...]] = {
    "new images": ("fresh",),
    "new images, surer half": ("fresh, surer half",),
    "learned images": ("learned",),
    "learned images, surer half": ("learned, surer half",),
    "the four": ("fresh", "fresh, surer half", "learned", "learned, surer half"),
    "drawn pictures": ("drawn",),
    "drawn pictures, surer half": ("drawn, surer half",),
    "crops of photographs": ("photographs",),
    "crops of photographs, surer half": ("photographs, surer half",),
    "student's mean confidence on new images": ("confidence",),
}
"""Name of an estimate -> the values of a cell whose mean it is."""
SHIPPED, NAIVE = "the four", "new images"
LONGER = (
    ("digits", 400, 1500),
    ("lenet", 800, 3000),
    ("fashion", 300, 800),
    ("fashion", 800, 1500),
    ("cifar10", 150, 400),
    ("cifar10", 400, 800),
)
"""Data, and the steps of two runs with one recipe and student."""


# Measuring


def measured(cell: Cell, files: Files, threads: int) -> Row:
    """Run a cell and compare student and teacher on all kinds of images, or read what was measured."""
    place = run(cell, files, threads)
    kept = place / "estimate.json"
    if not kept.exists():
        common.write(kept, _compared(cell, place, files, threads))
    content: Row = json.loads(kept.read_text(encoding="utf-8"))
    return content


def _compared(cell: Cell, place: Path, files: Files, threads: int) -> Row:
    teacher, student = teacher_of(cell.data, files, threads), load(place).eval()
    images, labels = tested(cell.data, files)
    theirs, ours = answers(teacher, images), answers(student, images)
    new = fresh_images(cell, place, teacher)
    with np.load(place / BANK_SAMPLE) as sample:
        learned = to_float(torch.from_numpy(sample["images"]))
    learned = learned[torch.linspace(0, len(learned) - 1, FRESH_IMAGES).round().long()]
    kinds = {
        "fresh": new,
        "learned": learned,
        "drawn": procedural.draw(FRESH_IMAGES, student.spec, Rows(cell.seed, "untested")),
        "photographs": photographs(FRESH_IMAGES, student.spec, cell.seed),
    }
    values: dict[str, float] = {}
    for name, pictures in kinds.items():
        both = agreement_logits(answers(teacher, pictures), answers(student, pictures))
        values |= dict(zip((name, f"{name}, surer half"), both, strict=True))
    confidence = float(answers(student, new).softmax(1).amax(1).mean())
    rounds, agreements = series(read_rows(place / "metrics.jsonl"), "fresh/agreement")
    first = rounds[0] - 1
    return {
        "name": cell.name,
        "data": cell.data,
        "student": " ".join(str(value) for value in cell.student.values()),
        "images": cell.images,
        "steps": cell.steps,
        "seed": cell.seed,
        "agreement": agreement_logits(theirs, ours)[0],
        "accuracy": float((ours.argmax(1) == labels).double().mean()),
        "teacher": float((theirs.argmax(1) == labels).double().mean()),
        "values": values | {"confidence": math.log(confidence / (1 - confidence))},
        "curve": [[step - first, agreement] for step, agreement in zip(rounds, agreements, strict=True)],
        "hardware": common.result_of(place)["hardware"],
    }


@cache
def teacher_of(data: str, files: Files, threads: int) -> Classifier:
    """The teacher of a dataset, in eval mode."""
    settings = teacher_settings(data, files, threads)
    return (load_model(LoadedModel(**settings)) if "options" in settings else load(settings["model"])).eval()


@cache
def tested(data: str, files: Files) -> tuple[Tensor, Tensor]:
    """At most `MOST_TESTED` test images float32, and their labels."""
    settings = load_config(TeachConfig, {"data": files.data(data), "model": {"arch": "mlp"}}, []).data
    test = load_splits(settings).test
    return to_float(test.images[:MOST_TESTED]), test.labels[:MOST_TESTED]


def answers(network: Classifier, images: Tensor) -> Tensor:
    """Logits `[N, K]`."""
    with torch.no_grad():
        return in_chunks(lambda chunk: network(chunk).float(), 250, images)


def fresh_images(cell: Cell, place: Path, teacher: Classifier) -> Tensor:
    """The images on which the run itself measured the agreement: new samples of its generator."""
    settings = ProceduralSettings(kind="procedural")
    if cell.images != "drawn":
        settings = SavedSettings(kind="saved", path=str(place))
    generator = build_generator(settings, teacher, cell.seed, Accelerator(cpu=True), None, None)
    difficulty, labels = DifficultySettings().start, balanced_labels(FRESH_IMAGES, 0, teacher.spec.classes)
    rows = Rows(cell.seed, "fresh")
    return sample_in_chunks(lambda y, rng: generator.sample(y, difficulty, rng), 125, labels, rows).detach()


def photographs(count: int, spec: ImageSpec, seed: int) -> Tensor:
    """Random crops at many scales of the two photographs that scikit-learn has, some flipped: `[count, C, H, W]`."""
    from sklearn.datasets import load_sample_images

    sources = [torch.tensor(one).permute(2, 0, 1)[None] / 255 for one in load_sample_images().images]
    crops = []
    for number, (scale, down, right, flip) in enumerate(Rows(seed, "photographs").uniform(count, 4).tolist()):
        picture = sources[number % len(sources)]
        height, width = picture.shape[-2:]
        side = max(spec.height, round(min(height, width) * 0.08 ** (1 - scale)))
        top, left = int(down * (height - side)), int(right * (width - side))
        crop = picture[..., top : top + side, left : left + side]
        crop = F.interpolate(crop, size=(spec.height, spec.width), mode="bilinear", antialias=True)
        crops.append(crop.flip(-1) if flip < 0.5 else crop)
    pictures = torch.cat(crops).clamp(0, 1)
    return pictures.mean(1, keepdim=True) if spec.channels == 1 else pictures


# Estimating


def differences(cells: Iterable[Row], estimate: str) -> list[tuple[str, float]]:
    """Dataset, and true logit minus mean logit of the values of an estimate, of each cell."""
    return [
        (DATASETS[one["data"]], one["agreement"] - statistics.mean(one["values"][name] for name in ESTIMATES[estimate]))
        for one in cells
    ]


def offset_without(rows: Sequence[tuple[str, float]], left_out: str) -> float:
    """Mean difference of the runs of all datasets but one."""
    return statistics.mean(value for data, value in rows if data != left_out)


def deviation(rows: Sequence[tuple[str, float]]) -> float:
    """Root mean square of the differences, each less the mean of the other datasets."""
    return math.sqrt(statistics.mean((value - offset_without(rows, data)) ** 2 for data, value in rows))


def quantile(rows: Sequence[tuple[str, float]]) -> float:
    """Of the t distribution with a degree of freedom less than there are runs."""
    return float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(rows) - 1))


def ranges(cells: Sequence[Row], estimate: str) -> list[tuple[float, float, float]]:
    """Value, low and high in [0, 1] of each cell, by the runs of the other datasets alone."""
    rows, result = differences(cells, estimate), []
    for one, (data, value) in zip(cells, rows, strict=True):
        others = [row for row in rows if row[0] != data]
        middle = one["agreement"] - value + offset_without(rows, data)
        half = quantile(others) * deviation(others)
        result.append((_share(middle), _share(middle - half), _share(middle + half)))
    return result


def summary(cells: Sequence[Row]) -> Row:
    """What `synthkd.metrics.untested.CALIBRATION` holds, and the errors of all estimates."""
    rows, intervals = differences(cells, SHIPPED), ranges(cells, SHIPPED)
    truths = [_share(one["agreement"]) for one in cells]
    return {
        "offset": statistics.mean(value for _, value in rows),
        "deviation": deviation(rows),
        "quantile": quantile(rows),
        "runs": len(cells),
        "covered": sum(low <= truth <= high for truth, (_, low, high) in zip(truths, intervals, strict=True)),
    }


def errors(cells: Sequence[Row], estimate: str) -> tuple[float, float, float]:
    """Mean absolute errors of the agreement: as it is, moved by the other runs, moved by those of other datasets."""
    rows = differences(cells, estimate)
    total = sum(value for _, value in rows)

    def error(offset: Callable[[str, float], float]) -> float:
        moved = [
            _share(one["agreement"] - value + offset(data, value))
            for one, (data, value) in zip(cells, rows, strict=True)
        ]
        return statistics.mean(abs(a - _share(one["agreement"])) for a, one in zip(moved, cells, strict=True))

    return (
        error(lambda *_: 0.0),
        error(lambda _, value: (total - value) / (len(rows) - 1)),
        error(lambda data, _: offset_without(rows, data)),
    )


def _share(logit: float) -> float:
    return 1.0 / (1.0 + math.exp(-logit))


# Tables


def tables(content: Row) -> str:
    """Each run, each kind of estimate, and what longer runs brought."""
    cells = content["cells"]
    return "\n\n".join((_runs(cells), _kinds(cells), _longer(cells)))


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _runs(cells: Sequence[Row]) -> str:
    rows = []
    for one, (value, low, high) in zip(cells, ranges(cells, SHIPPED), strict=True):
        truth, new = _share(one["agreement"]), _share(one["values"]["fresh"])
        interval = f"{_percent(low)} to {_percent(high)}" + ("" if low <= truth <= high else " (missed)")
        numbers = [_percent(share) for share in (one["accuracy"], truth, new, value)]
        rows.append([one["data"], one["student"], one["images"], f"{one['steps']:,}", *numbers, interval])
    return common.table(
        "data | student | images | steps | test accuracy, % | agreement on test images, % | on new images, % | "
        "estimate, % | interval",
        rows,
    )


def _kinds(cells: Sequence[Row]) -> str:
    names = [*ESTIMATES]
    rows = [[name, *(f"{100 * error:.1f}" for error in errors(cells, name))] for name in names]
    truths = [_share(one["agreement"]) for one in cells]
    apart = statistics.mean(abs(a - (sum(truths) - a) / (len(truths) - 1)) for a in truths)
    others = [
        statistics.mean(
            t for two, t in zip(cells, truths, strict=True) if DATASETS[two["data"]] != DATASETS[one["data"]]
        )
        for one in cells
    ]
    far = statistics.mean(abs(a - b) for a, b in zip(truths, others, strict=True))
    rows.append(["mean agreement of the other runs", "", f"{100 * apart:.1f}", f"{100 * far:.1f}"])
    return common.table("estimate | as it is | moved by other runs | moved by other datasets", rows)


def _longer(cells: Sequence[Row]) -> str:
    rows = []
    for data, short, long in LONGER:
        pair = [
            one for steps in (short, long) for one in cells
            if (one["data"], one["steps"], one["images"]) == (data, steps, "recipe") and _is_usual(one)
        ]  # fmt: skip
        if len(pair) < 2:
            continue
        steps, agreements = zip(*pair[0]["curve"], strict=True)
        gain = gain_of_longer(steps, agreements, long / short)
        brought = _share(pair[1]["agreement"]) - _share(pair[0]["agreement"])
        foretold = "none" if gain is None else f"{100 * gain:.1f}"
        rows.append([data, f"{short:,}", f"{long:,}", foretold, f"{100 * brought:.1f}"])
    return common.table("data | steps | longer | foretold gain, points | gain on test images, points", rows)


def _is_usual(one: Row) -> bool:
    """Whether a cell has the student that most cells of its data have."""
    usual = {"digits": "convnet 12", "fashion": "convnet 16", "lenet": "lenet5 3", "cifar10": "resnet 16 8"}
    return bool(one["student"] == usual[one["data"]])


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is wanted, write the cells and print the tables."""
    parser = common.options("estimate", __doc__)
    parser.add_argument("--cifar10", required=True, help=".npz with test_images and test_labels")
    parser.add_argument("--teachers", required=True, help="folder with resnet20-12fca82f.th")
    parser.add_argument("--fashion", default="/usr/share/datasets/fashion-mnist", help="folder with the idx files")
    parser.add_argument("--data", nargs="*", default=list(DATASETS), choices=list(DATASETS))
    common.add_threads(parser)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    files = Files(arguments.fashion, arguments.cifar10, str(Path(arguments.teachers) / "resnet20-12fca82f.th"))
    names = [cell.name for cell in CELLS]
    cells = common.collect(
        "estimate",
        [cell for cell in CELLS if cell.data in arguments.data],
        lambda cell: measured(cell, files, arguments.threads),
        lambda one: names.index(one["name"]),
        summary,
    )
    print(tables({"cells": cells}))


if __name__ == "__main__":
    main()
