import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from synthkd.errors import CheckpointError
from synthkd.training.monitor import Monitor, read_rows, series


def strict_rows(path):
    """Rows as a reader sees them that knows JSON only: no NaN, no Infinity."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


class FakeAccelerator:
    def __init__(self, is_main_process=True, trackers=("tensorboard",)):
        self.is_main_process = is_main_process
        self.trackers = trackers
        self.logged = []

    def log(self, values, step):
        self.logged.append((step, values))


def test_rows_hold_what_was_logged(tmp_path):
    monitor = Monitor(tmp_path / "run")
    monitor.log(20, {"student/loss": torch.tensor(0.5, requires_grad=True), "difficulty": 0.3, "images": 7}, "joint")
    monitor.event(20, "difficulty raised", kind="difficulty", value=0.36)
    first, second = strict_rows(tmp_path / "run" / "metrics.jsonl")
    assert first.pop("seconds") >= 0
    assert first == {"step": 20, "phase": "joint", "student/loss": 0.5, "difficulty": 0.3, "images": 7}
    assert second.pop("seconds") >= 0
    assert second == {"step": 20, "event": "difficulty raised", "kind": "difficulty", "value": 0.36}
    assert monitor.rows() == read_rows(monitor.path)


def test_series_of_one_name(tmp_path):
    monitor = Monitor(tmp_path)
    for step in (1, 2, 3):
        monitor.log(step, {"a": step / 2} if step != 2 else {"b": 1.0})
    assert monitor.series("a") == ([1, 3], [0.5, 1.5])
    assert monitor.series("unknown") == ([], [])


def test_numbers_that_are_not_finite_are_valid_json_and_come_back(tmp_path):
    monitor = Monitor(tmp_path)
    monitor.log(1, {"loss": float("nan"), "up": torch.tensor(float("inf")), "down": float("-inf")})
    monitor.event(1, "stopped", value=float("nan"))
    row, event = strict_rows(monitor.path)
    assert (row["loss"], row["up"], row["down"], event["value"]) == ("nan", "inf", "-inf", "nan")
    assert monitor.series("up")[1] == [float("inf")]
    assert monitor.series("loss")[1][0] != monitor.series("loss")[1][0]


def test_numbers_are_not_rounded(tmp_path):
    values = {"a": 0.1 + 0.2, "b": 1e-300, "c": torch.tensor(1 / 3, dtype=torch.float64)}
    monitor = Monitor(tmp_path)
    monitor.log(1, values)
    monitor.rewind(1)
    assert [monitor.series(name)[1] for name in "abc"] == [[0.1 + 0.2], [1e-300], [1 / 3]]


def test_names_of_the_row_itself_are_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot be named seconds, step"):
        Monitor(tmp_path).log(1, {"step": 1.0, "seconds": 2.0})


def test_rewind_drops_what_came_after_the_step(tmp_path):
    monitor = Monitor(tmp_path)
    for step in range(1, 11):
        monitor.log(step, {"loss": float(step)})
    monitor.event(9, "difficulty raised")
    resumed = Monitor(tmp_path)
    resumed.rewind(6)
    assert resumed.series("loss")[0] == [1, 2, 3, 4, 5, 6]
    events = [row for row in resumed.rows() if "event" in row]
    assert [(row["step"], row["kind"]) for row in events] == [(6, "resume")]
    resumed.log(7, {"loss": 70.0})
    assert resumed.series("loss") == ([1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 6, 70.0])
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_rewind_of_a_new_run_writes_nothing(tmp_path):
    Monitor(tmp_path).rewind(0)
    assert list(tmp_path.iterdir()) == []


def test_seconds_go_on_after_a_resume(tmp_path, monkeypatch):
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr("synthkd.training.monitor.time.monotonic", lambda: clock.now)
    monitor = Monitor(tmp_path)
    for step in (1, 2, 3):
        clock.now += 10
        monitor.log(step, {"loss": 1.0})
    clock.now = 5.0  # another process, another clock
    resumed = Monitor(tmp_path)
    clock.now += 2
    resumed.rewind(2)
    clock.now += 4
    resumed.log(3, {"loss": 1.0})
    assert [row["seconds"] for row in resumed.rows()] == [10.0, 20.0, 20.0, 24.0]


@pytest.mark.parametrize("torn", [b'{"step": 3, "lo', b'{"step": 3, "loss": 1.5', b"\xff\x00\x00", b"\x00" * 40, b"3"])
def test_line_cut_short_by_a_kill_is_left_out(tmp_path, torn):
    monitor = Monitor(tmp_path)
    monitor.log(1, {"loss": 1.0})
    monitor.log(2, {"loss": 2.0})
    with monitor.path.open("ab") as file:
        file.write(torn)
    assert monitor.series("loss")[0] == [1, 2]
    appending = Monitor(tmp_path)
    appending.log(3, {"loss": 3.0})
    assert series(strict_rows(monitor.path), "loss") == ([1, 2, 3], [1.0, 2.0, 3.0])


def test_broken_line_in_the_middle_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 3}\n')
    with pytest.raises(CheckpointError, match="line 2 is not a row"):
        Monitor(tmp_path).rows()


def test_rows_written_before_a_kill_are_there(tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\nfrom synthkd.training.monitor import Monitor\n"
        "monitor, step = Monitor(Path(sys.argv[1])), 0\n"
        "while True:\n    step += 1\n    monitor.log(step, {'loss': 1.0})\n    print(step, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        told = 0
        while told < 50:
            told = int(process.stdout.readline())
    finally:
        os.kill(process.pid, signal.SIGKILL)
        rest = process.communicate()[0].split()
    told = int(rest[-1]) if rest else told
    resumed = Monitor(tmp_path)
    steps, _ = resumed.series("loss")
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) >= told
    resumed.rewind(20)
    resumed.log(21, {"loss": 2.0})
    assert resumed.series("loss")[0] == list(range(1, 22))


def test_numbers_go_to_the_trackers(tmp_path):
    accelerator = FakeAccelerator()
    monitor = Monitor(tmp_path, accelerator)
    monitor.log(5, {"loss": torch.tensor(0.25)}, "joint")
    monitor.event(5, "something")
    assert accelerator.logged == [(5, {"loss": 0.25})]
    idle = FakeAccelerator(trackers=())
    Monitor(tmp_path, idle).log(6, {"loss": 0.5})
    assert idle.logged == []


def test_only_the_main_process_writes(tmp_path):
    accelerator = FakeAccelerator(is_main_process=False)
    monitor = Monitor(tmp_path, accelerator)
    monitor.log(1, {"loss": 1.0})
    monitor.event(1, "something")
    monitor.rewind(0)
    assert list(tmp_path.iterdir()) == []
    assert accelerator.logged == []


def test_values_reach_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from accelerate import Accelerator
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=tmp_path)
    accelerator.init_trackers("board")
    Monitor(tmp_path, accelerator).log(3, {"student/loss": 0.5})
    accelerator.end_training()
    events = EventAccumulator(str(tmp_path / "board"))
    deadline = time.monotonic() + 5
    while "student/loss" not in events.Reload().Tags()["scalars"] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [(event.step, event.value) for event in events.Scalars("student/loss")] == [(3, 0.5)]
