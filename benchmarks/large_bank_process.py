"""The processes of `benchmarks.large_bank`, which import the bank and no more, so that their memory is that of it."""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from synthkd.data.bank import MemoryBank, bank_bytes
from synthkd.settings import BankSettings
from synthkd.training.checkpoint import CheckpointStore
from synthkd.types import ImageSpec

CLASSES, ADDED, BATCH, STEPS, DRAWS, BLOCK = 10, 10_000, 256, 500, 200, 10_000


def peak() -> int:
    """The largest resident memory of this process so far, in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this needs Linux's /proc/self/status")


def make(place: Path, policy: str, images: int, side: int) -> MemoryBank:
    """An empty bank on disk."""
    how: dict[str, Any] = {"policy": policy}
    if policy == "lowest_priority":
        how = {"policy": "prioritized", "evict": policy}
    settings = BankSettings(capacity=images, storage="disk", **how)
    return MemoryBank(ImageSpec(3, side, side, CLASSES), settings, 0, place)


def add(bank: MemoryBank, count: int, pixels: torch.Tensor) -> None:
    """Add `count` images, which are those of `pixels` with labels and logits of their own."""
    for first in range(0, count, BLOCK):
        n = min(BLOCK, count - first)
        rng = torch.Generator().manual_seed(bank.added)
        labels = torch.randint(0, CLASSES, (n,), generator=rng)
        bank.add(pixels[:n], labels, torch.randn(n, CLASSES, generator=rng))


def learn(bank: MemoryBank, first: int) -> None:
    """Draws whose priorities change, as those of a student."""
    for step in range(first, first + STEPS):
        batch = bank.draw(BATCH, step)
        assert batch.slots is not None
        slots = batch.slots.unique()
        bank.reprioritise(slots, 0.1 + torch.rand(len(slots), generator=torch.Generator().manual_seed(step)))


def sizes(store: Path) -> dict[str, int]:
    """Bytes of each file below a folder."""
    return {str(path): path.stat().st_size for path in store.rglob("*") if path.is_file()}


def work(place: Path, policy: str, images: int, side: int, repeats: int) -> None:
    """Fill and save a bank; then time draws for each number that comes, until it is 0."""
    bank, store = make(place / "bank", policy, images, side), CheckpointStore(place / "store")
    pixels = torch.randint(0, 256, (BLOCK, 3, side, side), dtype=torch.uint8)
    add(bank, images, pixels)
    checkpoints, before = [], sizes(place / "store")
    for step in range(1 + repeats):
        if step:
            add(bank, ADDED, pixels)
            learn(bank, step * STEPS)
        started = time.perf_counter()
        store.save(step, {"bank": bank.state_dict()})
        seconds = time.perf_counter() - started
        after = sizes(place / "store")
        checkpoints.append((seconds, sum(size - before.get(name, 0) for name, size in after.items())))
        before = after
    later = checkpoints[1:]
    row = {
        "bank_bytes": bank_bytes(bank.spec, bank.settings),
        "first_seconds": checkpoints[0][0],
        "seconds": statistics.median(seconds for seconds, _ in later),
        "written_bytes": statistics.mean(written for _, written in later),
        "new_bytes": ADDED * (3 * side**2 + 4 * CLASSES + 16),
    }
    say(row)
    while step := int(sys.stdin.readline()):
        started = time.perf_counter()
        for number in range(DRAWS):
            bank.draw(BATCH, 1_000_000 * step + number)
        say({"draws_per_second": DRAWS / (time.perf_counter() - started)})
    say({"peak_bytes": peak()})


def resume(place: Path, policy: str, images: int, side: int) -> None:
    """Load the last checkpoint in the place of the bank before."""
    started = time.perf_counter()
    checkpoint = CheckpointStore(place / "store").latest()
    assert checkpoint is not None
    bank = make(place / "bank", policy, images, side)  # as a run does: the checkpoint has links of its own
    bank.load_state_dict(checkpoint.state["bank"])
    seconds = time.perf_counter() - started
    assert len(bank.draw(BATCH, 0)) == BATCH
    say({"resume_seconds": seconds, "resume_peak_bytes": peak()})


def say(row: dict[str, Any]) -> None:
    """Write a row for the process that waits for it."""
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    which, where, policy_name, *numbers = sys.argv[1:]
    if which == "work":
        work(Path(where), policy_name, *map(int, numbers))
    else:
        resume(Path(where), policy_name, *map(int, numbers))
