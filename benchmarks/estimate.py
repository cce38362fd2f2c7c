"""How good is a student that nobody can test? Estimates from what a run itself holds, beside the truth.

    python -m benchmarks.estimate --cifar10 FILE.npz --teachers FOLDER [--fashion FOLDER] [--threads 1]

A cell is a short distillation without test data (`estimate_runs.py`): digits, Fashion-MNIST with two teachers, and
CIFAR-10 with the public ResNet-20; images of generators that learn from the teacher, or drawn ones; students of
several sizes, budgets from 100 to 3,000 steps. Runs of `noisy_label` have a rule of their own and are told apart. The
truth is the agreement of student and teacher on test images (2,000 at most), which no estimate sees. An estimate is a
mean of logits of agreements, or what the rule for `noisy_label` makes of one: as it is, or moved by the mean of its
differences to the truth over other runs or the runs of other datasets. The interval of a run is the estimate as it is,
plus and minus the errors on the other datasets. Runs of drawn images are no part of this: theirs are neither hard for
the student nor easy for the teacher on purpose. The four agreements were chosen by the first 11 runs, and to leave them
as they are by all; the rule for `noisy_label` by its first six. Finished cells are kept in benchmarks/runs/estimate;
the tables go to benchmarks/results/estimate.json.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from benchmarks import common
from benchmarks.common import Row
from benchmarks.estimate_fits import (
    DATASETS,
    DRAWN,
    ESTIMATES,
    SHIPPED,
    Point,
    calibrations,
    error,
    errors,
    offset,
    others,
    points,
    ranges,
    runs_of,
)
from benchmarks.estimate_runs import CELLS, EARLIER, Cell, Files, run, teacher_settings
from synthkd.data.bank_sample import BANK_SAMPLE
from synthkd.data.read.real import load_splits
from synthkd.distillation.advice import gain_of_longer
from synthkd.generators import procedural
from synthkd.generators.build import build_generator
from synthkd.generators.settings import GeneratorSettings, ProceduralSettings, SavedSettings
from synthkd.metrics.untested import agreement_logits, share
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
BEFORE = frozenset(cell.name for cell in CELLS[:EARLIER])
"""The runs that were there when the estimate was chosen."""
LONGER = (
    ("digits", "recipe", 400, 1500),
    ("lenet", "recipe", 800, 3000),
    ("fashion", "recipe", 300, 800),
    ("cifar10", "recipe", 150, 400),
    ("digits", "noisy", 400, 1500),
    ("fashion", "noisy", 300, 800),
    ("cifar10", "noisy", 400, 1500),
    ("cifar10", "hinted", 400, 1500),
)
"""Data, kind of images, and the steps of two runs with one recipe and student."""
USUAL = ("convnet 12", "convnet 16", "lenet5 3", "resnet 16 8")
"""The students of these runs."""


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
    images, labels, theirs = tested(cell.data, files, threads)
    ours = answers(student, images)
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
def tested(data: str, files: Files, threads: int) -> tuple[Tensor, Tensor, Tensor]:
    """At most `MOST_TESTED` test images float32, their labels, and the teacher's logits."""
    settings = load_config(TeachConfig, {"data": files.data(data), "model": {"arch": "mlp"}}, []).data
    test = load_splits(settings).test
    images = to_float(test.images[:MOST_TESTED])
    return images, test.labels[:MOST_TESTED], answers(teacher_of(data, files, threads), images)


def answers(network: Classifier, images: Tensor) -> Tensor:
    """Logits `[N, K]`."""
    with torch.no_grad():
        return in_chunks(lambda chunk: network(chunk).float(), 250, images)


def fresh_images(cell: Cell, place: Path, teacher: Classifier) -> Tensor:
    """The images on which the run itself measured the agreement: new samples of its generator."""
    settings: GeneratorSettings = ProceduralSettings(kind="procedural")
    if cell.images != DRAWN:
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


# Tables


