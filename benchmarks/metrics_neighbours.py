"""Precision, recall, density and coverage: seconds and memory against package prdc. One thread; Linux.

    python benchmarks/metrics_neighbours.py

Seconds are processor seconds, medians of repeats in which the two take turns. Memory is how far the peak of a process
of its own rises above what it held before the call. Features are float32, as extractors give them, k is 5. Where prdc
(pip install --no-deps prdc==0.2) cannot be imported, our numbers stand alone.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from synthkd.metrics.manifold import precision_recall_density_coverage
from synthkd.system.hardware import describe

RESULTS = Path(__file__).parent / "results" / "metrics_neighbours.json"
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
    result = precision_recall_density_coverage(real, generated, k=5)
    return [getattr(result, name) for name in SCORES]


def theirs(real: Features, generated: Features) -> list[float]:
    from prdc import compute_prdc

    result = compute_prdc(real, generated, nearest_k=5)
    return [float(result[name]) for name in SCORES]


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


def memory(name: str, n: int, d: int) -> dict[str, Any]:
    """Extra bytes and scores, from a process of its own."""
    command = [sys.executable, __file__, name, str(n), str(d)]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(finished.stdout.splitlines()[-1]))  # prdc prints the sizes before


def measured(name: str, n: int, d: int) -> None:
    """In the process of its own: print the rise of the peak over what was held, and the scores."""
    METHODS[name](*features(500, d))
    sets = features(n, d)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = kilobytes("VmRSS")
    scores = METHODS[name](*sets)
    print(json.dumps({"bytes": 1024 * (kilobytes("VmHWM") - before), "scores": scores}))


def kilobytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def package(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def main(repeats: int = 5) -> None:
    methods = [name for name in METHODS if name == "synthkd" or importlib.util.find_spec(name)]
    table: list[dict[str, Any]] = []
    for n, d in SHAPES:
        times = seconds(methods, n, d, repeats)
        for name in methods:
            held = memory(name, n, d)
            row = {"samples": n, "dimension": d, "method": name, "seconds": statistics.median(times[name])}
            table.append({**row, "repeats": times[name], "extra_bytes": held["bytes"], "scores": held["scores"]})
    result = {
        "command": "python benchmarks/metrics_neighbours.py",
        "hardware": describe(torch.device("cpu")),
        "versions": {name: package(name) for name in ("prdc", "numpy", "scikit-learn")},
        "table": table,
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")

    print("| samples x dimension | method | seconds | extra memory, MB | P, R, D, C |\n|---|---|---|---|---|")
    for row in table:
        scores = ", ".join(f"{score:.5f}" for score in row["scores"])
        print(
            f"| {row['samples']:,} x {row['dimension']} | {row['method']} | {row['seconds']:.2f} | "
            f"{row['extra_bytes'] / 1e6:.0f} | {scores} |"
        )
    if "prdc" not in methods:
        print("\nprdc is not installed: nothing to compare with.")
        return
    print("\n| samples x dimension | times faster | share of the memory |\n|---|---|---|")
    for mine, other in zip(table[::2], table[1::2], strict=True):
        print(
            f"| {mine['samples']:,} x {mine['dimension']} | {other['seconds'] / mine['seconds']:.1f} | "
            f"{mine['extra_bytes'] / other['extra_bytes']:.2f} |"
        )


if __name__ == "__main__":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # prdc asks for eight threads whatever the settings say
    torch.set_num_threads(1)
    with threadpool_limits(1):
        if len(sys.argv) == 4:
            measured(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
        else:
            main()
