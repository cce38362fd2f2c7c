"""Training of a generator on its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from synthkd.generators.method_settings import BatchwiseSettings
from synthkd.generators.settings import CGANSettings, DiffusionSettings, GeneratorSettings
from synthkd.pipelines.run.job import Job
from synthkd.training.loop import Action, Progress, Stage, Values
from synthkd.types import TrainableGenerator


def fit_generator(
    job: Job, generator: TrainableGenerator, rounds: int, difficulty: float, watching: Sequence[Action] = ()
) -> Progress:
    """Train a generator without a student, resumable, and return what that took.

    Args:
        job: the open run.
        generator: trained by its `fit(step, difficulty)` if it has one, else by rounds whose images are dropped.
        rounds: number of steps; with 0 nothing runs and nothing is logged.
        difficulty: in [0, 1].
        watching: further actions after a round, which leave the generator as it is.
    """
    if not rounds:
        return Progress(0, None, 0.0, 0.0)
    train = round_of(generator, difficulty)
    stage = Stage("fit", rounds, [Action("train", train), *watching])
    title = f"generator of {job.config.name}"
    return job.train({"generator": generator}, [stage], title, headline=("generator/loss",))


FEW_STEPS = 15
"""Steps of a measured round, where the time of a round is that of its steps."""


def in_part(settings: GeneratorSettings) -> tuple[GeneratorSettings, float]:
    """Settings of a generator of the same kind with short rounds, and the time of a whole round over that of one.

    These kinds take as long as their steps, of which a round may have hundreds; all others stay as they are.
    """
    if not isinstance(settings, BatchwiseSettings | CGANSettings | DiffusionSettings):
        return settings, 1.0
    steps = min(FEW_STEPS, settings.steps)
    if steps == 0:  # nothing is trained
        return settings, 1.0
    changes = {"steps": steps}
    if not isinstance(settings, BatchwiseSettings):
        changes["measure_every"] = 10**9  # in the first round at most
    return settings.model_copy(update=changes), settings.steps / steps


def round_of(generator: TrainableGenerator, difficulty: float) -> Callable[[int], Values]:
    """A step of the training: number of the round -> values for the log."""
    fit = getattr(generator, "fit", None)

    def train(step: int) -> Values:
        values: Values = generator.round(step, difficulty).terms if fit is None else fit(step, difficulty)
        return values

    return train
