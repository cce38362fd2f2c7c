"""A generator that learns from one noisy look at private images, in a run of its own."""

from __future__ import annotations

from synthkd.data.read.splits import RealData
from synthkd.generators.files import INSIDE_A_RUN, read_saved, save_generator
from synthkd.generators.merf import Merf
from synthkd.generators.settings import MerfSettings
from synthkd.pipelines.config import TrainingConfig
from synthkd.pipelines.run.directory import Result, keep_data
from synthkd.pipelines.run.fit import fit_generator
from synthkd.pipelines.run.job import make_accelerator, open_job
from synthkd.reports.results import ReleaseResult, RunCost
from synthkd.settings import Count

WIDEST = 1.0
"""The difficulty at which a class is as varied as the generator makes it."""


class ReleaseConfig(TrainingConfig):
    """A private generator and its training."""

    generator: MerfSettings
    rounds: Count


def release(config: ReleaseConfig, private: RealData) -> Result[ReleaseResult]:
    """Look at the private images once, train the generator on what was seen, and save it to `<run>/generator`.

    The look is charged before it is taken, and on disk before anything is made of it: a run that is cut short does not
    look again, and counts a look that was lost.

    Args:
        config: the generator and how long it is trained.
        private: what is looked at.

    Raises:
        SynthkdError: see the classes in `synthkd.errors`.
    """
    with open_job("release", config) as job:
        keep_data(job.directory, private, job.accelerator, private=True)
        if isinstance(job.finished, ReleaseResult):
            return Result(job.directory, job.finished)
        generator = Merf(config.generator, None, config.seed, job.accelerator, private, run=job.directory)
        progress = fit_generator(config, job, generator, config.rounds, WIDEST)
        names, count = private.class_names, len(private)
        if job.accelerator.is_main_process:
            folder = job.directory / INSIDE_A_RUN
            save_generator(generator, config.generator, folder, private.spec, names, config.seed, count)
        assert generator.embedding is not None
        content = job.finish(
            ReleaseResult(
                dp=generator.embedding.statement(config.generator.delta, generator.ledger),
                real_images_used=count,
                cost=RunCost({"generator": round(progress.seconds, 3)}, rounds=config.rounds),
            )
        )
        return Result(job.directory, content)


def load_released(config: ReleaseConfig, result: Result[ReleaseResult]) -> Merf:
    """The generator that a run of `release` saved."""
    saved, folder = read_saved(result.directory)
    generator = Merf(config.generator, None, saved.seed, make_accelerator(config), spec=saved.image_spec)
    generator.restore(folder)
    return generator
