"""A whole `synthkd evaluate`: 10,000 images against 10,000 of Fashion-MNIST, every score but CAS, from start to exit.

    python -m benchmarks.evaluate [--root FOLDER]

The generated images are training images with noise; 10,000 other training images stand for what a generator learned
from, and the test images are both the real set and the holdout. A convnet that is taught for 500 steps first judges
the labels, EfficientNet-Lite0 gives the features. Nothing is cached. Each repeat is a process of its own; `start` is
what it takes beside what it reports: importing, building the networks, pictures and report.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks import common, pairs
from benchmarks.common import Row
from synthkd.data.read.real import load_splits
from synthkd.data.read.splits import RealData
from synthkd.pipelines import teach
from synthkd.pipelines.config import TeachConfig
from synthkd.settings import NamedData
from synthkd.types import to_float, to_uint8

RUNS = common.RUNS / "evaluate"
COUNT, NOISE, REPEATS = 10_000, 0.06, 3


def save(path: Path, images: torch.Tensor, labels: torch.Tensor, names: tuple[str, ...]) -> None:
    """Write a set of images as a file of arrays."""
    np.savez(path, images=images.numpy(), labels=labels.numpy(), class_names=np.array(names))


def prepare(root: str) -> None:
    """The sets and the teacher, made once."""
    RUNS.mkdir(parents=True, exist_ok=True)
    data = {"kind": "fashion_mnist", "root": root}
    train: RealData = load_splits(NamedData(kind="fashion_mnist", root=root)).train
    rng = torch.Generator().manual_seed(0)
    rows = torch.randperm(len(train), generator=rng)
    some, others = rows[:COUNT], rows[COUNT : 2 * COUNT]
    noisy = to_float(train.images[some]) + NOISE * torch.randn(COUNT, *train.spec.shape, generator=rng)
    save(RUNS / "generated.npz", to_uint8(noisy), train.labels[some], train.class_names)
    save(RUNS / "train.npz", train.images[others], train.labels[others], train.class_names)
    source = {"data": data, "model": {"arch": "convnet", "width": 32}, "training": {"steps": 500}}
    common.run(teach, TeachConfig, source, RUNS / "teacher")


def measure(root: str) -> dict[str, float]:
    """Seconds of one evaluation by stage."""
    out = RUNS / "run"
    shutil.rmtree(out, ignore_errors=True)
    real = ("data.kind=fashion_mnist", f"data.root={root}", "split=test")
    overrides = [
        f"train={RUNS / 'train.npz'}",
        *(f"{key}.{setting}" for key in ("real", "holdout") for setting in real),
        "teacher.kind=load",
        f"teacher.model={RUNS / 'teacher'}",
        "features.kind=efficientnet_lite0",
        "cache=null",
        f"out={out}",
    ]
    command = [sys.executable, "-m", "synthkd", "evaluate", str(RUNS / "generated.npz"), *overrides]
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    whole = time.perf_counter() - started
    result = json.loads((out / "result.json").read_text())
    unmeasured = [s["name"] for s in result["generated"][0]["scores"] if s["value"] is None]
    assert not unmeasured, unmeasured
    stages = dict(result["cost"]["seconds"])
    return {**stages, "start": whole - sum(stages.values()), "whole": whole}


def tables(content: Row) -> str:
    """Seconds of each stage, and the share of the feature networks."""
    rows = "\n".join(f"| {name} | {seconds:.1f} |" for name, seconds in content["median"].items())
    return f"{rows}\n\nfeature networks: {content['share_of_features']:.0%} of the whole"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the medians and write them."""
    parser = common.options("evaluate", __doc__)
    pairs.add_root(parser)
    root = parser.parse_args(argv).root
    prepare(root)
    repeats = [measure(root) for _ in range(REPEATS)]
    content: Row = {
        "images": {"generated": COUNT, "real": COUNT, "train": COUNT},
        "seconds": repeats,
        "median": {name: statistics.median(run[name] for run in repeats) for name in repeats[0]},
        "share_of_features": statistics.median(run["features"] / run["whole"] for run in repeats),
    }
    print(tables(content))
    common.save("evaluate", content | common.environment("torch", "numpy", "scipy"))


if __name__ == "__main__":
    main()
