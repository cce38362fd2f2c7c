"""Training in an open run: wired with the run's seed, log, checkpoints and intervals, and resumed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from synthkd.errors import TrainingError
from synthkd.pipelines.config import TeachConfig
from synthkd.pipelines.run.job import open_job
from synthkd.settings.load import load_config
from synthkd.training.loop import Action, Stage

TEACH: dict[str, Any] = {"data": {"kind": "digits"}, "model": {"arch": "mlp"}, "device": "cpu"}


class Numbers:
    """A part whose state is the list of its random numbers."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def state_dict(self) -> dict[str, Any]:
        return {"values": list(self.values)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.values = list(state["values"])


def train(out: Path, seed: int = 0, fail_at: int | None = None) -> tuple[list[float], list[int]]:
    """The numbers of a training of seven steps, and the steps of its log rows."""
    intervals = ["log_every=2", "checkpoint_every=3"]
    config = load_config(TeachConfig, TEACH, [f"out={out}", f"seed={seed}", *intervals])
    part = Numbers()

    def draw(step: int) -> dict[str, float]:
        if step == fail_at:
            raise TrainingError(f"nan at {step}")
        part.values.append(float(torch.rand(())))
        return {"number": part.values[-1]}

    with open_job("teach", config) as job:
        job.train({"part": part}, [Stage("draw", 7, [Action("draw", draw)])], "test", headline=("number",))
        return part.values, [row["step"] for row in job.monitor.rows() if "number" in row]


def test_a_training_has_the_intervals_of_the_configuration_and_resumes_with_the_same_numbers(tmp_path: Path) -> None:
    straight, steps = train(tmp_path / "straight")
    assert steps == [2, 3, 4, 6, 7], "every second step, and with each checkpoint"
    with pytest.raises(TrainingError, match="nan at 5"):
        train(tmp_path / "run", fail_at=5)
    assert train(tmp_path / "run") == (straight, steps)


def test_the_seed_of_a_training_is_that_of_the_run(tmp_path: Path) -> None:
    assert not set(train(tmp_path / "one", seed=1)[0]) & set(train(tmp_path / "two", seed=2)[0])
