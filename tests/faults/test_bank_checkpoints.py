"""A checkpoint of a bank writes what is new, and gives back exactly the bank that it was taken of."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from synthkd.data import bank_rows
from synthkd.data.bank import MemoryBank
from synthkd.data.read.samples import open_samples
from synthkd.errors import CheckpointError
from synthkd.settings import BankSettings
from synthkd.training.checkpoint import ROWS, CheckpointStore
from synthkd.types import ImageSpec

SPEC = ImageSpec(3, 4, 4, 5)
ROUND = 7
CAPACITY = 30
POLICIES = ["fifo", "prioritized", "class_balanced"]
BANKS = [*POLICIES, "lowest_priority"]
"""The policies, which evict the oldest images, and the prioritized one with an eviction by priority."""
STORAGES = ["ram", "disk"]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bank_rows, "_BLOCK_BYTES", 4 * (48 + 20 + 16))  # of four images


def make(place: Path, storage: str = "disk", policy: str = "prioritized") -> MemoryBank:
    how = {"policy": "prioritized", "evict": policy} if policy == "lowest_priority" else {"policy": policy}
    return MemoryBank(SPEC, BankSettings(capacity=CAPACITY, storage=storage, **how), 0, place)  # type: ignore[arg-type]


def add(bank: MemoryBank, count: int = ROUND) -> None:
    rng = torch.Generator().manual_seed(bank.added)
    images = torch.randint(0, 256, (count, *SPEC.shape), dtype=torch.uint8, generator=rng)
    labels = torch.randint(0, SPEC.classes, (count,), generator=rng)
    slots = bank.add(images, labels, torch.randn(count, SPEC.classes, generator=rng))
    bank.reprioritise(slots[:2], torch.rand(2, generator=rng) + 0.5)


def content(bank: MemoryBank) -> str:
    """A hash of all that a bank gives: its images, labels, logits, ages and draws."""
    newest, drawn = bank.newest(CAPACITY), bank.draw(64, step=1)
    tensors = [newest.images, newest.labels, newest.teacher_logits, bank.ages(newest.slots), drawn.slots, drawn.weights]
    return hashlib.sha256(b"".join(t.numpy().tobytes() for t in tensors if t is not None)).hexdigest()


def restored(store: Path, place: Path, storage: str = "disk", policy: str = "prioritized") -> tuple[int, MemoryBank]:
    found = CheckpointStore(store).latest()
    assert found is not None
    bank = make(place, storage, policy)
    bank.load_state_dict(found.state["parts"]["bank"])
    return found.step, bank


def saved(store: CheckpointStore, step: int, bank: MemoryBank) -> None:
    store.save(step, {"parts": {"bank": bank.state_dict()}})


def row_files(store: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in (store / ROWS).iterdir()}


@pytest.mark.parametrize("policy", BANKS)
@pytest.mark.parametrize("storage", STORAGES)
def test_every_checkpoint_gives_back_the_bank_of_its_step(storage: str, policy: str, tmp_path: Path) -> None:
    bank, store = make(tmp_path / "bank", storage, policy), CheckpointStore(tmp_path / "store")
    for step in range(1, 14):  # three times around the ring
        add(bank)
        expected = content(bank)
        saved(store, step, bank)
        add(bank, 2 + step % 3)  # a working file moves on
        assert restored(tmp_path / "store", tmp_path / "again", storage, policy)[0] == step
        assert content(restored(tmp_path / "store", tmp_path / "again", storage, policy)[1]) == expected


def test_a_checkpoint_writes_only_what_is_new_and_drops_what_nobody_holds(tmp_path: Path) -> None:
    bank, store = make(tmp_path / "bank"), CheckpointStore(tmp_path / "store")
    image = 48 + 20 + 8
    for step in range(1, 20):
        add(bank)
        before = row_files(tmp_path / "store") if step > 1 else {}
        saved(store, step, bank)
        after = row_files(tmp_path / "store")
        rows = [int(name.split("-")[1]) - int(name.split("-")[0]) for name in after if name not in before]
        assert sum(rows) == ROUND
        spans = [(int(name.split("-")[0]), int(name.split("-")[1])) for name in after]
        assert sum(stop - first for first, stop in spans) <= CAPACITY + ROUND + 3, (
            "two checkpoints, and part of a block"
        )
        assert max(after.values()) < 4 * image + 400, "block by block"


def test_with_an_eviction_by_priority_a_checkpoint_writes_the_whole_bank_if_an_image_is_new(tmp_path: Path) -> None:
    bank, store = make(tmp_path / "bank", policy="lowest_priority"), CheckpointStore(tmp_path / "store")
    earlier: dict[str, int] = {}
    for step in range(1, 20):
        is_new = step % 3 != 0
        if is_new:
            add(bank)
        bank.reprioritise(torch.tensor([0]), torch.tensor([float(step)]))
        saved(store, step, bank)
        files = row_files(tmp_path / "store")
        rows = [int(name.split("-")[1]) - int(name.split("-")[0]) for name in files if name not in earlier]
        assert sum(rows) == (len(bank) if is_new else 0)
        expected = bank.checkpoint_bytes(2 if is_new else 1, ROUND)
        assert sum(files.values()) <= expected + 400 * len(files), "no more than is said"
        earlier = files


@pytest.mark.parametrize("policy", ["prioritized", "lowest_priority"])
def test_a_kill_at_any_flush_rename_or_removal_leaves_a_whole_checkpoint(tmp_path: Path, policy: str) -> None:
    bank, store = make(tmp_path / "bank", policy=policy), CheckpointStore(tmp_path / "store")
    for step in (1, 2, 3):
        add(bank)
        saved(store, step, bank)
    older = content(bank)
    add(bank, 20)
    newer = content(bank)
    for number in range(100):
        if (child := os.fork()) == 0:
            calls = iter(range(number))
            for name in ("fsync", "replace", "unlink", "rmdir"):
                setattr(os, name, dying(getattr(os, name), calls))
            saved(store, 4, bank)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        step, found = restored(tmp_path / "store", tmp_path / "again", policy=policy)
        assert content(found) == (older if step == 3 else newer)
        if status == 0:
            break
        assert status == 9
    assert (status, step) == (0, 4)
    assert number > 10
    assert not [name for name in row_files(tmp_path / "store") if name.startswith(".")], "what was left lying is gone"


def dying(call: object, calls: Iterator[int]) -> object:
    def do(*arguments: object, **more: object) -> object:
        if next(calls, None) is None:
            os._exit(9)
        return call(*arguments, **more)  # type: ignore[operator]

    return do


@pytest.mark.parametrize("policy", ["prioritized", "lowest_priority"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_damaged_rows_are_noticed_and_the_checkpoint_before_them_is_taken(
    tmp_path: Path, damage: str, policy: str, caplog: pytest.LogCaptureFixture
) -> None:
    bank, store = make(tmp_path / "bank", policy=policy), CheckpointStore(tmp_path / "store")
    add(bank)
    saved(store, 1, bank)
    older = content(bank)
    add(bank)
    saved(store, 2, bank)
    files = sorted((tmp_path / "store" / ROWS).iterdir(), key=lambda path: int(path.name.split("-")[0]))
    damaged(files[-1], damage)
    step, found = restored(tmp_path / "store", tmp_path / "again", policy=policy)
    assert (step, content(found)) == (1, older)
    (told,) = caplog.messages
    assert "damaged: step_00000002 (" in told
    assert told.endswith("; going on from step_00000001")
    damaged(files[0], damage)
    with pytest.raises(CheckpointError, match=r"no checkpoint verifies: .*rows"):
        CheckpointStore(tmp_path / "store").latest()


def damaged(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    if how != "delete":
        path.write_bytes(data if how == "flip" else data[: len(data) // 2])


@pytest.mark.parametrize("policy", ["prioritized", "lowest_priority"])
def test_a_resumed_run_goes_on_from_the_rows_that_are_there(tmp_path: Path, policy: str) -> None:
    bank, store = make(tmp_path / "bank", policy=policy), CheckpointStore(tmp_path / "store")
    for step in (1, 2):
        add(bank)
        saved(store, step, bank)
    again = CheckpointStore(tmp_path / "store")
    found = again.latest()
    assert found is not None
    resumed = make(tmp_path / "bank", policy=policy)
    resumed.load_state_dict(found.state["parts"]["bank"])
    before = row_files(tmp_path / "store")
    add(resumed)
    add(bank)
    saved(again, 3, resumed)
    # A whole bank takes the place of the oldest one, since the store keeps two checkpoints.
    assert policy == "lowest_priority" or before.keys() <= row_files(tmp_path / "store").keys()
    assert content(restored(tmp_path / "store", tmp_path / "again", policy=policy)[1]) == content(bank)


def test_a_step_that_was_changed_in_a_manifest_is_damage(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    path = store.save(7, {"x": 1}) / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "step": 8}))
    with pytest.raises(CheckpointError, match="no checkpoint verifies: step_00000007"):
        store.latest()


@pytest.mark.parametrize("policy", POLICIES)
def test_a_checkpoint_of_a_version_that_copied_everything_still_resumes(policy: str, tmp_path: Path) -> None:
    bank = make(tmp_path / "bank", "ram", policy)
    for _ in range(6):
        add(bank)
    slots = torch.arange(bank.added - CAPACITY, bank.added) % CAPACITY
    newest = bank.newest(CAPACITY)
    assert newest.teacher_logits is not None
    old = {
        "added": bank.added,
        "images": torch.empty(CAPACITY, *SPEC.shape, dtype=torch.uint8),
        "labels": torch.empty(CAPACITY, dtype=torch.int64),
        "logits": torch.empty(CAPACITY, SPEC.classes),
        "births": torch.empty(CAPACITY, dtype=torch.int64),
        "index": bank.state_dict()["index"],
    }
    old["images"][slots] = (newest.images * 255).round().to(torch.uint8)
    old["labels"][slots], old["logits"][slots] = newest.labels, newest.teacher_logits
    old["births"][slots] = torch.arange(bank.added - CAPACITY, bank.added)
    place = tmp_path / "run" / "checkpoints" / "step_00000005"
    place.mkdir(parents=True)
    torch.save({"parts": {"bank": old}}, place / "state.pt")
    digest = hashlib.sha256((place / "state.pt").read_bytes()).hexdigest()
    (place / "manifest.json").write_text(json.dumps({"format": 1, "step": 5, "sha256": {"state.pt": digest}}))
    step, found = restored(place.parent, tmp_path / "again", "ram", policy)
    assert (step, content(found)) == (5, content(bank))
    (tmp_path / "run" / "config.yaml").touch()
    shown = torch.cat(list(open_samples(tmp_path / "run").batches(8)))
    assert torch.equal(shown, (newest.images * 255).round().to(torch.uint8))
