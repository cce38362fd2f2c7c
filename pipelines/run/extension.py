"""More steps for a finished run: its result is set aside in `before-1`, and its last checkpoint is where it goes on.

An extension begins with three changes of the run directory, and a kill between them does no harm:

1. `before-N` is a copy of the result and of what it hands over, put in its place by one rename.
2. `config.yaml` records the extension. From here on the run counts as extended and unfinished.
3. `result.json` and the report of before are removed, as any later start of the run also does.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from synthkd.errors import CheckpointError, ConfigError
from synthkd.pipelines.config import DistillConfig
from synthkd.pipelines.config.budget import recorded, seconds_of
from synthkd.pipelines.run.budget import MOST
from synthkd.pipelines.run.device import process_state
from synthkd.pipelines.run.directory import CONFIG, REPORT, RESULT, inside_a_run, run_directory, saved_config
from synthkd.pipelines.run.result import HANDED_OVER, read_result
from synthkd.pipelines.run.several import depends_on_processes, require_same_processes
from synthkd.pipelines.run.shared_work import on_main
from synthkd.reports.results import DistillResult, EarlierResult
from synthkd.settings import Pregenerate
from synthkd.settings.load import dump_config
from synthkd.system.files import write_atomically
from synthkd.training.checkpoint import CheckpointStore
from synthkd.training.monitor import FILE_NAME as METRICS
from synthkd.training.monitor import read_rows
from synthkd.training.shared_rows import flush

BEFORE = "before"
"""Start of the names of the folders with the results before each extension."""


def with_extensions(config: DistillConfig, *, dry_run: bool) -> DistillConfig:
    """The configuration with the extensions that its run has had, and with the one that it asks for (`more`).

    Args:
        config: of the job.
        dry_run: check everything, but begin no extension.

    Raises:
        ConfigError: `more` without a finished run, or `extended` that is not the record of the run.
        CheckpointError: the run has no state to go on from, or see `earlier_results`, `run_directory` and
            `read_result`.
    """
    directory = None if config.out is None else Path(config.out)
    saved = None if directory is None else _saved(directory, config)
    had, config = () if saved is None else saved.extended, recorded(config, saved)
    if config.extended not in ((), had):
        raise ConfigError(
            "extended: it is a record of what a run has had; leave it out, and give the phases more steps"
        )
    more, config = config.more, config.model_copy(update={"more": None, "extended": had})
    if more is None and not had:
        return config
    if directory is None or saved is None:
        raise ConfigError(
            f"more: it extends a finished run, and {directory or 'none'} is "
            f"{'no run of `synthkd distill`' if directory else 'named'}; write synthkd distill RUN more={more}"
        )
    if dry_run:
        return _extended(config, directory, more)
    processes = process_state(config).num_processes

    def begun() -> DistillConfig:
        with run_directory("distill", config):
            if depends_on_processes("distill", config):
                require_same_processes(directory, processes)
            extended = _extended(config, directory, more)
            _begin(extended, directory, is_recorded=extended == config)
            return extended

    return on_main(begun)


def earlier_results(config: DistillConfig, directory: Path) -> tuple[EarlierResult, ...] | None:
    """The results that a run had before each of its extensions; None without one.

    Raises:
        CheckpointError: one of them, or a file that belongs to it, is damaged or missing.
    """
    results = []
    for number in range(1, len(config.extended) + 1):
        folder = f"{BEFORE}-{number}"
        result = read_result(directory / folder, DistillResult)
        if result is None:
            raise CheckpointError(f"{directory / folder} has no {RESULT}; copy the folder back")
        results.append(EarlierResult(folder, result.cost.steps, result.student))
    return tuple(results) or None


def earlier_queries(config: DistillConfig, directory: Path) -> int:
    """The number of queries that a run had used before its last extension; 0 without one, or without a black box.

    Raises:
        CheckpointError: as `earlier_results`.
    """
    if not config.extended:
        return 0
    before = directory / f"{BEFORE}-{len(config.extended)}"
    # The plan of an extension comes before the result is set aside.
    result = read_result(before if before.is_dir() else directory, DistillResult)
    return 0 if result is None or result.queries is None else result.queries.used


def _saved(directory: Path, config: DistillConfig) -> DistillConfig | None:
    """The configuration that a run directory recorded; None if there is none of this job."""
    try:
        return saved_config(directory, config)
    except ConfigError:
        return None


def _extended(config: DistillConfig, directory: Path, more: int | str | None) -> DistillConfig:
    """The configuration with the extension that is asked for, or that has begun already."""
    result = read_result(directory, DistillResult)
    finished = None if result is None else len(result.before or ())
    has_begun = finished != len(config.extended) and bool(config.extended)
    resumes = f"finish it first: synthkd distill {directory}"
    before = config.model_copy(update={"extended": config.extended[:-1]}) if has_begun else config
    if has_begun or more is not None:  # the new result shows the earlier ones: better refused before any step
        earlier_results(config, directory)
    steps = _steps_in(seconds_of(more), before, directory) if isinstance(more, str) else more
    if steps is None or (has_begun and config.extended[-1] == steps):
        return config
    if has_begun:
        raise ConfigError(f"more: {directory} is being extended by {config.extended[-1]:,} steps; {resumes}")
    if finished is None:
        raise ConfigError(f"more: {directory} is not finished; {resumes}")
    if (outer := inside_a_run(directory)) is not None:
        raise ConfigError(f"more: {directory} is a part of the run {outer}, which measured and handed over its student")
    _require_state(config, directory)
    return config.model_copy(update={"extended": (*config.extended, steps)})


def _steps_in(seconds: float, config: DistillConfig, directory: Path) -> int:
    """The steps that the last phase of the student took in so many seconds, by the log of the run.

    What an extension that has begun logs does not count, so that the same command finds the same number again.
    """
    phases = config.phases_and_extensions
    last = max(number for number, phase in enumerate(phases) if not isinstance(phase, Pregenerate) and phase.steps)
    lengths = [phase.rounds if isinstance(phase, Pregenerate) else phase.steps for phase in phases]
    start, end = sum(lengths[:last]), sum(lengths[: last + 1])
    rows = [row for row in read_rows(directory / METRICS) if start <= row["step"] <= end]
    rows = [row for row in rows if "event" not in row or (row["step"] == start and row.get("kind") == "phase")]
    if len(rows) < 2 or rows[-1]["step"] == rows[0]["step"]:
        raise ConfigError(f"more: {directory / METRICS} does not tell how long a step takes; give a number of steps")
    pace = (float(rows[-1]["seconds"]) - float(rows[0]["seconds"])) / (rows[-1]["step"] - rows[0]["step"])
    if pace > seconds:
        raise ConfigError(f"more: {seconds:g} s are less than a step, which took {pace:.2g} s; set a longer time")
    return min(MOST, int(seconds / max(pace, 1e-9)))


def _require_state(config: DistillConfig, directory: Path) -> None:
    """Refuse a run without the checkpoint of its last step."""
    every = config.phases_and_extensions
    last = sum(phase.rounds if isinstance(phase, Pregenerate) else phase.steps for phase in every)
    checkpoint = CheckpointStore(directory / "checkpoints").latest()
    if checkpoint is None or checkpoint.step != last:
        raise CheckpointError(
            f"{directory / 'checkpoints'} has no checkpoint of the last step ({last:,}): it was removed, or an earlier "
            "version made the run; distill again with more steps in phases"
        )


def _begin(config: DistillConfig, directory: Path, *, is_recorded: bool) -> None:
    """Set the result of before the last extension aside, if it is still there; the directory is locked."""
    result = read_result(directory, DistillResult)
    if result is None or len(result.before or ()) == len(config.extended):
        return
    if not is_recorded:
        _keep(directory, directory / f"{BEFORE}-{len(config.extended)}")
        write_atomically(directory / CONFIG, dump_config(config).encode())
    for name in (REPORT, RESULT):
        (directory / name).unlink(missing_ok=True)


def _keep(run: Path, folder: Path) -> None:
    """Copy configuration, result, report and everything handed over of a run into a folder inside it."""
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")  # removed by the next start, if it stays
    partial.mkdir()
    for name in (CONFIG, RESULT, REPORT, *HANDED_OVER):
        if (run / name).is_dir():
            shutil.copytree(run / name, partial / name)
        elif (run / name).is_file():
            shutil.copy2(run / name, partial / name)
    for path in (*partial.rglob("*"), partial):  # before the names, and before the result of the run is removed
        flush(path)
    shutil.rmtree(folder, ignore_errors=True)  # of a start that was killed before the extension was recorded
    partial.rename(folder)
    flush(run)
