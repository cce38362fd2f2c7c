"""Phases that fill a budget of time, from the measured times of the parts of a run.

All numbers of rounds and steps are multiplied by one factor, so that a recipe keeps its proportions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from synthkd.distillation.phases import baseline_steps, generator_rounds, student_steps
from synthkd.errors import ConfigError
from synthkd.pipelines.config.budget import seconds_of
from synthkd.pipelines.run.timing import Per, Timed, about
from synthkd.settings import Joint, PhaseSettings, Pregenerate

MOST = 10**9
"""Steps or rounds of a phase, see `synthkd.settings.Count`."""

Phases = tuple[PhaseSettings, ...]


def filled(phases: Phases, timed: Sequence[Timed], budget: str, spent: float) -> tuple[Phases, float]:
    """The phases multiplied by the factor with which they fill a budget, and the seconds that they take.

    Args:
        phases: of the recipe.
        timed: the parts of a run with these phases.
        budget: a duration, e.g. "30m".
        spent: seconds of it that no phase gets.

    Raises:
        ConfigError: the shortest run takes longer.
    """
    shortest, seconds = _scaled(phases, 0.0), seconds_of(budget) - spent
    least = run_seconds(recounted(timed, shortest))
    if least > seconds:
        raise ConfigError(
            f"budget: {budget} is too short: one round or step of each phase, and what comes before and after, take "
            f"about {about(least + spent)}; set a longer budget, or make networks and batches smaller"
        )
    low, high = 0.0, 1.0
    while run_seconds(recounted(timed, _scaled(phases, high))) <= seconds and high < MOST:
        low, high = high, 2.0 * high
    for _ in range(60):
        middle = (low + high) / 2
        fits = run_seconds(recounted(timed, _scaled(phases, middle))) <= seconds
        low, high = (middle, high) if fits else (low, middle)
    plan = _scaled(phases, low)
    return plan, run_seconds(recounted(timed, plan))


def run_seconds(timed: Sequence[Timed]) -> float:
    """Seconds of a distillation; the training of its teachers is no part of it."""
    return sum(one.count * one.seconds for one in timed if one.per != "teacher")


def recounted(timed: Sequence[Timed], phases: Phases) -> list[Timed]:
    """The parts of a run with these phases in place of those with which they were measured."""
    units = _units(phases)
    return [
        replace(one, count=sum(-(-count // one.every) for count in units[one.per])) if one.per in units else one
        for one in timed
    ]


def _units(phases: Phases) -> Mapping[Per, Sequence[int]]:
    """How often each phase does what works grow with."""
    rounds = [generator_rounds([phase]) for phase in phases]
    alone = [count * isinstance(phase, Pregenerate) for phase, count in zip(phases, rounds, strict=True)]
    return {
        "step": [student_steps([phase]) for phase in phases],
        "baseline": [baseline_steps(phases)],
        "round": rounds,
        "round alone": alone,
        "round beside": [count - before for count, before in zip(rounds, alone, strict=True)],
    }


def _scaled(phases: Phases, factor: float) -> Phases:
    """The phases with `factor` times their rounds and steps; each that does something still does."""
    return tuple(_phase(phase, factor) for phase in phases)


def _phase(phase: PhaseSettings, factor: float) -> PhaseSettings:
    if isinstance(phase, Pregenerate):
        # The generator needs its first rounds to learn, however short the run is; one more fills the bank.
        floor = min(phase.rounds, phase.discard + 1)
        return phase.model_copy(update={"rounds": min(MOST, max(floor, round(factor * phase.rounds)))})
    floor = min(phase.steps, phase.every if isinstance(phase, Joint) else 1)
    return phase.model_copy(update={"steps": min(MOST, max(floor, round(factor * phase.steps)))})
