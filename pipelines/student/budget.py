"""The plan of a distillation that has a budget of time: this machine is measured once, and the run keeps the plan."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import torch

from synthkd.data.read.splits import RealData
from synthkd.errors import ConfigError, TrainingError
from synthkd.models import Classifier
from synthkd.models.black_box import BlackBox
from synthkd.pipelines.config import DistillConfig
from synthkd.pipelines.config.budget import Planned, seconds_of
from synthkd.pipelines.run.budget import filled, recounted
from synthkd.pipelines.run.device import make_accelerator
from synthkd.pipelines.run.directory import CONFIG, saved_config
from synthkd.pipelines.run.shared_work import rank, shares
from synthkd.pipelines.run.timing import LIMIT, PlannedTime, Timed, told
from synthkd.pipelines.student.asking import ask_ahead
from synthkd.pipelines.student.assembly import Assembly, assemble
from synthkd.pipelines.student.timing import distill_time
from synthkd.pipelines.student.transfer_set_builder import is_private
from synthkd.settings.load import dump_config
from synthkd.system.files import write_atomically

SHARE, LEAST, LONGEST = 0.03, 6.0, 60.0
"""Of a budget, the share that measuring takes; its least seconds, where that is no more than a tenth; its most."""
MOST_PASSES = 100
"""Measurements of all kinds of work, one after another, so that a moment in which the machine is busy counts little."""


def require_measurable(config: DistillConfig) -> None:
    """Refuse a budget where nothing may be measured before the run.

    Raises:
        ConfigError: the refusal.
    """
    if config.budget is None:
        return
    if config.black_box is not None and config.generated is not None:
        raise ConfigError(
            "budget: a generator asks the black box while the student learns, and to measure that takes of its "
            "queries: set phases in place of budget, or take images that are asked about once before: transfer_set of "
            "kind procedural, pictures or real"
        )
    if is_private(config):
        raise ConfigError("budget: to measure a private generator takes of its epsilon: set phases in place of budget")


@dataclass(frozen=True)
class Filled:
    """A budget that was filled.

    Attributes:
        config: with the plan, and with its phases.
        timed: the parts of a run with these phases, but for the training of its teachers.
        measuring: seconds that measuring took.
    """

    config: DistillConfig
    timed: Sequence[Timed]
    measuring: float

    def time(self, teaching: Sequence[Timed]) -> PlannedTime:
        """What a dry run tells of the time, with the times of the training of its teachers."""
        return told([*teaching, *self.timed], self.measuring)


def needs_plan(config: DistillConfig) -> bool:
    """Whether there is a budget that nobody has filled yet."""
    return config.budget is not None and config.planned is None


def with_plan(
    config: DistillConfig,
    models: Sequence[Classifier],
    test: RealData | None,
    student: Classifier | None,
    directory: Path,
) -> DistillConfig:
    """The configuration with the phases that fill its budget; the run directory keeps them.

    The parts that are measured are apart from those of the run, which is the same as if nothing had been measured.

    Args:
        config: of the job.
        models: the teachers, trained.
        test: real test data, or None.
        student: that was given in memory, or None.
        directory: the run directory.

    Returns:
        The configuration itself if it has no budget, or its plan.

    Raises:
        ConfigError: the budget is too short.
        SynthkdError: what the steps raise.
    """
    if not needs_plan(config):
        return config
    planned = fill(config, models, test, student, directory=directory).config
    changes = {"phases": planned.phases, "planned": planned.planned}
    if rank() == 0:
        saved = saved_config(directory, config)
        assert saved is not None  # of the open run
        write_atomically(directory / CONFIG, dump_config(saved.model_copy(update=changes)).encode())
    return config.model_copy(update=changes)


def require_time(
    config: DistillConfig, models: Sequence[Classifier], test: RealData | None, student: Classifier | None
) -> None:
    """Refuse a budget that is too short, by one short measurement, before a teacher is trained.

    Args:
        config: of the job, without a plan.
        models: the teachers, those that are to be trained as they start.
        test: real test data, or None.
        student: that was given in memory, or None.

    Raises:
        ConfigError: the refusal.
        SynthkdError: what does not fit together.
    """
    try:
        fill(config, models, test, student, taught=False, passes=1)
    except _UnmeasuredError:  # by teachers that know nothing
        return


def fill(
    config: DistillConfig,
    models: Sequence[Classifier],
    test: RealData | None,
    student: Classifier | None,
    taught: bool = True,
    passes: int | None = None,
    directory: Path | None = None,
) -> Filled:
    """Measure this machine, and fill the budget.

    The plan has all seconds of a run from its finished teachers to its result: those of measuring, of building its
    parts, and of the works of its phases. A black box is asked what the run asks it before the first step; the time of
    that counts as measuring, and the run finds the answers in its record.

    Args:
        config: of the job, without a plan.
        models: the teachers.
        test: real test data, or None.
        student: that was given in memory, or None.
        taught: whether no teacher is to be trained. If one is, the libraries are loaded before the budget begins.
        passes: measurements of all works; None: as many as the time for measuring holds.
        directory: the run directory, with the record of a black box; None: a black box is not asked, and the plan has
            no time for its answers.

    Raises:
        ConfigError: the budget is too short, or nothing could be measured.
        SynthkdError: what the steps raise.
    """
    assert config.budget is not None
    started = time.perf_counter()
    accelerator, wanted = make_accelerator(config), _measuring_seconds(config.budget)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        first = assemble(config, models, accelerator, None, student)  # loads libraries, which the run's parts do not
        first.fitted_test(test)  # a mistake should end the run before a black box is asked
        answer = 0.0 if directory is None else _asked(first, directory, started)
        del first
        loaded = time.perf_counter()
        assembly = assemble(config, models, accelerator, None, student)
        if directory is not None:
            ask_ahead(assembly, directory)  # that is, read the record, as the run does
        built = time.perf_counter()
        limit = min(LIMIT, wanted)
        timed = _measured(
            lambda: distill_time(assembly, test, accelerator, taught=True, limit=limit),
            built + wanted,
            passes or MOST_PASSES,
        )
        timed += _closing_answers(assembly.black_box, test, answer)
    building = built - loaded
    libraries = 0.0 if taught else max(0.0, loaded - started - building)
    # What the main process measured counts, so that none of several processes refuses a budget alone.
    spent = time.perf_counter() - started - libraries
    timed, building, measuring = shares().first(lambda: (timed, building, spent))
    phases, seconds = filled(config.phases, timed, config.budget, measuring + building)
    plan = Planned(
        budget=config.budget,
        phases=config.phases,
        seconds=round(measuring + building + seconds, 3),
        measuring=round(measuring, 3),
    )
    planned = config.model_copy(update={"phases": phases, "planned": plan})
    return Filled(planned, recounted(timed, phases), measuring)


def _asked(assembly: Assembly, directory: Path, started: float) -> float:
    """Ask a black box what the run asks before its first step; mean seconds of an answer, 0 without a new one."""
    box, budget = assembly.black_box, assembly.config.budget
    if box is None or budget is None:
        return 0.0
    begun, had = time.perf_counter(), box.paid

    def in_time() -> None:
        if time.perf_counter() - started > seconds_of(budget):
            raise ConfigError(
                f"budget: {budget} is over after {box.paid:,} answers of the black box and before the first step: set "
                "a longer budget and the same out=, which asks nothing again, or fewer queries"
            )

    ask_ahead(assembly, directory, in_time)
    new = box.paid - had
    return (time.perf_counter() - begun) / new if new else 0.0


def _closing_answers(box: BlackBox | None, test: RealData | None, answer: float) -> list[Timed]:
    """The answers to the test images, each in `answer` seconds, where the queries of a black box cover them."""
    if box is None or test is None or not box.covers(test.images):
        return []
    return [Timed("answers", 1, len(test) * answer, listed=False)]


class _UnmeasuredError(ConfigError):
    """No step could be measured."""


def _measured(once: Callable[[], Sequence[Timed]], until: float, most: int) -> list[Timed]:
    """The means of measurements that are repeated until a time of the clock."""
    passes: list[Sequence[Timed]] = []
    # By the clock of the main process: a step of one waits for those of the others.
    while not passes or (len(passes) < most and shares().first(lambda: time.perf_counter() < until)):
        try:
            passes.append(once())
        except TrainingError as error:  # steps out of order may diverge, which says nothing about the run
            if not passes:
                raise _UnmeasuredError(
                    f"budget: no step could be measured ({error}); set phases in place of budget"
                ) from error
            break
    return [replace(each[0], seconds=fmean(one.seconds for one in each)) for each in zip(*passes, strict=True)]


def _measuring_seconds(budget: str) -> float:
    """How long measuring goes on; a pass that has begun is finished."""
    seconds = seconds_of(budget)
    return min(LONGEST, max(SHARE * seconds, min(LEAST, seconds / 10)))
