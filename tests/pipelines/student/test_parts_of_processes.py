"""The fresh samples of a run with `sync: fast`: each process makes its own, and no sample is made twice."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from synthkd.data.bank import MemoryBank
from synthkd.generators.files import GeneratorFacts
from synthkd.generators.own_rounds import OwnRounds
from synthkd.pipelines.config import DistillConfig
from synthkd.pipelines.student.transfer_set_builder import Images, TransferSetBuilder, rounds_at_once
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


def builder_of(rank: int, world: int, live: float = 0.0, sync: str = "fast") -> TransferSetBuilder:
    """The builder of a run with a generator in one of several processes."""
    recipe = {
        "teacher": {"kind": "load", "model": "t"},
        "student": {"arch": "mlp"},
        "transfer_set": {"generator": {"kind": "inversion"}, "live": live, "difficulty": {"augment": False}},
        "mix": {"mixup": 0.0},
        "sync": sync,
    }
    bank = MemoryBank(SPEC, BankSettings(capacity=20))
    bank.add(torch.zeros(20, *SPEC.shape), torch.zeros(20).long(), torch.zeros(20, 3))
    parts: dict[str, Any] = {
        "facts": GeneratorFacts(10, None, learns_from_real=False, moves_samples=False),
        "accelerator": SimpleNamespace(process_index=rank, num_processes=world, device=torch.device("cpu")),
        "subject": SimpleNamespace(spec=SPEC),
        "generator": Numbers(),
        "learner": SimpleNamespace(processes=ONE_PROCESS, synchronise=None),
    }
    config = load_config(DistillConfig, recipe, [])
    images = Images(None, None, None)
    return TransferSetBuilder(config, images=images, team=None, bank=bank, batch_size=BATCH, total=10, **parts)


def samples(live: float, rank: int, world: int) -> tuple[list[tuple[float, ...]], list[int]]:
    """Labels and pixels of the images of step 3 that are not from the bank, and how many were generated at a time."""
    builder = builder_of(rank, world, live)
    batch = builder.build().dataset.draw(3)
    assert len(batch) == BATCH // world
    rows = zip(batch.labels.tolist(), batch.images.flatten(1).tolist(), strict=True)
    assert isinstance(builder.generator, Numbers)
    return [(label, *image) for label, image in rows if max(image) > 0], builder.generator.counts


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


@pytest.mark.parametrize(("world", "sync", "own"), [(2, "fast", True), (2, "exact", False), (1, "fast", False)])
def test_fast_processes_make_rounds_of_their_own_and_save_those_made_ahead(world: int, sync: str, own: bool) -> None:
    builder = builder_of(0, world, sync=sync)
    generated = builder.build().generated
    assert generated is not None
    assert isinstance(generated.rounds.generator, OwnRounds) is own
    assert ("rounds" in generated.state) is own
    assert rounds_at_once(builder.config, world) == (world if own else 1)


def test_fresh_samples_take_classes_in_turn_over_the_steps() -> None:
    dataset = builder_of(0, 1, live=0.1).build().dataset
    labels = [int(batch.labels[batch.images.flatten(1).amax(1) > 0]) for batch in map(dataset.draw, range(6))]
    assert labels == [0, 1, 2, 0, 1, 2]