def tables(content: Row) -> str:
    """Each run, each kind of estimate, and what longer runs brought."""
    cells = content["cells"]
    return "\n\n".join((_runs(cells), _kinds(cells), _kinds_for_noisy(cells), _longer(cells)))


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _runs(cells: Sequence[Row]) -> str:
    by_name: dict[str, tuple[float, float, float]] = {}
    for calibration, (rule, _) in SHIPPED.items():
        chosen = runs_of(cells, calibration)
        by_name |= dict(zip((one["name"] for one in chosen), ranges(points(chosen, rule)), strict=True))
    rows = []
    for one in cells:
        truth, estimate = share(one["agreement"]), ["", ""]
        if one["name"] in by_name:
            value, low, high = by_name[one["name"]]
            missed = "" if low <= truth <= high else " (missed)"
            estimate = [_percent(value), f"{_percent(low)} to {_percent(high)}{missed}"]
        numbers = [_percent(value) for value in (one["accuracy"], truth, share(one["values"]["fresh"]))]
        rows.append([one["data"], one["student"], one["images"], f"{one['steps']:,}", *numbers, *estimate])
    return common.table(
        "data | student | images | steps | test accuracy, % | agreement on test images, % | on new images, % | "
        "estimate, % | interval",
        rows,
    )


def _kinds(cells: Sequence[Row]) -> str:
    drawn, chosen = [one for one in cells if one["images"] == DRAWN], runs_of(cells, "by_four")
    later = [one["name"] not in BEFORE for one in chosen]
    rows = []
    for name in ESTIMATES:
        runs, of_drawn = points(chosen, name), points(drawn, name)
        new = [run for run, is_later in zip(runs, later, strict=True) if is_later]
        moved = offset(run for run, is_later in zip(runs, later, strict=True) if not is_later)
        ends = [error(new, [moved] * len(new)), error(of_drawn, [0.0] * len(of_drawn))]
        rows.append([name, *(_percent(value) for value in (*errors(runs), *ends))])
    rows.append(["mean of the true agreements", "", *map(_percent, _by_the_mean(chosen)), "", ""])
    return common.table(
        "estimate | as it is | moved by other runs | moved by other datasets | later runs, moved by the earlier | "
        "drawn images, as it is",
        rows,
    )


def _kinds_for_noisy(cells: Sequence[Row]) -> str:
    chosen = runs_of(cells, "by_learned")
    rows = [[name, *map(_percent, errors(points(chosen, name)))] for name in ESTIMATES]
    rows.append(["mean of the true agreements", "", *map(_percent, _by_the_mean(chosen))])
    return common.table("estimate for noisy | as it is | moved by other runs | moved by other datasets", rows)


def _by_the_mean(cells: Sequence[Row]) -> list[float]:
    """Errors of the mean of the true agreements, of all other runs and of those of other datasets, as an estimate."""
    truths = [Point(run.data, 0.0, run.truth) for run in points(cells, "new images")]
    means = [
        [
            share(statistics.mean(other.value for other in rest))
            for rest in ([o for o in truths if o is not run], others(truths, run))
        ]
        for run in truths
    ]
    return [
        statistics.mean(abs(share(run.value) - mean[i]) for run, mean in zip(truths, means, strict=True))
        for i in (0, 1)
    ]


def _longer(cells: Sequence[Row]) -> str:
    usual = {(one["data"], one["images"], one["steps"]): one for one in cells if one["student"] in USUAL}
    rows = []
    for data, images, short, long in LONGER:
        pair = [usual[data, images, steps] for steps in (short, long) if (data, images, steps) in usual]
        if len(pair) < 2:
            continue
        steps, agreements = zip(*pair[0]["curve"], strict=True)
        gain = gain_of_longer(steps, agreements, long / short)
        brought = share(pair[1]["agreement"]) - share(pair[0]["agreement"])
        foretold = "none" if gain is None else _percent(gain)
        rows.append([data, images, f"{short:,}", f"{long:,}", foretold, _percent(brought)])
    return common.table("data | images | steps | longer | foretold gain, points | gain on test images, points", rows)


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
        lambda cells: {"calibrations": calibrations(cells)},
    )
    print(tables({"cells": cells}))


if __name__ == "__main__":
    main()
