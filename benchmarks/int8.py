"""Size, speed and accuracy of an exported student: the convnet student of fashion_mnist.py, one thread, one image.

    python -m benchmarks.int8 [--rounds 20] [--root FOLDER]

Run it alone on the machine, after fashion_mnist.py. The student that was distilled for 300 s is exported to ONNX and
to int8, whose ranges are measured on 500 images of an inversion generator of its teacher. The three are then timed in
turns, 200 calls after a warm-up in each of the rounds, so that all have the same machine; a ratio is the median of
those of the rounds. Accuracy is on the 10,000 test images. Written to benchmarks/results/int8.json.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import common, pairs
from benchmarks.common import Row
from synthkd import load
from synthkd.compression import export_onnx, onnx_latency, quantize_int8, run_onnx
from synthkd.data.read.real import load_splits
from synthkd.data.written.stored import read_stored
from synthkd.metrics.utility import Proportion, accuracy, predict
from synthkd.models.cost import cost
from synthkd.pipelines import generate
from synthkd.pipelines.config import GenerateConfig
from synthkd.settings import NamedData

BUDGET, SEED = "300s", 0
PER_CLASS, CALLS = 50, 200
NAMES = ("PyTorch, float32", "ONNX Runtime, float32", "ONNX Runtime, int8")
"""In the order of being timed; ratios are over the first."""
COLUMNS = "student | ms an image, median [range] of rounds | faster than PyTorch, median [range] | bytes | accuracy, %"


def calibration() -> torch.Tensor:
    """Images uint8 `[500, 1, 28, 28]` of an inversion generator of the teacher."""
    source = {
        "teacher": {"kind": "load", "model": str(pairs.teacher_of("convnet"))},
        "rounds": 60,
        "per_class": PER_CLASS,
        "seed": SEED,
    }
    return read_stored(common.run(generate, GenerateConfig, source, common.RUNS / "int8").directory).images


def measure(rounds: int) -> list[Row]:
    """Time, size and accuracy of each form of the student; all are timed in every round."""
    run = pairs.directory("convnet", "ours", BUDGET, SEED)
    student, cpu = load(run).eval(), torch.device("cpu")
    test = load_splits(NamedData.model_validate(pairs.DATA)).test
    images = calibration()
    with tempfile.TemporaryDirectory() as folder:
        plain, small = Path(folder) / "student.onnx", Path(folder) / "student.int8.onnx"
        export_onnx(student, plain)
        quantize_int8(plain, images, small)
        times: dict[str, list[float]] = {name: [] for name in NAMES}
        for _ in range(rounds):
            latencies = (
                cost(student, cpu, threads=1, calls=CALLS, energy_seconds=0.1).latency,
                onnx_latency(plain, threads=1, calls=CALLS),
                onnx_latency(small, threads=1, calls=CALLS),
            )
            for name, latency in zip(NAMES, latencies, strict=True):
                times[name].append(latency.median_ms)
        accuracies = (
            accuracy(predict(student, test.images, cpu), test.labels),
            accuracy(run_onnx(plain, test.images).argmax(1), test.labels),
            accuracy(run_onnx(small, test.images).argmax(1), test.labels),
        )
        sizes = (None, plain.stat().st_size, small.stat().st_size)
    base = times[NAMES[0]]
    return [
        row_of(name, times[name], base, share, size) for name, share, size in zip(NAMES, accuracies, sizes, strict=True)
    ]


def row_of(name: str, times: list[float], base: list[float], share: Proportion, size: int | None) -> Row:
    """What is kept of a form of the student, timed in as many rounds as `base`, in milliseconds."""
    ratios = [first / own for first, own in zip(base, times, strict=True)]
    return {
        "model": name,
        "median_ms": statistics.median(times),
        "lowest_ms": min(times),
        "highest_ms": max(times),
        "faster": statistics.median(ratios),
        "faster_range": [min(ratios), max(ratios)],
        "bytes": size,
        "accuracy": share.value,
        "interval": [share.low, share.high],
    }


def tables(content: Row) -> str:
    """A row for each form of the student."""
    rows = [
        [
            row["model"],
            common.between(row["median_ms"], row["lowest_ms"], row["highest_ms"], digits=3),
            common.between(row["faster"], *row["faster_range"]),
            "-" if row["bytes"] is None else f"{row['bytes']:,}",
            common.percent(row["accuracy"], row["interval"]),
        ]
        for row in content["rows"]
    ]
    return common.table(COLUMNS, rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the table and write it."""
    parser = common.options("int8", __doc__)
    parser.add_argument("--rounds", type=int, default=20)
    pairs.add_root(parser)
    arguments = parser.parse_args(argv)
    pairs.DATA["root"] = arguments.root
    torch.set_num_threads(1)
    content: Row = {"rounds": arguments.rounds, "calls": CALLS, "threads": 1, "rows": measure(arguments.rounds)}
    print(tables(content))
    common.save("int8", content | common.environment("torch", "onnx", "onnxruntime"))


if __name__ == "__main__":
    main()
