"""One batch from bank, generator and real images: shares, labels, determinism, and what it must not touch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from synthkd.data.bank import MemoryBank
from synthkd.data.hybrid import REST, HybridDataset
from synthkd.data.number_set import NumberSet
from synthkd.data.sources import GeneratedSource, Labeller, RealImages, RealSource, RealSupply, Source
from synthkd.schedules import value_at
from synthkd.settings import BankSettings, Curve, MixSettings, Schedule
from synthkd.types import Batch, ImageSpec, Outputs

SPEC = ImageSpec(1, 8, 8, 3)
BANK, LIVE, REAL = 0.2, 0.6, 1.0
"""Grey levels that tell where an image came from."""


def teacher(images: torch.Tensor) -> Outputs:
    """A teacher whose logits are the mean, maximum and minimum grey level."""
    flat = images.flatten(1)
    return Outputs(torch.stack([flat.mean(1), flat.amax(1), flat.amin(1)], dim=1))


def flat(count: int, level: float) -> torch.Tensor:
    return torch.full((count, *SPEC.shape), level)


BATCH, TOTAL = 20, 11


def live(count: int, _: int) -> Batch:
    return Batch(flat(count, LIVE), torch.zeros(count, dtype=torch.int64))


def some_bank(policy: str = "fifo") -> MemoryBank:
    bank = MemoryBank(SPEC, BankSettings(capacity=64, policy=policy), 0)  # type: ignore[arg-type]
    bank.add(flat(64, BANK), torch.arange(64) % 3, torch.full((64, 3), 7.0))
    return bank


def make(
    mix: MixSettings,
    real: Schedule = 0.0,
    fresh: Schedule = 0.0,
    difficulty: float = 0.0,
    bank: MemoryBank | None = None,
    supply: RealSupply | None = None,
    labeller: Labeller = teacher,
    **more: Any,
) -> HybridDataset:
    """Bank and fresh samples, and real images where they have a share; all real without a bank."""
    images = RealImages((flat(9, REAL) * 255).to(torch.uint8), torch.arange(9) % 3) if supply is None else supply
    of_real = RealSource(images, 0, labeller if mix.logits == "stored" else None)
    generated = GeneratedSource(
        some_bank() if bank is None else bank, live, lambda step: round(value_at(fresh, step, TOTAL) * BATCH)
    )
    sources: list[Source] = [of_real] if real == 1.0 else [generated] if real == 0.0 else [generated, of_real]
    shares = [REST] if len(sources) == 1 else [REST, real]
    return HybridDataset(sources, shares, mix, BATCH, TOTAL, labeller, lambda: difficulty, 0, **more)


def used(dataset: HybridDataset) -> set[int]:
    """Numbers of the real images that batches have drawn."""
    of_sources = {name: state for name, state in dataset.state_dict().items() if name.isdecimal()}
    return set(NumberSet(of_sources[str(len(of_sources) - 1)]["real_rows"]))


def counting(calls: list[int]) -> Labeller:
    """The teacher, which notes how many images it labels."""

    def label(images: torch.Tensor) -> Outputs:
        calls.append(len(images))
        return teacher(images)

    return label


def levels(batch: Batch) -> list[float]:
    return [round(float(x), 1) for x in batch.images.mean((1, 2, 3))]


def test_shares_are_scheduled_and_rows_ordered() -> None:
    source = make(MixSettings(mixup=0.0), Curve(kind="linear", start=0.0, end=0.5), fresh=0.25)
    assert levels(source.batch(0)) == [LIVE] * 5 + [BANK] * 15
    assert levels(source.batch(10)) == [REAL] * 10 + [LIVE] * 5 + [BANK] * 5


def test_all_real_needs_no_bank() -> None:
    source = make(MixSettings(mixup=0.0), 1.0)
    assert levels(source.batch(3)) == [REAL] * 20
    assert used(source) <= set(range(9))


def test_fresh_logits_are_of_the_images_returned() -> None:
    batch = make(MixSettings(mixup=0.5, cutmix=0.2, shift=1, flip=True), difficulty=0.9).batch(2)
    assert batch.teacher_logits is not None
    assert torch.equal(batch.teacher_logits, teacher(batch.images).logits)


def test_a_crop_follows_from_seed_and_step_and_the_teacher_labels_it() -> None:
    plain, mix = MixSettings(mixup=0.0), MixSettings(mixup=0.0, crop=0.3)
    ramp = RealImages(torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).expand(5, 1, 8, 8), torch.zeros(5).long())

    def made(settings: MixSettings, seed: int = 0) -> HybridDataset:
        return HybridDataset([RealSource(ramp, seed)], [None], settings, batch_size=5, teacher=teacher, seed=seed)

    batch = made(mix).batch(3)
    assert torch.equal(batch.images, made(mix).batch(3).images)
    assert not torch.equal(batch.images, made(mix).batch(4).images)
    assert not torch.equal(batch.images, made(plain).batch(3).images)
    assert batch.teacher_logits is not None
    assert torch.equal(batch.teacher_logits, teacher(batch.images).logits)
    assert batch.labels.tolist() == [0] * 5, "a crop keeps its label"


def test_stored_logits_call_no_teacher() -> None:
    def forbidden(_: torch.Tensor) -> Outputs:
        raise AssertionError("the teacher was called")

    source = make(MixSettings(logits="stored", mixup=0.0), labeller=forbidden)
    batch = source.batch(0)
    assert batch.teacher_logits is not None
    assert bool((batch.teacher_logits == 7.0).all())


def test_stored_logits_of_real_images_are_made_once() -> None:
    calls: list[int] = []
    source = make(MixSettings(logits="stored", mixup=0.0), 0.5, labeller=counting(calls))
    for step in range(3):
        batch = source.batch(step)
        assert batch.teacher_logits is not None
        assert torch.allclose(batch.teacher_logits[:10], torch.ones(10, 3))
    assert calls == [9]


@dataclass
class Arriving:
    """Numbered images, label the number modulo 4 less 1, of which a window is there at each step."""

    spans: Sequence[tuple[int, int]]

    def at(self, step: int, /) -> RealImages:
        rows = torch.arange(*self.spans[step])
        images = (rows * 10).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, *SPEC.shape)
        return RealImages(images, rows % 4 - 1, int(rows[0]))


def test_real_images_may_come_and_go() -> None:
    source = make(MixSettings(mixup=0.0), 1.0, supply=Arriving([(0, 5), (3, 9), (20, 21)]))
    seen = [{round(float(x) * 25.5) for x in source.batch(step).images.mean((1, 2, 3))} for step in range(3)]
    assert seen[0] <= set(range(5))
    assert seen[1] <= set(range(3, 9))
    assert seen[1] & set(range(5, 9))
    assert seen[2] == {20}
    assert used(source) == set.union(*seen)


def test_whole_real_images_have_their_numbers_and_no_other_has_one() -> None:
    mix = MixSettings(mixup=0.25, cutmix=0.1)
    batch = make(mix, 0.5, fresh=0.25, supply=Arriving([(3, 9), (20, 26)])).batch(1)
    assert batch.rows is not None
    numbers = (batch.images.mean((1, 2, 3)) * 25.5).round().long()  # those of bank and generator are below 20
    whole = torch.tensor([False] * 5 + [True] * 13 + [False] * 2)
    real = whole & (numbers >= 20)
    assert 0 < int(real.sum()) < 13
    assert torch.equal(batch.rows, torch.where(real, numbers, -1))
    assert make(MixSettings()).batch(0).rows is None


def test_each_process_has_the_numbers_of_its_own_real_images() -> None:
    mix, supply = MixSettings(mixup=0.0), Arriving([(4, 25)])
    for rank in (0, 1):
        batch = make(mix, 1.0, supply=supply, rank=rank, world=2).batch(0)
        assert batch.rows is not None
        assert torch.equal(batch.rows, (batch.images.mean((1, 2, 3)) * 25.5).round().long())


def test_a_real_image_without_a_label_has_its_teachers_and_no_hard_one() -> None:
    batch = make(MixSettings(mixup=0.0), 1.0, supply=Arriving([(4, 8)])).batch(0)
    assert batch.teacher_logits is not None
    assert batch.annotated is not None
    rows = (batch.images.mean((1, 2, 3)) * 25.5).round().long()
    unlabelled = rows == 4
    assert 0 < int(unlabelled.sum()) < 20
    assert torch.equal(batch.annotated, ~unlabelled)
    assert torch.equal(batch.labels[~unlabelled], rows[~unlabelled] % 4 - 1)
    assert torch.equal(batch.labels[unlabelled], batch.teacher_logits[unlabelled].argmax(1))


@pytest.mark.parametrize(
    ("spans", "asked"),
    [
        ([(0, 5), (0, 5), (3, 9), (20, 21)], [5, 4, 1]),
        ([(7, 9), (7, 10)], [2, 1]),  # as after a resume: the first was not number 0
    ],
)
def test_the_teacher_labels_each_arriving_image_once(spans: list[tuple[int, int]], asked: list[int]) -> None:
    calls: list[int] = []
    source = make(MixSettings(logits="stored", mixup=0.0), 1.0, supply=Arriving(spans), labeller=counting(calls))
    for step in range(len(spans)):
        batch = source.batch(step)
        assert batch.teacher_logits is not None
        torch.testing.assert_close(batch.teacher_logits, teacher(batch.images).logits)
    assert calls == asked


def test_batches_are_a_function_of_seed_and_step() -> None:
    mix = MixSettings(mixup=0.6, shift=2, flip=True)
    first, second = (make(mix, 0.3, fresh=0.2, difficulty=0.9) for _ in range(2))
    second.batch(0)  # what was drawn before does not matter
    a, b = first.batch(7), second.batch(7)
    assert torch.equal(a.images, b.images)
    assert torch.equal(a.labels, b.labels)
    assert not torch.equal(a.images, first.batch(8).images)


def test_difficulty_changes_images_above_one_half_only() -> None:
    mix = MixSettings(mixup=0.0)
    easy, hard = make(mix, difficulty=0.5).batch(1), make(mix, difficulty=0.9).batch(1)
    assert levels(easy) == [BANK] * 20
    assert float(hard.images.std()) > 0.01


def test_mixtures_lie_between_their_parts() -> None:
    bank = some_bank()
    source = make(MixSettings(mixup=1.0), bank=bank)
    images = torch.rand(64, *SPEC.shape)
    bank.add(images, torch.zeros(64, dtype=torch.int64), torch.zeros(64, 3))
    mixed = source.batch(0).images
    assert float(mixed.var()) < 0.85 * float(images.var())


def test_mixtures_have_no_slot_to_reprioritise() -> None:
    slots = make(MixSettings(mixup=0.25, cutmix=0.25), bank=some_bank("prioritized")).batch(0).slots
    assert slots is not None
    assert (slots < 0).tolist() == [True] * 5 + [False] * 10 + [True] * 5


def test_mixtures_have_the_label_their_teacher_gives() -> None:
    bank = some_bank()
    source = make(MixSettings(mixup=0.5, cutmix=0.25), bank=bank)
    bank.add(torch.rand(64, *SPEC.shape), torch.zeros(64, dtype=torch.int64), torch.zeros(64, 3))
    batch = source.batch(0)
    assert batch.teacher_logits is not None
    answers = batch.teacher_logits.argmax(1)
    mixed = torch.tensor([True] * 10 + [False] * 5 + [True] * 5)
    assert torch.equal(batch.labels[mixed], answers[mixed])
    assert set(batch.labels[~mixed].tolist()) == {0}


def test_real_and_generated_images_mix_and_only_whole_real_ones_are_annotated() -> None:
    batch = make(MixSettings(mixup=0.5), 0.5).batch(0)
    assert batch.annotated is not None
    mixed, whole = levels(batch)[:10], levels(batch)[10:]
    assert set(whole) == {REAL, BANK}
    assert [level == REAL for level in whole] == batch.annotated[10:].tolist()
    assert not batch.annotated[:10].any()
    assert any(BANK < level < REAL for level in mixed)
    assert make(MixSettings()).batch(0).annotated is None


def test_where_real_images_run_out_no_generated_one_has_a_hard_label() -> None:
    batch = make(MixSettings(), Curve(kind="linear", start=0.5, end=0.0)).batch(10)
    assert REAL not in levels(batch)
    assert batch.annotated is not None
    assert not batch.annotated.any()


def test_stored_logits_of_a_mixture_are_mixed_as_its_images_are() -> None:
    bank = some_bank()
    source = make(MixSettings(logits="stored", mixup=0.5, flip=True), bank=bank)
    grey = torch.linspace(0.1, 0.9, 64)
    bank.add(
        grey.view(-1, 1, 1, 1).expand(-1, *SPEC.shape),
        torch.zeros(64, dtype=torch.int64),
        grey[:, None].expand(-1, 3) * 3,
    )
    batch = source.batch(5)
    assert batch.teacher_logits is not None
    torch.testing.assert_close(batch.teacher_logits[:, 0], batch.images.mean((1, 2, 3)) * 3, atol=0.02, rtol=0)


def test_without_a_teacher_stored_logits_count_and_nothing_is_labelled() -> None:
    bank = MemoryBank(SPEC, BankSettings(capacity=8), 0)
    bank.add(flat(8, BANK), torch.arange(8) % 3, torch.full((8, 3), 7.0))
    for logits in ("stored", None):
        mix = MixSettings(logits=logits)  # type: ignore[arg-type]
        source = HybridDataset([GeneratedSource(bank)], [REST], mix, 4, 10, None, lambda: 0.9, 0)
        batch = source.batch(0)
        assert batch.teacher_logits is not None
        assert bool((batch.teacher_logits == 7.0).all())
    real = RealSource(RealImages((flat(2, REAL) * 255).to(torch.uint8), torch.tensor([0, 2])), 0)
    batch = HybridDataset([real], [REST], MixSettings(mixup=0.0), 4, 10, None, lambda: 0.0, 0).batch(0)
    assert batch.teacher_logits is None
    assert set(batch.labels.tolist()) <= {0, 2}


@pytest.mark.parametrize("shares", [[], [0.5, 0.5], [REST, REST], [REST]])
def test_one_source_of_all_fills_the_rest(shares: list[float | None]) -> None:
    sources = [GeneratedSource(some_bank()), RealSource(RealImages(flat(2, 1.0), torch.zeros(2)), 0)]
    with pytest.raises(ValueError, match="2 sources need a share each, exactly one of them REST"):
        HybridDataset(sources, shares, MixSettings(), 4, 10, teacher, lambda: 0.0, 0)


def test_counts_add_up_to_the_batch_size_whatever_the_shares() -> None:
    sources = [GeneratedSource(some_bank()) for _ in range(3)]
    for shares in ([REST, 0.7, 0.7], [0.33, REST, 0.33], [1.0, 0.2, REST], [0.0, 0.0, REST]):
        counts = HybridDataset(sources, shares, MixSettings(), 7, 10, teacher, lambda: 0.0, 0).counts(3)
        assert sum(counts) == 7
        assert min(counts) >= 0
