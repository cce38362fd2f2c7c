"""The phases of a distillation, and the stages of the training loop that carry them out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from synthkd.errors import ConfigError
from synthkd.settings import Joint, PhaseSettings, Pregenerate
from synthkd.training.loop import Action, Stage, Values

Indexed = Callable[[int], Values]
"""An action that takes the number of a step or a round and returns what is logged."""


def student_steps(phases: Sequence[PhaseSettings]) -> int:
    """Steps of the student over all phases."""
    return sum(phase.steps for phase in phases if not isinstance(phase, Pregenerate))


def generator_rounds(phases: Sequence[PhaseSettings]) -> int:
    """Rounds of the generator over all phases."""
    return sum(_rounds(phase) for phase in phases)


def _rounds(phase: PhaseSettings) -> int:
    if isinstance(phase, Pregenerate):
        return phase.rounds
    if isinstance(phase, Joint):
        return -(-phase.steps // phase.every)
    return 0


def rounds_within(phases: Sequence[PhaseSettings], steps: int) -> int:
    """The largest possible number of the generator's rounds within so many consecutive steps of the run."""
    every = [phase.every if isinstance(phase, Joint) else 1 for phase in phases]
    return sum(min(_rounds(phase), -(-steps // each)) for phase, each in zip(phases, every, strict=True))


def check(phases: Sequence[PhaseSettings], needs_bank: bool) -> None:
    """Refuse phases in which the student never learns, or would draw from an empty bank.

    Args:
        phases: in order.
        needs_bank: whether batches need generated images from the memory bank.

    Raises:
        ConfigError: with the key and the remedy.
    """
    if student_steps(phases) == 0:
        raise ConfigError("phases: the student has no step to learn in; add a joint or refine phase")
    fills_bank = False
    for number, phase in enumerate(phases):
        if isinstance(phase, Pregenerate):
            fills_bank |= phase.rounds > phase.discard
        elif isinstance(phase, Joint):
            fills_bank |= phase.steps > 0
        elif phase.steps and needs_bank and not fills_bank:
            raise ConfigError(
                f"phases.{number}: refine would draw from an empty bank; put a pregenerate phase that keeps images, or "
                "a joint phase, before it"
            )


def describe(phase: PhaseSettings) -> str:
    """One phase in words, for the plan of a run."""
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
    after_rounds: Sequence[Action],
) -> list[Stage]:
    """The stages of the training loop, one per phase.

    A step of the run is a round of the generator in a pregenerate phase and a step of the student in all others. The
    actions, however, are called with their own numbers, which count rounds or student steps over all phases.

    Args:
        phases: in order.
        pregenerate: one round of the generator alone; called with its number and whether its images are kept.
        synthesise: one round of the generator beside the student; called with its number among all rounds.
        learn: one step of the student; called with its number among all the student's steps.
        evaluate: evaluates the students on held-out images before a step; called with the student's and the run's
            number of the step.
        evaluate_every: steps between two evaluations, counted from the first of a phase.
        watch: further actions of every phase that trains the student.
        after_rounds: actions on generated images, such as grids and scores, whose `every` counts rounds of the
            generator; called with the step of the run. They follow the last round of a phase in any case.
    """
    stages: list[Stage] = []
    start = rounds = steps = 0  # of the run, of the generator and of the student, before the phase
    for phase in phases:
        if isinstance(phase, Pregenerate):
            generate = Action("pregenerate", _alone(pregenerate, phase, start, rounds))
            stages.append(Stage(phase.kind, phase.rounds, [generate, *after_rounds]))
        else:
            # The evaluation comes before the step: controllers set the temperature and the weights that it uses.
            actions = [
                Action("evaluate", _evaluating(evaluate, steps - start), evaluate_every, at_once=True),
                Action("learn", _shifted(learn, steps - start)),
                *watch,
            ]
            if isinstance(phase, Joint):
                # The round comes first, so that the bank holds images at the first step of the run.
                generate = Action("synthesise", _every(synthesise, phase.every, start, rounds), phase.every)
                actions = [generate, *actions]
                actions += [replace(action, every=action.every * phase.every) for action in after_rounds]
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
