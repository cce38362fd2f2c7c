"""Each of several processes makes its own part of a batch: every image once in all, and nothing twice."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from synthkd.data import augment
from synthkd.data.bank import MemoryBank
from synthkd.data.hybrid import REST, HybridDataset
from synthkd.data.own import AnySource
from synthkd.data.sources import GeneratedSource, RealImages, RealSource
from synthkd.pipelines.student.collages import CollageSource
from synthkd.rng import Rows, stream
from synthkd.schedules import value_at
from synthkd.settings import BankSettings, Curve, MixSettings
from synthkd.types import WHOLE, Batch, ImageSpec, Part, balanced_labels, to_float, to_uint8

SPEC = ImageSpec(1, 4, 4, 3)
BATCH, TOTAL = 24, 12
PLAIN = MixSettings(mixup=0.0)
GROWING = Curve(kind="linear", start=0.0, end=0.5)
"""Of 24 images 0, 1, 2, ... 12: at most steps not the same number for each of two or three processes."""


def numbered(first: int, count: int) -> Tensor:
    """Images uint8, each with its number in its pixels."""
    numbers = torch.arange(first, first + count)
    return (numbers.view(-1, 1, 1, 1) // torch.tensor([100, 1]).repeat(8).view(1, 1, 4, 4) % 100).to(torch.uint8)


class Tensors:
    """A map-style dataset that notes which of its samples were asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __len__(self) -> int:
        return 500

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        self.asked.append(row)
        return numbered(3000 + row, 1)[0], row % 3


class Simple:
    """A source of somebody who knows nothing of parts."""

    annotated = False

    def draw(self, count: int, step: int) -> list[Batch]:
        images = to_float(numbered(4000 + BATCH * step, count))
        return [Batch(part, torch.zeros(len(part)).long()) for part in images.split(1)]

    def state_dict(self) -> dict[str, Any]:
        return {"simple": 1}

    def load_state_dict(self, state: Any) -> None:
        assert state == {"simple": 1}


