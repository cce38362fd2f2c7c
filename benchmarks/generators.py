"""Generators on Fashion-MNIST: what minutes of training on two cores are worth, and what their switches do.

    python -m benchmarks.generators [--cells headline] [--seeds 3] [--root FOLDER]
    python -m benchmarks.generators --calibrate    # the seconds of a training step here, nothing else
    python -m benchmarks.generators --smoke        # ten steps a cell on one thread, written elsewhere

Run it alone on the machine. Each cell is a `synthkd generate`: the generator is trained at difficulty 0.3 and a dataset
of 1,000 images a class is written at 0.3, where runs start; that is the headline. The generator that a headline cell
saved is then sampled at difficulties 0 and 1 too, from the same random rows. An interrupted cell goes on where it
stopped, finished ones are kept in benchmarks/runs; the tables go to benchmarks/results/generators.json, a picture of
each headline cell to docs/images.

Agreement is the share of images in which the teacher (the convnet of fashion_mnist.py) sees the asked label.
Distances and neighbours are those of its penultimate features against the 10,000 test images; the row `real` is as many
training images, whose distance is the floor. A distance of few images is mostly bias, so it is measured at two sizes:
of all samples, and of 1,000 (the median of as many disjoint thousands as there are). A class or cluster is missed as
`synthkd.metrics.mode_collapse` has it; the clusters are k-means centres of further training images in the same
features. `seconds` is training alone. Headline cells measure nothing while they train; the cGAN ablations measure mode
collapse every 100 steps against 1,200 training images kept out, a few per cent of their seconds.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import common, pairs
from benchmarks.common import Row
from benchmarks.generator_tables import collapse_table, table
from benchmarks.judge import CLUSTERS, NEIGHBOUR, Judge
from synthkd.data.read.real import load_splits
from synthkd.data.written.stored import read_stored
from synthkd.generators.build import build_generator
from synthkd.generators.inversion_network import SAMPLE_STEPS
from synthkd.generators.settings import DiffusionSettings, SavedSettings
from synthkd.metrics.features import build_extractor, extract
from synthkd.models import Classifier, load_model
from synthkd.pipelines import generate
from synthkd.pipelines.config import GenerateConfig
from synthkd.pipelines.run.device import make_accelerator
from synthkd.pipelines.run.result import Result
from synthkd.reports.grids import ROWS, save_grid
from synthkd.rng import Rows
from synthkd.settings import LoadedModel, NamedData, TeacherExtractor
from synthkd.settings.load import load_config
from synthkd.system.hardware import describe
from synthkd.training.monitor import read_rows, series
from synthkd.types import SampleGenerator, to_uint8

PAIR = "convnet"
HEADLINE = 0.3
DIFFICULTIES = (HEADLINE, 0.0, 1.0)
BATCH = 100
DIFFUSION_STEPS, CGAN_STEPS = 25, 10
"""Training steps of a round, the generators' defaults."""
SAMPLER_STEPS = {"cgan": 1, "inversion": SAMPLE_STEPS}
"""Steps of the samplers without a setting for it."""
KEPT_OUT = 0.02
MEASURE_EVERY = 10
"""Rounds between two measurements of mode collapse in the cGAN ablations, and between log rows everywhere."""
TARGET = 660
"""Seconds that the training of a headline cell should take; 720 are allowed."""
LONG = {"diffusion": 4700, "cgan": 5000}
SHORT = {"diffusion": 1550, "cgan": 2500}
"""Training steps of a headline cell, for 11 minutes, and of an ablation, for 4. Sized for two threads that are 1.5
times as fast as one, with which a step of 64 images took 0.23 s (diffusion) and 0.14 s (cgan); `--calibrate` says what
it takes on a machine."""


