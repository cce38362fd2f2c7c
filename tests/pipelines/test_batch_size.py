"""`adapt_batch_size`: a step of the run is tried, leaves nothing behind, and the size it fits is told everywhere."""

import json
import subprocess
import sys
import textwrap
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from synthkd.distillation.synthesis import Synthesis
from synthkd.errors import ConfigError
from synthkd.pipelines import distill, teach
from synthkd.pipelines.config import DistillConfig, TeachConfig
from synthkd.pipelines.run.batch_size import choose_batch_size
from synthkd.pipelines.student.trial import Trial
from synthkd.privacy.journal import JOURNAL
from synthkd.settings.load import load_config
from synthkd.training.learner import Learner
from synthkd.training.monitor import read_rows
from synthkd.types import Batch

TEACH: dict[str, Any] = {
    "data": {"kind": "digits"}, "model": {"arch": "convnet", "width": 4}, "training": {"steps": 4}, "device": "cpu",
}  # fmt: skip
GENERATORS = {
    "inversion": {"kind": "inversion", "width": 4, "latent": 8, "batch_size": 20},
    "pixels": {"kind": "pixels", "batch_size": 20, "steps": 2},
    "noisy_label": {"kind": "noisy_label", "width": 4, "noise": 8, "batch_size": 20, "steps": 2, "life": 2},
    "cgan": {"kind": "cgan", "width": 4, "latent": 8, "batch_size": 20, "steps": 2},
    "merf": {"kind": "merf", "width": 4, "latent": 8, "batch_size": 20, "steps": 2, "epsilon": 8, "test_seed": 0},
}
SMALL: dict[str, Any] = {
    "student": {"arch": "convnet", "width": 4},
    "distill": {"batch_size": 24, "optimizer": {"kind": "adam", "lr": 0.01, "ema": 0.9}},
    "phases": [{"kind": "pregenerate", "rounds": 2, "discard": 0}, {"kind": "joint", "steps": 4, "every": 2}],
    "device": "cpu",
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("home") / "teach"
    teach(load_config(TeachConfig, TEACH, [f"out={out}"]))
    return {"kind": "load", "model": str(out / "teacher")}


def config_of(teacher: dict[str, str], out: Path, *overrides: str, kind: str = "inversion") -> DistillConfig:
    source: dict[str, Any] = {"generator": GENERATORS[kind], "bank": {"capacity": 100}, "live": 0.25}
    if kind in ("cgan", "merf"):
        source["data"] = {"kind": "digits"}
    return load_config(DistillConfig, {**SMALL, "teacher": teacher, "transfer_set": source}, [f"out={out}", *overrides])


def weights(out: Path) -> bytes:
    return (out / "student" / "model.safetensors").read_bytes()


def choices(out: Path) -> list[tuple[str, int]]:
    return [(row["event"], row["batch_size"]) for row in read_rows(out / "metrics.jsonl") if "batch_size" in row]


@pytest.mark.parametrize("kind", GENERATORS)
def test_a_trial_that_fits_changes_no_number_of_the_run(kind: str, teacher: dict[str, str], tmp_path: Path) -> None:
    for name in ("false", "true"):
        distill(config_of(teacher, tmp_path / name, f"adapt_batch_size={name}", kind=kind))
    assert weights(tmp_path / "true") == weights(tmp_path / "false")
    assert choices(tmp_path / "false") == []
    assert choices(tmp_path / "true") == [("batch size 24 (adapt_batch_size: they fit the memory)", 24)]
    assert not [row for row in read_rows(tmp_path / "true" / "metrics.jsonl") if row.get("kind") == "resume"]
    assert json.loads((tmp_path / "true" / "result.json").read_text())["cost"]["batch_size"] == 24
    if kind == "merf":
        spent = {(tmp_path / name / JOURNAL).read_text().count("\n") for name in ("true", "false")}
        assert spent == {1}, "a trial is not charged to the budget"


def test_a_size_that_fits_is_in_plan_result_and_report_and_a_resume_keeps_it(
    teacher: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt, most = Trial.__call__, 20

    def limited(self: Trial, count: int) -> None:
        if count > most:
            raise RuntimeError("could not create a primitive")
        attempt(self, count)

    monkeypatch.setattr(Trial, "__call__", limited)
    config = config_of(teacher, tmp_path / "run", "adapt_batch_size=true", "checkpoint_every=1")
    plan = distill(config, dry_run=True).lines
    assert "  student steps: 4 of 14 images (adapt_batch_size: 24 do not fit the memory)" in plan
    with monkeypatch.context() as patch:
        patch.setattr(Synthesis, "beside_student", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            distill(config)
    most = 5  # what fits now no longer matters
    result = distill(config).content
    assert result.cost.batch_size == 14
    assert result.interrupted == 1
    assert choices(tmp_path / "run") == [("batch size 14 (adapt_batch_size: 24 do not fit the memory)", 14)]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "adapt_batch_size: 24 do not fit the memory" in page
    assert "Images of a step" in page


def test_a_teacher_that_is_trained_first_has_its_own_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    module = import_module("synthkd.pipelines.teacher.learning")
    step = module.plain_step

    def limited(learner: Learner, batch: Batch, accelerator: Accelerator, number: int) -> dict[str, Any]:
        tried.append(len(batch))
        if len(batch) > 60:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return step(learner, batch, accelerator, number)

    monkeypatch.setattr(module, "plain_step", limited)
    config = load_config(
        TeachConfig, TEACH, [f"out={tmp_path / 'run'}", "adapt_batch_size=true", "training.batch_size=64"]
    )
    assert "  steps: 4 of 45 images (0.1 epochs, adapt_batch_size: 64 do not fit the memory)" in str(
        teach(config, dry_run=True)
    )
    tried.clear()
    result = teach(config)
    assert tried == [64, 57, 57, *[45] * 4]
    assert result.content.cost.batch_size == 45
    assert choices(tmp_path / "run") == [("batch size 45 (adapt_batch_size: 64 do not fit the memory)", 45)]


def test_several_processes_are_refused() -> None:
    class Two:
        num_processes = 2

    config = load_config(TeachConfig, TEACH, ["adapt_batch_size=true"])
    with pytest.raises(ConfigError, match="adapt_batch_size: a step is tried in one process only"):
        choose_batch_size(config, 8, Two(), None, [], print)  # type: ignore[arg-type]


def test_a_memory_that_is_too_small_ends_in_one_line_or_in_a_smaller_batch(
    teacher: dict[str, str], tmp_path: Path
) -> None:
    """Under a limit on the address space: the batch that was asked for needs several times as much, and what the cases
    before leave on the heap is little beside it."""
    distillation = [
        "distill", f"teacher={json.dumps(teacher)}", "student={arch: convnet, width: 32}", "device=cpu",
        "transfer_set={generator: {width: 4, latent: 8, batch_size: 20}, bank: {capacity: 200}}",
        "phases=[{kind: joint, steps: 2}]",
    ]  # fmt: skip
    teaching = ["teach", "data.kind=digits", "model={arch: convnet, width: 32}", "device=cpu", "training.steps=2"]
    large, adapts = "distill.batch_size=32000", "adapt_batch_size=true"
    cases = {
        "refused": [*distillation, large],
        "adapted": [*distillation, large, adapts],
        "teacher": [*teaching, "training.batch_size=32000", adapts],
        "nothing": [*distillation, adapts, "student.width=3000"],
    }
    # What a first run imports must not count.
    script = f"""
        import resource, sys
        import torch
        from synthkd.pipelines.cli import main

        torch.set_num_threads(1)
        main([*{distillation!r}, "distill.batch_size=8", "out={tmp_path}/first"])
        main([*{teaching!r}, "training.batch_size=8", "out={tmp_path}/second"])
        for name, command in {cases!r}.items():
            held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (held + (256 << 20), resource.RLIM_INFINITY))
            print("case", name, file=sys.stderr)
            code = main([*command, f"out={tmp_path}/{{name}}"])
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            print("code", code, file=sys.stderr)
        """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    told = dict(zip(cases, done.stderr.split("case ")[1:], strict=True))
    codes = {name: text.rstrip().rpartition("code ")[2] for name, text in told.items()}
    # How the heap is cut up before a step may differ from the trial: an adapted run may fail too, but in one line.
    assert (codes["refused"], codes["nothing"]) == ("6", "6"), done.stderr[-3000:]
    assert {codes["adapted"], codes["teacher"]} <= {"0", "6"}, done.stderr[-3000:]
    for name in (name for name, code in codes.items() if code == "6"):
        (line,) = [line for line in told[name].splitlines() if line.startswith("error")]
        assert line.startswith("error: out of memory") or "not even one image fits" in line
    assert "adapt_batch_size=true" in told["refused"]
    for name in (name for name in ("adapted", "teacher") if codes[name] == "0"):
        ((event, chosen),) = choices(tmp_path / name)
        assert 0 < chosen < 32_000
        assert json.loads((tmp_path / name / "result.json").read_text())["cost"]["batch_size"] == chosen
        assert "do not fit the memory" in event
