"""The planned memory of a run is that of its largest part, and a run that does not fit says what to make smaller."""

import re
from typing import Any

import pytest
import torch

from synthkd.errors import TrainingError
from synthkd.generators.inversion import Inversion
from synthkd.generators.pool import Pool
from synthkd.models import Classifier
from synthkd.pipelines import distill
from synthkd.pipelines.config import DistillConfig
from synthkd.pipelines.run import memory as run_memory
from synthkd.pipelines.run.memory import Memory
from synthkd.pipelines.student import memory
from synthkd.training.memory import Need, TensorBytes, need_of
from synthkd.types import Round


def config_of(**changes: Any) -> DistillConfig:
    recipe = {
        "teacher": {"kind": "train", "data": {"kind": "digits"}, "model": {"arch": "convnet", "width": 8}},
        "student": {"arch": "convnet", "width": 4},
        "transfer_set": {"generator": {"width": 8, "latent": 16, "batch_size": 40}, "bank": {"capacity": 100}},
        "distill": {"batch_size": 30},
        "phases": [{"kind": "joint", "steps": 6, "every": 2}],
        "device": "cpu",
        **changes,
    }
    return DistillConfig.model_validate(recipe)


def test_the_needs_of_steps_and_rounds_are_told_from_a_few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is told from 2 and 4 images is what tensors take with the batch sizes of the recipe."""
    told: list[tuple[Need, int, int]] = []

    def compared(prepare: Any, batch_size: int, device: torch.device) -> Need:
        need = need_of(prepare, batch_size, device)
        run = prepare(batch_size)
        with TensorBytes(device) as tensors:
            run()
        told.append((need, max(tensors.timeline), batch_size))
        return need

    for module in (memory, run_memory):
        monkeypatch.setattr(module, "need_of", compared)
    monkeypatch.setattr(run_memory, "resident_bytes", lambda: 10**9)
    monkeypatch.setattr(run_memory, "memory_bytes", lambda _: 10**12)
    line = str(distill(config_of(), dry_run=True)).splitlines()[-1]
    assert [size for _, _, size in told] == [30, 40]
    for need, peak, _ in told:
        assert need.peak == pytest.approx(peak, rel=0.02)
        assert need.lasting < need.peak
    assert line == "  memory: about 1.0 GB at its peak; the machine has 1,000.0 GB"


def test_a_run_that_does_not_fit_says_what_to_make_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    def planned(students: int, generators: int, **changes: Any) -> str:
        needs = iter([Need(10**9, students), Need(10**9, generators)])
        for module in (memory, run_memory):
            monkeypatch.setattr(module, "need_of", lambda *_: next(needs))
        monkeypatch.setattr(run_memory, "resident_bytes", lambda: 10**9)
        monkeypatch.setattr(run_memory, "memory_bytes", lambda _: 4 * 10**9)
        return "\n".join(str(distill(config_of(**changes), dry_run=True)).splitlines()[-2:])

    assert planned(5 * 10**9, 2 * 10**9) == (
        "  memory: about 8.6 GB at its peak; the machine has 4.0 GB\n"
        "  warning: the run does not fit the memory; make distill.batch_size smaller"
    )
    assert planned(2 * 10**9, 5 * 10**9).endswith("make transfer_set.generator.batch_size smaller")
    listed = [{"generator": {"width": 8, "latent": 16, "batch_size": 40}, "bank": {"capacity": 100}}]
    said = planned(2 * 10**9, 5 * 10**9, transfer_set=listed)
    assert said.endswith("make transfer_set.0.generator.batch_size smaller")


def test_a_run_that_fits_has_one_line() -> None:
    assert Memory(2 * 10**9, 2 * 10**9, "the machine", "").lines == (
        "  memory: about 2.0 GB at its peak; the machine has 2.0 GB",
    )


class Large:
    """A generator of a caller, whose settings do not tell how many images a round has."""

    def __init__(self, teacher: Classifier, seed: int) -> None:
        self.spec = teacher.spec

    def round(self, index: int, difficulty: float, student: object) -> Round:
        images = torch.rand(COUNT, *self.spec.shape)
        return Round(images, torch.zeros(COUNT, dtype=torch.int64), torch.zeros(COUNT, self.spec.classes), {})

    def sample(self, labels: torch.Tensor, difficulty: float, rng: object) -> torch.Tensor:
        return torch.rand(len(labels), *self.spec.shape)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: object) -> None: ...


COUNT = 5_000
"""Images of a round of `Large`."""


def test_a_round_whose_settings_do_not_tell_its_images_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    count = memory._images

    def bytes_of(*arguments: Any) -> tuple[int, int]:
        result = count(*arguments)
        held.append(result[0])
        return result

    monkeypatch.setattr(memory, "_images", bytes_of)
    monkeypatch.setattr(run_memory, "memory_bytes", lambda _: 1)
    transfer_set = {"generator": {"kind": "python", "target": f"{__name__}:Large"}, "bank": {"capacity": 200_000}}
    plan = str(distill(config_of(transfer_set=transfer_set), dry_run=True))
    rounds, pixels = 3, 64
    assert held[0] >= rounds * COUNT * pixels
    assert plan.endswith(("make transfer_set.bank.capacity smaller", "make the rounds of the generator smaller"))


def test_images_that_a_generator_stores_are_in_the_memory_and_the_checkpoints_of_a_plan(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run_memory, "resident_bytes", lambda: 10**9)
    config = config_of(transfer_set={"generator": {"kind": "pixel_inversion", "batch_size": 20, "steps": 1}})
    told = []
    for stored in (0, 5 * 10**9):
        monkeypatch.setattr(Pool, "most_bytes", stored)
        plan = str(distill(config, dry_run=True))
        disk, memory_line = (
            float(found[1].replace(",", ""))
            for pattern in (r"disk: about ([\d,.]+) MB", r"memory: about ([\d.]+) GB")
            if (found := re.search(pattern, plan))
        )
        told.append((disk, memory_line))
    assert told[1][0] - told[0][0] == config.keep_checkpoints * 5000.0
    assert told[1][1] - told[0][1] == pytest.approx(5.0, abs=0.11)


def test_a_round_that_fails_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Round:
        raise TrainingError("the loss of the generator is not finite")

    monkeypatch.setattr(Inversion, "round", fail)
    lines = str(distill(config_of(), dry_run=True)).splitlines()
    assert lines[-2] == "  time: not measured: the loss of the generator is not finite"
    assert lines[-1] == "  memory: not measured: the loss of the generator is not finite"
