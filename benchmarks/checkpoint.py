"""What a checkpoint of a memory bank on disk costs: seconds and memory, against a copy of the whole bank.

    python -m benchmarks.checkpoint

A bank of 3x32x32 images is filled and saved; then 10,000 images are added before each further checkpoint. Beside it the
same is done as it was done before: the bank is copied into memory and written whole. Memory is the growth of the
process's peak resident set during one checkpoint, pages of the map itself left out.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks import common
from benchmarks.common import Row
from synthkd.data.bank import MemoryBank, bank_bytes
from synthkd.settings import BankSettings
from synthkd.training.checkpoint import CheckpointStore
from synthkd.types import ImageSpec

SPEC = ImageSpec(3, 32, 32, 10)
ADDED = 10_000
BLOCK = 10_000
COLUMNS = "images | bank | checkpoint | seconds, median | memory | whole: seconds | memory | ratio, median [range]"


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
    """Add `count` random images."""
    for first in range(0, count, BLOCK):
        n = min(BLOCK, count - first)
        rng = torch.Generator().manual_seed(bank.added)
        images = torch.randint(0, 256, (n, *SPEC.shape), dtype=torch.uint8, generator=rng)
        bank.add(images, torch.arange(n) % SPEC.classes, torch.randn(n, SPEC.classes, generator=rng))


def whole(bank: MemoryBank) -> dict[str, torch.Tensor]:
    """The bank's content as a copy, which is what a checkpoint used to hold."""
    rows = bank.rows()
    blocks = [block.columns for block in rows.blocks(rows.first)]
    return {name: torch.cat([block[name] for block in blocks]) for name in ("images", "labels", "logits")}


def costs(images: int, repeats: int) -> Row:
    """What the first checkpoint of a bank of `images` costs, and those after more images, in both ways."""
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        place = Path(folder)
        bank = MemoryBank(SPEC, BankSettings(capacity=images, storage="disk"), 0, place / "bank")
        shared, copied = CheckpointStore(place / "shared"), CheckpointStore(place / "copied")

        def save(store: CheckpointStore, step: int) -> None:
            store.save(step, {"bank": bank.state_dict()})

        def save_whole(store: CheckpointStore, step: int) -> None:
            store.save(step, {"bank": whole(bank)})

        add(bank, images)
        first = measured(partial(save, shared, 0))
        new: list[tuple[float, int]] = []
        old: list[tuple[float, int]] = []
        for step in range(1, repeats + 1):
            add(bank, ADDED)
            new.append(measured(partial(save, shared, step)))
            old.append(measured(partial(save_whole, copied, step)))
        ratios = [before[0] / after[0] for after, before in zip(new, old, strict=True)]
        return {
            "images": images,
            "bank_bytes": bank_bytes(bank.spec, bank.settings),
            "first": {"seconds": first[0], "memory_bytes": first[1]},
            "new": {"seconds": statistics.median(s for s, _ in new), "memory_bytes": max(m for _, m in new)},
            "whole": {"seconds": statistics.median(s for s, _ in old), "memory_bytes": max(m for _, m in old)},
            "ratio_median": statistics.median(ratios),
            "ratio_range": [min(ratios), max(ratios)],
            "disk_bytes": sum(path.stat().st_size for path in (place / "shared").rglob("*") if path.is_file()),
        }


def seconds_and_memory(cost: Row) -> list[str]:
    """Two columns of the table."""
    return [f"{cost['seconds']:.2f}", f"{cost['memory_bytes'] / 1e6:,.0f} MB"]


def tables(content: Row) -> str:
    """Two rows for each size of the bank: later checkpoints, and the first."""
    rows = []
    for row in content["rows"]:
        size = [f"{row['images']:,}", f"{row['bank_bytes'] / 1e9:.2f} GB", f"{content['added']:,} new"]
        costs = [text for key in ("new", "whole") for text in seconds_and_memory(row[key])]
        rows.append([*size, *costs, common.between(row["ratio_median"], *row["ratio_range"], digits=0)])
        rows.append(["", "", "all of them (first)", *seconds_and_memory(row["first"]), "", "", ""])
    return common.table(COLUMNS, rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, write the results and print the table."""
    parser = common.options("checkpoint", __doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[200_000, 1_000_000])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = [costs(images, arguments.repeats) for images in arguments.images]
    content: Row = {"hardware": common.environment()["hardware"], "added": ADDED, "rows": rows}
    common.save("checkpoint", content)
    print(tables(content))


if __name__ == "__main__":
    main()
