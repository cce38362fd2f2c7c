"""A machine that is really measured: the run is the same as one that was told its phases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from synthkd.errors import ConfigError, TrainingError
from synthkd.models import build
from synthkd.pipelines import distill
from synthkd.pipelines.config import DistillConfig
from synthkd.pipelines.distill import Distilled
from synthkd.pipelines.run.result import Plan
from synthkd.pipelines.run.timing import Timed
from synthkd.pipelines.student import budget, teachers, timing
from synthkd.pipelines.student.chosen import with_generator
from synthkd.settings import Joint, Refine, ZooModel
from synthkd.settings.load import load_config
from synthkd.types import ImageSpec
from tests.faults.test_budget import Still, machine
from tests.pipelines.student.test_timing import config_of


def test_measuring_changes_no_byte_of_the_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts: list[str] = []
    slowness = iter((1.0, 0.5, 1.5))  # the first one is before the teacher is trained; the mean of the others counts

    def measure(*arguments: Any, **options: Any) -> Sequence[Timed]:
        parts.extend(one.per for one in timing.distill_time(*arguments, **options))
        return machine(next(slowness))()

    monkeypatch.setattr(budget, "time", Still)
    monkeypatch.setattr(budget, "MOST_PASSES", 2)
    monkeypatch.setattr(budget, "distill_time", measure)
    distill(config_of(tmp_path / "measured", budget="60s"))
    kinds = {"run", "step", "baseline", "round", "round alone", "round beside"}
    assert set(parts) == kinds, "and no step of the teacher"
    planned = load_config(DistillConfig, tmp_path / "measured/config.yaml", []).phases
    # 3 rounds of 1 s before the student, 3 of 4 s beside it, and 11 steps of 4 s: 59 s.
    assert planned[1:] == (Joint(kind="joint", steps=6, every=2), Refine(kind="refine", steps=5))
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
    assert "  budget: 60s, planned 59 s" in str(distill(config_of(budget="60s"), dry_run=True))
    monkeypatch.setattr(budget, "distill_time", diverging(0))
    with pytest.raises(
        ConfigError, match=r"^budget: no step could be measured \(the student's loss is nan\); set phases"
    ):
        distill(config_of(budget="60s"), dry_run=True)


class Clock:
    """A clock that stands still but for what is known to take time."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        """Seconds."""
        return self.now

    def taking(self, function: Callable[..., Any], *seconds: float) -> Callable[..., Any]:
        """The function, whose calls take so many seconds, and later ones as many as the last of these."""
        times = iter(seconds)

        def called(*arguments: Any, **options: Any) -> Any:
            self.now += next(times, seconds[-1])
            return function(*arguments, **options)

        return called


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Parts take 8 s to build at first, with all that is loaded, and 1 s later; a measurement takes 2 s."""
    clock = Clock()
    monkeypatch.setattr(budget, "time", clock)
    monkeypatch.setattr(budget, "assemble", clock.taking(budget.assemble, 8.0, 1.0))
    monkeypatch.setattr(budget, "distill_time", clock.taking(machine(1.0), 2.0))
    monkeypatch.setattr(teachers, "teach", clock.taking(teachers.teach, 1000.0))
    return clock


def test_the_plan_has_all_that_a_run_takes_and_nothing_twice(clock: Clock, tmp_path: Path) -> None:
    # 3 measurements until 6 s are over, the parts of the measurement and those of the run, and 59 s as above.
    dry = distill(config_of(budget="69s"), dry_run=True)
    assert isinstance(dry, Plan)
    assert "  budget: 69s, planned 68 s, 8 s of them measuring" in dry.lines, "libraries are the teacher's"
    assert dry.time is not None
    assert dry.time.seconds >= 59.0, "and the steps of the teacher"
    assert "at 1 s, 3 rounds at 4 s, 11 steps at 4 s), measured in 8 s" in dry.time.line
    assert clock.now == 8 + 1 + 3 * 2, "measured once"
    result = distill(config_of(tmp_path, budget="69s"))
    assert isinstance(result, Distilled)
    assert result.content.budget is not None
    assert result.content.budget.planned == 68.0


def test_a_budget_that_is_too_short_is_refused_before_a_teacher_is_trained(clock: Clock, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^budget: 20s is too short: .* take about 23 s; set a longer budget"):
        distill(config_of(tmp_path, budget="20s"))
    assert clock.now == 8 + 1 + 2
    assert not (tmp_path / "teach").exists()
    distill(config_of(tmp_path, budget="40s"))
    assert clock.now > 1000


def test_the_schedules_of_a_generator_end_where_they_ended_in_the_recipe() -> None:
    diffusion = {"kind": "generated", "generator": {"kind": "diffusion", "horizon": 500}, "data": {"kind": "digits"}}
    plan = {
        "budget": "60s",
        "phases": [{"kind": "pregenerate", "rounds": 14, "discard": 7}, {"kind": "joint", "steps": 180, "every": 30}],
        "seconds": 59.0,
        "measuring": 3.0,
    }
    phases = [{"kind": "pregenerate", "rounds": 28, "discard": 7}, {"kind": "joint", "steps": 360, "every": 30}]
    recipe = config_of(transfer_set=diffusion, phases=plan["phases"])
    planned = config_of(transfer_set=diffusion, phases=phases, planned=plan, budget="60s")
    teacher = build(ZooModel(arch="convnet", width=4), ImageSpec(1, 8, 8, 10))
    horizons = [with_generator(config, teacher)[0].generated.generator.horizon for config in (recipe, planned)]
    assert horizons == [500, 1000], "20 rounds became 40"
    assert planned.generated.generator.horizon == 500, "the recipe keeps its own"
