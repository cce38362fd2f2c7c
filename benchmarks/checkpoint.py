"""What a checkpoint of a memory bank on disk costs: seconds and memory, against a copy of the whole bank.

    python benchmarks/checkpoint.py

A bank of 3x32x32 images is filled and saved; then 10,000 images are added before each further checkpoint. Beside it the
same is done as it was done before: the bank is copied into memory and written whole. Memory is the growth of the
process's peak resident set during one checkpoint, pages of the map itself left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from synthkd.data.bank import MemoryBank
from synthkd.settings import BankSettings
from synthkd.system.files import write_atomically
from synthkd.system.hardware import describe
from synthkd.training.checkpoint import CheckpointStore
from synthkd.types import ImageSpec

RESULTS = Path(__file__).parent / "results" / "checkpoint.json"
SPEC = ImageSpec(3, 32, 32, 10)
ADDED = 10_000
BLOCK = 10_000


def anonymous_bytes() -> int:
    """Resident memory that belongs to no file, so that the bank's map does not count."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this needs Linux's /proc/self/status")


def measured(run: Callable[[], object]) -> tuple[float, int]:
    """Seconds of a call, and the most by which memory grew meanwhile."""
    before, most, done = anonymous_bytes(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.002):
            most = max(most, anonymous_bytes() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    run()
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    return seconds, most


def add(bank: MemoryBank, count: int) -> None:
    for first in range(0, count, BLOCK):
        n = min(BLOCK, count - first)
        rng = torch.Generator().manual_seed(bank.added)
        images = torch.randint(0, 256, (n, *SPEC.shape), dtype=torch.uint8, generator=rng)
        bank.add(images, torch.arange(n) % SPEC.classes, torch.randn(n, SPEC.classes, generator=rng))


def whole(bank: MemoryBank) -> dict[str, Any]:
    """The bank's arrays as a copy, which is what a checkpoint used to hold."""
    return {name: getattr(bank, f"_{name}")[: len(bank)].clone() for name in ("images", "labels", "logits", "births")}


def costs(images: int, repeats: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        place = Path(folder)
        bank = MemoryBank(SPEC, BankSettings(capacity=images, storage="disk"), 0, place / "bank")
        shared, copied = CheckpointStore(place / "shared"), CheckpointStore(place / "copied")
        add(bank, images)
        first = measured(lambda: shared.save(0, {"bank": bank.state_dict()}))
        new: list[tuple[float, int]] = []
        old: list[tuple[float, int]] = []
        for step in range(1, repeats + 1):
            add(bank, ADDED)
            new.append(measured(lambda step=step: shared.save(step, {"bank": bank.state_dict()})))  # type: ignore[misc]
            old.append(measured(lambda step=step: copied.save(step, {"bank": whole(bank)})))  # type: ignore[misc]
        ratios = [before[0] / after[0] for after, before in zip(new, old, strict=True)]
        return {
            "images": images,
            "bank_bytes": bank.nbytes,
            "first": {"seconds": first[0], "memory_bytes": first[1]},
            "new": {"seconds": statistics.median(s for s, _ in new), "memory_bytes": max(m for _, m in new)},
            "whole": {"seconds": statistics.median(s for s, _ in old), "memory_bytes": max(m for _, m in old)},
            "ratio_median": statistics.median(ratios),
            "ratio_range": [min(ratios), max(ratios)],
            "disk_bytes": sum(path.stat().st_size for path in (place / "shared").rglob("*") if path.is_file()),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[200_000, 1_000_000])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [costs(images, arguments.repeats) for images in arguments.images]
    result = {
        "command": "python benchmarks/checkpoint.py",
        "hardware": describe(torch.device("cpu")),
        "added": ADDED,
        "rows": rows,
    }
    write_atomically(RESULTS, json.dumps(result, indent=1).encode() + b"\n")
    print("| images | bank | checkpoint | seconds, median | memory | whole: seconds | memory | ratio, median [range] |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        low, high = row["ratio_range"]
        print(
            f"| {row['images']:,} | {row['bank_bytes'] / 1e9:.2f} GB | {ADDED:,} new | {row['new']['seconds']:.2f} | "
            f"{row['new']['memory_bytes'] / 1e6:,.0f} MB | {row['whole']['seconds']:.2f} | "
            f"{row['whole']['memory_bytes'] / 1e6:,.0f} MB | {row['ratio_median']:.0f} [{low:.0f}, {high:.0f}] |"
        )
        print(
            f"| | | all of them (first) | {row['first']['seconds']:.2f} | {row['first']['memory_bytes'] / 1e6:,.0f} MB "
            "| | | |"
        )


if __name__ == "__main__":
    main()
