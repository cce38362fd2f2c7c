"""The time that a dry run tells: places of the measured steps, limits, and the line."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from synthkd.data.read.folder import Storage, read_folder
from synthkd.data.read.on_disk import DiskImages
from synthkd.errors import TrainingError
from synthkd.pipelines.config import TeachConfig
from synthkd.pipelines.run import timing
from synthkd.pipelines.run.timing import Timed, Work, about, measured, place, planned_time, saving, seconds_of
from synthkd.training.checkpoint import CheckpointStore
from tests.data.read.test_listing import folder
from tests.data.read.test_on_disk import pictures


class Clock:
    """A clock that moves only when work is done."""

    def __init__(self) -> None:
        self.now, self.calls = 100.0, 0

    def perf_counter(self) -> float:
        return self.now

    def work(self, seconds: float) -> None:
        self.now += seconds
        self.calls += 1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    return clock


def test_places_divide_the_run_evenly_after_each_power_of_two() -> None:
    assert [place(call) for call in range(4)] == [0, 0.5, 0.25, 0.75]
    for count in (2, 4, 8, 16):
        assert sorted(place(call) for call in range(count)) == [number / count for number in range(count)]


def test_work_that_grows_over_the_run_is_measured_at_its_mean(clock: Clock) -> None:
    # The first call, at place 0, sets things up. The mean of 1/16, ..., 15/16 is 1/2.
    seconds = seconds_of(lambda where: clock.work(1.0 if where == 0 else 0.1 + 0.2 * where), 60.0)
    assert clock.calls == 4, "three even places are enough for slow calls"
    assert seconds == pytest.approx(0.2)
    assert seconds_of(lambda where: clock.work(0.001 * where), 60.0) == pytest.approx(0.0005)
    assert clock.calls == 4 + timing.MOST_CALLS


def test_a_call_longer_than_the_limit_is_not_repeated(clock: Clock) -> None:
    assert seconds_of(lambda _: clock.work(5.0), 6.0) == 5.0
    assert clock.calls == 1


def test_all_works_together_stay_within_the_limit_and_nothing_is_left_out(clock: Clock) -> None:
    works = [Work(str(number), 10, lambda _: clock.work(0.5)) for number in range(5)]
    works.append(Work("in parts", 3, lambda _: clock.work(0.5), scale=4.0))
    timed = measured([*works, Work("never", 0, lambda _: clock.work(99.0))], limit=6.0)
    assert [(one.name, one.count, one.seconds) for one in timed[:-1]] == [(str(n), 10, 0.5) for n in range(5)]
    assert (timed[-1].name, timed[-1].seconds) == ("in parts", 2.0)
    assert clock.now - 100 <= 6.5


def test_random_numbers_of_the_caller_stay_as_they_were(clock: Clock) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    measured([Work("draws", 1, lambda _: clock.work(torch.rand(1).item()))])
    assert torch.equal(torch.rand(2), expected)


def test_the_line_has_the_sum_and_what_it_comes_of(clock: Clock) -> None:
    def steps() -> list[Timed]:
        clock.work(6.0)
        parts = [Timed("tests", 4, 5.0, listed=False), Timed("grids", 2, 0.1, listed=False)]
        return [Timed("rounds", 120, 0.9), Timed("steps", 2400, 0.0612), *parts]

    expected = "  time: about 5 min (120 rounds at 0.9 s, 2,400 steps at 0.061 s, tests 20 s), measured in 6 s"
    assert planned_time(steps).line == expected
    assert math.isclose(120 * 0.9 + 2400 * 0.0612 + 20.2, 275, abs_tol=0.1)


def test_steps_that_fail_on_an_untrained_teacher_are_no_error() -> None:
    def fails() -> list[Timed]:
        raise TrainingError("the loss is not finite")

    assert planned_time(fails).line == "  time: not measured: the loss is not finite"


def test_durations_have_the_unit_that_fits() -> None:
    words = [about(seconds) for seconds in (0.2, 99.4, 100, 3600, 3600 * 2.5, 3600 * 240)]
    assert words == ["1 s", "99 s", "2 min", "60 min", "2.5 h", "240 h"]


def test_all_processes_go_by_the_slowest(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step waits for those of the other processes, so a process that took one more would wait for ever."""

    def elsewhere(number: torch.Tensor, _: object) -> None:
        number.fill_(3.0)

    monkeypatch.setattr(timing, "count", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", elsewhere)
    timed = measured([Work("steps", 10, lambda _: clock.work(0.5)), Work("tests", 2, lambda _: clock.work(0.5))], 7.0)
    assert clock.calls == 2
    assert [one.seconds for one in timed] == [3.0, 3.0]


def test_decoding_is_of_images_on_disk_alone(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", pictures(200))
    in_memory = read_folder(root, size=8).images
    assert timing.decoding(in_memory, 200) == []
    on_disk = read_folder(root, size=8, storage=Storage(0.0, tmp_path / "cache")).images
    assert isinstance(on_disk, DiskImages)
    (work,) = timing.decoding(on_disk, 128)
    assert (work.count, work.scale) == (1, 2.0)
    work.once(0.0)
    assert on_disk.lacking() == 200 - timing.DECODED
    work.once(0.5)
    assert on_disk.lacking() == 200 - 2 * timing.DECODED, "another call decodes other images"


def test_a_checkpoint_is_measured_by_writing_the_state_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    written: list[int] = []
    save = CheckpointStore.save

    def watched(store: CheckpointStore, step: int, state: Mapping[str, Any]) -> Path:
        path = save(store, step, state)
        written.append(sum(file.stat().st_size for file in path.iterdir()))
        return path

    monkeypatch.setattr(CheckpointStore, "save", watched)
    config = TeachConfig.model_validate({"data": {"kind": "digits"}, "model": {"arch": "mlp"}, "checkpoint_every": 500})
    state = {"layer": torch.nn.Linear(100, 50)}
    (timed,) = measured([saving(state, config, 1001, per="step")], 0.1)
    assert (timed.name, timed.count, timed.listed, timed.per) == ("checkpoints", 3, False, "step")
    assert written
    assert min(written) > 4 * 50 * 101
    assert not [*tmp_path.iterdir()]
