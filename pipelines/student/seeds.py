"""A distillation that is run with several seeds: each is a run of its own, and one result has mean and spread."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthkd.errors import ConfigError
from synthkd.pipelines.config import DistillConfig
from synthkd.pipelines.run.device import choose_device, process_state
from synthkd.pipelines.run.directory import REPORT, run_directory, saved_config
from synthkd.pipelines.run.result import Result, finished_result, read_result
from synthkd.pipelines.student.transfer_set_builder import is_private
from synthkd.reports.page import SPACE, percent
from synthkd.reports.report import has_report, write_report
from synthkd.reports.results import DistillResult, RunCost, SeedRun, SeedsResult, Spread, write_result
from synthkd.reports.seeds import ends_of_estimates, headline, points
from synthkd.settings import TrainedTeacher

SHARED = ("student", "generator")
"""Folders of the first run that the run of all seeds hands over."""


@dataclass(frozen=True, kw_only=True)
class DistilledSeeds(Result[SeedsResult]):
    """The outcome of a distillation with several seeds.

    Attributes:
        runs: of each seed, in order; a seed whose folder was removed after the end has none.
    """

    runs: tuple[Result[DistillResult], ...]


def require_seeds(config: DistillConfig) -> None:
    """Refuse several seeds where a run may not be repeated.

    Raises:
        ConfigError: the refusal.
    """
    noisy = any(isinstance(one, TrainedTeacher) and one.training.dp is not None for one in config.every_teacher)
    if noisy or is_private(config):
        raise ConfigError("seeds: each seed would spend an epsilon of its own on the same images: leave seeds out")
    if config.black_box is not None:
        queries = (config.seeds or 1) * config.black_box.queries
        raise ConfigError(
            f"seeds: each seed would ask the black box for itself, {queries:,} queries in all: leave seeds out, or run "
            "each seed alone"
        )
    if process_state(config).num_processes > 1:
        raise ConfigError("seeds: they run in one process, one after another: leave torchrun out, or seeds")


def distill_seeds(config: DistillConfig, one: Callable[[DistillConfig], Result[DistillResult]]) -> DistilledSeeds:
    """Run every seed that is not finished, and write mean and spread of all.

    Args:
        config: with `seeds`.
        one: runs a configuration without.

    Raises:
        SynthkdError: see `run_directory` and `read_result`, and what `one` raises.
    """
    with run_directory("distill", config) as directory:
        finished = read_result(directory, SeedsResult)
        runs, plan = list[Result[DistillResult]](), dict[str, object]()
        for seed in seeds(config):
            alone = _alone(directory, seed)
            if finished is not None and not Path(alone["out"]).exists():
                continue  # somebody removed it; the result of all stays
            runs.append(one(config.model_copy(update={**alone, **plan})))
            plan = plan or _plan(config, runs[0].directory)
        already = finished is not None
        if finished is None:
            _hand_over(runs[0].directory, directory)
            content = _result(config, [run.content for run in runs])
            finished = finished_result(content, config, directory, choose_device(config))
            write_result(directory, finished)
        if not has_report(directory, "distill"):
            write_report(directory)
        lines = [f"{directory} was complete already; nothing was run"] if already else []
        return DistilledSeeds(directory, finished, (*lines, *_summary(directory, finished)), runs=tuple(runs))


def seeds(config: DistillConfig) -> range:
    """The seeds, from that of the configuration on."""
    assert config.seeds is not None
    return range(config.seed, config.seed + config.seeds)


def _alone(directory: Path, seed: int) -> dict[str, Any]:
    return {"seeds": None, "seed": seed, "out": str(directory / f"seed-{seed}")}


def _plan(config: DistillConfig, first: Path) -> dict[str, object]:
    """The plan of the first run, which the others have too: their seeds alone are to tell them apart."""
    saved = saved_config(first, config)
    return {} if saved is None or saved.planned is None else {"planned": saved.planned, "phases": saved.phases}


def _hand_over(run: Path, directory: Path) -> None:
    for name in SHARED:
        if (run / name).is_dir():
            shutil.rmtree(directory / name, ignore_errors=True)
            shutil.copytree(run / name, directory / name)


def _result(config: DistillConfig, results: Sequence[DistillResult]) -> SeedsResult:
    runs = [
        SeedRun(
            folder=f"seed-{seed}",
            seed=seed,
            seconds=one.seconds,
            student=one.student,
            teacher=one.teacher,
            budget=one.budget,
            estimate=one.estimate,
            alarms=one.alarms or None,
            advice=one.advice,
        )
        for seed, one in zip(seeds(config), results, strict=True)
    ]
    stages = [one.cost.seconds for one in results]
    return SeedsResult(
        seconds=round(sum(one.seconds or 0.0 for one in results), 3),
        accuracy=Spread.of([one.student.accuracy for one in results]),
        agreement=Spread.of([one.student.agreement for one in results]),
        runs=tuple(runs),
        estimate=Spread.of([None if one.estimate is None else one.estimate.value for one in results]),
        cost=RunCost({stage: round(sum(one.get(stage, 0.0) for one in stages), 3) for stage in stages[0]}),
    )


def _summary(directory: Path, result: SeedsResult) -> list[str]:
    """The lines at the end."""
    rows = []
    for name, one in (("accuracy", result.accuracy), ("agreement", result.agreement)):
        if one is not None:
            rows.append((name, f"mean of {one.n} seeds {points(one)}, {percent(one.low)} to {percent(one.high)}"))
    if result.estimate is not None:
        rows.append(("estimate", _estimated(result, result.estimate)))
    rows += [(f"seed {run.seed}", f"{_of_seed(run)}, in {directory / run.folder}") for run in result.runs]
    for run in result.runs:
        rows += [("alarm", f"seed {run.seed}: {alarm.name}: {alarm.message}") for alarm in run.alarms or ()]
        rows += [("advice", f"seed {run.seed}: {one}") for one in run.advice or ()]
    first = result.runs[0].seed
    rows.append(("student", f"that of seed {first}, in {directory / 'student'}; no seed was chosen by a measurement"))
    rows.append(("report", str(directory / REPORT)))
    width = max(len(name) for name, _ in rows) + 2
    lines = [headline(result), *(f"{name + ':':<{width}}{text}" for name, text in rows)]
    return [line.replace(f"{SPACE}%", "%").replace(SPACE, " ") for line in lines]


def _of_seed(run: SeedRun) -> str:
    """How good the student of a seed is, by what was measured of it."""
    student = run.student
    if student.accuracy is not None:
        return percent(student.accuracy)
    agreement = "" if student.agreement is None else f", agreement {percent(student.agreement)}"
    return f"no real test data{agreement}"


def _estimated(result: SeedsResult, spread: Spread) -> str:
    """The mean of the estimates, and the ends of all their intervals: seeds differ less than an estimate errs."""
    first = result.runs[0].estimate
    assert first is not None  # of a result with estimates
    low, high = ends_of_estimates(result)
    return (
        f"{first.what} without test data, mean of {spread.n} seeds about {spread.mean:.0%} (their intervals: "
        f"{low:.0%} to {high:.0%})"
    )
