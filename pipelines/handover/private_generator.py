"""A generator that is trained on one noisy release of private images (DP-MERF), in a run of its own."""

from __future__ import annotations

from synthkd.data.read.splits import RealData
from synthkd.generators.files import INSIDE_A_RUN, read_saved, save_generator
from synthkd.generators.merf import Merf
from synthkd.generators.settings import MerfSettings
from synthkd.pipelines.config import TrainingConfig
from synthkd.pipelines.run.device import make_accelerator
from synthkd.pipelines.run.fit import fit_generator
from synthkd.pipelines.run.images import keep_data
from synthkd.pipelines.run.job import open_job
from synthkd.pipelines.run.result import Result
from synthkd.reports.results import ReleaseResult, RunCost
from synthkd.settings import Count

WIDEST = 1.0
"""The difficulty at which the images of a class are as varied as the generator can make them."""


class ReleaseConfig(TrainingConfig):
    """A private generator, and the number of rounds of its training."""

    generator: MerfSettings
    rounds: Count


def release(config: ReleaseConfig, private: RealData) -> Result[ReleaseResult]:
    """Make the release, train the generator on it, and save the generator to `<run>/generator`.

    A run that was cut short makes no second release, unless the first was lost; then both are counted.

    Args:
        config: the generator, and the number of rounds.
        private: the private images.

    Returns:
        The result; its `content.dp` is the claim, see `synthkd.privacy.claims.dp_statement`.

    Raises:
        SynthkdError: see the classes in `synthkd.errors`.
    """
    with open_job("release", config) as job:
        keep_data(job.directory, private, job.accelerator, private=True)
        if isinstance(job.finished, ReleaseResult):
            return Result(job.directory, job.finished)
        # The release is charged before it is made, and is on disk before anything is trained on it.
        generator = Merf(config.generator, None, config.seed, job.accelerator, private, run=job.directory)
        progress = fit_generator(job, generator, config.rounds, WIDEST)
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
    """The trained generator that a run of `release` saved.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    saved, folder = read_saved(result.directory)
    generator = Merf(config.generator, None, saved.seed, make_accelerator(config), spec=saved.spec.image_spec)
    generator.restore(folder)
    return generator
