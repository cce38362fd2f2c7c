"""A memory bank on disk of 10 million images beside one of 100,000: memory, checkpoints, draws and a resume.

    python -m benchmarks.large_bank [--images 100000 10000000] [--side 32]

Each bank is in a process of its own, whose peak resident memory counts from its start, Python and torch included.
Images are random. Between two checkpoints the bank gets 10,000 images and 500 draws of 256, whose priorities change.
*written* is what the files of the store grow by in a checkpoint; the new images are part of it. Draws of both banks are
timed in turn, and the ratio is that of each turn. A resume loads the last checkpoint in a new process. 10 million
images of 32 pixels take 31 GB of disk, of 8 pixels 2.5 GB, and of `lowest_priority` twice as much.
Rows of a policy, the number of images and their side are kept in benchmarks/results/large_bank.json.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import common
from benchmarks.common import Row

POLICIES = ("fifo", "prioritized", "class_balanced", "lowest_priority")
COLUMNS = (
    "policy | pixels | images | bank, GB | peak memory, GB | first checkpoint, s | checkpoint, s | written, MB"
    " | new images, MB | draws/s | ratio, median [range] | resume, s | its peak memory, GB"
)


def start(*arguments: object) -> subprocess.Popen[str]:
    """A new process of `large_bank_process`."""
    command = [sys.executable, "-m", "benchmarks.large_bank_process", *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=common.ROOT)


def answer(process: subprocess.Popen[str], word: object = "") -> Row:
    """What a process says next, after a word to it."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{word}\n" if word != "" else "")
    process.stdin.flush()
    row: Row = json.loads(process.stdout.readline())
    return row


def measured(policy: str, counts: Sequence[int], side: int, repeats: int) -> list[Row]:
    """A row for each size of a bank."""
    with tempfile.TemporaryDirectory(dir=common.ROOT) as scratch:
        places = [Path(scratch, str(images)) for images in counts]
        rows, processes = [], []
        for place, images in zip(places, counts, strict=True):  # one after the other, so that none disturbs another
            processes.append(start("work", place, policy, images, side, repeats))
            rows.append({"images": images, **answer(processes[-1])})
        speeds: list[list[float]] = [[] for _ in counts]
        for turn in range(1, 2 + repeats):
            for process, own in zip(processes, speeds, strict=True):
                own.append(answer(process, turn)["draws_per_second"])
        for place, images, process, own, row in zip(places, counts, processes, speeds, rows, strict=True):
            ratios = [one / other for one, other in zip(own[1:], speeds[0][1:], strict=True)]  # without the first turn
            row |= {"draws_per_second": statistics.median(own[1:]), "ratios": ratios, **answer(process, 0)}
            process.communicate()
            again = start("resume", place, policy, images, side)
            row |= answer(again)
            again.communicate()
    return rows


def tables(content: Row) -> str:
    """The table of a results file."""
    rows = [
        (
            cell["policy"],
            f"{cell['side']}",
            f"{row['images']:,}",
            f"{row['bank_bytes'] / 1e9:.2f}",
            f"{row['peak_bytes'] / 1e9:.2f}",
            f"{row['first_seconds']:.1f}",
            f"{row['seconds']:.2f}",
            f"{row['written_bytes'] / 1e6:.1f}",
            f"{row['new_bytes'] / 1e6:.1f}",
            f"{row['draws_per_second']:,.0f}",
            common.spread(row["ratios"]),
            f"{row['resume_seconds']:.1f}",
            f"{row['resume_peak_bytes'] / 1e9:.2f}",
        )
        for cell in content["cells"]
        for row in cell["rows"]
    ]
    return common.table(COLUMNS, rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, write the results file and print the table."""
    parser = common.options("large_bank", __doc__)
    parser.add_argument(
        "--images", type=int, nargs="+", default=[100_000, 10_000_000], help="the first is compared with"
    )
    parser.add_argument("--side", type=int, default=32, help="of an image, in pixels")
    parser.add_argument("--policies", nargs="+", default=[*POLICIES], choices=POLICIES)
    parser.add_argument("--repeats", type=int, default=5, help="checkpoints, and turns of draws")
    arguments = parser.parse_args(argv)
    kept = common.environment("torch", "numpy")

    def cell(policy: str) -> Row:
        rows = measured(policy, arguments.images, arguments.side, arguments.repeats)
        return {"policy": policy, "side": arguments.side, "rows": rows, **kept}

    def identity(one: Row) -> tuple[int, int, list[int]]:
        return POLICIES.index(one["policy"]), one["side"], [row["images"] for row in one["rows"]]

    print(tables({"cells": common.collect("large_bank", arguments.policies, cell, identity)}))


if __name__ == "__main__":
    main()
