"""Ctrl-C, SIGTERM and SIGHUP finish the step, keep it, say so in one line and exit 128 + n; the second ends at once."""

import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from synthkd.data.written.unfinished import PartStore
from synthkd.pipelines import cli
from synthkd.pipelines.run import job
from synthkd.training.learner import Learner

RECIPE = {
    "teacher": {
        "kind": "train", "data": {"kind": "digits"}, "model": {"arch": "mlp", "width": 8}, "training": {"steps": 6}
    },
    "student": {"arch": "mlp", "width": 8},
    "transfer_set": {"generator": {"kind": "pixels", "batch_size": 10, "steps": 1}, "bank": {"capacity": 20}},
    "phases": [{"kind": "pregenerate", "rounds": 1}, {"kind": "refine", "steps": 8}],
    "distill": {"batch_size": 8},
    "inherit": False,
    "device": "cpu",
    "grid_every": 1000,
}  # fmt: skip
IN_A_STEP = """
import os, signal, sys, time
from synthkd.pipelines import cli
from synthkd.training.learner import Learner

rank, number, action, *words = sys.argv[1:]
update = Learner.update

def interrupted(self, loss, step):
    if step == int(number) and os.environ.get("RANK", "0") == rank:
        exec(action)
    return update(self, loss, step)

Learner.update = interrupted
sys.exit(cli.main(words))
"""


@pytest.fixture(autouse=True)
def _no_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "write_report", lambda _: None)  # takes longer than these runs


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    (tmp_path / "distill.yaml").write_text(json.dumps(RECIPE))
    return str(tmp_path / "distill.yaml")


def before_call(function: Callable[..., Any], number: int, action: Callable[[], None]) -> Callable[..., Any]:
    """The function; something happens before one of its calls."""
    calls = []

    def called(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == number:
            action()
        return function(*args, **kwargs)

    return called


def send(which: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), which)


def tensors(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*.safetensors")}


def stopped(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if "stopped" in line or "error" in line]


@pytest.mark.parametrize("which", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_finishes_the_step_and_the_same_command_ends_as_if_there_had_been_none(
    tmp_path: Path, recipe: str, which: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert cli.main(["distill", recipe, f"out={whole}"]) == 0
    capsys.readouterr()
    # in the 3rd step of the teacher, whose run is inside the other; in the 5th of the student, after a pregenerated one
    for number, step, place in ((3, 3, "teach"), (8, 6, ".")):
        with monkeypatch.context() as patch:
            patch.setattr(Learner, "update", before_call(Learner.update, number, send(getattr(signal, which))))
            assert cli.main(["distill", recipe, f"out={broken}"]) == 128 + getattr(signal, which)
        assert stopped(capsys) == [f"stopped by {which} after step {step}; the same command resumes"]
        assert [path.name for path in (broken / place / "checkpoints").glob("step_*")] == [f"step_{step:08d}"]
        assert not (broken / "result.json").exists()
    assert cli.main(["distill", recipe, f"out={broken}"]) == 0
    assert tensors(broken) == tensors(whole)
    assert len(tensors(whole)) == 3  # teacher, student, and the memory bank of the last checkpoint


def test_outside_of_a_training_it_ends_at_once_and_what_was_committed_stays(
    tmp_path: Path, recipe: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    distilled, whole, broken = (tmp_path / name for name in ("distilled", "whole", "broken"))
    assert cli.main(["distill", recipe, f"out={distilled}"]) == 0
    words = [f"teacher.model={distilled / 'teach'}", "teacher.kind=load", "generator.kind=pixels", "generator.steps=1"]
    words = ["generate", *words, "per_class=16", "batch_size=32", "device=cpu"]
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(PartStore, "write", before_call(PartStore.write, 3, send(signal.SIGTERM)))
        assert cli.main([*words, f"out={broken}"]) == 143
    assert stopped(capsys) == ["stopped by SIGTERM; the same command resumes"]
    assert len(list((broken / "parts").iterdir())) == 2
    for out in (whole, broken):
        assert cli.main([*words, f"out={out}"]) == 0
    sums = [(out / "dataset" / "SHA256SUMS").read_text() for out in (whole, broken)]
    assert sums[0] == sums[1]


@pytest.fixture
def _hung_up_on() -> Iterator[None]:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("_hung_up_on")
def test_a_signal_that_was_ignored_at_the_start_stays_so(
    tmp_path: Path, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Learner, "update", before_call(Learner.update, 3, send(signal.SIGHUP)))
    assert cli.main(["distill", recipe, f"out={tmp_path / 'run'}"]) == 0


def test_a_second_signal_ends_at_once(tmp_path: Path, recipe: str) -> None:
    action = "os.kill(os.getpid(), signal.SIGTERM); os.kill(os.getpid(), signal.SIGINT)"
    command = [sys.executable, "-c", IN_A_STEP, "0", "3", action, "distill", recipe, f"out={tmp_path / 'run'}"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGINT
    assert "stopped" not in done.stderr
    assert not (tmp_path / "run" / "teach" / "checkpoints").exists()


def test_a_closed_terminal_is_a_signal_and_its_absence_no_error(tmp_path: Path, recipe: str) -> None:
    ours, theirs = pty.openpty()
    seen, tell = os.pipe()
    wait = "[time.sleep(0.01) for _ in iter(pending_signal, signal.SIGHUP)]"
    action = f"from synthkd.system.stopping import pending_signal; os.write({tell}, b'.'); {wait}"

    def own_terminal() -> None:
        os.setsid()
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    command = [sys.executable, "-c", IN_A_STEP, "0", "2", action, "distill", recipe, f"out={tmp_path / 'run'}"]
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, preexec_fn=own_terminal, pass_fds=(theirs, tell)
    )
    os.close(theirs)
    os.close(tell)
    assert os.read(seen, 1) == b".", "it ended before"
    os.close(ours)
    os.close(seen)
    assert process.wait(300) == 128 + signal.SIGHUP
    assert (tmp_path / "run" / "teach" / "checkpoints" / "step_00000003").exists()


@pytest.mark.slow
def test_all_processes_stop_at_the_same_step_whichever_got_the_signal(tmp_path: Path, recipe: str) -> None:
    (tmp_path / "in_a_step.py").write_text(IN_A_STEP)
    out = tmp_path / "run"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = [str(tmp_path / "in_a_step.py"), "1", "3", "os.kill(os.getpid(), signal.SIGTERM)"]
    done = subprocess.run(
        [*torchrun, *script, "distill", recipe, f"out={out}"], check=False, capture_output=True, text=True, timeout=300
    )
    assert done.returncode != 0
    assert "stopped by SIGTERM after step 4; the same command resumes" in done.stderr.splitlines()
    assert [path.name for path in (out / "teach" / "checkpoints").glob("step_*")] == ["step_00000004"]


def test_handlers_stand_around_a_command_only(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    during = {}

    def look(*_: object, **__: object) -> str:
        during.update({each: signal.getsignal(each) for each in mine})
        return ""

    monkeypatch.setattr("synthkd.pipelines.cli.own", lambda _: look)
    monkeypatch.setattr("synthkd.pipelines.cli._config", lambda *_: None)
    assert cli.main(["distill"]) == 0
    assert all(during[each] != handler for each, handler in mine.items())
    assert {each: signal.getsignal(each) for each in mine} == mine
    thread = threading.Thread(target=cli.main, args=[["distill"]])
    thread.start()
    thread.join()
    assert during == mine
