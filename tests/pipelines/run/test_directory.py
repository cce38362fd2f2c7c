"""The run directory of a job: which one is chosen, what may be resumed in it, and what is never touched."""

import errno
import fcntl
import json
import multiprocessing
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from synthkd.errors import CheckpointError, ConfigError
from synthkd.pipelines.config import DistillConfig, JobConfig, TeachConfig
from synthkd.pipelines.generate import PARTS
from synthkd.pipelines.run.directory import CONFIG, FREE_TO_CHANGE, REPORT, RESULT, WORK
from synthkd.pipelines.run.job import open_job
from synthkd.privacy.journal import JOURNAL
from synthkd.reports.results import TeachResult
from synthkd.settings.load import dump_config, load_config
from synthkd.training.monitor import FILE_NAME as METRICS

TEACH: dict[str, Any] = {"data": {"kind": "digits"}, "model": {"arch": "mlp"}, "device": "cpu"}
DISTILL: dict[str, Any] = {"teacher": {"kind": "load", "model": "t"}, "student": {"arch": "mlp"}, "device": "cpu"}

HOLD = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def config_for(out: Path | None = None, *overrides: str) -> TeachConfig:
    return load_config(TeachConfig, TEACH, [*([] if out is None else [f"out={out}"]), *overrides])


def opened(config: JobConfig, name: str = "teach") -> Path:
    """The directory that a job gets, which it leaves at once as if it had been killed."""
    with open_job(name, config) as job:
        return job.directory


def begun(config: JobConfig) -> Path:
    """The same of a run that has logged something."""
    directory = opened(config)
    (directory / METRICS).write_text('{"step": 1}\n')
    return directory


def finished(config: JobConfig, content: str = '{"done": true}') -> Path:
    """The same of a run that ended."""
    directory = begun(config)
    (directory / RESULT).write_text(content)
    (directory / REPORT).write_text("a report")
    return directory


