"""A checkpoint of a bank writes what is new, and gives back exactly the bank that it was taken of."""

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from synthkd.data import bank_disk, bank_rows, journal
from synthkd.data.bank import MemoryBank, checkpoint_bytes
from synthkd.data.read.samples import open_samples
from synthkd.errors import CheckpointError
from synthkd.settings import BankSettings
from synthkd.training import row_log, shared_rows
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
    for module in (shared_rows, bank_rows, bank_disk):
        monkeypatch.setattr(module, "BLOCK_BYTES", 4 * (48 + 20 + 16))  # of four images
    monkeypatch.setattr(row_log, "_COPIED", 3 * (48 + 20 + 16))
    monkeypatch.setattr(bank_disk, "_FILES", 4)  # of eight images
    monkeypatch.setattr(journal, "_MOST_PARTS", 5)
    monkeypatch.setattr(journal, "_BLOCK", 4)


def make(place: Path, storage: str = "disk", policy: str = "prioritized") -> MemoryBank:
    how = {"policy": "prioritized", "evict": policy} if policy == "lowest_priority" else {"policy": policy}
    return MemoryBank(SPEC, BankSettings(capacity=CAPACITY, storage=storage, **how), 0, place)  # type: ignore[arg-type]


def add(bank: MemoryBank, count: int = ROUND) -> None:
    rng = torch.Generator().manual_seed(bank.added)
    images = torch.randint(0, 256, (count, *SPEC.shape), dtype=torch.uint8, generator=rng)
    labels = torch.randint(0, SPEC.classes, (count,), generator=rng)
    slots = bank.add(images, labels, torch.randn(count, SPEC.classes, generator=rng))
    bank.reprioritise(slots[:2], torch.rand(2, generator=rng)[: len(slots)] + 0.5)


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


def written(store: Path, earlier: dict[str, int]) -> int:
    """Bytes that the rows of a store have more than before: new files, and what has been added to old ones."""
    return sum(size - earlier.get(name, 0) for name, size in row_files(store).items())


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
    bank, store = make(tmp_path / "bank", "ram"), CheckpointStore(tmp_path / "store")
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
    bank, store = make(tmp_path / "bank", "ram", "lowest_priority"), CheckpointStore(tmp_path / "store")
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
        expected = checkpoint_bytes(bank.spec, bank.settings, 2 if is_new else 1, ROUND)
        assert sum(files.values()) <= expected + 400 * len(files), "no more than is said"
        earlier = files


RECORD = 48 + 20 + 16
"""Bytes of an image on disk, with label, logits, number and checksum."""


@pytest.mark.parametrize("policy", BANKS)
def test_a_checkpoint_of_a_bank_on_disk_has_the_files_of_the_bank(policy: str, tmp_path: Path) -> None:
    bank, store = make(tmp_path / "bank", policy=policy), CheckpointStore(tmp_path / "store")
    for step in range(1, 40):
        add(bank, 3)
        saved(store, step, bank)
        assert content(restored(tmp_path / "store", tmp_path / "again", policy=policy)[1]) == content(bank)
        own = {path.stat().st_ino: path.stat().st_size for path in (tmp_path / "bank").iterdir()}
        linked = {path.stat().st_ino for path in (tmp_path / "store" / ROWS).glob("*.rows")}
        assert own.keys() <= linked, "nothing is copied"
        # A ring has a file whose rows have not all left, and one that grows; the other bank at most twice its images.
        assert sum(own.values()) <= RECORD * (CAPACITY + 2 * 8 if policy != "lowest_priority" else 2 * CAPACITY)
        assert len(linked) <= len(own) + 3, "what no checkpoint needs is gone"
        assert not list((tmp_path / "store" / ROWS).glob(".*"))


@pytest.mark.parametrize("policy", BANKS)
def test_a_checkpoint_of_a_bank_on_disk_writes_what_has_changed(policy: str, tmp_path: Path) -> None:
    bank, store = make(tmp_path / "bank", policy=policy), CheckpointStore(tmp_path / "store")
    most = []
    for step in range(1, 36):
        earlier = row_files(tmp_path / "store") if step > 1 else {}
        add(bank, 2)
        saved(store, step, bank)
        if step > 15:
            most.append(written(tmp_path / "store", earlier))
    heads = 400  # of a file of safetensors
    moved = RECORD if policy == "lowest_priority" else 0  # each new image may move another one
    entries = (2 * 32 * 3 + 32 * CAPACITY / 5) if policy != "fifo" else (8 * 2 + 8 * CAPACITY / 5)
    assert sum(most) / len(most) <= 2 * (RECORD + moved) + entries + 2 * heads
    assert min(most) < 2 * RECORD + 32 * 6 + heads, "most write the new images and their entries alone"