@dataclass(frozen=True)
class Cell:
    """A generator and how long it is trained.

    Attributes:
        generator: its settings.
        rounds: of training.
        steps: training steps in all of them.
        real: whether it learns from real images.
        holdout: share of those that is kept out, to measure mode collapse on while training.
    """

    generator: Mapping[str, object]
    rounds: int
    steps: int
    real: bool = True
    holdout: float = 0.0


def diffusion(steps: int, **changes: object) -> Cell:
    """A diffusion generator that is trained for as many steps."""
    return Cell({"kind": "diffusion", "horizon": steps, **changes}, steps // DIFFUSION_STEPS, steps)


def cgan(steps: int, holdout: float = 0.0, **changes: object) -> Cell:
    """A cGAN that is trained for as many steps."""
    settings: Row = {"kind": "cgan", "measure_every": MEASURE_EVERY, **changes}
    return Cell(settings, steps // CGAN_STEPS, steps, holdout=holdout)


def cgan_ablation(curriculum: bool, spectral_norm: bool) -> Cell:
    """A cGAN of the ablations."""
    return cgan(SHORT["cgan"], KEPT_OUT, r1=0.1, curriculum=curriculum, spectral_norm=spectral_norm)


GROUPS: dict[str, dict[str, Cell]] = {
    "headline": {
        "diffusion": diffusion(LONG["diffusion"]),
        "cgan, no spectral norm": cgan(LONG["cgan"], spectral_norm=False, r1=0.3),
        "inversion": Cell({"kind": "inversion", "adversarial": 10.0}, 300, 1500, real=False),
    },
    "ablations": {
        "cgan: curriculum, spectral norm": cgan_ablation(True, True),
        "cgan: curriculum": cgan_ablation(True, False),
        "cgan: spectral norm": cgan_ablation(False, True),
        "cgan: neither": cgan_ablation(False, False),
        "diffusion: no curriculum": diffusion(SHORT["diffusion"]),
        "diffusion: curriculum 0.5": diffusion(SHORT["diffusion"], curriculum=0.5),
    },
}
CELLS = {name: cell for group in GROUPS.values() for name, cell in group.items()}


@dataclass(frozen=True)
class Scale:
    """How big everything is, and where it is written.

    Attributes:
        per_class: images of each class in every set of samples.
        timed: batches whose sampling is timed.
        threads: of torch.
        runs: finished cells.
        results: folder of the JSON.
        images: pictures of the headline cells.
    """

    per_class: int
    timed: int
    threads: int
    runs: Path
    results: Path
    images: Path


RUNS, SMOKE_RUNS = common.RUNS / "generators", common.RUNS / "generators_smoke"
MOST_SEEDS = 10
"""Finished cells of seeds below this are in the results, whatever --seeds is."""
FULL = Scale(1000, 10, 2, RUNS, common.RESULTS, common.IMAGES)
SMOKE = Scale(20, 1, 1, SMOKE_RUNS, SMOKE_RUNS, SMOKE_RUNS)


def tiny(cell: Cell) -> Cell:
    """The same kind of cell, trained for ten rounds of a step."""
    changes: Row = {"steps": 1} | ({"horizon": MEASURE_EVERY} if "horizon" in cell.generator else {})
    return replace(cell, generator={**cell.generator, **changes}, rounds=MEASURE_EVERY, steps=MEASURE_EVERY)


def prepare(root: str, teacher: Classifier, scale: Scale) -> tuple[Judge, Row]:
    """The judge, and the scores of real training images."""
    count = 2 * scale.per_class
    real = load_splits(NamedData(kind="fashion_mnist", root=root, holdout=0.0, per_class=count))
    extractor = build_extractor(TeacherExtractor(kind="teacher"), torch.device("cpu"), teacher)
    rows = real.train.labels.argsort(stable=True)  # an even number of each class: every other row is half of each
    others = extract([real.train.images[rows[1::2]]], extractor).values
    judge = Judge(extractor, extract([real.test.images[:]], extractor), real.test.labels, others)
    return judge, judge.scores(real.train.images[rows[::2]], real.train.labels[rows[::2]])


def configured(name: str, cell: Cell, seed: int, teacher: Path, root: str, scale: Scale) -> GenerateConfig:
    """The cell as a configuration of `synthkd generate`."""
    source = {
        "name": slug(name),
        "seed": seed,
        "device": "cpu",
        "threads": scale.threads,
        "teacher": {"kind": "load", "model": str(teacher)},
        "generator": dict(cell.generator),
        "data": {"kind": "fashion_mnist", "root": root, "holdout": cell.holdout} if cell.real else None,
        "rounds": cell.rounds,
        "per_class": scale.per_class,
        "difficulty": HEADLINE,
        "format": "webdataset",
        "log_every": MEASURE_EVERY,
        "checkpoint_every": max(1, cell.rounds // 10),
    }
    return load_config(GenerateConfig, source, [f"out={place(name, seed, scale)}"])


def slug(name: str) -> str:
    """The name of a cell as part of a file name."""
    return "-".join(name.replace(":", "").replace(",", "").split())


def place(name: str, seed: int, scale: Scale) -> Path:
    """The run directory of a cell."""
    return scale.runs / f"{slug(name)}-seed{seed}"


def scores_file(name: str, seed: int, scale: Scale) -> Path:
    """The scores of a finished cell."""
    return place(name, seed, scale) / "scores.json"


def run(config: GenerateConfig, name: str, cell: Cell, judge: Judge, teacher: Classifier, scale: Scale) -> None:
    """Train, sample and score one cell, and write its scores."""
    result = generate(config)
    assert isinstance(result, Result)
    dataset = read_stored(result.directory)
    saved = SavedSettings(kind="saved", path=str(result.directory))
    generator = build_generator(saved, teacher, config.seed, make_accelerator(config))
    scores: Row = {}
    for difficulty in DIFFICULTIES if name in GROUPS["headline"] else (HEADLINE,):
        headline = difficulty == HEADLINE
        labels = dataset.labels[: BATCH * (scale.timed + 1)] if headline else dataset.labels
        images, seconds = sample(generator, labels, difficulty, config.seed)
        scores[str(difficulty)] = {
            **judge.scores(dataset.images if headline else images, dataset.labels),
            "sampling_ms": 1000 * statistics.median(seconds[1:]) / BATCH,  # the first batch allocates
        }
    steps, rates = series(read_rows(result.directory / "metrics.jsonl"), "generator/mode_collapse")
    kind = config.generator
    row = {
        "cell": name,
        "seed": config.seed,
        "generator": dict(cell.generator),
        "steps": cell.steps,
        "seconds": result.values["cost"]["seconds"]["generator"],
        "real_images": result.values["real_images_used"],
        "sampler_steps": kind.sample_steps if isinstance(kind, DiffusionSettings) else SAMPLER_STEPS[kind.kind],
        "difficulty": scores,
        "collapse": {"steps": [step * cell.steps // cell.rounds for step in steps], "rates": rates},
        "hardware": describe(torch.device("cpu")),
    }
    if name in GROUPS["headline"] and config.seed == 0:
        picture = scale.images / f"generators_{slug(name)}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        classes = len(dataset.class_names)  # the dataset's classes take turns
        save_grid(dataset.images[: ROWS * classes], classes, picture, dataset.class_names)
    common.write(scores_file(name, config.seed, scale), row)


def sample(generator: SampleGenerator, labels: Tensor, difficulty: float, seed: int) -> tuple[Tensor, list[float]]:
    """Images uint8 `[N, C, H, W]` of the labels from the rows of `synthkd generate`, and the seconds of each batch."""
    images: list[Tensor] = []
    seconds: list[float] = []
    for number, some in enumerate(labels.split(BATCH)):
        began = time.perf_counter()
        batch = generator.sample(some, difficulty, Rows(seed, "generate", number * BATCH))
        seconds.append(time.perf_counter() - began)
        images.append(to_uint8(batch))
    return torch.cat(images), seconds


def calibrate(teacher: Path, root: str, scale: Scale) -> None:
    """Print what a training step takes here, and how many fit into the budget of a headline cell."""
    model = load_model(LoadedModel(kind="load", model=str(teacher)))
    for name, cell in GROUPS["headline"].items():
        config = configured(name, cell, 0, teacher, root, scale)
        real = None if config.data is None else load_splits(config.data)
        generator = build_generator(config.generator, model, 0, make_accelerator(config), real)
        train = getattr(generator, "fit", generator.round)
        train(0, HEADLINE)
        rounds = 3
        began = time.perf_counter()
        for index in range(1, rounds + 1):
            train(index, HEADLINE)
        step = (time.perf_counter() - began) / rounds / (cell.steps / cell.rounds)
        print(f"{name}: {step:.3f} s a step with {torch.get_num_threads()} threads, {TARGET / step:,.0f} in {TARGET} s")


def wanted(given: Sequence[str]) -> list[str]:
    """The cells that `given` names, by themselves or by their group, in the order of the table."""
    names = {name for one in given for name in GROUPS.get(one, {one: None})}
    return [name for name in CELLS if name in names]


def tables(content: Row) -> str:
    """All tables, for docs/benchmarks.md."""
    cells, floor = content["cells"], content["real"]
    groups = [[one for one in cells if one["cell"] in group] for group in GROUPS.values()]
    return "\n\n".join([*(table(group, floor) for group in groups if group), collapse_table(cells)])


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is wanted, write the results after each cell, and print the tables."""
    parser = common.options("generators", __doc__)
    names, cells_help = [*GROUPS, *CELLS], f"run these only: {', '.join(GROUPS)}; {'; '.join(CELLS)}"
    parser.add_argument("--cells", nargs="*", default=list(GROUPS), choices=names, metavar="CELL", help=cells_help)
    common.add_seeds(parser, 1)
    pairs.add_root(parser)
    common.add_threads(parser)
    parser.add_argument("--calibrate", action="store_true", help="print the seconds of a training step, run nothing")
    parser.add_argument("--smoke", action="store_true", help="ten steps a cell on one thread, written elsewhere")
    arguments = parser.parse_args(argv)
    scale = SMOKE if arguments.smoke else replace(FULL, threads=arguments.threads)
    pairs.DATA["root"] = arguments.root  # the teacher is trained there where it is not finished
    directory = pairs.teacher_of(PAIR)
    torch.set_num_threads(scale.threads)
    if arguments.calibrate:
        calibrate(directory, arguments.root, scale)
        return
    teacher = load_model(LoadedModel(kind="load", model=str(directory)))
    judge, floor = prepare(arguments.root, teacher, scale)
    for seed in range(arguments.seeds):
        for name in wanted(arguments.cells):
            if scores_file(name, seed, scale).exists():
                continue
            cell = tiny(CELLS[name]) if arguments.smoke else CELLS[name]
            config = configured(name, cell, seed, directory, arguments.root, scale)
            run(config, name, cell, judge, teacher, scale)
            write(scale, floor)
    print(tables(write(scale, floor)))


def write(scale: Scale, floor: Row) -> Row:
    """Write and return the results: every finished cell, whatever was asked for now."""
    places = [scores_file(name, seed, scale) for name in CELLS for seed in range(MOST_SEEDS)]
    content: Row = {
        "headline_difficulty": HEADLINE,
        "k": NEIGHBOUR,
        "clusters": CLUSTERS,
        "real": floor,
        "cells": [json.loads(path.read_text(encoding="utf-8")) for path in places if path.exists()],
        **common.environment("torch", "numpy", "scipy", "diffusers"),
    }
    common.save("generators", content, folder=scale.results)
    return content


if __name__ == "__main__":
    main()
