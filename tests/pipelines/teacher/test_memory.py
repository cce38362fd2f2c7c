"""The planned memory of a teacher's training is that of its steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from synthkd.errors import TrainingError
from synthkd.pipelines import teach
from synthkd.pipelines.config import TeachConfig
from synthkd.pipelines.run import memory as run_memory
from synthkd.pipelines.teacher import memory
from synthkd.settings.load import load_config
from synthkd.training.memory import Need, TensorBytes, need_of

RECIPE: dict[str, Any] = {
    "data": {"kind": "digits"},
    "model": {"arch": "convnet", "width": 8, "norm": "group"},
    "training": {"steps": 5, "batch_size": 24},
    "device": "cpu",
}
DP = {"epsilon": 8, "delta": 1e-5, "clip": 1.0, "physical_batch": 8}


@pytest.fixture(autouse=True)
def _a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_memory, "resident_bytes", lambda: 10**9)
    monkeypatch.setattr(run_memory, "memory_bytes", lambda _: 10**12)


def lines(**training: Any) -> list[str]:
    recipe = RECIPE | {"training": RECIPE["training"] | training}
    return str(teach(load_config(TeachConfig, recipe, []), dry_run=True)).splitlines()


@pytest.mark.parametrize("dp", [False, True])
def test_the_need_of_a_step_is_told_from_a_few_images(monkeypatch: pytest.MonkeyPatch, dp: bool) -> None:
    told: list[tuple[Need, int, int]] = []

    def compared(prepare: Any, batch_size: int, device: torch.device) -> Need:
        need = need_of(prepare, batch_size, device)
        run = prepare(batch_size)
        with TensorBytes(device) as tensors:
            run()
        told.append((need, max(tensors.timeline), batch_size))
        return need

    monkeypatch.setattr(memory, "need_of", compared)
    line = lines(**({"dp": DP} if dp else {}))[-1]
    ((need, peak, images),) = told
    assert images == (8 if dp else 24)
    assert need.peak == pytest.approx(peak, rel=0.02)
    assert need.lasting < need.peak
    assert line == "  memory: about 1.0 GB at its peak; the machine has 1,000.0 GB"


def test_a_training_that_does_not_fit_says_what_to_make_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "need_of", lambda *_: Need(10**9, 5 * 10**9))
    monkeypatch.setattr(run_memory, "memory_bytes", lambda _: 4 * 10**9)
    assert lines()[-2:] == [
        "  memory: about 7.6 GB at its peak; the machine has 4.0 GB",
        "  warning: the run does not fit the memory; make training.batch_size smaller",
    ]
    assert lines(dp=DP)[-1].endswith("make training.dp.physical_batch smaller")


def test_a_step_that_fails_on_noise_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise TrainingError("the loss is not finite")

    monkeypatch.setattr(memory, "plain_step", fail)
    assert lines()[-1] == "  memory: not measured: the loss is not finite"
