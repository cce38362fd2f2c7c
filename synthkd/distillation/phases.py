"""The phases of a distillation, as data, and the stages of the loop that they become."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from synthkd.errors import ConfigError
from synthkd.settings import Joint, PhaseSettings, Pregenerate, Refine
from synthkd.training.loop import Action, Stage, Values

Indexed = Callable[[int], Values]


def student_steps(phases: Sequence[PhaseSettings]) -> int:
    """Steps the student takes over all phases."""
    return sum(phase.steps for phase in phases if not isinstance(phase, Pregenerate))


def generator_rounds(phases: Sequence[PhaseSettings]) -> int:
    """Rounds the generator takes over all phases."""
    return sum(_rounds(phase) for phase in phases)


def _rounds(phase: PhaseSettings) -> int:
    if isinstance(phase, Pregenerate):
        return phase.rounds
    if isinstance(phase, Joint):
        return -(-phase.steps // phase.every)
    return 0


def rounds_within(phases: Sequence[PhaseSettings], steps: int) -> int:
    """Rounds the generator takes in so many steps that follow each other, at most."""
    every = [phase.every if isinstance(phase, Joint) else 1 for phase in phases]
    return sum(min(_rounds(phase), -(-steps // each)) for phase, each in zip(phases, every, strict=True))


def check(phases: Sequence[PhaseSettings], needs_bank: bool) -> None:
    """Refuse phases in which the student never learns, or would draw from an empty bank.

    Raises:
        ConfigError: with the key and the remedy.
    """
    if student_steps(phases) == 0:
        raise ConfigError("phases: the student has no step to learn in; add a joint or refine phase")
    rounds_kept = 0
    for number, phase in enumerate(phases):
        if isinstance(phase, Pregenerate):
            rounds_kept += max(0, phase.rounds - phase.discard)
        elif isinstance(phase, Refine) and phase.steps and needs_bank and not rounds_kept:
            raise ConfigError(
                f"phases.{number}: refine would draw from an empty bank; put a pregenerate phase that keeps images, or "
                "a joint phase, before it"
            )
        elif isinstance(phase, Joint) and phase.steps:
            rounds_kept += 1


def describe(phase: PhaseSettings) -> str:
    """One phase in words."""
    if isinstance(phase, Pregenerate):
        return f"pregenerate {phase.rounds:,} rounds"
    if isinstance(phase, Joint):
        return f"joint {phase.steps:,} steps with a round every {phase.every:,}"
    return f"refine {phase.steps:,} steps"


def build(
    phases: Sequence[PhaseSettings],
    pregenerate: Callable[[int, bool], Values],
    synthesise: Indexed,
    learn: Indexed,
    evaluate: Callable[[int, int], Values],
    evaluate_every: int,
    watch: Sequence[Action],
    draw: Indexed,
    draw_every: int,
) -> list[Stage]:
    """The stages of the loop.

    Args:
        phases: what to do, in order.
        pregenerate: (round, keep its images) of the generator alone.
        synthesise: one round of the generator beside the student, by its number among all rounds.
        learn: one step of the student, by its number among all the student's steps.
        evaluate: (that number, step of the run) evaluates the student on held-out images, before the step.
        evaluate_every: steps between two evaluations, counted from the first of a phase.
        watch: further actions of every phase that trains the student.
        draw: pictures what the generator makes, by the step of the run.
        draw_every: rounds between pictures; the last round of a phase has one in any case.
    """
    stages: list[Stage] = []
    start = rounds = steps = 0
    for phase in phases:
        if isinstance(phase, Pregenerate):
            generate = Action("pregenerate", _alone(pregenerate, phase, start, rounds))
            stages.append(Stage(phase.kind, phase.rounds, [generate, Action("grid", draw, draw_every, after=True)]))
        elif isinstance(phase, Refine | Joint):
            actions = [
                Action("evaluate", _evaluating(evaluate, steps - start), evaluate_every, at_once=True),
                Action("learn", _shifted(learn, steps - start)),
                *watch,
            ]
            if isinstance(phase, Joint):
                generate = Action("synthesise", _every(synthesise, phase.every, start, rounds), phase.every)
                actions = [generate, *actions, Action("grid", draw, draw_every * phase.every, after=True)]
            stages.append(Stage(phase.kind, phase.steps, actions))
            steps += phase.steps
        rounds += _rounds(phase)
        start += stages[-1].steps
    return stages


def _alone(run: Callable[[int, bool], Values], phase: Pregenerate, start: int, rounds: int) -> Indexed:
    return lambda step: run(rounds + step - start, step - start >= phase.discard)


def _shifted(run: Indexed, offset: int) -> Indexed:
    return lambda step: run(step + offset)


def _evaluating(run: Callable[[int, int], Values], offset: int) -> Indexed:
    return lambda step: run(step + offset, step)


def _every(run: Indexed, every: int, start: int, rounds: int) -> Indexed:
    return lambda step: run(rounds + (step - start) // every)
