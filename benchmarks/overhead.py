"""What the memory bank and the hybrid dataset cost. One thread.

    python -m benchmarks.overhead

Bank: microseconds per image to add and to draw a batch of 256, for banks of a thousand to a million images; a cost
that passed over the bank would grow a thousandfold down the column. Source: a student step on a batch from
HybridDataset over a step on a ready batch, the two in turn, with stored logits and with fresh ones (where the ready
step includes the same teacher pass).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from accelerate import Accelerator

from benchmarks import common
from benchmarks.common import Row
from synthkd.data.bank import MemoryBank
from synthkd.data.hybrid import REST, HybridDataset
from synthkd.data.sources import GeneratedSource
from synthkd.distillation.step import DistillStep
from synthkd.distillation.student import Student
from synthkd.distillation.teachers import FrozenTeacher
from synthkd.models import build
from synthkd.settings import BankSettings, DistillSettings, MixSettings, OptimizerSettings, ZooModel
from synthkd.training.learner import Learner
from synthkd.types import Batch, ImageSpec

SPEC = ImageSpec(1, 28, 28, 10)
BATCH = 256
BANK_COLUMNS = "policy | images | add, us/image | draw, us/image | reprioritise, us/image"
SOURCE_COLUMNS = "logits | hybrid, ms | ready, ms | ratio, median [quartiles]"


def microseconds(run: Callable[[int], object], repeats: int = 60) -> float:
    """Median microseconds per image of a call that handles one batch."""
    times = []
    for step in range(repeats):
        started = time.perf_counter()
        run(step)
        times.append(time.perf_counter() - started)
    return 1e6 * statistics.median(times) / BATCH


def bank_costs() -> list[Row]:
    """What a bank of each policy and size costs."""
    rows = []
    for policy in ("fifo", "prioritized", "class_balanced"):
        for capacity in (1_000, 10_000, 100_000, 1_000_000):
            bank = MemoryBank(SPEC, BankSettings(capacity=capacity, policy=policy), 0)
            block = torch.zeros(1000, *SPEC.shape, dtype=torch.uint8)
            for _ in range(capacity // 1000):
                bank.add(block, torch.arange(1000) % 10, torch.zeros(1000, 10))
            rows.append({"policy": policy, "images": capacity, **costs_of(bank)})
    return rows


def costs_of(bank: MemoryBank) -> dict[str, float]:
    """Microseconds per image of what a bank does with a batch."""
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

    def draw(self, step: int) -> Batch:
        """The batch, at every step."""
        return self._batch

    def label(self, batch: Batch) -> Batch:
        """The batch with the teacher's logits where they are fresh."""
        if self._teacher is None:
            return batch
        return Batch(batch.images, batch.labels, self._teacher.logits(batch.images))


def source_costs(rounds: int = 150) -> list[Row]:
    """What a student step costs on batches of the hybrid dataset and on a ready batch."""
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
        hybrid = HybridDataset([GeneratedSource(bank)], [REST], mix, BATCH, rounds, teacher, lambda: 0.0, 0)
        ready = Ready(bank.draw(BATCH, 0), None if name == "stored" else teacher)
        for source in (hybrid, ready):
            student = build(ZooModel(arch="convnet", width=16), SPEC)
            learner = Learner("student", student, OptimizerSettings(), rounds, accelerator)
            steps.append(DistillStep([Student(learner, DistillSettings(), accelerator)], source, accelerator))
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


def tables(content: Row) -> str:
    """The costs of the bank, then those of the source."""
    bank = [
        [row["policy"], f"{row['images']:,}", *(f"{row[f'{name}_us']:.2f}" for name in ("add", "draw", "reprioritise"))]
        for row in content["bank"]
    ]
    source = [
        [
            row["logits"],
            f"{row['hybrid_ms']:.2f}",
            f"{row['ready_ms']:.2f}",
            common.between(row["ratio_median"], *row["ratio_quartiles"], digits=3),
        ]
        for row in content["source"]
    ]
    return f"{common.table(BANK_COLUMNS, bank)}\n\n{common.table(SOURCE_COLUMNS, source)}"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, write the results and print the tables."""
    common.options("overhead", __doc__).parse_args(argv)
    torch.set_num_threads(1)
    content: Row = {
        "hardware": common.environment()["hardware"],
        "bank": bank_costs(),
        "source": source_costs(),
    }
    common.save("overhead", content)
    print(tables(content))


if __name__ == "__main__":
    main()
