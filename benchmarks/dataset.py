"""A written dataset in the place of teacher and generator, and what sampling costs. Fashion-MNIST, the convnet pair.

    python -m benchmarks.dataset [--budget 300s] [--seeds 3] [--only students|cost] [--diffusion RUN] [--dry-run]

Run it alone on the machine. Every finished part is kept in benchmarks/runs/dataset, so an interrupted table goes on
where it stopped.

Students: for each seed a student is distilled live (`live`: the `ours` of fashion_mnist.py), then `synthkd generate`
writes 10,000 images, 1,000 of each class, with the inversion generator that this run saved, and a student is trained
from those files alone (`transfer_set.kind: stored`): no teacher, hence stored logits and a random start, as many steps,
the same optimiser. A finished diffusion generator (generators.py, or --diffusion) is used likewise. How
images are varied is tried with seed 0, and chosen by the accuracy on 10,000 real training images, which no student has
seen; the test accuracy of every trial is in the table too.

Cost: milliseconds per image of a batch of 256 that goes through the bank (sampled, answered by the teacher, stored,
drawn) against one generator call for one image inside the `__getitem__` of a torch dataset, read through a DataLoader,
without the teacher's answer. `drawn once` counts a draw for each image made; `as trained` what an image of a student's
batch costs when, as in the recipe, a round of 64 images feeds 24 batches of 64. Medians of repeats in turn.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from benchmarks import common, pairs
from benchmarks.common import Row
from benchmarks.sampling_cost import cost, cost_table
from synthkd.data.read.real import load_splits
from synthkd.metrics.utility import accuracy, predict
from synthkd.models import load_model
from synthkd.pipelines import distill, generate
from synthkd.pipelines.config import DistillConfig, GenerateConfig
from synthkd.pipelines.run.result import Result
from synthkd.reports.results import JobResult
from synthkd.settings import LoadedModel, NamedData

PAIR = pairs.PAIRS["convnet"]
DIFFICULTY = {"inversion": 1.0, "diffusion": 0.3}
"""At which each generator is sampled: inversion with latent vectors as long as it was trained with."""
VARIATIONS: dict[str, Row] = {
    "mixup 0": {"mixup": 0.0},
    "mixup 0.4": {"mixup": 0.4},
    "mixup 0.8": {"mixup": 0.8},
    "mixup 0, flip, shift": {"mixup": 0.0, "flip": True, "shift": 1},
    "mixup 0.8, flip, shift": {"mixup": 0.8, "flip": True, "shift": 1},
}
DIFFUSION = common.RUNS / "generators" / "diffusion-seed0"
TRIED_ON = 10_000
"""Real training images on which the variation is chosen."""
LIVE = "live"
STUDENT_COLUMNS = (
    "student of | variation | steps | seeds | accuracy, median [range] | 95 % interval of the median run | "
    "on 10,000 training images, seed 0 | seconds, median"
)


class Students:
    """The runs of the students and of their datasets.

    Args:
        root: where they are kept.
        steps: of every student.
        per_class: images of each class in a dataset.
        diffusion: a saved diffusion generator, or None.
    """

    def __init__(self, root: Path, steps: int, per_class: int, diffusion: Path | None) -> None:
        self.root = root
        self.steps = steps
        self.per_class = per_class
        self.diffusion = diffusion
        self.sources = ["inversion"] if diffusion is None else ["inversion", "diffusion"]

    def place(self, name: str, seed: int) -> Path:
        """The directory of a run."""
        return self.root / f"{name.replace(', ', '-').replace(' ', '-')}-{self.steps}-seed{seed}"

    def live(self, seed: int) -> Result[JobResult]:
        """The student beside its teacher and generator."""
        rounds, discard = PAIR.rounds
        teacher = pairs.teacher_of("convnet")
        phases = [
            {"kind": "pregenerate", "rounds": rounds, "discard": discard},
            {"kind": "joint", "steps": self.steps, "every": PAIR.every},
        ]
        source = {
            **self._shared(seed),
            **PAIR.recipe,
            "teacher": {"kind": "load", "model": str(teacher)},
            "phases": phases,
            "grid_every": 1000,
        }
        return common.run(distill, DistillConfig, source, self.place(LIVE, seed))

    def dataset(self, kind: str, seed: int) -> Result[JobResult]:
        """The images of a generator, written to disk."""
        run = self.live(seed).directory if kind == "inversion" else self.diffusion
        source = {
            "seed": seed,
            "threads": None,
            "teacher": {"kind": "load", "model": str(pairs.teacher_of("convnet"))},
            "run": str(run),
            "per_class": self.per_class,
            "difficulty": DIFFICULTY[kind],
            "format": "webdataset",
        }
        return common.run(generate, GenerateConfig, source, self.place(f"{kind} dataset", seed))

    def trained(self, kind: str, variation: str, seed: int) -> Result[JobResult]:
        """The student of a dataset."""
        source = {
            **self._shared(seed),
            "distill": PAIR.recipe["distill"],
            "transfer_set": {"kind": "stored", "path": str(self.dataset(kind, seed).directory)},
            "mix": {"logits": "stored", **VARIATIONS[variation]},
            "phases": [{"kind": "refine", "steps": self.steps}],
        }
        return common.run(distill, DistillConfig, source, self.place(f"{kind} {variation}", seed))

    def _shared(self, seed: int) -> Row:
        return {
            "seed": seed,
            "student": PAIR.student,
            "test": pairs.DATA,
            "evaluate_every": self.steps,
            "checkpoint_every": 2000,
        }


def cell(source: str, variation: str | None, seed: int, result: Result[JobResult]) -> Row:
    """What is kept of a student, in the table and in the results file."""
    student = result.values["student"]
    return {
        "source": source,
        "variation": variation,
        "seed": seed,
        "steps": result.values["cost"]["steps"],
        "accuracy": student["accuracy"],
        "interval": student["accuracy_interval"],
        "seconds": result.values["cost"]["seconds"]["distill"],
        "inherited_parameters": student["inherited_parameters"],
        "hardware": result.values["hardware"],
    }


def written(source: str, seed: int, result: Result[JobResult]) -> Row:
    """What is kept of a dataset."""
    about, cost = result.values["dataset"], result.values["cost"]
    return {
        "source": source,
        "seed": seed,
        "images": about["count"],
        "difficulty": about["difficulty"],
        "agreement": about["scores"]["agreement"],
        "bytes": cost["dataset_bytes"],
        "seconds": cost["seconds"]["sample"] + cost["seconds"]["write"],
    }


def students(parts: Students, seeds: int) -> Row:
    """Every student, and by how much those of a dataset are behind."""
    real = load_splits(NamedData.model_validate(pairs.DATA)).train
    images, labels = real.images[:TRIED_ON], real.labels[:TRIED_ON]

    def on_training_images(result: Result[JobResult]) -> float:
        """Accuracy of a run's student on real training images that it has not seen."""
        student = load_model(LoadedModel(kind="load", model=str(result.directory / "student")))
        return accuracy(predict(student, images, torch.device("cpu")), labels).value

    cells: list[Row] = []
    datasets: list[Row] = []
    chosen: dict[str, str] = {}
    for seed in range(seeds):
        cells.append(cell(LIVE, None, seed, parts.live(seed)))
        for source in parts.sources:
            datasets.append(written(source, seed, parts.dataset(source, seed)))
            accuracies = {}
            for variation in [chosen[source]] if seed else VARIATIONS:
                result = parts.trained(source, variation, seed)
                accuracies[variation] = on_training_images(result)
                cells.append(cell(source, variation, seed, result) | {"training_accuracy": accuracies[variation]})
            if not seed:
                chosen[source] = max(accuracies, key=accuracies.__getitem__)
    return {"cells": cells, "datasets": datasets, "gaps": gaps(cells, chosen)}


