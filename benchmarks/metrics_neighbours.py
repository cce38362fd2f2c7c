"""Precision, recall, density and coverage: seconds and memory against package prdc. One thread; Linux.

    python -m benchmarks.metrics_neighbours

Seconds are processor seconds, medians of repeats in which the two take turns. Memory is how far the peak of a process
of its own rises above what it held before the call. Features are float32, as extractors give them, k is 5. Where prdc
(pip install --no-deps prdc==0.2) cannot be imported, our numbers stand alone.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from benchmarks import common
from benchmarks.common import Row
from synthkd.metrics.manifold import precision_recall_density_coverage

SHAPES = [(10_000, 64), (5_000, 2048)]
SCORES = ("precision", "recall", "density", "coverage")
Features = NDArray[np.float32]


def features(n: int, d: int) -> tuple[Features, Features]:
    """Real and generated rows in a space whose directions differ in spread, the generated ones a little too narrow."""
    rng = np.random.default_rng(0)
    spread = np.arange(1, d + 1) ** -0.25
    real, generated = (rng.standard_normal((n, d)) * spread for _ in range(2))
    return real.astype(np.float32), (0.97 * generated).astype(np.float32)


def ours(real: Features, generated: Features) -> list[float]:
    """The four scores, by synthkd."""
    result = precision_recall_density_coverage(real, generated, k=5)
    return [getattr(result, name) for name in SCORES]


def theirs(real: Features, generated: Features) -> list[float]:
    """The four scores, by prdc."""
    from prdc import compute_prdc

    result = compute_prdc(real, generated, nearest_k=5)
    return [float(result[name]) for name in SCORES]


COLUMNS = "samples x dimension | method | seconds | extra memory, MB | P, R, D, C"
METHODS: dict[str, Callable[[Features, Features], list[float]]] = {"synthkd": ours, "prdc": theirs}


def seconds(methods: list[str], n: int, d: int, repeats: int) -> dict[str, list[float]]:
    """Processor seconds of each repeat, the methods in turn."""
    small, sets = features(500, d), features(n, d)
    times: dict[str, list[float]] = {name: [] for name in methods}
    for name in methods:
        METHODS[name](*small)
    for _ in range(repeats):
        for name in methods:
            started = time.process_time()
            METHODS[name](*sets)
            times[name].append(time.process_time() - started)
    return times


def memory(name: str, n: int, d: int) -> Row:
    """Extra bytes and scores, from a process of its own."""
    command = [sys.executable, "-m", "benchmarks.metrics_neighbours", "--memory", name, str(n), str(d)]
    finished = subprocess.run(command, cwd=common.ROOT, capture_output=True, text=True, check=True)
    return dict(json.loads(finished.stdout.splitlines()[-1]))  # prdc prints the sizes before


def print_memory(name: str, n: int, d: int) -> None:
    """In the process of its own: print the rise of the peak over what was held, and the scores."""
    METHODS[name](*features(500, d))
    sets = features(n, d)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = kilobytes("VmRSS")
    scores = METHODS[name](*sets)
    print(json.dumps({"bytes": 1024 * (kilobytes("VmHWM") - before), "scores": scores}))


def kilobytes(field: str) -> int:
    """A field of this process's status, in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def measure(repeats: int = 5) -> list[Row]:
    """A row for each shape and method; without prdc, ours alone."""
    methods = [name for name in METHODS if name == "synthkd" or importlib.util.find_spec(name)]
    rows: list[Row] = []
    for n, d in SHAPES:
        times = seconds(methods, n, d, repeats)
        for name in methods:
            extra = memory(name, n, d)
            row = {"samples": n, "dimension": d, "method": name, "seconds": statistics.median(times[name])}
            rows.append({**row, "repeats": times[name], "extra_bytes": extra["bytes"], "scores": extra["scores"]})
    return rows


def tables(content: Row) -> str:
    """Seconds, memory and scores, then how many times faster and smaller ours are than prdc."""
    rows = content["table"]
    first = [
        [
            f"{row['samples']:,} x {row['dimension']}",
            row["method"],
            f"{row['seconds']:.2f}",
            f"{row['extra_bytes'] / 1e6:.0f}",
            ", ".join(f"{score:.5f}" for score in row["scores"]),
        ]
        for row in rows
    ]
    if not any(row["method"] == "prdc" for row in rows):
        return f"{common.table(COLUMNS, first)}\n\nprdc is not installed: nothing to compare with."
    second = [
        [
            f"{mine['samples']:,} x {mine['dimension']}",
            f"{other['seconds'] / mine['seconds']:.1f}",
            f"{mine['extra_bytes'] / other['extra_bytes']:.2f}",
        ]
        for mine, other in zip(rows[::2], rows[1::2], strict=True)
    ]
    compared = common.table("samples x dimension | times faster | share of the memory", second)
    return f"{common.table(COLUMNS, first)}\n\n{compared}"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, write the results and print the tables; or, with --memory, what its own process has to print."""
    parser = common.options("metrics_neighbours", __doc__)
    parser.add_argument("--memory", nargs=3, help=argparse.SUPPRESS)
    one = parser.parse_args(argv).memory
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # prdc asks for eight threads whatever the settings say
    torch.set_num_threads(1)
    with threadpool_limits(1):
        if one:
            print_memory(one[0], int(one[1]), int(one[2]))
            return
        rows = measure()
    content: Row = {**common.environment("prdc", "numpy", "scikit-learn"), "table": rows}
    common.save("metrics_neighbours", content)
    print(tables(content))


if __name__ == "__main__":
    main()
