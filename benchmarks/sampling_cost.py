"""What sampling costs, through the memory bank or by a generator call for each item: a part of `benchmarks.dataset`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks import common, pairs
from benchmarks.common import Row
from synthkd.data.bank import MemoryBank
from synthkd.distillation.teachers import FrozenTeacher
from synthkd.generators.cgan import CGAN
from synthkd.generators.diffusion import Diffusion
from synthkd.generators.inversion import Inversion
from synthkd.generators.settings import CGANSettings, DiffusionSettings, InversionSettings
from synthkd.models import load_model
from synthkd.rng import Rows
from synthkd.settings import BankSettings, LoadedModel
from synthkd.types import SampleGenerator, balanced_labels

PAIR = pairs.PAIRS["convnet"]
BATCH = 256
COST_COLUMNS = (
    "generator | per item, ms | through the bank, drawn once, ms | ratio [quartiles] | "
    "through the bank, as trained, ms | ratio [quartiles]"
)


class PerItem(Dataset[tuple[Tensor, int]]):
    """A generator call for one image in every `__getitem__`."""

    def __init__(self, call: Callable[[int, int], Tensor], count: int, classes: int) -> None:
        self._call = call
        self._count = count
        self._classes = classes

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index >= self._count:
            raise IndexError(index)
        label = int(torch.randint(self._classes, ()))
        return self._call(index, label), label


def cost(teacher_run: Path, repeats: int) -> list[Row]:
    """Milliseconds per image of both ways for each generator; weights are fresh, which changes no time."""
    accelerator = Accelerator(cpu=True)
    teacher = load_model(LoadedModel(kind="load", model=str(teacher_run)))
    frozen = FrozenTeacher(teacher, accelerator)
    spec = teacher.spec
    inversion = Inversion(InversionSettings(**PAIR.recipe["transfer_set"]["generator"]), teacher, 0, accelerator)
    cgan = CGAN(CGANSettings(kind="cgan"), teacher, 0, accelerator)
    diffusion = Diffusion(DiffusionSettings(kind="diffusion"), teacher, 0, accelerator)
    network = cgan.network.eval()

    def by_sample(generator: SampleGenerator) -> Callable[[int, int], Tensor]:
        """A call for one image of a label."""
        return lambda index, label: generator.sample(torch.tensor([label]), 0.3, Rows(0, "item", index))[0]

    def bare(_: int, label: int) -> Tensor:
        """The least that one image can cost: a latent vector and a label through the network, nothing else."""
        with torch.no_grad():
            image: Tensor = network(torch.randn(1, cgan.settings.latent), torch.tensor([label]))[0]
        return image

    cases: dict[str, tuple[SampleGenerator, Callable[[int, int], Tensor], int]] = {
        "cgan, bare network per item": (cgan, bare, 64),
        "cgan": (cgan, by_sample(cgan), 64),
        "inversion": (inversion, by_sample(inversion), 16),
        "diffusion": (diffusion, by_sample(diffusion), 8),
    }
    times: dict[str, dict[str, list[float]]] = {name: {"make": [], "draw": [], "item": []} for name in cases}
    bank = MemoryBank(spec, BankSettings(capacity=60_000), 0)
    for repeat in range(repeats + 1):  # the first warms up
        for name, (generator, call, count) in cases.items():
            started = time.perf_counter()
            labels = balanced_labels(BATCH, repeat * BATCH, spec.classes)
            images = generator.sample(labels, 0.3, Rows(0, "batched", repeat * BATCH))
            bank.add(images, labels, frozen.logits(images))
            added = time.perf_counter()
            for step in range(4 * repeat, 4 * repeat + 4):
                bank.draw(BATCH // 4, step)
            drawn = time.perf_counter()
            for _ in DataLoader(PerItem(call, count, spec.classes), batch_size=count):
                pass
            finished = time.perf_counter()
            if repeat:
                for key, value in (
                    ("make", (added - started) / BATCH),
                    ("draw", (drawn - added) / BATCH),
                    ("item", (finished - drawn) / count),
                ):
                    times[name][key].append(1000 * value)
    return [{"generator": name, **_ratios(measured)} for name, measured in times.items()]


def _ratios(measured: dict[str, list[float]]) -> Row:
    """Medians in milliseconds, and the median and quartiles of the ratios of each repeat."""
    once = [make + draw for make, draw in zip(measured["make"], measured["draw"], strict=True)]
    trained = [make / PAIR.every + draw for make, draw in zip(measured["make"], measured["draw"], strict=True)]
    row: Row = {f"{key}_ms": statistics.median(values) for key, values in measured.items()}
    for name, batched in (("once", once), ("as_trained", trained)):
        ratios = [item / cost for item, cost in zip(measured["item"], batched, strict=True)]
        row[f"{name}_ms"] = statistics.median(batched)
        row[f"{name}_ratio"] = statistics.median(ratios)
        row[f"{name}_quartiles"] = statistics.quantiles(ratios, n=4)[::2]
    return row


def cost_table(rows: list[Row]) -> str:
    """Both ways side by side."""
    table_rows = []
    for row in rows:
        columns = [row["generator"], f"{row['item_ms']:.3f}"]
        for name in ("once", "as_trained"):
            ratio = common.between(row[f"{name}_ratio"], *row[f"{name}_quartiles"], digits=1)
            columns += [f"{row[f'{name}_ms']:.4f}", ratio]
        table_rows.append(columns)
    return common.table(COST_COLUMNS, table_rows)
