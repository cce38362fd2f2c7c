"""The two tables of the source article: quality of the generated images, and what a student learns from them.

    python -m benchmarks.article quality [--data digits] [--seeds 3] [--threads 2]
    python -m benchmarks.article distillation --data cifar10 --root FOLDER --per-class 50

Run it alone on the machine. The cells are those of flagship.py; what it finished is not run again. `quality`: 1,000 of
the images that students learned from, by the plain GAN and by the recipes, and real training images, against the test
images. `--features inception` gives the FID where Inception's weights are at hand; the other scores are the teacher's.
`distillation`: a student of the few real images, of generated images alone, and of both, with its parameters,
multiply-adds and time. Both tables go to benchmarks/results/article.json, which keeps the cells of earlier calls.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import product

from benchmarks import common, flagship
from benchmarks.common import Row
from benchmarks.flagship import ALONE, DATA, MIXED, Key
from synthkd.models import load, macs, parameters
from synthkd.pipelines import evaluate
from synthkd.pipelines.config import EvaluateConfig

REAL = "real"
ARMS = {
    "quality": ("plain GAN", "cgan", "diffusion", REAL),
    "distillation": (ALONE, MIXED, "generated alone", "cgan", "diffusion"),
}
PER_CLASS = 100
"""Real images of each class in the row of real images: as many as are kept of a run of ten classes."""
TEACHERS = {"IS-teacher": 1.0, "semantic cosine-teacher": 1.0, "mode collapse-teacher": 100.0, "label fidelity": 100.0}
"""Scores by the teacher -> factor in the table."""
QUALITY = (
    "data | real images per class | images | seeds | {} | inception score, by the teacher | semantic cosine | "
    "mode collapse, % | label fidelity, %"
)
DISTILLATION = (
    "data | real images per class | student of | seeds | accuracy, %, mean (standard deviation) | "
    "over real KD, points | parameters, of the teacher's | multiply-adds, of the teacher's | time, of real KD"
)


def quality(key: Key, root: str | None, threads: int, features: str) -> Row:
    """The scores of the images of an arm."""
    # The real images are scored by the same teacher, which any arm has.
    arm = key._replace(arm=ALONE) if key.arm == REAL else key
    flagship.cell(arm, root, threads)
    recipe = flagship.recipe_of(key._replace(arm="cgan"), root)
    images: Row | str = str(flagship.place(key))
    if key.arm == REAL:
        data = recipe["transfer_set"][1]["data"] | {"per_class": PER_CLASS, "split_seed": key.seed}
        images = {"data": data, "split": "train"}
    source: Row = {
        "generated": [images],
        "real": {"data": recipe["test"]},
        "teacher": {"kind": "load", "model": str(flagship.teacher_of(key.data))},
        "features": {"kind": features},
        "threads": threads,
    }
    place = flagship.place(key)
    values = common.run(evaluate, EvaluateConfig, source, place.with_name(f"{place.name}-{features}")).values
    scores = {score["name"]: score["value"] for score in values["generated"][0]["scores"]}
    distance = next(name for name in scores if name == "FID" or name.startswith("FD-"))
    return {"distance": distance, "scores": scores, "hardware": values["hardware"]}


def distillation(key: Key, root: str | None, threads: int) -> Row:
    """The student of an arm and its cost."""
    cell = flagship.cell(key, root, threads)
    places = {"student": flagship.place(key), "teacher": flagship.teacher_of(key.data)}
    networks = {name: load(place) for name, place in places.items()}
    sizes = {name: {"parameters": parameters(model), "macs": macs(model)} for name, model in networks.items()}
    return sizes | {name: cell[name] for name in ("accuracy", "seconds", "hardware")}


def tables(content: Row) -> str:
    """Both tables, from the cells that there are."""
    groups: dict[tuple[str, str, int, str], list[Row]] = {}
    for cell in content["cells"]:
        groups.setdefault((cell["table"], cell["data"], cell["per_class"], cell["arm"]), []).append(cell)
    rows: dict[str, list[list[str]]] = {table: [] for table in ARMS}
    for (table, data, size, arm), cells in groups.items():
        alone = groups.get((table, data, size, ALONE), [])
        columns = _quality_row(cells) if table == "quality" else _distillation_row(cells, alone)
        rows[table].append([data, str(size), arm, str(len(cells)), *columns])
    distances = {cell["distance"] for cell in content["cells"] if cell["table"] == "quality"}
    headings = {"quality": QUALITY.format(", ".join(sorted(distances))), "distillation": DISTILLATION}
    return "\n\n".join(common.table(headings[table], lines) for table, lines in rows.items() if lines)


def _quality_row(cells: Sequence[Row]) -> list[str]:
    factors = {cells[0]["distance"]: 1.0, **TEACHERS}
    return [common.spread([factor * cell["scores"][name] for cell in cells]) for name, factor in factors.items()]


def _distillation_row(cells: Sequence[Row], alone: Sequence[Row]) -> list[str]:
    accuracies, baseline = ({one["seed"]: 100 * one["accuracy"] for one in arm} for arm in (cells, alone))
    sizes = [f"{cells[0]['student'][unit] / cells[0]['teacher'][unit]:.2f}" for unit in ("parameters", "macs")]
    plain = {one["seed"]: one["seconds"] for one in alone}
    ratios = [one["seconds"] / plain[one["seed"]] for one in cells if one["seed"] in plain]
    return [*common.compared(accuracies, baseline), *sizes, f"{statistics.median(ratios):.1f} x" if ratios else ""]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the arms of one table, write the cells after each, and print it."""
    parser = common.options("article", __doc__)
    parser.add_argument("table", choices=list(ARMS))
    parser.add_argument("--data", default="digits", choices=DATA)
    parser.add_argument("--root", help="folder of the images, for all but digits")
    parser.add_argument("--per-class", type=int, default=10, help="real images of each class")
    parser.add_argument("--arms", nargs="*", help="of the table; all by default")
    parser.add_argument("--features", default="efficientnet_lite0", choices=("efficientnet_lite0", "inception"))
    common.add_seeds(parser, 3)
    common.add_threads(parser)
    arguments = parser.parse_args(argv)
    arms = [arm for arm in ARMS[arguments.table] if arguments.arms is None or arm in arguments.arms]

    def cell(key: Key) -> Row:
        made = {"table": arguments.table, **key._asdict()}
        if arguments.table == "quality":
            return made | quality(key, arguments.root, arguments.threads, arguments.features)
        return made | distillation(key, arguments.root, arguments.threads)

    keys = [Key(arguments.data, arguments.per_class, arm, seed) for arm, seed in product(arms, range(arguments.seeds))]
    print(tables({"cells": common.collect("article", keys, cell, _identity)}))


def _identity(cell: Row) -> tuple[int, int, int, int, int]:
    table = cell["table"]
    place = DATA.index(cell["data"]), cell["per_class"], ARMS[table].index(cell["arm"])
    return list(ARMS).index(table), *place, cell["seed"]


if __name__ == "__main__":
    main()
