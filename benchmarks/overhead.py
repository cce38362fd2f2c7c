"""What the memory bank and the hybrid source cost. One thread.

    python benchmarks/overhead.py

Bank: microseconds per image to add and to draw a batch of 256, for banks of a thousand to a million images; a cost
that passed over the bank would grow a thousandfold down the column. Source: a student step on a batch from
HybridDataset over a step on a ready batch, the two in turn, with stored logits and with fresh ones (where the ready
step includes the same teacher pass).
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from synthkd.data.bank import MemoryBank
from synthkd.data.hybrid import HybridDataset
from synthkd.distillation.step import DistillStep
from synthkd.distillation.student import Pupil
from synthkd.distillation.teachers import FrozenTeacher
from synthkd.models import build
from synthkd.settings import BankSettings, DistillSettings, MixSettings, OptimizerSettings, ZooModel
from synthkd.system.hardware import describe
from synthkd.training.learner import Learner
from synthkd.types import Batch, ImageSpec

RESULTS = Path(__file__).parent / "results" / "overhead.json"
SPEC = ImageSpec(1, 28, 28, 10)
BATCH = 256


def microseconds(run: Callable[[int], object], repeats: int = 60) -> float:
    """Median microseconds per image of a call that handles one batch."""
    times = []
    for step in range(repeats):
        started = time.perf_counter()
        run(step)
        times.append(time.perf_counter() - started)
    return 1e6 * statistics.median(times) / BATCH


def bank_costs() -> list[dict[str, Any]]:
    rows = []
    for policy in ("fifo", "prioritized", "class_balanced"):
        for capacity in (1_000, 10_000, 100_000, 1_000_000):
            bank = MemoryBank(SPEC, BankSettings(capacity=capacity, policy=policy), 0)  # type: ignore[arg-type]
            block = torch.zeros(1000, *SPEC.shape, dtype=torch.uint8)
            for _ in range(capacity // 1000):
                bank.add(block, torch.arange(1000) % 10, torch.zeros(1000, 10))
            rows.append({"policy": policy, "images": capacity, **costs_of(bank)})
    return rows


def costs_of(bank: MemoryBank) -> dict[str, float]:
    images, labels, logits = torch.rand(BATCH, *SPEC.shape), torch.arange(BATCH) % 10, torch.randn(BATCH, 10)
    priorities = torch.rand(BATCH) + 0.1
    slots = bank.draw(BATCH, 0).slots
    assert slots is not None
    return {
        "add_us": microseconds(lambda _: bank.add(images, labels, logits)),
        "draw_us": microseconds(lambda step: bank.draw(BATCH, step)),
        "reprioritise_us": microseconds(lambda _: bank.reprioritise(slots, priorities)),
    }


class Ready:
    """The same batch at every step, labelled by the teacher where logits are fresh."""

    def __init__(self, batch: Batch, teacher: FrozenTeacher | None) -> None:
        self._batch = batch
        self._teacher = teacher

    def batch(self, step: int) -> Batch:
        if self._teacher is None:
            return self._batch
        return Batch(self._batch.images, self._batch.labels, self._teacher.logits(self._batch.images))


def source_costs(rounds: int = 150) -> list[dict[str, Any]]:
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    teacher = FrozenTeacher(build(ZooModel(arch="convnet", width=32), SPEC), accelerator)
    bank = MemoryBank(SPEC, BankSettings(capacity=20_000), 0)
    for _ in range(20):
        bank.add(torch.rand(1000, *SPEC.shape), torch.arange(1000) % 10, torch.randn(1000, 10))
    rows = []
    mixes = {
        "stored": MixSettings(logits="stored", mixup=0.0),
        "fresh": MixSettings(mixup=0.0),
        "fresh, mixup 0.8": MixSettings(mixup=0.8),
    }
    for name, mix in mixes.items():
        steps = []
        hybrid = HybridDataset(mix, BATCH, rounds, bank, teacher, lambda: 0.0, 0)
        ready = Ready(bank.draw(BATCH, 0), None if name == "stored" else teacher)
        for source in (hybrid, ready):
            student = build(ZooModel(arch="convnet", width=16), SPEC)
            learner = Learner("student", student, OptimizerSettings(), rounds, accelerator)
            steps.append(DistillStep([Pupil(learner, DistillSettings(), accelerator)], source, accelerator))
        times: list[list[float]] = [[], []]
        for step in range(rounds):
            for which in (0, 1):
                started = time.perf_counter()
                steps[which](step)
                times[which].append(time.perf_counter() - started)
        ratios = [a / b for a, b in zip(*times, strict=True)][10:]
        rows.append(
            {
                "logits": name,
                "hybrid_ms": 1000 * statistics.median(times[0][10:]),
                "ready_ms": 1000 * statistics.median(times[1][10:]),
                "ratio_median": statistics.median(ratios),
                "ratio_quartiles": statistics.quantiles(ratios, n=4)[::2],
            }
        )
    return rows


def main() -> None:
    torch.set_num_threads(1)
    result = {
        "command": "python benchmarks/overhead.py",
        "hardware": describe(torch.device("cpu")),
        "bank": bank_costs(),
        "source": source_costs(),
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print("| policy | images | add, us/image | draw, us/image | reprioritise, us/image |\n|---|---|---|---|---|")
    for row in result["bank"]:  # type: ignore[union-attr]
        print(
            f"| {row['policy']} | {row['images']:,} | {row['add_us']:.2f} | {row['draw_us']:.2f} | "
            f"{row['reprioritise_us']:.2f} |"
        )
    print("\n| logits | hybrid, ms | ready, ms | ratio, median [quartiles] |\n|---|---|---|---|")
    for row in result["source"]:  # type: ignore[union-attr]
        low, high = row["ratio_quartiles"]
        print(
            f"| {row['logits']} | {row['hybrid_ms']:.2f} | {row['ready_ms']:.2f} | "
            f"{row['ratio_median']:.3f} [{low:.3f}, {high:.3f}] |"
        )


if __name__ == "__main__":
    main()
