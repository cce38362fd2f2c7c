"""The plan of a distillation that has a budget of time: this machine is measured once, and the run keeps the plan."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch
from accelerate.utils import broadcast_object_list

from synthkd.data.read.splits import RealData
from synthkd.errors import ConfigError, TrainingError
from synthkd.models import Classifier
from synthkd.pipelines.config import DistillConfig
from synthkd.pipelines.config.budget import Planned, seconds_of
from synthkd.pipelines.run.budget import filled
from synthkd.pipelines.run.device import make_accelerator
from synthkd.pipelines.run.directory import CONFIG, saved_config
from synthkd.pipelines.run.timing import Timed
from synthkd.pipelines.student.assembly import assemble
from synthkd.pipelines.student.chosen import with_generator
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
    if config.black_box is not None:
        raise ConfigError("budget: to measure a black box takes of its queries: set phases in place of budget")
    if is_private(config):
        raise ConfigError("budget: to measure a private generator takes of its epsilon: set phases in place of budget")


def with_plan(
    config: DistillConfig,
    models: Sequence[Classifier],
    test: RealData | None,
    student: Classifier | None,
    directory: Path | None,
) -> DistillConfig:
    """The configuration with the phases that fill its budget; the run directory keeps them.

    The parts that are measured are apart from those of the run, which is the same as if nothing had been measured.

    Args:
        config: of the job.
        models: the teachers, trained.
        test: real test data, or None.
        student: that was given in memory, or None.
        directory: the run directory; None for a dry run, which keeps nothing.

    Returns:
        The configuration itself if it has no budget, or its plan.

    Raises:
        ConfigError: the budget is too short.
        SynthkdError: what the steps raise.
    """
    if config.budget is None or config.planned is not None:
        return config
    started = time.perf_counter()
    accelerator = make_accelerator(config)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        chosen, _ = with_generator(config, models[0] if models else None)
        assembly = assemble(chosen, models, accelerator, None, student)
        until = started + _measuring_seconds(config.budget)
        timed = _measured(lambda: distill_time(chosen, assembly, test, accelerator, taught=True), until)
    measuring = time.perf_counter() - started
    phases, seconds = filled(config.phases, timed, config.budget, measuring)
    plan = Planned(
        budget=config.budget,
        phases=config.phases,
        seconds=round(measuring + seconds, 3),
        measuring=round(measuring, 3),
    )
    shared = [(phases, plan)]
    broadcast_object_list(shared)
    phases, plan = shared[0]
    changes = {"phases": phases, "planned": plan}
    if directory is not None and accelerator.is_main_process:
        saved = saved_config(directory, config)
        assert saved is not None  # of the open run
        write_atomically(directory / CONFIG, dump_config(saved.model_copy(update=changes)).encode())
    return config.model_copy(update=changes)


def _measured(once: Callable[[], Sequence[Timed]], until: float) -> list[Timed]:
    """The means of measurements that are repeated until a time of the clock."""
    passes: list[Sequence[Timed]] = []
    while not passes or (len(passes) < MOST_PASSES and _of_first(time.perf_counter() < until)):
        try:
            passes.append(once())
        except TrainingError as error:  # steps out of order may diverge, which says nothing about the run
            if not passes:
                raise ConfigError(
                    f"budget: no step could be measured ({error}); set phases in place of budget"
                ) from error
            break
    return [replace(each[0], seconds=fmean(one.seconds for one in each)) for each in zip(*passes, strict=True)]


def _of_first(answer: bool) -> bool:
    """The answer of the main process in every process: a step of one waits for those of the others."""
    shared = [answer]
    broadcast_object_list(shared)
    return shared[0]


def _measuring_seconds(budget: str) -> float:
    """How long measuring goes on; a pass that has begun is finished."""
    seconds = seconds_of(budget)
    return min(LONGEST, max(SHARE * seconds, min(LEAST, seconds / 10)))
