"""Checkpoints are whole or absent, and the newest one that verifies is found."""

from pathlib import Path

import pytest
import torch

from synthkd.errors import CheckpointError
from synthkd.training.checkpoint import STATE, CheckpointStore


def test_newest_is_found_and_only_so_many_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints", keep=2)
    assert store.latest() is None
    for step in (5, 10, 15):
        store.save(step, {"x": torch.tensor([step]), "nested": {"list": [1, "two", 3.0]}})
    assert sorted(p.name for p in store.directory.iterdir()) == ["step_00000010", "step_00000015"]
    latest = store.latest()
    assert latest is not None
    assert latest.step == 15
    assert latest.state["x"].tolist() == [15]
    assert latest.state["nested"] == {"list": [1, "two", 3.0]}


@pytest.mark.parametrize("damage", ["truncate", "flip", "no manifest", "no state"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, damage: str) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    store.save(1, {"x": torch.zeros(100)})
    newest = store.save(2, {"x": torch.ones(100)})
    state = newest / STATE
    content = bytearray(state.read_bytes())
    if damage == "truncate":
        state.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        content[len(content) // 2] ^= 1
        state.write_bytes(content)
    elif damage == "no manifest":
        (newest / "manifest.json").unlink()
    else:
        state.unlink()
    latest = store.latest()
    assert latest is not None
    assert latest.step == 1


def test_nothing_but_damage_is_an_error_not_a_fresh_start(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    (store.save(3, {"x": 1}) / STATE).write_bytes(b"")
    with pytest.raises(CheckpointError, match="no checkpoint verifies: step_00000003"):
        store.latest()


def test_a_partial_write_is_invisible_and_cleaned_up(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    (tmp_path / ".partial_00000009_1").mkdir()
    assert store.latest() is None
    store.save(1, {"x": 1})
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000001"]


def test_the_newest_has_the_largest_number_whatever_its_digits(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    for step in (99_999_999, 100_000_000):
        store.save(step, {})
    latest = store.latest()
    assert latest is not None
    assert latest.step == 100_000_000
