"""A dry run takes real steps of every kind, and leaves everything as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from synthkd.data.ahead import Ahead
from synthkd.data.sources import RealSource
from synthkd.generators.inversion import Inversion
from synthkd.generators.pixel_inversion import PixelInversion
from synthkd.models import build
from synthkd.pipelines import distill, teach
from synthkd.pipelines.config import DistillConfig, TeachConfig
from synthkd.pipelines.run import answers, fit
from synthkd.pipelines.run.memory import STEPS
from synthkd.pipelines.run.result import Plan, Result
from synthkd.pipelines.student import timing
from synthkd.pipelines.student.assembly import assemble
from synthkd.pipelines.student.trial import Trial
from synthkd.settings import ZooModel
from synthkd.settings.load import load_config
from synthkd.types import ImageSpec, Round
from tests.data.read.test_listing import folder
from tests.data.read.test_on_disk import pictures

TRAINED = {"kind": "train", "data": {"kind": "digits"}, "model": {"arch": "convnet", "width": 4}}
RECIPE: dict[str, Any] = {
    "teacher": {**TRAINED, "training": {"steps": 7, "batch_size": 16}},
    "student": {"arch": "convnet", "width": 4},
    "transfer_set": {"generator": {"width": 8, "latent": 8, "batch_size": 16, "steps": 1}, "bank": {"capacity": 64}},
    "distill": {"batch_size": 16},
    "test": {"kind": "digits"},
    "phases": [
        {"kind": "pregenerate", "rounds": 2, "discard": 1},
        {"kind": "joint", "steps": 5, "every": 2},
        {"kind": "refine", "steps": 4},
    ],
    "device": "cpu",
}


def config_of(out: Path | None = None, **changes: Any) -> DistillConfig:
    return load_config(DistillConfig, RECIPE | changes, [] if out is None else [f"out={out}"])


def line_of(plan: Plan | Result[Any]) -> str:
    assert isinstance(plan, Plan)
    (line,) = [line for line in plan.lines if line.startswith("  time: about ")]
    return line


def test_a_dry_run_before_a_run_does_not_change_the_student(tmp_path: Path) -> None:
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    distill(config_of(), dry_run=True)
    assert torch.equal(torch.random.get_rng_state(), state)
    weights = []
    for name in ("after", "alone"):
        if name == "alone":
            torch.manual_seed(6)
        result = distill(config_of(tmp_path / name))
        assert isinstance(result, Result)
        weights.append((result.directory / "student" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_the_line_counts_every_kind_of_work() -> None:
    line = line_of(distill(config_of(), dry_run=True))
    for work in ("7 steps of the teacher at", "2 rounds before the student at", "3 rounds at", "9 steps at"):
        assert work in line


def test_the_checkpoints_of_student_and_teacher_are_counted() -> None:
    plan = distill(config_of(checkpoint_every=3), dry_run=True)
    assert isinstance(plan, Plan)
    assert plan.time is not None
    # 7 steps of the teacher; 2 rounds alone and 9 steps of the student
    counts = [(one.count, one.per) for one in plan.time.timed if one.name == "checkpoints"]
    assert counts == [(3, "teacher"), (4, "step")]


def test_steps_are_taken_all_over_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    make = timing._Works._steps

    def watched(works: timing._Works) -> Any:
        work = make(works)
        step = work.once
        return timing.Work(work.name, work.count, lambda where: (taken.append(int(9 * where)), step(where)))

    monkeypatch.setattr(timing._Works, "_steps", watched)
    distill(config_of(), dry_run=True)
    assert taken[:4] == [0, 4, 2, 6]


def test_networks_in_memory_stay_as_they_are() -> None:
    spec = ImageSpec(1, 8, 8, 10)
    networks = [build(ZooModel(arch="convnet", width=4), spec) for _ in range(2)]
    before = [{name: value.clone() for name, value in one.state_dict().items()} for one in networks]
    keys = {key: RECIPE[key] for key in ("transfer_set", "distill", "phases", "device")}
    line_of(distill(teacher=networks[0], student=networks[1], dry_run=True, **keys))
    for network, state in zip(networks, before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_what_is_too_long_for_a_dry_run_is_measured_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (timing, answers):
        monkeypatch.setattr(module, "LIMIT", 1e-9)  # so that nothing fits
    batches: list[int] = []
    make = Trial.step

    def smaller(trial: Trial, count: int) -> Any:
        batches.append(count)
        return make(trial, count)

    monkeypatch.setattr(Trial, "step", smaller)
    assert "9 steps at" in line_of(distill(config_of(), dry_run=True))
    assert batches[0] == timing.FEW


def test_measured_steps_draw_what_the_measured_rounds_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step on noise would leave out the samples that every batch makes anew."""
    teacher = build(ZooModel(arch="convnet", width=4), ImageSpec(1, 8, 8, 10))
    config = config_of(transfer_set=RECIPE["transfer_set"] | {"live": 0.5}, test=None)
    accelerator = Accelerator(cpu=True)
    assembly = assemble(config, [teacher], accelerator, None)
    monkeypatch.setattr(Trial, "step", lambda *_: pytest.fail("a step on noise"))
    sampled: list[int] = []

    def sample(_: Inversion, labels: torch.Tensor, *__: object) -> torch.Tensor:
        sampled.append(len(labels))
        return torch.zeros(len(labels), 1, 8, 8)

    monkeypatch.setattr(Inversion, "sample", sample)
    timed = timing.distill_time(assembly, None, accelerator, taught=True)
    assert [one.count for one in timed if one.name == "steps"] == [9]
    assert 8 in sampled


