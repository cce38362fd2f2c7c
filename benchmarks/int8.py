"""Size, speed and accuracy of an exported student: the convnet student of fashion_mnist.py, one thread, one image.

    python benchmarks/int8.py [--rounds 20] [--root FOLDER]

Run it alone on the machine, after fashion_mnist.py. The student that was distilled for 300 s is exported to ONNX and
to int8, whose ranges are measured on 500 images of an inversion generator of its teacher. The three are then timed in
turns, 200 calls after a warm-up in each of the rounds, so that all have the same machine; a ratio is the median of
those of the rounds. Accuracy is on the 10,000 test images. Written to benchmarks/results/int8.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import fashion_mnist

from synthkd import load
from synthkd.compression import export_onnx, onnx_latency, quantize_int8, run_onnx
from synthkd.data.read.real import load_splits
from synthkd.data.written.stored import read_stored
from synthkd.metrics.utility import accuracy, predict
from synthkd.models.cost import cost
from synthkd.pipelines import generate
from synthkd.pipelines.config import GenerateConfig
from synthkd.pipelines.run.result import Result
from synthkd.settings import NamedData
from synthkd.settings.load import load_config
from synthkd.system.files import write_atomically
from synthkd.system.hardware import describe

RESULTS = HERE / "results" / "int8.json"
BUDGET, SEED = "300s", 0
PER_CLASS, CALLS = 50, 200
NAMES = ("PyTorch, float32", "ONNX Runtime, float32", "ONNX Runtime, int8")
"""In the order of being timed; ratios are over the first."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--root", default=fashion_mnist.DATA["root"], help="folder with the dataset's files")
    arguments = parser.parse_args()
    fashion_mnist.DATA["root"] = arguments.root
    torch.set_num_threads(1)
    run = fashion_mnist.directory("convnet", "ours", BUDGET, SEED)
    student, cpu = load(run).eval(), torch.device("cpu")
    test = load_splits(NamedData(**fashion_mnist.DATA)).test
    made = generate(
        load_config(
            GenerateConfig,
            {
                "teacher": {"kind": "load", "model": str(fashion_mnist.teacher_of("convnet"))},
                "rounds": 60,
                "per_class": PER_CLASS,
                "seed": SEED,
            },
            [f"out={HERE / 'runs' / 'int8'}"],
        )
    )
    assert isinstance(made, Result)
    synthetic = read_stored(made.directory).images
    with tempfile.TemporaryDirectory() as folder:
        plain, small = Path(folder) / "student.onnx", Path(folder) / "student.int8.onnx"
        export_onnx(student, plain)
        quantize_int8(plain, synthetic, small)
        rounds: dict[str, list[float]] = {name: [] for name in NAMES}
        for _ in range(arguments.rounds):
            timed = (
                cost(student, cpu, threads=1, calls=CALLS, energy_seconds=0.1).latency,
                onnx_latency(plain, threads=1, calls=CALLS),
                onnx_latency(small, threads=1, calls=CALLS),
            )
            for name, latency in zip(NAMES, timed, strict=True):
                rounds[name].append(latency.median_ms)
        right = (
            accuracy(predict(student, test.images, cpu), test.labels),
            accuracy(run_onnx(plain, test.images).argmax(1), test.labels),
            accuracy(run_onnx(small, test.images).argmax(1), test.labels),
        )
        sizes = (None, plain.stat().st_size, small.stat().st_size)
    rows: list[dict[str, Any]] = []
    for name, share, size in zip(NAMES, right, sizes, strict=True):
        ratios = [base / own for base, own in zip(rounds[NAMES[0]], rounds[name], strict=True)]
        rows.append(
            {
                "model": name,
                "median_ms": statistics.median(rounds[name]),
                "lowest_ms": min(rounds[name]),
                "highest_ms": max(rounds[name]),
                "faster": statistics.median(ratios),
                "faster_range": [min(ratios), max(ratios)],
                "bytes": size,
                "accuracy": share.value,
                "interval": [share.low, share.high],
            }
        )
    print(table(rows))
    content = {
        "command": "python benchmarks/int8.py",
        "rounds": arguments.rounds,
        "calls": CALLS,
        "threads": 1,
        "rows": rows,
        "versions": {name: version(name) for name in ("torch", "onnx", "onnxruntime")},
        "hardware": describe(cpu),
    }
    write_atomically(RESULTS, json.dumps(content, indent=1).encode() + b"\n")


def table(rows: list[dict[str, Any]]) -> str:
    """A row for each form of the student."""
    lines = [
        "| student | ms an image, median [range] of rounds | faster than PyTorch, median [range] | bytes "
        "| accuracy, % |",
        "|" + "---|" * 5,
    ]
    for row in rows:
        low, high = row["interval"]
        lines.append(
            f"| {row['model']} | {row['median_ms']:.3f} [{row['lowest_ms']:.3f}, {row['highest_ms']:.3f}] "
            f"| {row['faster']:.2f} [{row['faster_range'][0]:.2f}, {row['faster_range'][1]:.2f}] "
            f"| {'-' if row['bytes'] is None else format(row['bytes'], ',')} "
            f"| {100 * row['accuracy']:.2f} [{100 * low:.2f}, {100 * high:.2f}] |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
