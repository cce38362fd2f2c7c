"""Memory and disk that run out end a command in one line, with the right reason, and nothing committed is lost."""

import errno
import resource
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import torch

from synthkd.pipelines.cli import main

TEACH = ["teach", "data.kind=digits", "model.arch=convnet", "model.width=4"]
SLOW = ((), pytest.mark.slow)
PHASES = "[{kind: pregenerate, rounds: 2, discard: 0}, {kind: joint, steps: 6, every: 3}]"
GENERATOR = "{kind: inversion, width: 4, latent: 8, batch_size: 16}"
STUDENT = ["student.arch=convnet", "student.width=4"]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Inside, no file may grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, a generator and two sets of images."""
    place = tmp_path_factory.mktemp("home")
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        images = rng.integers(0, 256, (100, 8, 8, 1), dtype=np.uint8)
        np.savez(place / f"{name}.npz", images=images, labels=np.arange(100) % 10)
    assert main([*TEACH, "training.steps=2", f"out={place / 'teach'}"]) == 0
    assert main([*distill(place), f"out={place / 'distill'}"]) == 0
    return place


def teacher(home: Path) -> str:
    return f"teacher={{kind: load, model: {home / 'teach' / 'teacher'}}}"


def distill(home: Path) -> list[str]:
    return ["distill", teacher(home), *STUDENT, *distillation(), "checkpoint_every=2"]


def distillation(section: str = "") -> list[str]:
    """Settings of a distillation, which are in a section of a compression."""
    settings = [f"transfer_set.generator={GENERATOR}", "distill.batch_size=16", f"phases={PHASES}"]
    return [f"{section}{setting}" for setting in settings]


def commands(home: Path) -> dict[str, list[str]]:
    made = ["generate", teacher(home), f"run={home / 'distill'}", "per_class=4"]
    compress = ["compress", teacher(home), *distillation("distillation."), "checkpoint_every=2"]
    sets = [str(home / "a.npz"), f"real={home / 'b.npz'}"]
    return {
        "teach": [*TEACH, "training.steps=4", "checkpoint_every=2"],
        "distill": distill(home),
        "bank on disk": [*distill(home), "transfer_set.bank.storage=disk", "transfer_set.bank.capacity=40"],
        "folder": made,
        "webdataset": [*made, "format=webdataset"],
        "evaluate": ["evaluate", *sets, teacher(home), "cache=null", f"save_features={home / 'features.safetensors'}"],
        "audit": ["audit", teacher(home), f"members={home / 'a.npz'}", f"nonmembers={home / 'b.npz'}"],
        "compress": [*compress, *STUDENT, "export.formats=[onnx, int8]", "export.calibration=16"],
        "search": [*compress, "export.formats=[]",
                   "search={candidates: 2, population: 2, steps: 2, rounds: 2, max_parameters: 5000}"],
    }  # fmt: skip


@pytest.mark.parametrize("name", [pytest.param(key, marks=SLOW[key == "compress"]) for key in commands(Path())])
def test_a_limit_on_file_sizes_is_named_and_the_same_command_resumes(
    name: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*commands(home)[name], f"out={tmp_path / 'run'}"]
    limits = [0, 4_000, 20_000, 60_000]
    codes = []
    for limit in limits:
        with largest_file(limit):
            codes.append(main(command))
        if codes[-1]:
            errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
            assert len(errors) == 1
            assert "larger than allowed" in errors[0] or "(file too large)" in errors[0], f"{limit}: {errors[0]}"
            assert str(home.parent.parent) in errors[0], "which file"
    assert codes[0] == 6
    assert set(codes) <= {0, 6}
    assert main(command) == 0, "with room it goes on"


def test_what_was_committed_before_the_disk_was_full_is_gone_on_from(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def student(name: str) -> bytes:
        return (tmp_path / name / "student" / "model.safetensors").read_bytes()

    assert main([*distill(home), f"out={tmp_path / 'whole'}"]) == 0
    save, calls = torch.save, iter(range(100))

    def full_from_the_third_on(state: object, file: BinaryIO) -> None:
        if next(calls) < 2:
            return save(state, file)
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full_from_the_third_on)
        assert main([*distill(home), f"out={tmp_path / 'run'}"]) == 6
    checkpoints = tmp_path / "run" / "checkpoints"
    assert f"the disk is full ({checkpoints / 'step_00000006' / 'state.pt'})" in capsys.readouterr().err
    assert {path.name for path in checkpoints.iterdir()} == {"step_00000002", "step_00000004", "rows"}
    assert main([*distill(home), f"out={tmp_path / 'run'}"]) == 0
    assert student("run") == student("whole")
    assert "resumed from step 4" in (tmp_path / "run" / "metrics.jsonl").read_text()


@pytest.mark.parametrize("out", ["file", "file/inside", "n" * 300, "/dev/null", "/proc/none"])
def test_where_no_run_can_be_is_said_in_a_line(
    out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert main([*TEACH, f"out={out}"]) == 6
    error = capsys.readouterr().err
    assert error.startswith(f"error: {out}")
    assert error.count("\n") == 1


def test_a_file_in_the_way_of_saved_features_is_said_in_a_line(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    command = [word for word in commands(home)["evaluate"] if not word.startswith("save_features")]
    assert main([*command, f"save_features={tmp_path / 'file' / 'x.safetensors'}", f"out={tmp_path / 'run'}"]) == 2
    assert f"{tmp_path / 'file'} is no folder that can be written" in capsys.readouterr().err


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    if (
        shutil.which("mount") is None
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", place], capture_output=True).returncode
    ):
        pytest.skip("a small disk can be mounted by root alone")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_bank_that_the_disk_does_not_hold_is_refused_and_does_not_kill(home: Path, small_disk: Path) -> None:
    # 3 MB of images, of which the run would write enough to meet the disk's end
    on_disk = [*distill(home), "transfer_set.bank.storage=disk", f"out={small_disk / 'run'}"]
    large = [*on_disk, "transfer_set.bank.capacity=40000"]
    done = run_in_a_process(f"sys.exit(main({large!r}))")
    assert done.returncode == 6, done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith(
        "error: transfer_set.bank.capacity: 40,000 images with their logits take 4.8 MB, which do not fit "
    )
    assert "no space left on device" in line
    assert not list((small_disk / "run" / "bank").rglob("*.rows")), "nothing was written"
    assert main([*on_disk, "transfer_set.bank.capacity=40"]) == 0, "a smaller one fits"


def test_a_full_disk_is_named_with_its_file(home: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filler = small_disk / "filler"
    for free in (0, 8_192, 40_960, 81_920):
        shutil.rmtree(small_disk / "run", ignore_errors=True)
        filler.write_bytes(bytes((1 << 20) - free))
        capsys.readouterr()
        assert main([*distill(home), f"out={small_disk / 'run'}"]) == 6
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith(f"error: the disk is full ({small_disk / 'run'}"), error
        filler.unlink()
        assert main([*distill(home), f"out={small_disk / 'run'}"]) == 0


def test_memory_that_runs_out_says_what_would_need_less(home: Path, tmp_path: Path) -> None:
    made = ["generate", teacher(home), "generator={kind: inversion, width: 64, latent: 8, batch_size: 65536}"]
    bank, large = "transfer_set.bank.capacity=20000000", tmp_path / "large.npz"
    np.savez_compressed(large, images=np.zeros((5_000_000, 8, 8), dtype=np.uint8))
    cases = {
        "model": ([*distill(home), "student.width=3000"], "the width of student or generator"),
        "teacher": ([*TEACH, "model.width=3000"], "model.width"),
        "bank": ([*distill(home), bank], "transfer_set.bank.capacity: 20,000,000 images with their logits take"),
        "plan": ([*distill(home), bank, "--dry-run"], "or set transfer_set.bank.storage=disk"),
        "batch": ([*TEACH, "training.batch_size=65536"], "training.batch_size"),
        "private batch": (
            [*TEACH, "training={batch_size: 700, steps: 2, dp: {epsilon: 8, physical_batch: 700}}", "model.norm=group",
             "model.width=64"],
            "with dp: physical_batch",
        ),
        "dataset": ([*made, "rounds=1", "per_class=1"], "generator.batch_size"),
        "evaluate": (["evaluate", str(large), f"real={large}", teacher(home)], "make the sets"),
    }  # fmt: skip
    done = run_in_a_process(
        f"""
        from synthkd.pipelines import distill, evaluate, generate, teach

        distill, evaluate, generate, teach  # what imports need is not what a job needs
        cases = {cases!r}
        for name, (command, _) in cases.items():
            held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (held + (200 << 20), resource.RLIM_INFINITY))
            print("case", name, file=sys.stderr)
            code = main([*command, f"out={tmp_path}/run-{{name}}"])
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            print("code", code, file=sys.stderr)
        """
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = done.stderr.split("case ")[1:]
    assert len(said) == len(cases)
    for (name, (_, expected)), told in zip(cases.items(), said, strict=True):
        errors = [line for line in told.splitlines() if line.startswith("error")]
        assert told.strip().endswith("code 6"), f"{name}: {told}"
        assert len(errors) == 1, told
        assert expected in errors[0], told
        assert "out of memory" in errors[0] or "do not fit the memory" in errors[0], told


def test_output_that_nobody_takes() -> None:
    run = [sys.executable, "-m", "synthkd", "recipes"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(run, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 6
    assert done.stderr == "error: the disk is full; free some space, then the same command resumes\n"


def run_in_a_process(script: str) -> subprocess.CompletedProcess[str]:
    head = "import resource, sys\nimport torch\nfrom synthkd.pipelines.cli import main\ntorch.set_num_threads(1)\n"
    return subprocess.run(
        [sys.executable, "-c", head + textwrap.dedent(script)], capture_output=True, text=True, timeout=100
    )