@pytest.mark.parametrize("policy", BANKS)
def test_a_bank_on_disk_goes_on_from_a_state_without_reading_its_images(
    policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank, store = make(tmp_path / "bank", policy=policy), CheckpointStore(tmp_path / "store")
    for _ in range(12):
        add(bank)
    saved(store, 1, bank)
    monkeypatch.setattr(row_log, "_VERIFIED", RECORD)  # the newest file alone
    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", None)
        _, found = restored(tmp_path / "store", tmp_path / "again", policy=policy)
    assert content(found) == content(bank)
    for one in (bank, found):
        add(one)
    assert content(found) == content(bank)
    files = {path: path.read_bytes() for path in (tmp_path / "again").iterdir()}
    for how in ("a pixel of each image", "the order of the images"):
        for path, content_of_file in files.items():
            data = np.frombuffer(content_of_file, np.uint8).reshape(-1, RECORD).copy()
            if how == "a pixel of each image":
                data[:, 10] ^= 1
            with path.open("r+b") as file:
                file.write(data if how == "a pixel of each image" else np.roll(data, 1, axis=0).tobytes())
        with pytest.raises(CheckpointError, match=r"again/\d+-.*\.rows: row \d+ is damaged; start the same command"):
            found.newest(CAPACITY)


@pytest.mark.parametrize("policy", BANKS)
@pytest.mark.parametrize("storages", [("disk", "ram"), ("ram", "disk")])
def test_a_bank_goes_on_from_one_that_was_kept_elsewhere(
    storages: tuple[str, str], policy: str, tmp_path: Path
) -> None:
    bank, store = make(tmp_path / "bank", storages[0], policy), CheckpointStore(tmp_path / "store")
    for _ in range(9):
        add(bank)
    saved(store, 1, bank)
    again = CheckpointStore(tmp_path / "store")
    found = again.latest()
    assert found is not None
    other = make(tmp_path / "other", storages[1], policy)
    other.load_state_dict(found.state["parts"]["bank"])
    assert content(other) == content(bank)
    for one in (bank, other):
        add(one)
    saved(again, 2, other)
    assert content(restored(tmp_path / "store", tmp_path / "third", storages[0], policy)[1]) == content(bank)


def test_a_ring_does_not_go_on_after_a_write_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bank, write = make(tmp_path / "bank"), os.pwrite
    add(bank)
    calls = iter(range(2))

    def full(*arguments: object) -> int:
        if next(calls, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space left") as error:
            add(bank)
    assert str(error.value.filename).startswith(str(tmp_path / "bank"))
    with pytest.raises(CheckpointError, match="images could not be written before; start the same command again"):
        add(bank)


def test_without_links_the_files_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refused)
    bank, store = make(tmp_path / "bank"), CheckpointStore(tmp_path / "store")
    for step in range(1, 14):
        add(bank, 4)
        saved(store, step, bank)
        expected = content(bank)
        add(bank, 1)
        assert content(restored(tmp_path / "store", tmp_path / "again")[1]) == expected


def test_a_run_with_a_bank_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    bank, store = make(tmp_path / "bank", "ram"), CheckpointStore(tmp_path / "store")
    for _ in range(7):
        add(bank)
    saved(store, 1, bank)  # as that version saved a bank on disk too
    (tmp_path / "again").mkdir()
    for name in ("images", "labels", "logits", "births"):
        (tmp_path / "again" / f"{name}.bin").write_bytes(bytes(100))
    _, found = restored(tmp_path / "store", tmp_path / "again")
    assert content(found) == content(bank)
    assert {path.suffix for path in (tmp_path / "again").iterdir()} == {".rows"}


@pytest.mark.parametrize(
    ("storage", "policy"), [("ram", "prioritized"), ("disk", "prioritized"), ("disk", "lowest_priority")]
)
def test_a_kill_at_any_flush_rename_or_removal_leaves_a_whole_checkpoint(
    tmp_path: Path, storage: str, policy: str
) -> None:
    bank, store = make(tmp_path / "bank", storage, policy), CheckpointStore(tmp_path / "store")
    for step in (1, 2, 3):
        add(bank)
        saved(store, step, bank)
    older = content(bank)
    add(bank, 20)
    newer = content(bank)
    for number in range(100):
        if (child := os.fork()) == 0:
            calls = iter(range(number))
            for name in ("fsync", "replace", "link", "unlink", "rmdir"):
                setattr(os, name, dying(getattr(os, name), calls))
            saved(store, 4, bank)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        step, found = restored(tmp_path / "store", tmp_path / "again", storage, policy)
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


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("policy", ["prioritized", "lowest_priority"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_damaged_rows_are_noticed_and_the_checkpoint_before_them_is_taken(
    tmp_path: Path, damage: str, policy: str, storage: str, caplog: pytest.LogCaptureFixture
) -> None:
    bank, store = make(tmp_path / "bank", storage, policy), CheckpointStore(tmp_path / "store")
    add(bank)
    saved(store, 1, bank)
    older = content(bank)
    add(bank)
    saved(store, 2, bank)
    ending = "*.rows" if storage == "disk" else "*"
    files = sorted((tmp_path / "store" / ROWS).glob(ending), key=lambda path: int(path.name.split("-")[0]))
    damaged(files[-1], damage)
    step, found = restored(tmp_path / "store", tmp_path / "again", storage, policy)
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


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("policy", ["prioritized", "lowest_priority"])
def test_a_resumed_run_goes_on_from_the_rows_that_are_there(tmp_path: Path, policy: str, storage: str) -> None:
    bank, store = make(tmp_path / "bank", storage, policy), CheckpointStore(tmp_path / "store")
    for step in (1, 2):
        add(bank)
        saved(store, step, bank)
    again = CheckpointStore(tmp_path / "store")
    found = again.latest()
    assert found is not None
    resumed = make(tmp_path / "bank of the new process", storage, policy)
    resumed.load_state_dict(found.state["parts"]["bank"])
    before = row_files(tmp_path / "store")
    add(resumed)
    add(bank)
    saved(again, 3, resumed)
    # A whole bank takes the place of the oldest one, since the store keeps two checkpoints.
    if storage == "disk":
        before = {name: size for name, size in before.items() if name.endswith(".rows")}
    if storage == "disk" or policy == "prioritized":
        assert before.keys() <= row_files(tmp_path / "store").keys()
    assert content(restored(tmp_path / "store", tmp_path / "again", storage, policy)[1]) == content(bank)


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