def test_teaching_is_measured() -> None:
    recipe = {key: value for key, value in RECIPE["teacher"].items() if key != "kind"}
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    assert "7 steps at" in line_of(teach(load_config(TeachConfig, recipe | {"device": "cpu"}, []), dry_run=True))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_stored_logits_of_real_images_are_not_made_for_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """The teacher would label every image, which may take hours."""
    labelled: list[int] = []
    make = RealSource._logits_of

    def watched(source: RealSource, real: Any, teacher: Any) -> torch.Tensor:
        labelled.append(len(real))
        return make(source, real, teacher)

    monkeypatch.setattr(RealSource, "_logits_of", watched)
    digits = {"kind": "real", "data": {"kind": "digits"}}
    changes = {"transfer_set": digits, "mix": {"logits": "stored", "mixup": 0.0}, "phases": RECIPE["phases"][2:]}
    assert "4 steps at" in line_of(distill(config_of(**changes), dry_run=True))
    assert max(labelled) == 16


def test_no_worker_decodes_for_the_plan(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The measured steps are not in order, so that workers would start anew for each."""
    monkeypatch.setattr(Ahead, "_start", lambda *_: pytest.fail("a worker started"))
    # The mean decodes no more, so some are lacking.
    monkeypatch.setattr("synthkd.pipelines.teacher.learning.PLANNED_IMAGES", 1)
    monkeypatch.setattr("synthkd.pipelines.run.timing.DECODED", 1)
    root = folder(tmp_path / "set", pictures(60))
    data = {"kind": "folder", "root": str(root), "size": 8, "memory": 0.0, "cache": str(tmp_path / "cache")}
    source = {"kind": "train", "data": data, "model": {"arch": "mlp", "width": 8}, "training": {"steps": 7}}
    changes = {"teacher": source, "transfer_set": {"kind": "real", "data": data}, "phases": RECIPE["phases"][2:]}
    line = line_of(distill(config_of(**changes, test=None), dry_run=True))
    assert "7 steps of the teacher at" in line
    assert "4 steps at" in line


def test_grids_are_as_large_as_those_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "chosen", lambda *_: ([0, 5, 9], 2))
    scales: list[float] = []
    make = timing._Works._grids

    def watched(works: timing._Works) -> Any:
        made = make(works)
        scales.extend(work.scale for work in made if work.name == "grids")
        return made

    monkeypatch.setattr(timing._Works, "_grids", watched)
    distill(config_of(), dry_run=True)
    assert scales == [2]


def test_an_extension_trains_no_teacher(tmp_path: Path) -> None:
    distill(config_of(tmp_path))
    line = line_of(distill(load_config(DistillConfig, RECIPE, [f"out={tmp_path}", "more=3"]), dry_run=True))
    assert "3 steps at" in line
    assert "teacher" not in line


def test_rounds_of_hundreds_of_steps_are_measured_by_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes of the teacher on few images, which stood for a round, told several times its time."""
    steps: list[int] = []
    round_of = PixelInversion.round

    def watched(self: PixelInversion, *rest: Any) -> Round:
        steps.append(self.settings.steps)
        return round_of(self, *rest)

    monkeypatch.setattr(PixelInversion, "round", watched)
    made = {"kind": "pixel_inversion", "batch_size": 16, "steps": 100_000}
    assert "3 rounds at" in line_of(distill(config_of(transfer_set={"generator": made}), dry_run=True))
    assert set(steps) == {STEPS, fit.FEW_STEPS}  # those of the trials of memory, and of the measured rounds


def test_evaluations_that_controllers_follow_are_measured_again_and_again() -> None:
    """A controller refuses an evaluation that is not later than its last."""
    changes = {
        "transfer_set": {"kind": "real", "data": {"kind": "digits"}},
        "distill": {"batch_size": 16, "adapt": {"every": 2, "strength": {"beta": 1.0}, "temperature": {}}},
        "phases": RECIPE["phases"][2:],
    }
    assert "4 steps at" in line_of(distill(config_of(**changes), dry_run=True))