class Live:
    """Fresh samples by number, and how many were made."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self, count: int, step: int, part: Part = WHOLE) -> Batch:
        own = part.of(count)
        self.made += own.stop - own.start
        return Batch(to_float(numbered(5000 + BATCH * step, count)[own]), balanced_labels(count, 0, 3)[own])


def collage(count: int, rows: Rows) -> Tensor:
    """Images that are their random numbers."""
    return rows.uniform(count, 16).view(count, 1, 4, 4)


def bank_of(first: int) -> MemoryBank:
    bank = MemoryBank(SPEC, BankSettings(capacity=400, policy="prioritized"), seed=first)
    slots = bank.add(numbered(first, 400), torch.arange(400) % 3, torch.rand(400, 3))
    bank.reprioritise(slots, torch.linspace(1, 2, 400))
    return bank


def everything(rank: int = 0, world: int = 1, mix: MixSettings = PLAIN, workers: int = 0) -> HybridDataset:
    """A batch of all kinds of sources, at shares that change."""
    live, generated = Live(), bank_of(1000)
    sources: Sequence[AnySource] = [
        bank_of(2000),
        GeneratedSource(generated, live, lambda step: step),
        RealSource(RealImages(numbered(0, 300), torch.arange(300) % 4 - 1), 7),
        Tensors(),
        Simple(),
        CollageSource(collage, "drawn", 3),
    ]
    shares = [0.1, REST, GROWING, 0.1, 0.1, 0.1]
    return HybridDataset(sources, shares, mix, BATCH, TOTAL, seed=5, rank=rank, world=world, workers=workers)


def images_of(batches: Sequence[Batch]) -> list[tuple[float, ...]]:
    """Images with what belongs to them, in an order that does not depend on the processes."""
    rows = [
        (*image.flatten().tolist(), *(float(values[row]) for values in fields))
        for batch in batches
        for fields in [[value for value in (batch.labels, batch.slots, batch.rows, batch.weights) if value is not None]]
        for row, image in enumerate(batch.images)
    ]
    return sorted(rows)


@given(count=st.integers(0, 60), before=st.integers(0, 60), every=st.integers(1, 7))
def test_parts_have_every_row_once_and_as_many_as_there_are_places(count: int, before: int, every: int) -> None:
    rows: list[int] = []
    for first in range(every):
        own = list(range(count))[Part(first, every).of(count)]
        assert len(own) == len(range(first, count, every))
        rows += own
    assert rows == list(range(count))
    for rank in range(every):
        places = [place for place in range(before, before + count) if place % every == rank]
        own = Part(rank, every).after(before).of(count)
        assert own.stop - own.start == len(places)
    assert WHOLE.of(count) == slice(0, count)


@pytest.mark.parametrize("world", [2, 3, 8])
def test_processes_have_every_image_of_the_batch_once_and_equally_many(world: int) -> None:
    whole, parts = everything(), [everything(rank, world) for rank in range(world)]
    for step in range(TOTAL):
        batches = [part.batch(step) for part in parts]
        assert [len(batch) for batch in batches] == [BATCH // world] * world
        assert images_of(batches) == images_of([whole.batch(step)])
        # What one process has and another one lacks would end a collective operation in a wait without end.
        assert len({tuple(sorted(name for name, value in vars(one).items() if value is None)) for one in batches}) == 1
    states = [part.state_dict() for part in (*parts, whole)]
    assert all(str(state) == str(states[-1]) for state in states), "they count the images of all"


def test_what_takes_time_is_done_for_the_own_images_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: dict[str, list[int]] = {name: [] for name in ("samples", "live", "read", "drawn", "function")}
    read = MemoryBank._read
    for rank, world in ((0, 1), (0, 2), (1, 2)):
        made = dict.fromkeys(counts, 0)

        def reading(bank: MemoryBank, slots: Tensor, made: dict[str, int] = made) -> tuple[Tensor, Tensor, Tensor]:
            made["read"] += len(slots)
            return read(bank, slots)

        def drawing(count: int, rows: Rows, made: dict[str, int] = made) -> Tensor:
            made["drawn"] += count
            return collage(count, rows)

        def function(count: int, made: dict[str, int] = made) -> Tensor:
            made["function"] += count
            return torch.rand(count, *SPEC.shape)

        monkeypatch.setattr(MemoryBank, "_read", reading)
        live, tensors = Live(), Tensors()
        sources: list[AnySource] = [
            GeneratedSource(bank_of(0), live, lambda _: 6), tensors, function, CollageSource(drawing, "drawn", 3),
        ]  # fmt: skip
        dataset = HybridDataset(sources, [0.5, 0.25, 1 / 12, REST], PLAIN, BATCH, rank=rank, world=world)
        for step in range(4):
            dataset.draw(step)
        made |= {"samples": len(tensors.asked), "live": live.made}
        for name, count in made.items():
            counts[name].append(count)
    for name, (alone, *parts) in counts.items():
        assert parts == [alone // 2] * 2, name


def test_workers_decode_the_part_of_their_process() -> None:
    def dataset(tensors: Tensors, rank: int = 0, world: int = 1, workers: int = 0) -> HybridDataset:
        return HybridDataset(
            [bank_of(0), tensors], [REST, GROWING], PLAIN, BATCH, TOTAL, rank=rank, world=world, workers=workers
        )

    tensors = [Tensors() for _ in range(3)]
    whole = list(dataset(tensors[0]))
    halves = [list(dataset(tensors[1 + rank], rank, 2)) for rank in range(2)]
    by_workers = list(dataset(Tensors(), 1, 2, workers=1))
    for step, (batch, *parts) in enumerate(zip(whole, *halves, strict=True)):
        assert images_of(parts) == images_of([batch])
        assert torch.equal(by_workers[step].images, parts[1].images)
    # At the step with a single image the process without it decodes it nevertheless, for its size.
    alone, *asked = (len(one.asked) for one in tensors)
    assert alone <= sum(asked) <= alone + 1


def test_a_function_generates_other_images_in_each_process() -> None:
    def batch(rank: int, world: int) -> Tensor:
        sources: list[AnySource] = [lambda count: torch.rand(count, *SPEC.shape)]
        return HybridDataset(sources, [REST], PLAIN, BATCH, rank=rank, world=world).batch(3).images

    halves = [batch(rank, 2) for rank in range(2)]
    assert len(torch.cat(halves).flatten(1).unique(dim=0)) == BATCH
    assert torch.equal(halves[1], batch(1, 2))


def test_each_process_varies_its_images_by_random_numbers_of_its_own() -> None:
    ramp = RealImages(torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4), torch.zeros(1).long())
    mix = MixSettings(mixup=0.25, cutmix=0.25, flip=True, shift=1)
    halves = [HybridDataset([RealSource(ramp, 0)], [REST], mix, 64, rank=rank, world=2).batch(0) for rank in range(2)]
    assert not torch.equal(halves[0].images, halves[1].images)
    for half in halves:
        assert (half.labels < 0).tolist() == [True] * 8 + [False] * 16 + [True] * 8


def test_mixtures_are_shuffled_among_the_images_of_a_process() -> None:
    mix = MixSettings(mixup=0.0, shift=1)
    for rank in range(2):
        rows = everything(rank, 2, mix).batch(8).rows
        plain = everything(rank, 2).batch(8).rows
        assert rows is not None
        assert plain is not None
        assert rows.tolist() != plain.tolist()
        assert sorted(rows.tolist()) == sorted(plain.tolist())


def test_one_process_has_the_bits_of_the_parts_that_a_batch_is_made_of() -> None:
    mix = MixSettings(mixup=0.5, cutmix=0.25, flip=True, shift=1, crop=0.5)
    real, generated = RealSource(RealImages(numbered(0, 300), torch.arange(300) % 3), 7), bank_of(1000)
    dataset = HybridDataset([generated, real], [REST, GROWING], mix, BATCH, TOTAL, None, lambda: 0.8, seed=5)
    for step in (0, 3, TOTAL - 1):
        count = round(value_at(GROWING, step, TOTAL) * BATCH)
        banked = generated.draw(BATCH - count, step).images
        images = torch.cat([real.draw(count, step)[0].images, banked]) if count else banked
        rng = stream(5, "vary", step)
        if count:
            images = images[torch.randperm(BATCH, generator=rng)]
        images = augment.shift(augment.flip(augment.crop(images, 0.5, rng), rng), 1, rng)
        images = augment.mixup(images, 0.5, rng)
        images = torch.cat([images[:-6], augment.cutmix(images[-6:], 1.0, rng)])
        images = augment.by_difficulty(images, 0.8, stream(5, "augment/0", step))
        assert torch.equal(dataset.batch(step).images, images)
        assert len(to_uint8(images).unique()) > 2
