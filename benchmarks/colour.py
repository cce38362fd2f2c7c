"""Generators on colour: a conditional GAN and a diffusion model learn CIFAR-10 from all images and from 500 a class.

    python -m benchmarks.colour --root FOLDER [--cells "cgan, all" ...] [--threads 2]

Run it alone on the machine. A cell is the recipe cgan_cifar10 or diffusion_cifar10 with the given real images of the
half that the teacher has not seen; the teacher is that of flagship.py. It writes 500 images a class, which are scored
against the 10,000 test images. The distance is between features of EfficientNet-Lite0, so it is no FID; precision and
recall are of the same features. Label fidelity is the share of images in which the teacher sees the asked label. The
row `real` is as many training images. Finished cells are kept in benchmarks/runs/colour; the table goes to
benchmarks/results/colour.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks import common, flagship
from benchmarks.common import Row
from synthkd.pipelines import evaluate, generate
from synthkd.pipelines.config import EvaluateConfig, GenerateConfig

RUNS = common.RUNS / "colour"
FEW, SCORED = 500, 500
REAL = "real"
CELLS = {f"{kind}, {size}": (kind, size) for kind in ("cgan", "diffusion") for size in ("all", str(FEW))}
COLUMNS = (
    "generator | real images per class | training steps | minutes of training | FD-efflite0 | precision | "
    "recall | label fidelity, %"
)


def made(name: str, root: str, threads: int) -> tuple[Path, Row]:
    """Train the generator of a cell and write its images, or find them; also the result of that run."""
    kind, size = CELLS[name]
    recipe = common.ROOT / "configs" / f"{kind}_cifar10.yaml"
    overrides = [
        f"teacher={{kind: load, model: {flagship.teacher_of('cifar10')}}}",
        f"data={{kind: cifar10, root: {root}, half: second{'' if size == 'all' else f', per_class: {size}'}}}",
        f"per_class={SCORED}",
        f"score.real.root={root}",
        f"threads={threads}",
    ]
    place = RUNS / f"{kind}-{size}"
    return place, dict(common.run(generate, GenerateConfig, recipe, place, *overrides).values)


def scored(images: str | Row, place: Path, root: str, threads: int) -> Row:
    """Scores of images against the test images by name."""
    source: Row = {
        "generated": [images],
        "real": {"data": {"kind": "cifar10", "root": root}},
        "teacher": {"kind": "load", "model": str(flagship.teacher_of("cifar10"))},
        "features": {"kind": "efficientnet_lite0"},
        "threads": threads,
    }
    values = common.run(evaluate, EvaluateConfig, source, place).values
    return {score["name"]: score["value"] for score in values["generated"][0]["scores"]}


def cell(name: str, root: str, threads: int) -> Row:
    """The scores of a cell, and what its training took."""
    flagship.ready_teacher("cifar10", root, threads)
    if name == REAL:
        data = {"kind": "cifar10", "root": root, "half": "second", "per_class": SCORED}
        return {"cell": name, "scores": scored({"data": data, "split": "train"}, RUNS / "real-scores", root, threads)}
    place, values = made(name, root, threads)
    generator = values["dataset"]["generator"]
    return {
        "cell": name,
        "steps": values["dataset"]["rounds"] * generator["steps"],
        "seconds": values["cost"]["seconds"]["generator"],
        "scores": scored(str(place / "dataset"), RUNS / f"{place.name}-scores", root, threads),
        "hardware": values["hardware"],
    }


def tables(content: Row) -> str:
    """The scores of each generator, and of real images."""
    rows = []
    for one in content["cells"]:
        kind, size = CELLS.get(one["cell"], (REAL, "all"))
        costs = ["", ""] if kind == REAL else [f"{one['steps']:,}", f"{one['seconds'] / 60:.0f}"]
        scores = one["scores"]
        distance = f"{scores['FD-efflite0']:.1f}"
        shares = [f"{scores[f'{name}-efflite0']:.2f}" for name in ("precision", "recall")]
        rows.append([kind, size, *costs, distance, *shares, f"{100 * scores['label fidelity']:.1f}"])
    return common.table(COLUMNS, rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the cells, write them after each, and print the table."""
    parser = common.options("colour", __doc__)
    parser.add_argument("--root", required=True, help="folder of CIFAR-10")
    parser.add_argument("--cells", nargs="*", default=[*CELLS, REAL], choices=[*CELLS, REAL])
    common.add_threads(parser)
    arguments = parser.parse_args(argv)
    order = [*CELLS, REAL]
    cells = common.collect(
        "colour",
        arguments.cells,
        lambda name: cell(name, arguments.root, arguments.threads),
        lambda one: order.index(one["cell"]),
    )
    print(tables({"cells": cells}))


if __name__ == "__main__":
    main()
