"""A generator trained on its own, in the one loop."""

from __future__ import annotations

from collections.abc import Mapping

from synthkd.pipelines.config import TrainingConfig
from synthkd.pipelines.run.job import Job
from synthkd.training.loop import Action, Loop, Progress, Stage
from synthkd.types import TrainableGenerator


def fit_generator(
    config: TrainingConfig, job: Job, generator: TrainableGenerator, rounds: int, difficulty: float
) -> Progress:
    """Train a generator for so many rounds, resumable; without rounds nothing happens and nothing is logged.

    Args:
        config: of the job.
        job: the open run.
        generator: trained by `fit` where it has one, else by rounds whose images are dropped.
        rounds: how many.
        difficulty: in [0, 1].
    """
    if not rounds:
        return Progress(0, None, 0.0, 0.0)
    fit = getattr(generator, "fit", None)

    def train(step: int) -> Mapping[str, float]:
        terms: Mapping[str, float]
        terms = generator.round(step, difficulty).terms if fit is None else fit(step, difficulty)
        return terms

    loop = Loop(
        job.accelerator,
        {"generator": generator},
        job.store,
        job.monitor,
        config.seed,
        config.log_every,
        config.checkpoint_every,
        shown=("generator/loss",),
    )
    return loop.run([Stage("fit", rounds, [Action("train", train)])], f"generator of {config.name}")
