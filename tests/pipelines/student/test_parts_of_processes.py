"""The fresh samples of a run with `sync: fast`: each process makes its own, and no sample is made twice."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from synthkd.data.bank import MemoryBank
from synthkd.pipelines.config import DistillConfig
from synthkd.pipelines.student.transfer_set_builder import Images, TransferSetBuilder
from synthkd.processes import ONE_PROCESS
from synthkd.rng import Rows
from synthkd.settings import BankSettings
from synthkd.settings.load import load_config
from synthkd.types import ImageSpec

SPEC, BATCH = ImageSpec(1, 4, 4, 3), 12


class Numbers:
    """Samples that are their random numbers, and how many each call made."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def sample(self, labels: Tensor, _: float, rng: Rows) -> Tensor:
        self.counts.append(len(labels))
        return rng.uniform(len(labels), 16).view(-1, 1, 4, 4)


def samples(live: float, rank: int, world: int) -> tuple[list[tuple[float, ...]], list[int]]:
    """Labels and pixels of the images of step 3 that are not from the bank, and how many were generated at a time."""
    recipe = {
        "teacher": {"kind": "load", "model": "t"},
        "student": {"arch": "mlp"},
        "transfer_set": {"generator": {"kind": "inversion"}, "live": live, "difficulty": {"augment": False}},
        "mix": {"mixup": 0.0},
    }
    generator, bank = Numbers(), MemoryBank(SPEC, BankSettings(capacity=20))
    bank.add(torch.zeros(20, *SPEC.shape), torch.zeros(20).long(), torch.zeros(20, 3))
    parts: dict[str, Any] = {
        "accelerator": SimpleNamespace(process_index=rank, num_processes=world, device=torch.device("cpu")),
        "subject": SimpleNamespace(spec=SPEC),
        "generator": generator,
        "learner": SimpleNamespace(processes=ONE_PROCESS, synchronise=None),
    }
    config = load_config(DistillConfig, recipe, [])
    builder = TransferSetBuilder(
        config, images=Images(None, None, None), team=None, bank=bank, batch_size=BATCH, total=10, **cast(Any, parts)
    )
    batch = builder.build().dataset.draw(3)
    assert len(batch) == BATCH // world
    rows = zip(batch.labels.tolist(), batch.images.flatten(1).tolist(), strict=True)
    return [(label, *image) for label, image in rows if max(image) > 0], generator.counts


@pytest.mark.parametrize(("live", "sizes"), [(1.0, [4, 4, 4]), (0.4, [2, 2, 1]), (0.1, [1, 1, 1])])
def test_each_process_makes_its_own_fresh_samples(live: float, sizes: list[int]) -> None:
    whole, counts = samples(live, 0, 1)
    assert counts == [len(whole)] == [round(live * BATCH)]
    parts = [samples(live, rank, 3) for rank in range(3)]
    assert sorted(row for rows, _ in parts for row in rows) == sorted(whole)
    # One at least, since of no images nobody would know the size.
    assert [counts for _, counts in parts] == [[size] for size in sizes]
    if live == 1.0:
        assert [sorted({row[0] for row in rows}) for rows, _ in parts] == [[0, 1, 2]] * 3, "every class in each process"
