"""The phases of a distillation, and the stages of the training loop that carry them out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from synthkd.errors import ConfigError
from synthkd.settings import Joint, PhaseSettings, Pregenerate
from synthkd.training.loop import Action, Stage, Values

BASELINE_PART, LEAST_BASELINE, MOST_BASELINE = 20, 50, 500
"""Of the student's steps, the part that a baseline takes; the least and the most steps of one."""

Indexed = Callable[[int], Values]
"""An action that takes the number of a step or of a round, and returns what is logged."""


def student_steps(phases: Sequence[PhaseSettings]) -> int:
    """Number of steps of the student over all phases."""
    return sum(phase.steps for phase in phases if not isinstance(phase, Pregenerate))


def baseline_steps(phases: Sequence[PhaseSettings]) -> int:
    """Number of steps of a baseline beside these phases: a part of the student's; 0 where that is too few to tell."""
    steps = min(MOST_BASELINE, student_steps(phases) // BASELINE_PART)
    return steps if steps >= LEAST_BASELINE else 0


def generator_rounds(phases: Sequence[PhaseSettings]) -> int:
    """Number of rounds of the generator over all phases."""
    return sum(_rounds(phase) for phase in phases)


def _rounds(phase: PhaseSettings) -> int:
    if isinstance(phase, Pregenerate):
        return phase.rounds
    if isinstance(phase, Joint):
        # Rounded up: a round is due at the first step of each interval, also of a last one that is cut short.
        return -(-phase.steps // phase.every)
    return 0


def rounds_within(phases: Sequence[PhaseSettings], steps: int) -> int:
    """An upper bound on the rounds of the generator within `steps` consecutive steps of the run."""
    every = [phase.every if isinstance(phase, Joint) else 1 for phase in phases]
    return sum(min(_rounds(phase), -(-steps // each)) for phase, each in zip(phases, every, strict=True))


def rounds_alone(phases: Sequence[PhaseSettings], steps: int) -> int:
    """Of the first `steps` steps of a run, the rounds that the generator takes without a student."""
    alone = place = 0
    for phase in phases:
        size = phase.rounds if isinstance(phase, Pregenerate) else phase.steps
        if isinstance(phase, Pregenerate):
            alone += max(0, min(steps - place, size))
        place += size
    return alone


def check(phases: Sequence[PhaseSettings], needs_bank: bool) -> None:
    """Refuse phases in which the student never learns, or draws from an empty bank.

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
        return f"pregenerate {phase.rounds:,} round{'s' * (phase.rounds > 1)}"
    steps = f"{phase.steps:,} step{'s' * (phase.steps > 1)}"
    if isinstance(phase, Joint):
        return f"joint {steps} with a round every {phase.every:,}"
    return f"refine {steps}"


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

    The loop counts steps of the run: a round of the generator in a pregenerate phase, a step of the student in any
    other. The actions get numbers of their own, which count rounds or student steps over all phases.

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

    def stage(phase: PhaseSettings, start: int, rounds: int, steps: int) -> Stage:
        """The stage of a phase, given the steps of the run, the rounds and the student steps before it."""
        if isinstance(phase, Pregenerate):
            discard, first = phase.discard, rounds - start
            generate = Action("pregenerate", lambda step: pregenerate(first + step, step - start >= discard))
            return Stage(phase.kind, phase.rounds, [generate, *after_rounds])
        actions = [
            # Before the step: controllers set the temperature and the weights that the step uses.
            Action("evaluate", lambda step: evaluate(steps - start + step, step), evaluate_every, at_once=True),
            Action("learn", lambda step: learn(steps - start + step)),
            *watch,
        ]
        if isinstance(phase, Joint):
            every = phase.every
            # Before the evaluation: at the first step of the run the bank must hold images to draw and to hold out.
            generate = Action("synthesise", lambda step: synthesise(rounds + (step - start) // every), every)
            actions = [generate, *actions, *(replace(one, every=one.every * every) for one in after_rounds)]
        return Stage(phase.kind, phase.steps, actions)

    stages: list[Stage] = []
    start = rounds = steps = 0
    for phase in phases:
        stages.append(stage(phase, start, rounds, steps))
        start += stages[-1].steps
        rounds += _rounds(phase)
        steps += student_steps([phase])
    return stages