def gaps(cells: list[Row], chosen: Mapping[str, str]) -> list[Row]:
    """By how many points the students of each source's chosen variation are behind the live ones."""
    rows = []
    for source, variation in chosen.items():
        live, stored = of(cells, LIVE, None), of(cells, source, variation)
        behind = [100 * (a["accuracy"] - b["accuracy"]) for a, b in zip(live, stored, strict=True)]
        difference = 100 * (median(live, "accuracy") - median(stored, "accuracy"))
        rows.append(
            {"source": source, "variation": variation, "points_behind": difference, "points_behind_by_seed": behind}
        )
    return rows


def of(cells: list[Row], source: str, variation: str | None) -> list[Row]:
    """The cells of all seeds."""
    return [c for c in cells if (c["source"], c["variation"]) == (source, variation)]


def median(rows: list[Row], key: str) -> float:
    """Of one number over cells."""
    return statistics.median(float(row[key]) for row in rows)


def student_table(content: Row) -> str:
    """Median [lowest, highest] over seeds."""
    table_rows = []
    for source, variation in dict.fromkeys((one["source"], one["variation"]) for one in content["cells"]):
        rows = sorted(of(content["cells"], source, variation), key=lambda one: float(one["accuracy"]))
        low, high = rows[(len(rows) - 1) // 2]["interval"]
        trial = next((one["training_accuracy"] for one in rows if one["seed"] == 0 and source != LIVE), None)
        table_rows.append(
            [
                LIVE if source == LIVE else f"{source} dataset",
                variation or "as the recipe",
                f"{rows[0]['steps']:,}",
                str(len(rows)),
                common.spread([100 * one["accuracy"] for one in rows]),
                f"{100 * low:.2f} to {100 * high:.2f}",
                "-" if trial is None else f"{100 * trial:.2f}",
                f"{median(rows, 'seconds'):.0f}",
            ]
        )
    return "\n".join(
        [common.table(STUDENT_COLUMNS, table_rows), "", *(gap_line(content, gap) for gap in content["gaps"])]
    )


def gap_line(content: Row, gap: Row) -> str:
    """How far the students of a dataset are behind, and what the dataset is."""
    by_seed = ", ".join(f"{value:+.2f}" for value in gap["points_behind_by_seed"])
    rows = [one for one in content["datasets"] if one["source"] == gap["source"]]
    return (
        f"{gap['source']} dataset, {gap['variation']}: {gap['points_behind']:.2f} points behind live (by seed "
        f"{by_seed}); {rows[0]['images']:,} images at difficulty {rows[0]['difficulty']:g}, asked label seen in "
        f"{median(rows, 'agreement'):.1%}, {median(rows, 'bytes') / 1e6:.0f} MB, written in "
        f"{median(rows, 'seconds'):.0f} s"
    )


def tables(content: Row) -> str:
    """The parts that were measured: what sampling costs, and the students."""
    costs = [cost_table(content["cost"])] if "cost" in content else []
    return "\n\n".join([*costs, *([student_table(content)] if "cells" in content else [])])


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is wanted, print the tables and write them."""
    parser = common.options("dataset", __doc__)
    pairs.add_root(parser)
    parser.add_argument("--budget", default="300s", choices=PAIR.budgets, help="of the convnet pair")
    common.add_seeds(parser)
    parser.add_argument("--only", choices=("students", "cost"), help="one of the two parts")
    diffusion_help = "a run that saved a diffusion generator; left out where there is none"
    parser.add_argument("--diffusion", type=Path, default=DIFFUSION, help=diffusion_help)
    parser.add_argument("--dry-run", action="store_true", help="say what would be run, run nothing")
    parser.add_argument("--smoke", action="store_true", help="a few steps of everything, kept apart; writes no result")
    arguments = parser.parse_args(argv)
    pairs.DATA["root"] = arguments.root  # also where its teacher is trained
    runs = common.RUNS / ("dataset_smoke" if arguments.smoke else "dataset")
    steps, per_class = (12, 32) if arguments.smoke else (PAIR.budgets[arguments.budget], 1000)
    diffusion = arguments.diffusion if (arguments.diffusion / "generator" / "generator.json").is_file() else None
    parts = Students(runs, steps, per_class, diffusion)
    costs = runs / "cost.json"
    if arguments.dry_run:
        print(f"students of {steps:,} steps, {arguments.seeds} seeds: live; datasets of {', '.join(parts.sources)}")
        for path in sorted(runs.glob("*/result.json")):
            print(f"finished: {path.parent}")
        print(f"cost: {'finished' if costs.exists() else 'to be measured'}")
        return
    content: Row = {}
    if arguments.only != "students":
        if not costs.exists():
            common.write(costs, cost(pairs.teacher_of("convnet"), 3 if arguments.smoke else 15))
        content["cost"] = json.loads(costs.read_text(encoding="utf-8"))
        print(tables({"cost": content["cost"]}), end="\n\n")
    if arguments.only != "cost":
        content |= students(parts, arguments.seeds)
        print(student_table(content))
    if not arguments.smoke:
        keep_the_other_part(content | common.environment("torch", "numpy", "diffusers"))


def keep_the_other_part(content: Row) -> None:
    """Write the results; the part that was not run now stays as it is in the results file."""
    earlier = common.read("dataset") if (common.RESULTS / "dataset.json").exists() else {}
    earlier.pop("command", None)
    common.save("dataset", earlier | content)


if __name__ == "__main__":
    main()
