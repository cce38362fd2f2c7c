"""The main job on real digits, from a trained teacher to the report, and everything that may go wrong on the way."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import synthkd
from synthkd.data.read.real import load_splits
from synthkd.distillation.step import DistillStep
from synthkd.errors import CheckpointError, ConfigError, DataError, ModelError, TrainingError
from synthkd.models import load
from synthkd.models.channels_last import channels_last
from synthkd.pipelines import distill, generate, teach
from synthkd.pipelines.config import DistillConfig, GenerateConfig, TeachConfig
from synthkd.pipelines.distill import Distilled
from synthkd.pipelines.run.result import Plan, Result
from synthkd.settings import DigitsData
from synthkd.settings.load import load_config
from synthkd.system.sealed import unsealed
from synthkd.training.monitor import read_rows, series

TEACHER: dict[str, Any] = {
    "data": {"kind": "digits"},
    "model": {"arch": "convnet", "width": 12},
    "training": {"steps": 150, "batch_size": 64, "optimizer": {"lr": 1e-2, "schedule": "one_cycle"}},
    "device": "cpu",
    "checkpoint_every": 50,
    "evaluate_every": 75,
}
GENERATED: dict[str, Any] = {
    "generator": {"batch_size": 32, "width": 8, "latent": 32},
    "difficulty": {"start": 0.8},
    "bank": {"capacity": 150},
}
SMALL: dict[str, Any] = {
    "student": {"arch": "convnet", "width": 6},
    "transfer_set": GENERATED,
    "phases": [
        {"kind": "pregenerate", "rounds": 4, "discard": 2},
        {"kind": "joint", "steps": 40, "every": 8},
        {"kind": "refine", "steps": 8},
    ],
    "distill": {"batch_size": 32, "temperature": 10, "optimizer": {"lr": 5e-3, "ema": 0.9, "clip": 5.0}},
    "device": "cpu",
    "checkpoint_every": 10,
    "evaluate_every": 20,
    "grid_every": 3,
    "log_every": 4,
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("teacher") / "run"
    result = teach(load_config(TeachConfig, TEACHER, [f"out={out}"]))
    assert isinstance(result, Result)
    assert result.values["teacher"]["accuracy"] > 0.9
    return out


def real(share: float, **data: Any) -> dict[str, Any]:
    """Real images, digits unless `data` says others, that have a share of each batch."""
    return {"kind": "real", "data": {"kind": "digits", **data}, "share": share}


def config_for(teacher: Path, out: Path | None = None, *overrides: str, **changes: Any) -> DistillConfig:
    source = {"teacher": {"kind": "load", "model": str(teacher)}, **SMALL, **changes}
    return load_config(DistillConfig, source, [*([] if out is None else [f"out={out}"]), *overrides])


def run(config: DistillConfig) -> Result:
    result = distill(config)
    assert isinstance(result, Result)
    return result


def student_bytes(directory: Path) -> bytes:
    return (directory / "student" / "model.safetensors").read_bytes()


def test_teacher_and_student_from_one_recipe(tmp_path: Path) -> None:
    recipe = {
        **SMALL,
        "teacher": {"kind": "train", **{k: TEACHER[k] for k in ("data", "model", "training")}},
        "test": {"kind": "digits"},
    }
    phases = ["phases.1.steps=250", "phases.1.every=10"]
    out = tmp_path / "run"
    result = run(load_config(DistillConfig, recipe, [f"out={out}", "seed=3", *phases]))
    saved = unsealed((out / "result.json").read_bytes())
    assert saved == result.values
    assert saved["seed"] == 3
    assert saved["real_images_used"] == 0
    assert saved["teacher"]["accuracy"] > 0.9
    assert saved["student"]["accuracy"] > 0.6
    assert saved["student"]["n"] == 359
    low, high = saved["student"]["accuracy_interval"]
    assert low < saved["student"]["accuracy"] < high
    assert saved["student"]["agreement_on"] == "test"
    assert saved["student"]["parameters"] < 0.35 * saved["teacher"]["parameters"]
    assert saved["seconds"] == pytest.approx(sum(saved["cost"]["seconds"].values()), abs=0.01)
    assert {"cpu", "cores", "threads", "torch", "python"} <= set(saved["hardware"])
    assert (out / "report.html").stat().st_size > 20_000
    assert len(list((out / "checkpoints").glob("step_*"))) == 1, "a finished run keeps the last one, to be extended"
    assert len(list((out / "samples").glob("step_*.png"))) > 2
    student = synthkd.load(out)
    assert student.spec.shape == (1, 8, 8)
    assert student(torch.rand(2, 1, 8, 8)).shape == (2, 10)
    for text in (str(out / "report.html"), str(out / "student"), "and never saw a real image."):
        assert text in str(result)


def test_a_finished_run_is_not_run_again(teacher: Path, tmp_path: Path) -> None:
    config = config_for(teacher, tmp_path / "run")
    first = run(config)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.is_file() and p.name != ".lock"}
    second = run(config)
    assert second.values == first.values
    assert "complete already" in str(second)
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_without_test_data_agreement_and_alarms_are_reported(teacher: Path, tmp_path: Path) -> None:
    values = run(config_for(teacher, tmp_path / "run")).values
    assert values["teacher"]["accuracy"] is None
    assert values["student"]["accuracy"] is None
    assert values["student"]["agreement_on"] == "fresh synthetic samples"
    assert values["student"]["agreement_n"] == 500
    assert "no real test data" in (tmp_path / "run" / "report.html").read_text().lower()


def test_a_stopped_and_resumed_run_ends_with_the_same_bytes(teacher: Path, tmp_path: Path) -> None:
    """With kill -9 at an arbitrary moment, on a bank on disk with priorities, in a process of its own."""
    source = {
        "teacher": {"kind": "load", "model": str(teacher)},
        **SMALL,
        "transfer_set": {
            **GENERATED,
            "bank": {"capacity": 150, "policy": "prioritized", "storage": "disk"},
            "live": 0.1,
        },
        "mix": {"mixup": 0.5},
    }
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(source))
    command = [sys.executable, "-m", "synthkd", "distill", str(recipe)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def complete(out: Path) -> str:
        done = subprocess.run(
            [*command, f"out={out}"], env=environment, capture_output=True, text=True, timeout=240, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stderr

    straight, broken = tmp_path / "straight", tmp_path / "broken"
    complete(straight)
    process = subprocess.Popen(
        [*command, f"out={broken}"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 200
    while not (broken / "checkpoints" / "step_00000020").exists():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (broken / "student").exists()
    assert "resumed after step" in complete(broken)
    assert student_bytes(straight) == student_bytes(broken)
    curves = [
        [(r["step"], r.get("student/loss"), r.get("difficulty")) for r in rows if "event" not in r]
        for rows in (
            [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
            for out in (straight, broken)
        )
    ]
    assert curves[0] == curves[1]


def test_seeds_matter_and_repeat(teacher: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(config_for(teacher, tmp_path / name, f"seed={seed}"))
    assert student_bytes(tmp_path / "a") == student_bytes(tmp_path / "b")
    assert student_bytes(tmp_path / "a") != student_bytes(tmp_path / "c")


AUDITED = """
import sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
from synthkd.settings.load import load_config
from synthkd.pipelines import distill
from synthkd.pipelines.config import DistillConfig
distill(load_config(DistillConfig, sys.argv[1], sys.argv[2:]))
print("\\n".join(opened))
"""


def test_a_run_without_real_data_opens_no_image(teacher: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"teacher": {"kind": "load", "model": str(teacher)}, **SMALL}))

    def opened(*overrides: str) -> set[str]:
        out = tmp_path / f"run{len(overrides)}"
        done = subprocess.run(
            [sys.executable, "-c", AUDITED, str(recipe), f"out={out}", *overrides],
            env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240, check=True,
        )  # fmt: skip
        # what it wrote itself, and the pictures of the plotting library, are not somebody's data
        paths = {p for p in done.stdout.splitlines() if not p.startswith(str(out)) and "matplotlib" not in p}
        suffixes = (".png", ".jpg", ".jpeg", ".csv", ".gz", ".npz", ".npy", "ubyte", ".bin", ".pkl", ".tar")
        return {p for p in paths if p.lower().endswith(suffixes)}

    assert opened() == set()
    assert any("digits.csv" in path for path in opened("test.kind=digits")), "the audit sees images that are opened"


def test_real_images_can_be_mixed_in_and_are_counted(teacher: Path, tmp_path: Path) -> None:
    mixed = {"transfer_set": [GENERATED, real(0.25)], "mix": {"mixup": 0.25}, "inherit": True}
    config = config_for(teacher, tmp_path / "run", **mixed)
    assert 0 < run(config).values["real_images_used"] <= 48 * 8


def test_dry_run_writes_nothing_and_names_the_sizes(teacher: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    plan = distill(config_for(teacher), dry_run=True)
    assert isinstance(plan, Plan)
    assert list(tmp_path.iterdir()) == []
    for text in ("1x8x8 images, 10 classes", "BatchNorm layers", "of the teacher's", "48 of 32", "9, 288 images"):
        assert text in str(plan)


def test_a_changed_configuration_is_refused_with_the_keys(teacher: Path, tmp_path: Path) -> None:
    run(config_for(teacher, tmp_path / "run"))
    changed = ["distill.temperature=7", "phases.1.every=4"]
    with pytest.raises(ConfigError, match=r"changed: distill\.temperature, phases\.1\.every"):
        distill(config_for(teacher, tmp_path / "run", *changed))
    assert isinstance(distill(config_for(teacher, tmp_path / "run", "threads=1")), Result), "threads may differ"


def test_a_foreign_directory_is_refused(teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match=r"no run of synthkd \(it holds thesis\.tex\)"):
        distill(config_for(teacher, tmp_path))
    assert [p.name for p in tmp_path.iterdir() if p.name != ".lock"] == ["thesis.tex"]


def test_a_file_is_no_run_directory(teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match=r"cannot be used as a run directory \(File exists\)"):
        distill(config_for(teacher, tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "mine"


def test_default_directories_are_numbered(teacher: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    names = [run(config_for(teacher, None, "name=mine")).directory for _ in range(2)]
    assert [str(n) for n in names] == ["runs/distill/mine", "runs/distill/mine-2"]


def test_nan_stops_at_its_step_and_keeps_the_last_checkpoint(teacher: Path, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "poison.py").write_text(
        "import torch\n"
        "count = 0\n"
        "def term(view):\n"
        "    global count\n"
        "    count += 1\n"
        "    return view.student.mean() * (float('nan') if count > 26 else 0.0)\n"
    )  # the first call is the rehearsal
    monkeypatch.chdir(tmp_path)
    config = config_for(teacher, tmp_path / "run", 'distill.terms={"poison:term": 1.0}')
    with pytest.raises(TrainingError, match=r"student: the loss is not finite at step 25 \(poison:term=nan\)"):
        distill(config)
    kept = (tmp_path / "run" / "checkpoints").glob("step_*")
    assert sorted(path.name for path in kept) == ["step_00000010", "step_00000020"]
    assert not (tmp_path / "run" / "student").exists()


def test_a_newcomers_loss_is_the_function_of_the_docs_and_one_line(
    teacher: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    docs = (Path(__file__).parents[2] / "docs" / "distill.md").read_text(encoding="utf-8")
    code = docs.partition("## A loss of your own")[2].partition("```python\n")[2].partition("```")[0]
    (tmp_path / "my_losses.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    line = 'distill.terms={"my_losses:confident": {"kind": "linear", "start": 0.2, "end": 0.0}}'
    result = run(config_for(teacher, tmp_path / "run", line))
    plain = run(config_for(teacher, tmp_path / "plain"))
    rows = read_rows(result.directory / "metrics.jsonl")
    values = series(rows, "student/my_losses:confident")[1]
    assert len(values) > 5
    assert all(0.0 < value <= math.log(10) + 1e-6 for value in values), "an entropy of ten classes"
    assert "My losses:confident" in (result.directory / "report.html").read_text(encoding="utf-8")
    ours, theirs = (load(found.directory, trust=True).state_dict() for found in (result, plain))
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours), "it has a part in what is learned"


def test_a_wrong_loss_of_ones_own_is_told_before_a_teacher_is_trained(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "wrong.py").write_text("def rows(view):\n    return view.student.amax(1)\n")
    monkeypatch.chdir(tmp_path)
    later = 'distill.terms={"wrong:rows": {"kind": "linear", "start": 0.0, "end": 1.0}}'
    source = {**SMALL, "teacher": {"kind": "train", **{k: TEACHER[k] for k in ("data", "model", "training")}}}
    config = load_config(DistillConfig, source, [f"out={tmp_path / 'run'}", later])
    for dry_run in (True, False):
        with pytest.raises(ConfigError, match=r"^distill\.terms: wrong:rows .* gave shape \[16\], requires_grad True$"):
            distill(config, dry_run=dry_run)
        assert not (tmp_path / "run" / "teach").exists()


def test_a_teacher_without_batch_norm_is_refused_before_training(tmp_path: Path) -> None:
    source = {**TEACHER, "model": {"arch": "mlp", "width": 32}, "training": {"steps": 5}}
    teach(load_config(TeachConfig, source, [f"out={tmp_path / 'mlp'}"]))
    with pytest.raises(ModelError, match="the generator's kind to pixels, or its batch_norm to 0"):
        distill(config_for(tmp_path / "mlp", tmp_path / "run"))


def test_a_run_that_failed_before_it_began_can_be_corrected_in_place(teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"bank\.capacity: a round of 32 images"):
        distill(config_for(teacher, tmp_path / "run", "transfer_set.bank.capacity=8"))
    small = GENERATED | {"bank": {"capacity": 8}}
    with pytest.raises(ConfigError, match=r"^transfer_set\.0\.bank\.capacity: a round of 32 images"):
        distill(config_for(teacher, tmp_path / "run", transfer_set=[small]))
    assert isinstance(distill(config_for(teacher, tmp_path / "run")), Result)


def test_phases_that_cannot_work_are_refused(teacher: Path) -> None:
    refine = {"kind": "refine", "steps": 5}
    for phases, message in (
        ([], "no step to learn in"),
        ([refine], r"phases\.0: refine would draw from an empty bank"),
        ([{"kind": "pregenerate", "rounds": 2, "discard": 2}, refine], r"phases\.1: refine"),
    ):
        for transfer_set in (GENERATED, [GENERATED, real(0.5)]):
            with pytest.raises(ConfigError, match=message):
                distill(config_for(teacher, None, phases=phases, transfer_set=transfer_set), dry_run=True)
    for transfer_set in ({**GENERATED, "live": 1.0}, [GENERATED, real(1.0)]):
        plan = distill(config_for(teacher, None, phases=[refine], transfer_set=transfer_set), dry_run=True)
        assert isinstance(plan, Plan), "nothing is drawn from the bank"


@pytest.mark.parametrize("generator", ["inversion", "pixels"])
def test_bfloat16_runs(teacher: Path, tmp_path: Path, generator: str) -> None:
    source = GENERATED["generator"] if generator == "inversion" else {"kind": "pixels", "batch_size": 32}
    config = config_for(teacher, tmp_path / "run", "precision=bf16", transfer_set={**GENERATED, "generator": source})
    assert run(config).values["student"]["agreement"] is not None
    assert isinstance(distill(config_for(teacher), dry_run=True), Plan), "another precision in the same process"


def test_a_missing_report_is_written_again(teacher: Path, tmp_path: Path) -> None:
    run(config_for(teacher, tmp_path / "run"))
    (tmp_path / "run" / "report.html").unlink()
    run(config_for(teacher, tmp_path / "run"))
    assert (tmp_path / "run" / "report.html").exists()


def test_hints_and_own_logits_from_a_teacher_without_batch_norm(tmp_path: Path) -> None:
    source = {**TEACHER, "model": {"arch": "lenet5"}, "training": {"steps": 60, "batch_size": 64}}
    teach(load_config(TeachConfig, source, [f"out={tmp_path / 'lenet'}"]))
    options = ["distill.hint=3", "distill.logit_match=1", "student={arch: lenet5, width: 3}"]
    transfer_set = {**GENERATED, "generator": {"kind": "pixels", "batch_size": 32}}
    result = run(config_for(tmp_path / "lenet", tmp_path / "run", *options, transfer_set=transfer_set))
    saved = load(tmp_path / "run")
    assert result.values["student"]["parameters"] == sum(p.numel() for p in saved.parameters()), "no regressor is saved"


def test_two_processes_do_not_share_a_run(teacher: Path, tmp_path: Path) -> None:
    from synthkd.pipelines.run.directory import _lock

    held = _lock(tmp_path / "run")
    with pytest.raises(CheckpointError, match="another process is working in this run"):
        distill(config_for(teacher, tmp_path / "run"))
    held.close()


def test_the_averaged_student_is_what_is_saved(teacher: Path, tmp_path: Path) -> None:
    run(config_for(teacher, tmp_path / "with"))
    run(config_for(teacher, tmp_path / "without", "distill.optimizer.ema=0"))
    assert student_bytes(tmp_path / "with") != student_bytes(tmp_path / "without")
    assert load(tmp_path / "with").spec == load(tmp_path / "without").spec


LEARN = DistillStep.__call__
GENERATORS: dict[str, dict[str, Any]] = {
    "inversion": GENERATED["generator"],
    "cgan": {"kind": "cgan", "batch_size": 32, "steps": 2, "width": 8, "critic_width": 8},
    "diffusion": {"kind": "diffusion", "channels": [8, 8], "batch_size": 32, "real_batch": 16, "steps": 2,
                  "sample_steps": 2, "horizon": 20},
}  # fmt: skip


@pytest.mark.parametrize("kind", GENERATORS)
def test_all_phases_and_student_terms_work_with_every_generator(kind: str, teacher: Path, tmp_path: Path) -> None:
    generator = {**GENERATORS[kind], "distillation": 0.5, "semantic": 0.5}
    changes: dict[str, Any] = {
        "transfer_set": [{**GENERATED, "generator": generator}, real(0.25, per_class=20)],
        "distill": {**SMALL["distill"], "semantic": 1.0, "alpha": 0.3},
        "inherit": True,
    }
    result = run(config_for(teacher, tmp_path / "a", **changes))
    assert result.values["real_images_used"] == (pytest.approx(200, abs=60) if kind == "inversion" else 200)
    log = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    logged = {key for row in log for key in row}
    assert {"generator/distillation", "generator/semantic", "student/semantic", "student/hard"} <= logged
    assert (tmp_path / "a" / "generator" / "generator.json").exists()

    # what it saved goes on elsewhere, as it is
    fixed = {"kind": "saved", "path": str(tmp_path / "a")}
    phases = [{"kind": "joint", "steps": 16, "every": 8}]
    saved = {"transfer_set": {**GENERATED, "generator": fixed}, "phases": phases}
    again = run(config_for(teacher, tmp_path / "b", **saved))
    assert again.values["cost"]["images_generated"] == 64
    assert again.values["real_images_used"] == (0 if kind == "inversion" else 200)


def interrupted(self: DistillStep, step: int) -> dict[str, torch.Tensor | float]:
    """A student's step that stops the run at the 25th."""
    if step == 25:
        raise KeyboardInterrupt
    return LEARN(self, step)


