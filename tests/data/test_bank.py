"""The memory bank against a slow list that obviously does the right thing."""

import heapq
from itertools import count as numbers

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synthkd.data.bank import MemoryBank
from synthkd.errors import CheckpointError, DataError
from synthkd.settings import BankSettings
from synthkd.types import ImageSpec

SPEC = ImageSpec(1, 2, 2, 3)
POLICIES = ["fifo", "prioritized", "class_balanced"]


def make(capacity: int, policy: str = "fifo", seed: int = 0, **more: object) -> MemoryBank:
    return MemoryBank(SPEC, BankSettings(capacity=capacity, policy=policy, **more), seed)  # type: ignore[arg-type]


def items(first: int, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images, labels and logits that carry their number."""
    numbers = torch.arange(first, first + count)
    images = (numbers % 256).to(torch.uint8).reshape(-1, 1, 1, 1).expand(-1, *SPEC.shape)
    return images, numbers % 3, numbers.float().unsqueeze(1).expand(-1, 3)


def numbers_in(bank: MemoryBank) -> list[int]:
    newest = bank.newest(len(bank))
    assert newest.teacher_logits is not None
    return [int(x) for x in newest.teacher_logits[:, 0]]


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=40, deadline=None)
@given(capacity=st.integers(3, 17), batches=st.lists(st.integers(1, 7), min_size=1, max_size=9))
def test_oldest_leaves_first_exactly(policy: str, capacity: int, batches: list[int]) -> None:
    bank, kept, total = make(capacity, policy), [], 0
    for count in batches:
        count = min(count, capacity)
        bank.add(*items(total, count))
        kept = (kept + list(range(total, total + count)))[-capacity:]
        total += count
    assert numbers_in(bank) == kept
    assert len(bank) == len(kept)
    drawn = bank.draw(64, step=1)
    assert drawn.teacher_logits is not None
    assert {int(x) for x in drawn.teacher_logits[:, 0]} <= set(kept)
    assert torch.equal(drawn.labels, drawn.teacher_logits[:, 0].long() % 3)
    assert torch.equal(bank.class_counts(), torch.bincount(torch.tensor(kept) % 3, minlength=3))


PRIORITIES = st.lists(st.sampled_from([0.25, 0.5, 1.0, 2.0, 2.0**40]) | st.floats(1e-3, 1e3), min_size=1, max_size=7)
"""Of one batch; equal ones are frequent."""


@settings(max_examples=150, deadline=None)
@given(capacity=st.integers(3, 17), exponent=st.sampled_from([0.4, 1.0]), data=st.data())
def test_the_lowest_priority_leaves_first_exactly(capacity: int, exponent: float, data: st.DataObject) -> None:
    bank = make(capacity, "prioritized", evict="lowest_priority", priority_exponent=exponent)
    content: dict[int, tuple[float, int]] = {}  # slot -> (priority, number of the image)
    largest, number = 1.0, numbers()
    for _ in range(data.draw(st.integers(1, 9))):
        values = data.draw(PRIORITIES)[:capacity]
        explicit = data.draw(st.booleans())
        bank_slots = bank.add(*items(bank.added, len(values)), torch.tensor(values).double() if explicit else None)
        # Free slots in their order, then those of the lowest priorities; nothing of this batch leaves.
        free = list(range(len(content), capacity))[: len(values)]
        leaving = heapq.nsmallest(len(values) - len(free), content, key=content.__getitem__)
        assert bank_slots.tolist() == free + leaving
        for slot, value in zip(free + leaving, values, strict=True):
            content[slot] = (value if explicit else largest, next(number))
        largest = max([largest, *values]) if explicit else largest
        changes = data.draw(st.dictionaries(st.sampled_from(sorted(content)), st.sampled_from([0.1, 1.0, 3.0])))
        bank.reprioritise(torch.tensor(list(changes), dtype=torch.int64), torch.tensor(list(changes.values())).double())
        content |= {slot: (value, content[slot][1]) for slot, value in changes.items()}
        largest = max([largest, *changes.values()])
    ages = sorted(number for _, number in content.values())
    assert numbers_in(bank) == ages
    assert numbers_in(bank)[-2:] == [int(x) for x in bank.newest(2).labels.new_tensor(ages[-2:])]
    assert bank.ages(torch.tensor(sorted(content))).tolist() == [
        bank.added - 1 - content[slot][1] for slot in sorted(content)
    ]
    assert torch.equal(bank.class_counts(), torch.bincount(torch.tensor(ages) % 3, minlength=3))
    rows = torch.cat([block.columns["logits"][:, 0] for block in bank.rows().blocks(bank.rows().first)])
    assert rows.tolist() == ages


@settings(max_examples=40, deadline=None)
@given(capacity=st.integers(3, 17), batches=st.lists(st.integers(1, 7), min_size=1, max_size=9))
def test_of_equal_priorities_the_oldest_leaves_as_from_a_ring(capacity: int, batches: list[int]) -> None:
    ring, lowest = make(capacity, "prioritized"), make(capacity, "prioritized", evict="lowest_priority")
    for count in batches:
        for bank in (ring, lowest):
            slots = bank.add(*items(bank.added, min(count, capacity)))
        assert torch.equal(lowest.ages(slots), ring.ages(slots))
        assert numbers_in(lowest) == numbers_in(ring)
        assert torch.equal(lowest.draw(20, 0).slots, ring.draw(20, 0).slots)


@pytest.mark.parametrize("policy", ["fifo", "class_balanced", "prioritized"])
def test_an_eviction_by_priority_needs_priorities(policy: str) -> None:
    with pytest.raises(ValueError, match="evict: lowest_priority needs priorities: set policy to prioritized"):
        make(4, policy, evict="lowest_priority", priority_exponent=0.0 if policy == "prioritized" else 0.4)


def test_a_bank_does_not_go_on_from_one_of_another_eviction() -> None:
    banks = [make(4, "prioritized", evict=evict) for evict in ("oldest", "lowest_priority")]
    for saved, other in (banks, banks[::-1]):
        saved.add(*items(0, 3))
        with pytest.raises(DataError, match=rf"another evict than {other.settings.evict}; set bank\.evict as it was"):
            other.load_state_dict(saved.state_dict())


def test_images_round_to_nearest_and_come_back_in_unit_range() -> None:
    bank = make(4)
    bank.add(torch.tensor([0.0, 0.4 / 255, 0.6 / 255, 1.0]).reshape(4, 1, 1, 1).expand(4, 1, 2, 2), *items(0, 4)[1:])
    assert (bank.newest(4).images[:, 0, 0, 0] * 255).tolist() == pytest.approx([0, 0, 1, 255])


@pytest.mark.parametrize("policy", POLICIES)
def test_draws_are_seeded(policy: str) -> None:
    slots = []
    for seed in (0, 0, 1):
        bank = make(50, policy, seed)
        bank.add(*items(0, 50))
        slots.append(bank.draw(32, step=3).slots)
    assert torch.equal(slots[0], slots[1])
    assert not torch.equal(slots[0], slots[2])


@pytest.mark.parametrize("evict", ["oldest", "lowest_priority"])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_restored_bank_goes_on_as_the_original(policy: str, evict: str) -> None:
    if evict == "lowest_priority" and policy != "prioritized":
        pytest.skip("it has no priorities")
    original, restored = make(20, policy, evict=evict), make(20, policy, evict=evict)
    for start in range(0, 36, 6):
        original.add(*items(start, 6))
    if policy == "prioritized":
        original.reprioritise(torch.tensor([2, 5]), torch.tensor([9.0, 0.3]))
    restored.load_state_dict(original.state_dict())
    for step in range(5):
        original.add(*items(100 + 4 * step, 4))
        restored.add(*items(100 + 4 * step, 4))
        a, b = original.draw(16, step), restored.draw(16, step)
        assert torch.equal(a.slots, b.slots)
        assert torch.equal(a.images, b.images)
    assert numbers_in(original) == numbers_in(restored)


def test_priorities_set_the_frequencies_and_the_weights_undo_them() -> None:
    bank = make(5, "prioritized", priority_exponent=1.0)
    images, labels, logits = items(0, 5)
    bank.add(images, labels, logits, torch.tensor([1.0, 2.0, 3.0, 4.0, 10.0]))
    drawn = bank.draw(40_000, step=0)
    assert drawn.slots is not None
    assert drawn.weights is not None
    share = torch.bincount(drawn.slots, minlength=5) / 40_000
    assert torch.allclose(share, torch.tensor([1.0, 2.0, 3.0, 4.0, 10.0]) / 20, atol=0.01)
    # the weighted mean over draws estimates the plain mean over the bank
    value = drawn.slots.float()
    assert float((drawn.weights * value).mean()) == pytest.approx(2.0, abs=0.03)
    assert float(drawn.weights.mean()) == pytest.approx(1.0, abs=0.02)


def test_new_images_get_the_largest_priority_seen() -> None:
    bank = make(4, "prioritized", priority_exponent=1.0)
    images, labels, logits = items(0, 2)
    bank.add(images, labels, logits, torch.tensor([1.0, 8.0]))
    bank.add(*items(2, 2))
    share = torch.bincount(bank.draw(50_000, step=0).slots, minlength=4) / 50_000  # type: ignore[arg-type]
    assert torch.allclose(share, torch.tensor([1.0, 8.0, 8.0, 8.0]) / 25, atol=0.01)


def test_a_draw_of_the_whole_bank_has_each_image_once() -> None:
    bank = make(20)
    bank.add(*items(0, 20))
    drawn = [bank.draw(20, step).slots for step in range(2)]
    assert all(sorted(slots.tolist()) == list(range(20)) for slots in drawn)
    assert not torch.equal(*drawn), "in another order"
    assert len(set(bank.draw(19, 0).slots.tolist())) < 19, "smaller ones are with replacement"


def test_class_balanced_draws_each_class_equally() -> None:
    bank = make(100, "class_balanced")
    images, _, logits = items(0, 100)
    bank.add(images, torch.tensor([0] * 90 + [1] * 9 + [2]), logits)
    counts = torch.bincount(bank.draw(30_000, step=0).labels, minlength=3)
    assert np.allclose(counts / 30_000, 1 / 3, atol=0.015)


def test_reprioritising_nothing_changes_nothing() -> None:
    bank = make(4, "prioritized")
    bank.add(*items(0, 4))
    before = bank.draw(9, 0).slots
    bank.reprioritise(torch.empty(0, dtype=torch.int64), torch.empty(0))
    assert torch.equal(bank.draw(9, 0).slots, before)


def test_ages_count_images_added_since() -> None:
    bank = make(4)
    bank.add(*items(0, 4))
    slots = bank.add(*items(4, 2))
    assert bank.ages(slots).tolist() == [1, 0]
    assert bank.ages(torch.tensor([2, 3])).tolist() == [3, 2]


def test_disk_and_ram_hold_the_same(tmp_path: object) -> None:
    ram = make(8)
    disk = MemoryBank(SPEC, BankSettings(capacity=8, storage="disk"), 0, tmp_path)  # type: ignore[arg-type]
    for bank in (ram, disk):
        for start in range(0, 12, 3):
            bank.add(*items(start, 3))
    assert numbers_in(ram) == numbers_in(disk)
    assert torch.equal(ram.draw(9, 0).images, disk.draw(9, 0).images)


def test_refusals_name_the_rule() -> None:
    bank = make(4)
    with pytest.raises(DataError, match="empty"):
        bank.draw(1, 0)
    with pytest.raises(DataError, match=r"bank\.capacity=4"):
        bank.add(*items(0, 5))
    with pytest.raises(DataError, match=r"expected images \[N, 1, 2, 2\]"):
        bank.add(torch.zeros(1, 3, 2, 2), *items(0, 1)[1:])
    images, _, logits = items(0, 1)
    with pytest.raises(DataError, match=r"0\.\.2"):
        bank.add(images, torch.tensor([3]), logits)
    prioritized = make(4, "prioritized")
    with pytest.raises(DataError, match="positive finite"):
        prioritized.add(*items(0, 1), torch.tensor([0.0]))


def test_a_bank_that_does_not_fit_the_memory_names_its_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("synthkd.data.bank.replay_policy", full)
    said = r"^transfer_set\.0\.bank\.capacity: 4 images .* or set transfer_set\.0\.bank\.storage=disk$"
    with pytest.raises(CheckpointError, match=said):
        MemoryBank(SPEC, BankSettings(capacity=4), key="transfer_set.0.bank")
