"""Processes of torchrun that are killed, slow or without disk: the run goes on, and ends as without faults."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from synthkd.pipelines import cli
from synthkd.pipelines.run import job

RECIPE = {
    "teacher": {
        "kind": "train", "data": {"kind": "digits"}, "model": {"arch": "mlp", "width": 8}, "training": {"steps": 6}
    },
    "student": {"arch": "mlp", "width": 8},
    "transfer_set": {
        "generator": {"kind": "pixels", "batch_size": 10, "steps": 1}, "bank": {"capacity": 20, "storage": "disk"}
    },
    "phases": [{"kind": "pregenerate", "rounds": 1}, {"kind": "joint", "steps": 20, "every": 4}],
    "distill": {"batch_size": 8},
    "inherit": False,
    "device": "cpu",
    "grid_every": 1000,
    "checkpoint_every": 5,
}  # fmt: skip
KILL = "os.kill(os.getpid(), signal.SIGKILL)"
KILL_ALL = f"os.kill(os.getppid(), signal.SIGKILL); {KILL}"
"""The process and the torchrun that has started it."""
STOP = "subprocess.Popen(['sh', '-c', f'sleep 3; kill -CONT {os.getpid()}']); os.kill(os.getpid(), signal.SIGSTOP)"
FULL = "resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))"
FAULTY = """
import json, os, resource, signal, subprocess, sys
from pathlib import Path
from synthkd.pipelines import cli
from synthkd.pipelines.run import job
from synthkd.training.learner import Learner

marks, faults, *words = sys.argv[1:]

def meet(step):
    # Each fault happens once, after those before it, in the process of its rank.
    for number, (rank, at, action) in enumerate(json.loads(faults)):
        mark = Path(marks) / f"fault{number}"
        if not mark.exists():
            if (os.environ["RANK"], step) == (str(rank), at):
                mark.touch()
                exec(action)
            return

update = Learner.update

def faulty(self, loss, step):
    meet(step)
    return update(self, loss, step)

Learner.update, job.write_report = faulty, lambda _: None
meet("start")
sys.exit(cli.main(words))
"""
Fault = tuple[int, int | str, str]
"""Rank of the process, step (or "start"), and what happens to it."""
ENDED = "error: another process of this run has ended (on "


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recipe and the script."""
    place = tmp_path_factory.mktemp("elastic")
    (place / "distill.yaml").write_text(json.dumps(RECIPE))
    (place / "faulty.py").write_text(FAULTY)
    return place


@pytest.fixture(scope="module")
def alone(home: Path) -> Path:
    """A run of one process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "write_report", lambda _: None)
        assert cli.main(["distill", str(home / "distill.yaml"), f"out={home / 'alone'}"]) == 0
    return home / "alone"


@pytest.fixture(scope="module")
def together(home: Path) -> Path:
    """A run of two processes without faults."""
    done = under_torchrun(home, "together")
    assert done.returncode == 0, done.stderr
    return home / "together"


def script(home: Path, out: str, faults: tuple[Fault, ...], changes: tuple[str, ...] = ()) -> list[str]:
    """The words after torchrun's own."""
    marks = home / f"{out}-{len(list(home.iterdir()))}"
    marks.mkdir()
    job_words = ["distill", str(home / "distill.yaml"), f"out={home / out}", *changes]
    return [str(home / "faulty.py"), str(marks), json.dumps(faults), *job_words]


