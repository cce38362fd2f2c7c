"""A machine that is really measured: the run is the same as one that was told its phases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from synthkd.errors import ConfigError, TrainingError
from synthkd.pipelines import distill
from synthkd.pipelines.config import DistillConfig
from synthkd.pipelines.run.timing import Timed
from synthkd.pipelines.student import budget, timing
from synthkd.settings import Joint, Refine
from synthkd.settings.load import load_config
from tests.faults.test_budget import Still, machine
from tests.pipelines.student.test_timing import config_of


def test_measuring_changes_no_byte_of_the_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts: list[str] = []
    slowness = iter((0.5, 1.5))  # their mean counts

    def measure(*arguments: Any, **options: Any) -> Sequence[Timed]:
        parts.extend(one.per for one in timing.distill_time(*arguments, **options))
        return machine(next(slowness))()

    monkeypatch.setattr(budget, "time", Still)
    monkeypatch.setattr(budget, "MOST_PASSES", 2)
    monkeypatch.setattr(budget, "distill_time", measure)
    distill(config_of(tmp_path / "measured", budget="60s"))
    assert set(parts) == {"run", "step", "round", "round alone", "round beside"}, "and no step of the teacher"
    planned = load_config(DistillConfig, tmp_path / "measured/config.yaml", []).phases
    assert planned[1:] == (Joint(kind="joint", steps=7, every=2), Refine(kind="refine", steps=5))
    distill(config_of(tmp_path / "told", phases=[phase.model_dump() for phase in planned]))
    students = [(tmp_path / name / "student/model.safetensors").read_bytes() for name in ("measured", "told")]
    assert students[0] == students[1]


def test_a_measurement_that_diverges_ends_or_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "time", Still)

    def diverging(after: int) -> Callable[..., Sequence[Timed]]:
        left = iter(range(after))

        def measure(*_: object, **__: object) -> Sequence[Timed]:
            if next(left, None) is None:
                raise TrainingError("the student's loss is nan")
            return machine(1.0)()

        return measure

    monkeypatch.setattr(budget, "distill_time", diverging(3))
    assert "  budget: 60s, planned 58 s" in str(distill(config_of(budget="60s"), dry_run=True))
    monkeypatch.setattr(budget, "distill_time", diverging(0))
    with pytest.raises(
        ConfigError, match=r"^budget: no step could be measured \(the student's loss is nan\); set phases"
    ):
        distill(config_of(budget="60s"), dry_run=True)
