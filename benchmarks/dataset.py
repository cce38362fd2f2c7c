"""A written dataset in the place of teacher and generator, and what sampling costs. Fashion-MNIST, the convnet pair.

    python benchmarks/dataset.py [--budget 300s] [--seeds 3] [--only students|cost] [--diffusion RUN] [--dry-run]

Run it alone on the machine. Every finished part is kept in benchmarks/runs/dataset, so an interrupted table goes on
where it stopped.

Students: for each seed a student is distilled live (`live`: the `ours` of fashion_mnist.py), then `synthkd generate`
writes 10,000 images, 1,000 of each class, with the inversion generator that this run saved, and a student is trained
from those files alone (`generator.kind: dataset`): no teacher, hence stored logits and a random start, as many steps,
the same optimiser. A finished diffusion generator (`benchmarks/generators.py`, or --diffusion) is used likewise. How
images are varied is tried with seed 0, and chosen by the accuracy on 10,000 real training images, which no student has
seen; the test accuracy of every trial is in the table too.

Cost: milliseconds per image of a batch of 256 that goes through the bank (sampled, answered by the teacher, stored,
drawn) against one generator call for one image inside the `__getitem__` of a torch dataset, read through a DataLoader,
without the teacher's answer. `drawn once` counts a draw for each image made; `as trained` what an image of a student's
batch costs when, as in the recipe, a round of 64 images feeds 24 batches of 64. Medians of repeats in turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import fashion_mnist

from synthkd.data.bank import MemoryBank
from synthkd.data.read.real import load_splits
from synthkd.distillation.teachers import FrozenTeacher
from synthkd.generators.cgan import CGAN
from synthkd.generators.diffusion import Diffusion
from synthkd.generators.inversion import Inversion
from synthkd.generators.settings import CGANSettings, DiffusionSettings, InversionSettings
from synthkd.metrics.utility import accuracy, predict
from synthkd.models import load_model
from synthkd.pipelines import distill, generate
from synthkd.pipelines.config import DistillConfig, GenerateConfig
from synthkd.pipelines.run.result import Result
from synthkd.rng import Rows
from synthkd.settings import BankSettings, LoadedModel, NamedData
from synthkd.settings.load import load_config
from synthkd.system.files import write_atomically
from synthkd.system.hardware import describe
from synthkd.types import SampleGenerator, balanced_labels

RESULTS = HERE / "results" / "dataset.json"
PAIR = fashion_mnist.PAIRS["convnet"]
DIFFICULTY = {"inversion": 1.0, "diffusion": 0.3}
"""At which each generator is sampled: inversion with latent vectors as long as it was trained with."""
VARIATIONS: dict[str, dict[str, Any]] = {
    "mixup 0": {"mixup": 0.0},
    "mixup 0.4": {"mixup": 0.4},
    "mixup 0.8": {"mixup": 0.8},
    "mixup 0, flip, shift": {"mixup": 0.0, "flip": True, "shift": 1},
    "mixup 0.8, flip, shift": {"mixup": 0.8, "flip": True, "shift": 1},
}
TRIED_ON = 10_000
"""Real training images on which the variation is chosen."""
LIVE = "live"
BATCH = 256


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

    def live(self, seed: int) -> Result:
        """The student beside its teacher and generator."""
        rounds, discard = PAIR.rounds
        teacher = fashion_mnist.teacher_of("convnet")
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
        return self._distilled(source, self.place(LIVE, seed))

    def dataset(self, kind: str, seed: int) -> Result:
        """The images of a generator, written to disk."""
        run = self.live(seed).directory if kind == "inversion" else self.diffusion
        source = {
            "seed": seed,
            "threads": None,
            "teacher": {"kind": "load", "model": str(fashion_mnist.teacher_of("convnet"))},
            "run": str(run),
            "per_class": self.per_class,
            "difficulty": DIFFICULTY[kind],
            "format": "webdataset",
        }
        out = self.place(f"{kind} dataset", seed)
        result = generate(load_config(GenerateConfig, source, [f"out={out}"]))
        assert isinstance(result, Result)
        return result

    def trained(self, kind: str, variation: str, seed: int) -> Result:
        """The student of a dataset."""
        source = {
            **self._shared(seed),
            "distill": PAIR.recipe["distill"],
            "difficulty": PAIR.recipe["difficulty"],
            "generator": {"kind": "dataset", "path": str(self.dataset(kind, seed).directory)},
            "mix": {"logits": "stored", **VARIATIONS[variation]},
            "phases": [{"kind": "refine", "steps": self.steps}],
        }
        return self._distilled(source, self.place(f"{kind} {variation}", seed))

    def _shared(self, seed: int) -> dict[str, Any]:
        return {
            "seed": seed,
            "student": PAIR.student,
            "test": fashion_mnist.DATA,
            "evaluate_every": self.steps,
            "checkpoint_every": 2000,
        }

    def _distilled(self, source: dict[str, Any], out: Path) -> Result:
        result = distill(load_config(DistillConfig, source, [f"out={out}"]))
        assert isinstance(result, Result)
        return result


def cell(source: str, variation: str | None, seed: int, result: Result) -> dict[str, Any]:
    """What is kept of a student."""
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


def written(source: str, seed: int, result: Result) -> dict[str, Any]:
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


def students(parts: Students, seeds: int) -> dict[str, Any]:
    """Every student, and by how much those of a dataset are behind."""
    real = load_splits(NamedData.model_validate(fashion_mnist.DATA)).train
    images, labels = real.images[:TRIED_ON], real.labels[:TRIED_ON]

    def on_training_images(result: Result) -> float:
        student = load_model(LoadedModel(kind="load", model=str(result.directory / "student")))
        return accuracy(predict(student, images, torch.device("cpu")), labels).value

    cells: list[dict[str, Any]] = []
    datasets: list[dict[str, Any]] = []
    chosen: dict[str, str] = {}
    for seed in range(seeds):
        cells.append(cell(LIVE, None, seed, parts.live(seed)))
        for source in parts.sources:
            datasets.append(written(source, seed, parts.dataset(source, seed)))
            found = {}
            for variation in [chosen[source]] if seed else VARIATIONS:
                result = parts.trained(source, variation, seed)
                found[variation] = on_training_images(result)
                cells.append(cell(source, variation, seed, result) | {"training_accuracy": found[variation]})
            if not seed:
                chosen[source] = max(found, key=found.__getitem__)
    gaps = []
    for source, variation in chosen.items():
        live, stored = of(cells, LIVE, None), of(cells, source, variation)
        behind = [100 * (a["accuracy"] - b["accuracy"]) for a, b in zip(live, stored, strict=True)]
        difference = 100 * (median(live, "accuracy") - median(stored, "accuracy"))
        gaps.append(
            {"source": source, "variation": variation, "points_behind": difference, "points_behind_by_seed": behind}
        )
    return {"cells": cells, "datasets": datasets, "gaps": gaps}


def of(cells: list[dict[str, Any]], source: str, variation: str | None) -> list[dict[str, Any]]:
    """The cells of all seeds."""
    return [c for c in cells if (c["source"], c["variation"]) == (source, variation)]


def median(rows: list[dict[str, Any]], key: str) -> float:
    """Of one number over cells."""
    return statistics.median(float(row[key]) for row in rows)


def student_table(found: dict[str, Any]) -> str:
    """Median [lowest, highest] over seeds."""
    lines = [
        "| student of | variation | steps | seeds | accuracy, median [range] | 95 % interval of the median run "
        "| on 10,000 training images, seed 0 | seconds, median |",
        "|" + "---|" * 8,
    ]
    for source, variation in dict.fromkeys((c["source"], c["variation"]) for c in found["cells"]):
        rows = sorted(of(found["cells"], source, variation), key=lambda c: float(c["accuracy"]))
        scores = [100 * c["accuracy"] for c in rows]
        low, high = rows[(len(rows) - 1) // 2]["interval"]
        tried = next((c["training_accuracy"] for c in rows if c["seed"] == 0 and "training_accuracy" in c), None)
        name = LIVE if source == LIVE else f"{source} dataset"
        lines.append(
            f"| {name} | {variation or 'as the recipe'} | {rows[0]['steps']:,} | {len(rows)} "
            f"| {statistics.median(scores):.2f} [{scores[0]:.2f}, {scores[-1]:.2f}] "
            f"| {100 * low:.2f} to {100 * high:.2f} | {'-' if tried is None else f'{100 * tried:.2f}'} "
            f"| {median(rows, 'seconds'):.0f} |"
        )
    lines.append("")
    for gap in found["gaps"]:
        by_seed = ", ".join(f"{value:+.2f}" for value in gap["points_behind_by_seed"])
        rows = [d for d in found["datasets"] if d["source"] == gap["source"]]
        lines.append(
            f"{gap['source']} dataset, {gap['variation']}: {gap['points_behind']:.2f} points behind live (by seed "
            f"{by_seed}); {rows[0]['images']:,} images at difficulty {rows[0]['difficulty']:g}, asked label seen in "
            f"{median(rows, 'agreement'):.1%}, {median(rows, 'bytes') / 1e6:.0f} MB, written in "
            f"{median(rows, 'seconds'):.0f} s"
        )
    return "\n".join(lines)


# what sampling costs


class PerItem(Dataset[tuple[Tensor, int]]):
    """A generator call for one image in every `__getitem__`."""

    def __init__(self, call: Callable[[int, int], Tensor], count: int, classes: int) -> None:
        self._call = call
        self._count = count
        self._classes = classes

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index >= self._count:
            raise IndexError(index)
        label = int(torch.randint(self._classes, ()))
        return self._call(index, label), label


def cost(teacher_run: Path, repeats: int) -> list[dict[str, Any]]:
    """Milliseconds per image of both ways for each generator; weights are fresh, which changes no time."""
    accelerator = Accelerator(cpu=True)
    teacher = load_model(LoadedModel(kind="load", model=str(teacher_run)))
    frozen = FrozenTeacher(teacher, accelerator)
    spec = teacher.spec
    inversion = Inversion(InversionSettings(**PAIR.recipe["generator"]), teacher, 0, accelerator)
    cgan = CGAN(CGANSettings(kind="cgan"), teacher, 0, accelerator)
    diffusion = Diffusion(DiffusionSettings(kind="diffusion"), teacher, 0, accelerator)
    network = cgan.network.eval()

    def by_sample(generator: SampleGenerator) -> Callable[[int, int], Tensor]:
        return lambda index, label: generator.sample(torch.tensor([label]), 0.3, Rows(0, "item", index))[0]

    def bare(_: int, label: int) -> Tensor:
        """The least that one image can cost: a latent vector and a label through the network, nothing else."""
        with torch.no_grad():
            image: Tensor = network(torch.randn(1, cgan.settings.latent), torch.tensor([label]))[0]
        return image

    cases: dict[str, tuple[SampleGenerator, Callable[[int, int], Tensor], int]] = {
        "cgan, bare network per item": (cgan, bare, 64),
        "cgan": (cgan, by_sample(cgan), 64),
        "inversion": (inversion, by_sample(inversion), 16),
        "diffusion": (diffusion, by_sample(diffusion), 8),
    }
    times: dict[str, dict[str, list[float]]] = {name: {"make": [], "draw": [], "item": []} for name in cases}
    bank = MemoryBank(spec, BankSettings(capacity=60_000), 0)
    for repeat in range(repeats + 1):  # the first warms up
        for name, (generator, call, count) in cases.items():
            started = time.perf_counter()
            labels = balanced_labels(BATCH, repeat * BATCH, spec.classes)
            images = generator.sample(labels, 0.3, Rows(0, "batched", repeat * BATCH))
            bank.add(images, labels, frozen.logits(images))
            made = time.perf_counter()
            for step in range(4 * repeat, 4 * repeat + 4):
                bank.draw(BATCH // 4, step)
            drawn = time.perf_counter()
            for _ in DataLoader(PerItem(call, count, spec.classes), batch_size=count):
                pass
            finished = time.perf_counter()
            if repeat:
                for key, value in (
                    ("make", (made - started) / BATCH),
                    ("draw", (drawn - made) / BATCH),
                    ("item", (finished - drawn) / count),
                ):
                    times[name][key].append(1000 * value)
    return [{"generator": name, **_ratios(measured)} for name, measured in times.items()]


def _ratios(measured: dict[str, list[float]]) -> dict[str, Any]:
    """Medians in milliseconds, and the median and quartiles of the ratios of each repeat."""
    once = [make + draw for make, draw in zip(measured["make"], measured["draw"], strict=True)]
    trained = [make / PAIR.every + draw for make, draw in zip(measured["make"], measured["draw"], strict=True)]
    found: dict[str, Any] = {f"{key}_ms": statistics.median(values) for key, values in measured.items()}
    for name, batched in (("once", once), ("as_trained", trained)):
        ratios = [item / cost for item, cost in zip(measured["item"], batched, strict=True)]
        found[f"{name}_ms"] = statistics.median(batched)
        found[f"{name}_ratio"] = statistics.median(ratios)
        found[f"{name}_quartiles"] = statistics.quantiles(ratios, n=4)[::2]
    return found


def cost_table(rows: list[dict[str, Any]]) -> str:
    """Both ways side by side."""
    lines = [
        "| generator | per item, ms | through the bank, drawn once, ms | ratio [quartiles] "
        "| through the bank, as trained, ms | ratio [quartiles] |",
        "|" + "---|" * 6,
    ]
    for row in rows:
        columns = [f"{row['item_ms']:.3f}"]
        for name in ("once", "as_trained"):
            low, high = row[f"{name}_quartiles"]
            columns += [f"{row[f'{name}_ms']:.4f}", f"{row[f'{name}_ratio']:.1f} [{low:.1f}, {high:.1f}]"]
        lines.append(f"| {row['generator']} | {' | '.join(columns)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default=fashion_mnist.DATA["root"], help="folder with the dataset's files")
    parser.add_argument("--budget", default="300s", choices=PAIR.budgets, help="of the convnet pair")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=("students", "cost"), help="one of the two parts")
    parser.add_argument("--diffusion", type=Path, default=HERE / "runs" / "generators" / "diffusion-seed0",
                        help="a run that saved a diffusion generator; left out where there is none")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="say what would be run, run nothing")
    parser.add_argument("--smoke", action="store_true", help="a few steps of everything, kept apart; writes no result")
    arguments = parser.parse_args()
    fashion_mnist.DATA["root"] = arguments.root  # also where its teacher is trained
    runs = HERE / "runs" / ("dataset_smoke" if arguments.smoke else "dataset")
    steps, per_class = (12, 32) if arguments.smoke else (PAIR.budgets[arguments.budget], 1000)
    diffusion = arguments.diffusion if (arguments.diffusion / "generator" / "generator.json").is_file() else None
    parts = Students(runs, steps, per_class, diffusion)
    measured = runs / "cost.json"
    if arguments.dry_run:
        print(f"students of {steps:,} steps, {arguments.seeds} seeds: live; datasets of {', '.join(parts.sources)}")
        for path in sorted(runs.glob("*/result.json")):
            print(f"finished: {path.parent}")
        print(f"cost: {'finished' if measured.exists() else 'to be measured'}")
        return
    content: dict[str, Any] = {"command": "python benchmarks/dataset.py"}
    if arguments.only != "students":
        if not measured.exists():
            rows = cost(fashion_mnist.teacher_of("convnet"), 3 if arguments.smoke else 15)
            runs.mkdir(parents=True, exist_ok=True)
            write_atomically(measured, json.dumps(rows, indent=1).encode() + b"\n")
        content["cost"] = json.loads(measured.read_text())
        print(cost_table(content["cost"]), end="\n\n")
    if arguments.only != "cost":
        content |= students(parts, arguments.seeds)
        print(student_table(content))
    if arguments.smoke:
        return
    content["versions"] = {name: version(name) for name in ("torch", "numpy", "diffusers")}
    content["hardware"] = describe(torch.device("cpu"))
    earlier = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(earlier | content, indent=1) + "\n")  # the part that was not asked for stays


if __name__ == "__main__":
    main()