def under_torchrun(
    home: Path, out: str, *faults: Fault, restarts: int = 0, changes: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """The recipe, with changes, in two processes."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "--max-restarts", str(restarts), *script(home, out, faults, changes)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)


def student(run: Path) -> bytes:
    return (run / "student" / "model.safetensors").read_bytes()


def assert_near(run: Path, other: Path) -> None:
    """The students of two runs differ by rounding at most."""
    one, two = (load_file(path / "student" / "model.safetensors") for path in (run, other))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5, msg=name)


def resumed(run: Path) -> list[int]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["step"] for row in rows if row.get("kind") == "resume"]


def test_a_killed_process_is_replaced_and_the_run_ends_as_without_the_kill(home: Path, alone: Path) -> None:
    done = under_torchrun(home, "killed", (1, 12, KILL), restarts=1)
    assert done.returncode == 0, done.stderr
    assert resumed(home / "killed") == [10]
    assert_near(home / "killed", alone)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert [line.startswith(ENDED) for line in errors] == [True]
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_kill_between_the_rounds_of_a_group_changes_no_byte(home: Path) -> None:
    # Rounds at steps 0, 4, 8, ... are made by twos: at the checkpoint after step 10 that of step 12 is there already.
    teacher = "teacher={kind: train, data: {kind: digits}, model: {arch: convnet, width: 4}, training: {steps: 6}}"
    generated = "{generator: {kind: inversion, batch_size: 10, steps: 1, width: 8, latent: 16}, bank: {capacity: 60}}"
    changes = (teacher, f"transfer_set={generated}", "sync=fast")
    for out, faults in (("fast", ()), ("fast_killed", ((1, 11, KILL),))):
        done = under_torchrun(home, out, *faults, restarts=1, changes=changes)
        assert done.returncode == 0, done.stderr
    assert resumed(home / "fast_killed") == [10]
    for network in ("student", "generator"):
        one, two = (home / out / network / "model.safetensors" for out in ("fast", "fast_killed"))
        assert one.read_bytes() == two.read_bytes(), network


@pytest.mark.slow
def test_kills_of_any_process_and_a_slow_one_change_no_byte(home: Path, together: Path) -> None:
    faults: tuple[Fault, ...] = ((1, 12, KILL), (0, 16, KILL), (1, 18, STOP))
    done = under_torchrun(home, "broken", *faults, restarts=3)
    assert done.returncode == 0, done.stderr
    assert resumed(home / "broken") == [10, 15]
    assert len(list(home.glob("broken-*/fault*"))) == 3
    assert student(home / "broken") == student(together)
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes_and_after_a_full_disk(
    home: Path, alone: Path, together: Path
) -> None:
    full = under_torchrun(home, "two", (1, 12, FULL))  # it writes a later round of images
    assert full.returncode != 0
    errors = [line for line in full.stderr.splitlines() if line.startswith("error") and not line.startswith(ENDED)]
    assert len(errors) == 1, full.stderr
    assert str(home / "two" / "bank" / "process1") in errors[0]
    assert full.stderr.partition("Traceback")[2].count("Traceback") == 0, "torchrun has one of its own"
    assert (home / "two" / "checkpoints" / "step_00000010").exists()
    # Process 1 ends with them, since nobody answers it.
    assert under_torchrun(home, "two", (0, 18, KILL_ALL)).returncode == -9
    assert not (home / "two" / "result.json").exists()
    shutil.copytree(home / "two", home / "one")

    assert under_torchrun(home, "two").returncode == 0
    assert len(resumed(home / "two")) == 2
    assert student(home / "two") == student(together)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "write_report", lambda _: None)
        assert cli.main(["distill", str(home / "distill.yaml"), f"out={home / 'one'}"]) == 0
    assert resumed(home / "one") == resumed(home / "two")
    assert_near(home / "one", alone)
    assert_near(home / "two", alone)


@pytest.fixture
def two_machines() -> Iterator[list[str]]:
    """Names of two network namespaces with a cable between them; the first has the address 10.77.0.1."""
    names = [f"synthkd{os.getpid()}{side}" for side in "ab"]
    if shutil.which("ip") is None or subprocess.run(["ip", "netns", "add", names[0]], capture_output=True).returncode:
        pytest.skip("network namespaces are for root alone")
    try:
        cable = [f"link add end0 netns {names[0]} type veth peer name end0 netns {names[1]}"]
        for number, name in enumerate(names, 1):
            cable.append(f"-n {name} addr add 10.77.0.{number}/24 dev end0")
            cable += [f"-n {name} link set {end} up" for end in ("lo", "end0")]
        for line in [f"netns add {names[1]}", *cable]:
            if subprocess.run(["ip", *line.split()], capture_output=True).returncode:
                pytest.skip(f"ip {line}: refused here")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def machine(names: list[str], number: int, words: list[str], **variables: str) -> subprocess.Popen[str]:
    """One process on machine 0 or 1, under a torchrun of its own."""
    address = f"10.77.0.{number + 1}"
    meeting = ["--rdzv-backend", "c10d", "--rdzv-id", "run", "--rdzv-endpoint", "10.77.0.1:29400"]
    meeting += ["--rdzv-conf", f"is_host={1 - number}", "--local-addr", address]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", *meeting]
    return subprocess.Popen(
        ["ip", "netns", "exec", names[number], *torchrun, "--max-restarts", "3", *words],
        env={**os.environ, "GLOO_SOCKET_IFNAME": "end0", **variables}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_a_process_on_another_machine_is_replaced(two_machines: list[str], home: Path, together: Path) -> None:
    words = script(home, "far", ((1, 12, KILL), (0, 16, KILL)))
    machines = [machine(two_machines, number, words) for number in (0, 1)]
    said = [each.communicate(timeout=300)[1] for each in machines]
    assert [each.returncode for each in machines] == [0, 0], said
    assert resumed(home / "far") == [10, 15]
    assert student(home / "far") == student(together)
    assert all(text.count(ENDED + "10.77.0.") == 1 for text in said), "each was told once of the other's end"


@pytest.mark.slow
def test_a_machine_that_is_lost_is_replaced(two_machines: list[str], home: Path, together: Path) -> None:
    # Each torchrun keeps what it knows of the others' stores, unless it is told to ask at each restart.
    ask = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    words = script(home, "lost", ((1, 12, KILL_ALL),))
    machines = [machine(two_machines, number, words, **ask) for number in (0, 1)]
    machines[1].communicate(timeout=300)
    assert machines[1].returncode == -9
    machines[1] = machine(two_machines, 1, words, **ask)
    said = [each.communicate(timeout=300)[1] for each in machines]
    assert [each.returncode for each in machines] == [0, 0], said
    assert resumed(home / "lost") == [10]
    assert student(home / "lost") == student(together)


GLOO = "[third_party/gloo/pair.cc:545] Read error [10.0.0.7]:48343: Connection reset by peer"


@pytest.mark.parametrize(
    ("rank", "local", "error", "said"),
    [
        ("0", "0", GLOO, ENDED + "10.0.0.7); "),
        ("8", "0", "NCCL error: remote process exited or there was a network error", ENDED[:-5] + "; "),
        ("1", "1", GLOO, ""),
    ],
    ids=["first", "first on its machine", "beside another"],
)
def test_the_end_of_another_process_is_a_line(
    rank: str, local: str, error: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> str:
        raise RuntimeError(error)

    monkeypatch.setattr("synthkd.pipelines.cli.own", lambda _: broken)
    monkeypatch.setattr("synthkd.pipelines.cli._config", lambda *_: None)
    with pytest.raises(RuntimeError):
        cli.main(["distill"])
    for name, value in (("RANK", rank), ("LOCAL_RANK", local), ("TORCHELASTIC_RUN_ID", "x")):
        monkeypatch.setenv(name, value)
    assert cli.main(["distill"]) == 6
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == bool(said)
    for line in lines:
        assert line.startswith(said)
        assert "last checkpoint stays" in line
        assert "--max-restarts" in line
        assert line.endswith("the same command resumes")