def test_a_stopped_run_with_a_generator_of_real_images_ends_with_the_same_bytes(teacher: Path, tmp_path: Path) -> None:
    for kind in ("cgan", "diffusion"):
        transfer_set = {**GENERATED, "generator": GENERATORS[kind], "data": {"kind": "digits"}}
        changes = {"transfer_set": transfer_set, "phases": SMALL["phases"][:2]}
        straight = run(config_for(teacher, tmp_path / f"{kind} straight", **changes))
        half = config_for(teacher, tmp_path / f"{kind} resumed", **changes)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(DistillStep, "__call__", interrupted)
            with pytest.raises(KeyboardInterrupt):
                run(half)
        resumed = run(half)
        assert student_bytes(straight.directory) == student_bytes(resumed.directory), kind


def test_a_stopped_run_with_an_eviction_by_priority_ends_with_the_same_bytes(teacher: Path, tmp_path: Path) -> None:
    bank = {"capacity": 70, "policy": "prioritized", "evict": "lowest_priority"}
    changes = {"transfer_set": {**GENERATED, "bank": bank}, "phases": SMALL["phases"][:2]}
    straight, half = (config_for(teacher, tmp_path / name, **changes) for name in ("straight", "resumed"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DistillStep, "__call__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(half)
    assert student_bytes(run(straight).directory) == student_bytes(run(half).directory)
    oldest = config_for(teacher, tmp_path / "oldest", "transfer_set.bank.evict=oldest", **changes)
    assert student_bytes(run(oldest).directory) != student_bytes(tmp_path / "straight"), "it makes a difference"


def test_a_dataset_teaches_without_teacher_and_generator(teacher: Path, tmp_path: Path) -> None:
    recipe = {
        "teacher": {"kind": "load", "model": str(teacher)}, "generator": GENERATED["generator"], "rounds": 30,
        "per_class": 30, "device": "cpu",
    }  # fmt: skip
    written = generate(load_config(GenerateConfig, recipe, [f"out={tmp_path / 'made'}"]))
    assert isinstance(written, Result)
    source = {key: SMALL[key] for key in ("student", "distill", "device", "checkpoint_every")}
    source |= {"transfer_set": {"kind": "stored", "path": str(tmp_path / "made")}, "test": {"kind": "digits"}}
    source["phases"] = [{"kind": "refine", "steps": 200}]
    config = load_config(DistillConfig, source, [f"out={tmp_path / 'run'}"])
    assert config.logits == "stored"
    assert isinstance(distill(config, dry_run=True), Plan)
    result = run(config)
    assert result.values["teacher"] is None
    assert result.values["real_images_used"] == 0
    assert result.values["student"]["agreement_on"] == "held-out images of the dataset"
    assert result.values["student"]["agreement_n"] == 15
    assert result.values["student"]["accuracy"] > 0.4
    page = (tmp_path / "run" / "report.html").read_text()
    assert "learned from the soft labels of a dataset" in page
    assert "teacher" not in page.split("<h2>")[1].lower()
    model = load(tmp_path / "run" / "student")
    assert model.class_names == tuple(map(str, range(10)))

    source |= {"teacher": recipe["teacher"], "phases": [{"kind": "refine", "steps": 10}], "inherit": True}
    del source["test"]
    beside = run(load_config(DistillConfig, source, [f"out={tmp_path / 'beside'}"])).values["student"]
    assert (beside["agreement_on"], beside["agreement_n"]) == ("held-out images of the dataset", 15)


def digits_as_npz(path: Path, names: list[str], order: list[int]) -> dict[str, Any]:
    """Half of the digits' test images, with classes in the order of the names; `order[i]` is the label of digit i."""
    test = load_splits(DigitsData(kind="digits")).test
    labels = torch.tensor(order)[test.labels[::2]]
    np.savez(path, images=test.images[::2].numpy(), labels=labels.numpy(), class_names=names)
    return {"kind": "npz", "path": str(path)}


def test_classes_of_test_images_are_found_by_name(teacher: Path, tmp_path: Path) -> None:
    plain = digits_as_npz(tmp_path / "plain.npz", [*map(str, range(10))], [*range(10)])
    turned = digits_as_npz(tmp_path / "turned.npz", [*map(str, range(9, -1, -1))], [*range(9, -1, -1)])
    straight = run(config_for(teacher, tmp_path / "straight", test=plain))
    other = run(config_for(teacher, tmp_path / "other", test=turned))
    assert other.values["student"]["accuracy"] == straight.values["student"]["accuracy"] > 0.4
    assert other.values["teacher"]["accuracy"] > 0.9


def test_other_classes_are_refused_with_both_lists(teacher: Path, tmp_path: Path) -> None:
    data = digits_as_npz(tmp_path / "a.npz", [*map(str, range(8)), "10", "11"], [*range(10)])
    message = r"\(a\.npz\) has images of classes that the teacher does not have: 10, 11 \(it has 0, 1, 2, 3, 4 and 5 m"
    with pytest.raises(DataError, match=r"transfer_set\.1\.data " + message):
        distill(config_for(teacher, None, transfer_set=[GENERATED, real(0.5, **data)]), dry_run=True)
    with pytest.raises(DataError, match="test " + message):
        distill(config_for(teacher, None, test=data), dry_run=True)


def test_in_mixed_precision_the_student_that_is_returned_computes_as_the_saved_one(
    teacher: Path, tmp_path: Path
) -> None:
    few = [{"kind": "pregenerate", "rounds": 1}, {"kind": "refine", "steps": 2}]
    plain = {"batch_size": 32, "optimizer": {"lr": 5e-3}}  # without an average of the weights, which is a copy
    done = distill(config_for(teacher, tmp_path / "run", precision="bf16", phases=few, distill=plain))
    assert isinstance(done, Distilled)
    images = torch.rand(20, 1, 8, 8)
    with torch.no_grad():
        # In one memory order: another one sums in another order, which the last bits show on some processors.
        assert torch.equal(done.student(images), channels_last(load(tmp_path / "run"))(images))


def test_test_images_that_do_not_fit_end_a_run_before_its_teacher_is_trained(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((4, 9, 9), np.uint8), labels=np.zeros(4, int))
    test = {"kind": "npz", "path": str(tmp_path / "a.npz")}
    taught = {"kind": "train", **{key: TEACHER[key] for key in ("data", "model", "training")}}
    source = {**SMALL, "teacher": taught, "test": test}
    for number, changes in enumerate(({}, {"budget": "60s"})):
        out = tmp_path / f"run{number}"
        with pytest.raises(ConfigError, match=r"test: a\.npz has 1x9x9 images"):
            distill(load_config(DistillConfig, {**source, **changes, "out": str(out)}, []))
        assert not list(out.rglob("*.safetensors"))


def test_a_key_beside_kind_auto_is_one_of_the_generator_that_the_teacher_chooses(teacher: Path) -> None:
    chosen = config_for(teacher, None, transfer_set={"generator": {"kind": "auto", "batch_size": 20}})
    plan = str(distill(chosen, dry_run=True))
    assert "generator: inversion, since" in plan
    assert "generator rounds: 9, 180 images" in plan
    wrong = config_for(teacher, None, transfer_set={"generator": {"kind": "auto", "noise": 3}})
    with pytest.raises(ConfigError, match=r"generator\.noise: this teacher chooses inversion, which has no such key"):
        distill(wrong, dry_run=True)
    listed = config_for(teacher, None, transfer_set=[{"generator": {"kind": "auto", "noise": 3}}])
    with pytest.raises(ConfigError, match=r"^transfer_set\.0\.generator\.noise: this teacher chooses"):
        distill(listed, dry_run=True)


def test_a_dry_run_holds_no_bank_that_goes_to_disk(teacher: Path) -> None:
    bank = {"storage": "disk", "capacity": 100_000_000}
    plan = str(distill(config_for(teacher, None, transfer_set={**GENERATED, "bank": bank}), dry_run=True))
    assert re.search(r"and 12,000 MB of memory bank while it runs", plan)


def test_the_plan_counts_the_test_images(teacher: Path, tmp_path: Path) -> None:
    test = load_splits(DigitsData(kind="digits")).test
    few = test.labels < 4
    names = ["0", "1", "2", "3"]
    np.savez(tmp_path / "few.npz", images=test.images[few].numpy(), labels=test.labels[few].numpy(), class_names=names)
    data = {"kind": "npz", "path": str(tmp_path / "few.npz")}
    plan = str(distill(config_for(teacher, None, test=data), dry_run=True))
    assert f"  test images: {int(few.sum())} of 4 of the 10 classes, few.npz" in plan
    plain = config_for(teacher, None, test={"kind": "digits"})
    assert "  test images: 359 of 10 classes, digits" in str(distill(plain, dry_run=True))
    result = run(config_for(teacher, tmp_path / "run", test=data))
    assert result.values["student"]["n"] == int(few.sum())


@pytest.mark.parametrize("more", [{}, {"measure": "features"}], ids=["agreement", "features"])
def test_a_width_that_changes_is_cut_to_size_and_survives_a_stop(
    more: dict[str, Any], teacher: Path, tmp_path: Path
) -> None:
    slow = {"temperature": 4.0, "optimizer": {"kind": "adamw", "lr": 3e-3, "schedule": "one_cycle"}}
    changes = {"width": {"start": 2.0, "gamma": 50.0, **more}, "inherit": False, "phases": SMALL["phases"][:2]}
    changes |= {"distill": slow, "mix": {"mixup": 0.5}}
    straight = run(config_for(teacher, tmp_path / "straight", **changes, test={"kind": "digits"}))
    log = [json.loads(line) for line in (straight.directory / "metrics.jsonl").read_text().splitlines()]
    widths = [row["width/width"] for row in log if "width/width" in row]
    saved = json.loads((straight.directory / "student" / "config.json").read_text())["recipe"]
    # The last bits of a machine's arithmetic may move a width by one, so no sequence of them is asked for.
    assert 12 >= max(widths) >= 11
    assert 12 > saved["width"] >= 6
    assert [row["test/accuracy"] for row in log if "test/accuracy" in row][-1] == pytest.approx(
        straight.values["student"]["accuracy"]
    )
    half = config_for(teacher, tmp_path / "resumed", **changes, test={"kind": "digits"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DistillStep, "__call__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(half)
    assert student_bytes(straight.directory) == student_bytes(run(half).directory)


STORED: dict[str, Any] = {"kind": "stored", "path": "x"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": {}, "inherit": True}, "set inherit to false"),
        (
            {"width": {"measure": "features"}, "inherit": False, "mix": {"logits": "stored"}},
            "width.measure: features of the teacher are those of the images at hand",
        ),
        ({"teacher": None}, "a teacher is missing"),
        (
            {"teacher": None, "transfer_set": STORED, "phases": SMALL["phases"][2:], "mix": {"logits": "fresh"}},
            "a teacher is missing",
        ),
        (
            {"teacher": None, "transfer_set": STORED, "phases": SMALL["phases"][2:], "distill": {"hint": 1.0}},
            "a teacher is missing for hint: set teacher, or leave them out$",
        ),
        ({"transfer_set": {"generator": {"kind": "auto", "colour": 1}}}, "colour: no kind that a teacher chooses has"),
        ({"transfer_set": STORED, "phases": SMALL["phases"]}, "nothing is generated, so a student has refine phases"),
        ({"transfer_set": {**STORED, "live": 0.1}}, r"transfer_set\.live: unknown key of kind stored"),
        ({"transfer_set": {"generator": {"kind": "cgan"}}}, r"cgan learns from real images: set transfer_set\.data"),
        (
            {"transfer_set": {"data": {"kind": "digits"}}},
            "a generator that the teacher chooses does not learn from real images: leave data out",
        ),
    ],
)
def test_sources_that_do_not_go_together_are_refused(changes: dict[str, Any], message: str, teacher: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(DistillConfig, {**SMALL, "teacher": {"kind": "load", "model": str(teacher)}, **changes}, [])
