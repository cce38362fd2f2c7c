"""Phases that fill a budget: closed forms, what is kept of a recipe, and durations."""

from __future__ import annotations

from typing import Any

import pytest

from synthkd.errors import ConfigError
from synthkd.pipelines.config import DistillConfig
from synthkd.pipelines.config.budget import seconds_of
from synthkd.pipelines.run.budget import filled, recounted, run_seconds
from synthkd.pipelines.run.timing import Timed
from synthkd.settings import Joint, Pregenerate, Refine
from synthkd.settings.load import dump_config, load_config

PHASES = (
    Pregenerate(kind="pregenerate", rounds=14, discard=7),
    Joint(kind="joint", steps=1500, every=15),
    Refine(kind="refine", steps=300),
)
TIMED = [
    Timed("steps of the teacher", 400, 1000.0, per="teacher"),
    Timed("rounds before the student", 14, 0.5, per="round alone"),
    Timed("rounds", 100, 1.0, per="round beside"),
    Timed("steps", 1800, 0.1, per="step"),
    Timed("tests", 10, 2.0, listed=False, per="step", every=200),
    Timed("grids", 3, 1.0, listed=False, per="round", every=50),
    Timed("closing", 1, 5.0, listed=False),
]
"""Of a run of 7 + 100 + 180 + 20 + 3 + 5 = 315 seconds."""
RECIPE: dict[str, Any] = {"teacher": {"kind": "load", "model": "t"}, "student": {"arch": "mlp"}, "device": "cpu"}


def config_of(*settings: str) -> DistillConfig:
    return load_config(DistillConfig, RECIPE, list(settings))


def test_a_budget_of_the_recipes_own_time_changes_nothing() -> None:
    assert run_seconds(TIMED) == 315.0, "without the teacher"
    phases, seconds = filled(PHASES, TIMED, "317s", 2.0)
    assert phases == PHASES
    assert seconds == 315.0


@pytest.mark.parametrize("factor", [0.5, 3.0, 40.0])
def test_all_phases_are_scaled_by_one_factor_and_fill_the_budget(factor: float) -> None:
    wanted = 5.0 + factor * 310.0
    phases, seconds = filled(PHASES, TIMED, f"{wanted}s", 0.0)
    assert wanted - 4.0 <= seconds <= wanted, "short of it by less than a test and a round"
    alone, joint, refine = phases
    assert isinstance(alone, Pregenerate)
    assert isinstance(joint, Joint)
    assert isinstance(refine, Refine)
    assert (alone.discard, joint.every) == (7, 15)
    assert max(alone.rounds, 8) == pytest.approx(max(14 * factor, 8), rel=0.02, abs=1)
    assert joint.steps == pytest.approx(1500 * factor, rel=0.02)
    assert refine.steps == pytest.approx(joint.steps / 5, abs=1), "their proportion stays"


def test_a_generator_keeps_the_rounds_that_it_needs_and_one_for_the_bank() -> None:
    (alone, joint, _), _ = filled(PHASES, TIMED, "60s", 0.0)
    assert isinstance(alone, Pregenerate)
    assert isinstance(joint, Joint)
    assert alone.rounds == 8, "7 are not kept"
    assert joint.steps < 300
    nothing = (Pregenerate(kind="pregenerate", rounds=0), Refine(kind="refine", steps=0), *PHASES[1:])
    assert filled(nothing, TIMED, "60s", 0.0)[0][:2] == nothing[:2], "what does nothing stays so"


def test_a_budget_too_short_for_every_phase_is_refused_in_a_line() -> None:
    # Measuring, 8 rounds, 15 steps with one round, a step, two tests, two grids, and the closing.
    shortest = 2 + 4 + (1 + 1.5) + 0.1 + 2 * 2 + 2 * 1 + 5
    assert filled(PHASES, TIMED, f"{shortest + 0.05:g}s", 2.0)[1] == pytest.approx(shortest - 2)
    with pytest.raises(ConfigError, match=r"^budget: 19\.5s is too short: .* take about 20 s; set a longer budget"):
        filled(PHASES, TIMED, "19.5s", 2.0)


def test_times_of_other_phases_keep_the_seconds_of_each() -> None:
    half = (*PHASES[:1], Joint(kind="joint", steps=610, every=15), Refine(kind="refine", steps=300))
    # Each phase ends with a test and a grid: 610 / 200 + 300 / 200, and 14 / 50 + 41 / 50 of them are begun.
    assert [one.count for one in recounted(TIMED, half)] == [400, 14, 41, 910, 4 + 2, 1 + 1, 1]
    assert [one.seconds for one in recounted(TIMED, half)] == [one.seconds for one in TIMED]
    assert recounted(TIMED, PHASES) == TIMED


def test_a_duration_is_a_number_and_its_unit() -> None:
    assert [seconds_of(text) for text in ("90s", "1.5m", "2h")] == [90.0, 90.0, 7200.0]
    for text in ("30", "30x", "1e3s", "-5m", "0.5s", "2000h", "30 m", "true", "[1m]"):
        for key in ("budget", "more"):
            if (key, text) != ("more", "30"):
                with pytest.raises(ConfigError, match=rf"^{key}: [^\n]*duration[^\n]*$"):
                    config_of(f"{key}={text}")


def test_a_plan_of_another_budget_is_refused() -> None:
    plan = "planned={budget: 2m, phases: [{kind: refine, steps: 1}], seconds: 119, measuring: 4}"
    config = config_of("budget=2m", plan)
    assert "budget: 2m" in dump_config(config)
    with pytest.raises(ConfigError, match="planned: it is the plan of budget=2m, and budget is 3m; set planned=null"):
        config_of("budget=3m", plan)
    with pytest.raises(ConfigError, match="budget is not set; set planned=null to keep its phases"):
        config_of(plan)
    with pytest.raises(ConfigError, match="and the horizon of a diffusion generator, which is that of the recipe"):
        config_of(plan)
