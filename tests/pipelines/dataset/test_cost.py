"""The dry run of a dataset measures each kind of its work, and leaves everything as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from synthkd.data.written.writers import png
from synthkd.generators.cgan import CGAN
from synthkd.generators.inversion import Inversion
from synthkd.generators.merf import Merf
from synthkd.pipelines import generate
from synthkd.pipelines.config import GenerateConfig
from synthkd.pipelines.dataset import cost
from synthkd.pipelines.run import answers, fit
from synthkd.pipelines.run import memory as run_memory
from synthkd.pipelines.run.memory import round_need
from synthkd.pipelines.run.result import Plan, Result
from synthkd.settings.load import load_config
from synthkd.training.memory import Need, TensorBytes

RECIPE: dict[str, Any] = {
    "teacher": {
        "kind": "train",
        "data": {"kind": "digits"},
        "model": {"arch": "convnet", "width": 4},
        "training": {"steps": 7, "batch_size": 16},
    },
    "generator": {"kind": "inversion", "width": 8, "latent": 8, "batch_size": 40, "steps": 1},
    "rounds": 9,
    "per_class": 5,
    "score": {"every": 4, "images": 20},
    "device": "cpu",
}


def planned(out: Path | None = None, **changes: Any) -> Plan:
    config = load_config(GenerateConfig, RECIPE | changes, [] if out is None else [f"out={out}"])
    plan = generate(config, dry_run=True)
    assert isinstance(plan, Plan)
    return plan


def works(plan: Plan) -> dict[str, int]:
    assert plan.time is not None
    return {one.name: one.count for one in plan.time.timed}


def test_every_kind_of_work_is_counted() -> None:
    plan = planned()
    counted = {"steps of the teacher": 7, "rounds": 9, "images": 50, "scores": 3, "writing": 1, "statistics": 1}
    assert works(plan).items() >= counted.items()
    (line,) = [line for line in plan.lines if line.startswith("  time: about ")]
    assert "7 steps of the teacher at" in line
    assert "9 rounds at" in line
    assert "50 images at" in line
    assert plan.lines[-1].startswith("  memory: about ")
    assert "images before filters" in works(planned(filters={"confidence": 0.5}))


def test_a_dry_run_before_a_run_changes_no_byte(tmp_path: Path) -> None:
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    planned(tmp_path / "none")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not (tmp_path / "none").exists()
    digests = []
    for name in ("after", "alone"):
        if name == "alone":
            torch.manual_seed(6)
        result = generate(load_config(GenerateConfig, RECIPE, [f"out={tmp_path / name}"]))
        assert isinstance(result, Result)
        digests.append(result.content.dataset.content)
    assert digests[0] == digests[1]


def test_what_is_too_long_is_measured_by_the_teacher_or_by_few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "LIMIT", 1e-9)
    sampled: list[int] = []
    monkeypatch.setattr(Inversion, "round", lambda *_: pytest.fail("a whole round"))
    monkeypatch.setattr(cost, "round_need", lambda *_: Need(0, 0))
    monkeypatch.setattr(cost, "need_of", lambda *_: Need(0, 0))
    sample = Inversion.sample

    def watched(self: Inversion, labels: torch.Tensor, *rest: Any) -> torch.Tensor:
        sampled.append(len(labels))
        return sample(self, labels, *rest)

    monkeypatch.setattr(Inversion, "sample", watched)
    plan = planned(score=None)
    assert works(plan)["rounds"] == 9
    assert set(sampled) == {answers.FEW}


def test_rounds_of_a_generator_of_real_images_are_measured_by_a_few_of_their_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A round of a diffusion model of CIFAR-10 takes half a minute."""
    steps: list[int] = []
    train = CGAN.fit

    def watched(self: CGAN, *rest: Any) -> dict[str, float]:
        steps.append(self.settings.steps)
        return train(self, *rest)

    monkeypatch.setattr(CGAN, "fit", watched)
    made = {"kind": "cgan", "width": 4, "latent": 4, "critic_width": 4, "batch_size": 8, "steps": 5000}
    counted = works(planned(generator=made, data={"kind": "digits"}, score=None))
    assert counted["rounds"] == 9
    assert set(steps) == {run_memory.STEPS, fit.FEW_STEPS}  # those of the trials of memory, and of the measured rounds


def test_the_images_of_a_score_are_not_all_sampled_for_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    sampled: list[int] = []
    sample = Inversion.sample

    def watched(self: Inversion, labels: torch.Tensor, *rest: Any) -> torch.Tensor:
        sampled.append(len(labels))
        return sample(self, labels, *rest)

    monkeypatch.setattr(Inversion, "sample", watched)
    assert works(planned(score={"every": 4, "images": 300}))["scores"] == 3
    assert max(sampled) == cost.CHUNK


def test_a_private_generator_is_not_trained_for_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Merf, "fit", lambda *_: pytest.fail("a release"))
    private = {"kind": "merf", "epsilon": 1, "delta": 1e-5, "width": 8, "latent": 8, "batch_size": 16}
    counted = works(planned(generator=private, data={"kind": "digits"}, score=None))
    assert "rounds" not in counted
    assert counted["images"] == 50


def test_the_memory_is_that_of_a_round_of_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[Need, int]] = []

    def compared(settings: Any, round_of: Any, device: torch.device) -> Need:
        need = round_need(settings, round_of, device)
        once = round_of(settings.model_copy())  # another object, so a generator of its own
        with TensorBytes(device) as tensors:
            once()
        told.append((need, max(tensors.timeline)))
        return need

    monkeypatch.setattr(cost, "round_need", compared)
    monkeypatch.setattr(run_memory, "resident_bytes", lambda: 10**9)
    monkeypatch.setattr(run_memory, "memory_bytes", lambda _: 10**6)
    plan = planned()
    ((need, peak),) = told
    assert need.peak == pytest.approx(peak, rel=0.05)
    assert plan.lines[-2] == "  memory: about 1.0 GB at its peak; the machine has 1.0 MB"
    assert plan.lines[-1].endswith("make generator.batch_size smaller")


def test_writing_is_measured_with_sampled_images(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[torch.Tensor] = []

    def watched(image: torch.Tensor) -> bytes:
        written.append(image)
        return png(image)

    monkeypatch.setattr("synthkd.data.written.writers.png", watched)
    planned(format="webdataset")
    assert len(written) == cost.CHUNK
    assert torch.stack(written).float().std() > 0
