"""Scores of very many images: peak memory and seconds of joined statistics, and what exact scores would take.

    python -m benchmarks.many_images [--sizes 100000 10000000] [--dimension 64] [--keep 10000]

Features are made up, 100,000 rows at a time, as if each part came from another machine: normal, the generated ones with
another mean and spread, so that the Frechet distance of infinitely many is known. Each size is a process of its own on
one thread, whose memory is how far its peak rises above what it held before. `join` are the seconds in which the parts
of both sets become moments and a sample; making the features is not counted. The scores of the sample, KD and the four
of precision, compare all of its pairs, block by block. Their seconds, times the square of how many times more images
there are, are what the exact scores would take.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from benchmarks import common
from benchmarks.common import Row
from benchmarks.metrics_neighbours import kilobytes
from synthkd.metrics.feature_cache import SavedSet
from synthkd.metrics.features import Features
from synthkd.metrics.joining import joined
from synthkd.metrics.named_scores import SuiteOptions, distance, kernel_distance, precision_and_recall
from synthkd.metrics.score import Score, ScoredSet
from synthkd.rng import stream

PART = 100_000
SHIFT, SPREAD = 0.05, 0.97
COLUMNS = "images | peak memory, MB | join, s | FD | its error | KD of the sample | precision | scores, s | exact, h"


class Parts:
    """The made-up features of a set, and the seconds in which they were made."""

    def __init__(self, name: str, images: int, dimension: int) -> None:
        self.name, self.images, self.dimension, self.seconds = name, images, dimension, 0.0

    def __iter__(self) -> Iterator[SavedSet]:
        return map(self._made, range(-(-self.images // PART)))

    def _made(self, number: int) -> SavedSet:
        started = time.perf_counter()
        shape = min(PART, self.images - number * PART), self.dimension
        values = torch.randn(shape, generator=stream(0, f"many images {self.name}", number))
        if self.name == "generated":
            values.mul_(SPREAD).add_(SHIFT)
        self.seconds += time.perf_counter() - started
        return SavedSet(Features(values, None, "made-up", "", "none"), f"{self.name} {number}", self.name)


def truth(dimension: int) -> float:
    """The Frechet distance of infinitely many images."""
    return dimension * (SHIFT**2 + (1 - SPREAD) ** 2)


def print_size(images: int, dimension: int, keep: int) -> None:
    """In the process of its own: join and score, and print a row."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, sets, join = kilobytes("VmRSS"), [], 0.0
    for name in ("generated", "real"):
        parts, started = Parts(name, images, dimension), time.perf_counter()
        one = joined(parts, keep)
        join += time.perf_counter() - started - parts.seconds
        sets.append(ScoredSet(name, one.features, None, whole=one.whole))
    generated, real = sets
    fd, started = distance(generated, real), time.perf_counter()
    options = SuiteOptions(subsets=10)
    kd, (precision, *_) = kernel_distance(generated, real, options), precision_and_recall(generated, real, options)
    seconds = time.perf_counter() - started
    row: Row = {"images": images, "dimension": dimension, "keep": keep, "join": join, "scores": seconds}
    row |= {"bytes": 1024 * (kilobytes("VmHWM") - before), "truth": truth(dimension)}
    row |= {name: _number(score) for name, score in (("FD", fd), ("KD", kd), ("precision", precision))}
    print(json.dumps(row))


def _number(score: Score) -> list[float | None]:
    """A value with its standard error, or with the ends of its interval."""
    return [score.value, *(score.interval or (score.uncertainty,))]


def measure(sizes: Sequence[int], dimension: int, keep: int) -> list[Row]:
    """A row for each size."""
    rows = []
    for size in sizes:
        command = [sys.executable, "-m", "benchmarks.many_images", "--one", str(size)]
        options = ["--dimension", str(dimension), "--keep", str(keep)]
        finished = subprocess.run([*command, *options], cwd=common.ROOT, capture_output=True, text=True, check=True)
        rows.append(dict(json.loads(finished.stdout.splitlines()[-1])))
    return rows


def tables(content: Row) -> str:
    """A row for each number of images in either set."""
    rows = [
        [
            f"{row['images']:,}",
            f"{row['bytes'] / 1e6:,.0f}",
            f"{row['join']:.1f}",
            f"{row['FD'][0]:.4f} \N{PLUS-MINUS SIGN} {row['FD'][1]:.4f}",
            f"{row['FD'][0] - row['truth']:+.4f}",
            f"{row['KD'][0]:.5f} \N{PLUS-MINUS SIGN} {row['KD'][1]:.5f}",
            common.between(*row["precision"], digits=3),
            f"{row['scores']:.1f}",
            f"{row['scores'] * max(1.0, row['images'] / row['keep']) ** 2 / 3600:,.2f}",
        ]
        for row in content["table"]
    ]
    return common.table(COLUMNS, rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, write the results and print the table; or, with --one, what its own process has to print."""
    parser = common.options("many_images", __doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[PART, 100 * PART], help="images of either set")
    parser.add_argument("--dimension", type=int, default=64, help="features of an image")
    parser.add_argument("--keep", type=int, default=10_000, help="rows of the samples")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    with threadpool_limits(1):
        if arguments.one:
            print_size(arguments.one, arguments.dimension, arguments.keep)
            return
        rows = measure(arguments.sizes, arguments.dimension, arguments.keep)
    content: Row = {**common.environment("torch", "numpy", "scipy"), "table": rows}
    common.save("many_images", content, " ".join(map(str, argv or sys.argv[1:])))
    print(tables(content))


if __name__ == "__main__":
    main()
