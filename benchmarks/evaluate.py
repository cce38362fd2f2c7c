"""A whole `synthkd evaluate`: 10,000 images against 10,000 of Fashion-MNIST, every score but CAS, from start to exit.

    python benchmarks/evaluate.py [--root FOLDER]

The generated images are training images with noise; 10,000 other training images stand for what a generator learned
from, and the test images are both the real set and the holdout. A convnet that is taught for 500 steps first judges
the labels, EfficientNet-Lite0 gives the features. Nothing is cached. Each repeat is a process of its own; `start` is
what it takes beside what it reports: importing, building the networks, pictures and report.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from synthkd.data.read.real import load_splits
from synthkd.data.read.splits import RealData
from synthkd.pipelines.config import TeachConfig
from synthkd.pipelines.teach import teach
from synthkd.settings import NamedData
from synthkd.settings.load import load_config
from synthkd.system.hardware import describe
from synthkd.types import to_float, to_uint8

HERE = Path(__file__).parent
RUNS, RESULTS = HERE / "runs" / "evaluate", HERE / "results" / "evaluate.json"
COUNT, NOISE, REPEATS = 10_000, 0.06, 3


def save(path: Path, images: torch.Tensor, labels: torch.Tensor, names: tuple[str, ...]) -> None:
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
    teach(load_config(TeachConfig, source, [f"out={RUNS / 'teacher'}"]))


def measure(root: str) -> dict[str, float]:
    """Seconds of one evaluation by stage."""
    out = RUNS / "run"
    shutil.rmtree(out, ignore_errors=True)
    real = [f"{key}.{setting}" for key in ("real", "holdout") for setting in
            ("data.kind=fashion_mnist", f"data.root={root}", "split=test")]  # fmt: skip
    command = [sys.executable, "-m", "synthkd", "evaluate", str(RUNS / "generated.npz"), f"train={RUNS / 'train.npz'}",
               *real, "teacher.kind=load", f"teacher.model={RUNS / 'teacher'}", "features.kind=efficientnet_lite0",
               "cache=null", f"out={out}"]  # fmt: skip
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    whole = time.perf_counter() - started
    result = json.loads((out / "result.json").read_text())
    unmeasured = [s["name"] for s in result["generated"][0]["scores"] if s["value"] is None]
    assert not unmeasured, unmeasured
    stages = dict(result["cost"]["seconds"])
    return {**stages, "start": whole - sum(stages.values()), "whole": whole}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default="/usr/share/datasets/fashion-mnist", help="folder with the dataset's files")
    root = parser.parse_args().root
    prepare(root)
    repeats = [measure(root) for _ in range(REPEATS)]
    median = {name: statistics.median(run[name] for run in repeats) for name in repeats[0]}
    share = statistics.median(run["features"] / run["whole"] for run in repeats)
    for name, seconds in median.items():
        print(f"| {name} | {seconds:.1f} |")
    print(f"\nfeature networks: {share:.0%} of the whole")
    content = {
        "images": {"generated": COUNT, "real": COUNT, "train": COUNT},
        "seconds": repeats,
        "median": median,
        "share_of_features": share,
        "versions": {name: version(name) for name in ("torch", "numpy", "scipy")},
        "hardware": describe(torch.device("cpu")),
    }
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