def files(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


@contextmanager
def held_by_another_process(directory: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-S", "-c", HOLD, str(directory / ".lock")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- which directory ------------------------------------------------------------------------------------------------


def test_a_directory_is_made_under_the_name_of_job_and_run_and_holds_the_configuration(here: Path) -> None:
    config = config_for(None, "name=mine", "seed=4")
    with open_job("teach", config) as job:
        assert job.directory == Path("runs/teach/mine")
        assert job.finished is None
        assert (job.name, job.device.type) == ("teach", "cpu")
        assert job.store.directory == job.directory / "checkpoints"
    assert load_config(TeachConfig, here / "runs/teach/mine" / CONFIG, []) == config


def test_an_unfinished_run_of_the_same_configuration_is_gone_on_with(here: Path) -> None:
    begun(config_for())
    assert opened(config_for()) == Path("runs/teach/run")
    assert opened(config_for(None, "threads=1", "keep_checkpoints=5")) == Path("runs/teach/run")
    assert [p.name for p in (here / "runs/teach").iterdir()] == ["run"]


def test_other_runs_of_the_name_are_left_alone_and_numbers_go_up(here: Path) -> None:
    """1 is of another seed, 2 finished, 3 no run, 4 of another version: 5 is made, and found again."""
    begun(config_for(None, "seed=1"))
    assert finished(config_for()) == Path("runs/teach/run-2")
    (here / "runs/teach/run-3").mkdir()
    (here / "runs/teach/run-3/notes.txt").write_text("mine")
    (here / "runs/teach/run-4").mkdir()
    (here / "runs/teach/run-4" / CONFIG).write_text("a_key_of_yesterday: 1\n")
    before = files(here / "runs/teach")
    assert begun(config_for()) == Path("runs/teach/run-5")
    assert opened(config_for()) == Path("runs/teach/run-5")
    assert opened(config_for(None, "seed=1")) == Path("runs/teach/run")
    after = files(here / "runs/teach")
    assert {name: content for name, content in after.items() if not name.startswith("run-5/")} == before


def test_jobs_have_directories_of_their_own(here: Path) -> None:
    assert opened(config_for(), "teach") == Path("runs/teach/run")
    assert opened(load_config(DistillConfig, DISTILL, []), "distill") == Path("runs/distill/run")
    assert sorted(p.name for p in (here / "runs").iterdir()) == ["distill", "teach"]


# --- one process at a time ------------------------------------------------------------------------------------------


def test_a_run_that_another_process_works_in_is_refused_until_that_process_is_gone(tmp_path: Path) -> None:
    config = config_for(tmp_path / "run")
    begun(config)
    before = files(tmp_path)
    with held_by_another_process(tmp_path / "run"):
        with pytest.raises(CheckpointError, match=r"run: another process is working in this run; wait, or choose"):
            opened(config)
        assert files(tmp_path) == before
    assert opened(config) == tmp_path / "run", "a lock that its process left behind is none"


def test_a_default_directory_that_is_worked_in_is_passed_over(here: Path) -> None:
    begun(config_for())
    with held_by_another_process(here / "runs/teach/run"):
        assert opened(config_for()) == Path("runs/teach/run-2")


def test_the_lock_is_held_while_the_job_is_open_and_freed_when_it_fails(tmp_path: Path) -> None:
    config = config_for(tmp_path / "run")
    with open_job("teach", config), pytest.raises(CheckpointError, match="another process"):
        opened(config)
    with pytest.raises(ZeroDivisionError), open_job("teach", config):
        raise ZeroDivisionError
    assert opened(config) == tmp_path / "run"


def test_a_lock_is_not_held_by_a_forked_worker_that_outlives_the_run(tmp_path: Path) -> None:
    config = config_for(tmp_path / "run")
    fork = multiprocessing.get_context("fork")
    started, ends = fork.Event(), fork.Event()

    def work() -> None:
        started.set()
        ends.wait()

    worker = fork.Process(target=work, daemon=True)
    with open_job("teach", config):
        worker.start()
        started.wait()
        with pytest.raises(CheckpointError, match="another process"):
            opened(config)
    assert opened(config) == tmp_path / "run"
    assert worker.is_alive()
    ends.set()
    worker.join()


def test_a_file_system_without_locks_is_not_taken_for_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    line = r"run: this file system has no locks \(No locks available\); choose an out= on another$"
    with pytest.raises(CheckpointError, match=line):
        opened(config_for(tmp_path / "run"))


# --- what is resumed ------------------------------------------------------------------------------------------------

CHANGES: dict[str, Callable[[Path], str]] = {
    "name": lambda _: "name=another",
    "out": lambda out: f"out={out.parent}/../{out.parent.name}/{out.name}",
    "device": lambda _: "device=auto",
    "threads": lambda _: "threads=1",
    "checkpoint_every": lambda _: "checkpoint_every=7",
    "keep_checkpoints": lambda _: "keep_checkpoints=7",
    "track": lambda _: "track=[tensorboard]",
    "trust": lambda out: f"trust={out.parent}",
}


def test_every_free_key_is_tried_below() -> None:
    elsewhere = {
        "cache": "evaluate, which does not resume",
        "batch_size": "generate, tested there",
        "baseline": "distill, tested in test_baseline",
    }
    assert set(CHANGES) == FREE_TO_CHANGE - set(elsewhere)


@pytest.mark.parametrize("key", CHANGES)
def test_a_free_key_may_change_when_a_run_is_resumed(tmp_path: Path, key: str) -> None:
    out = tmp_path / "run"
    changed = config_for(out, CHANGES[key](out))
    assert changed != config_for(out)
    out.mkdir()
    (out / CONFIG).write_text(dump_config(changed))
    (out / METRICS).write_text('{"step": 1}\n')
    assert opened(config_for(out)).samefile(out)


def test_a_run_is_gone_on_with_after_it_was_moved_with_what_lies_beside_it(tmp_path: Path) -> None:
    def parts(folder: Path, teacher: str = "teach") -> DistillConfig:
        changes = [f"out={folder / 'distill'}", f"teacher.model={folder / teacher}"]
        return load_config(DistillConfig, DISTILL, changes)

    (opened(parts(tmp_path / "flow"), "distill") / RESULT).write_text('{"job": "distill"}')
    (tmp_path / "flow").rename(tmp_path / "moved")
    with open_job("distill", parts(tmp_path / "moved")) as job:
        assert job.finished is not None
    with pytest.raises(ConfigError, match=r"changed: teacher\.model\. Choose another out="):
        opened(parts(tmp_path / "moved", "another"), "distill")


@pytest.mark.parametrize("trace", WORK)
def test_any_trace_of_work_forbids_another_configuration(tmp_path: Path, trace: str) -> None:
    config = config_for(tmp_path / "run")
    directory = begun(config)
    (directory / trace).write_text("{}") if "." in trace else (directory / trace).mkdir()
    before = files(directory)
    changes = ["seed=3", "training.optimizer.lr=0.05", "threads=2", "model.kind=load", "model.model=t"]
    with pytest.raises(ConfigError, match=r"changed: seed, model\.kind, training\.optimizer\.lr\. Choose another out="):
        opened(config_for(tmp_path / "run", *changes))
    assert files(directory) == before


def test_work_is_looked_for_where_it_is_kept(tmp_path: Path) -> None:
    with open_job("teach", config_for(tmp_path / "run")) as job:
        assert job.store.directory.name in WORK
    assert {RESULT, PARTS, JOURNAL} < set(WORK)


def test_before_any_work_another_configuration_takes_its_place(tmp_path: Path) -> None:
    directory = begun(config_for(tmp_path / "run"))
    (directory / "samples").mkdir()
    (directory / "samples" / "step_000001.png").write_text("of the other configuration, as the log is")
    assert opened(config_for(tmp_path / "run", "threads=1")) == directory
    assert (directory / METRICS).exists(), "of the same configuration"
    corrected = config_for(tmp_path / "run", "seed=3")
    opened(corrected)
    assert load_config(TeachConfig, directory / CONFIG, []) == corrected
    assert set(files(directory)) == {".lock", CONFIG}


def test_a_result_is_handed_out_and_what_a_finished_run_need_not_keep_is_dropped(tmp_path: Path) -> None:
    config = config_for(tmp_path / "run")
    directory = finished(config, '{"job": "teach", "seconds": 1.5}')
    for left in ("checkpoints", "bank"):
        (directory / left).mkdir()
        (directory / left / "file").write_text("from before a kill")
    with open_job("teach", config) as job:
        assert job.finished == TeachResult(seconds=1.5)
    assert sorted(files(directory)) == sorted([".lock", CONFIG, METRICS, REPORT, RESULT])
    assert json.loads((directory / RESULT).read_text()) == {"job": "teach", "seconds": 1.5}


@pytest.mark.parametrize("content", ["", '{"seconds": 1.', "\x00\x00", "3", "[]", "{}"])
def test_a_damaged_result_is_an_error_with_a_remedy_that_works(tmp_path: Path, content: str) -> None:
    config = config_for(tmp_path / "run")
    directory = finished(config, content)
    (directory / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match=r"result\.json is damaged \(.*\); delete it to finish the run again$"):
        opened(config)
    assert (directory / "checkpoints").exists(), "nothing is tidied away for a result that nobody can read"
    (directory / RESULT).unlink()
    assert opened(config) == directory


# --- what is never touched ------------------------------------------------------------------------------------------


def test_a_foreign_directory_is_refused_without_a_trace(tmp_path: Path) -> None:
    for name in ("a.tex", "b.tex", "c.tex", "d.tex"):
        (tmp_path / name).write_text(name)
    before = files(tmp_path)
    with pytest.raises(CheckpointError, match=r"no run of synthkd \(it holds a\.tex, b\.tex, c\.tex\); choose another"):
        opened(config_for(tmp_path))
    assert files(tmp_path) == before, "not even a lock"


@pytest.mark.parametrize("left", [[], [".lock"]])
def test_an_empty_directory_may_be_used_or_one_that_was_only_locked(tmp_path: Path, left: list[str]) -> None:
    for name in left:
        (tmp_path / name).touch()
    assert opened(config_for(tmp_path)) == tmp_path


@pytest.mark.parametrize("end", [begun, finished])
def test_a_run_of_another_job_is_refused_with_one_line(tmp_path: Path, end: Callable[[JobConfig], Path]) -> None:
    directory = end(config_for(tmp_path / "run"))
    before = files(directory)
    line = rf"^{re.escape(str(directory))} holds a run of another job [^\n]*; choose another out=$"
    with pytest.raises(CheckpointError, match=line):
        opened(load_config(DistillConfig, DISTILL, [f"out={directory}"]), "distill")
    assert files(directory) == before
