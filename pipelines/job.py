"""What every job does around its work: the run directory and its lock, device and processes, results and report."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list

from synthkd import __version__
from synthkd.configuration import differences, dump_config, load_config
from synthkd.errors import CheckpointError, ConfigError, MissingExtraError
from synthkd.files import write_atomically
from synthkd.hardware import describe, peak_memory_bytes
from synthkd.metrics.utility import Proportion
from synthkd.models import Classifier, parameters
from synthkd.monitor import FILE_NAME as METRICS
from synthkd.monitor import Monitor
from synthkd.pipelines.config import JobConfig
from synthkd.report import write_report
from synthkd.training.checkpoint import CheckpointStore

CONFIG = "config.yaml"
RESULT = "result.json"
REPORT = "report.html"
FREE_TO_CHANGE = {"name", "out", "device", "threads", "keep_checkpoints", "track"}
"""Keys that may differ when a run is resumed: they change rounding at most."""

Config = TypeVar("Config", bound=JobConfig)


@dataclass(frozen=True)
class Result:
    """The outcome of a job.

    Attributes:
        directory: the run directory.
        values: the content of result.json.
        summary: what is printed, a line each.
    """

    directory: Path
    values: Mapping[str, Any]
    summary: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join(self.summary)


@dataclass(frozen=True)
class Plan:
    """What a job would do, as printed by --dry-run."""

    lines: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.lines)


@dataclass(frozen=True)
class Job:
    """An open run.

    Attributes:
        name: the job ("distill").
        directory: the run directory, locked against a second process.
        accelerator: device, precision, processes and trackers.
        monitor: the log.
        store: the checkpoints.
        finished: the content of result.json when the run was complete before, else None.
    """

    name: str
    directory: Path
    config: JobConfig
    accelerator: Accelerator
    monitor: Monitor
    store: CheckpointStore
    finished: Mapping[str, Any] | None

    @property
    def device(self) -> torch.device:
        """Where models and batches live."""
        device: torch.device = self.accelerator.device
        return device

    def finish(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Write result.json and report.html, then drop the checkpoints, which a finished run no longer needs."""
        complete = {
            "schema": 1,
            "job": self.name,
            "name": self.config.name,
            "version": __version__,
            "seed": self.config.seed,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            **values,
            "hardware": describe(self.device),
        }
        complete.setdefault("cost", {})["peak_memory_bytes"] = peak_memory_bytes()
        if self.accelerator.is_main_process:
            text = json.dumps(complete, indent=2, allow_nan=False)
            write_atomically(self.directory / RESULT, text.encode() + b"\n")
        self.tidy()
        return complete

    def tidy(self) -> None:
        """What follows the result, and is made up for when a kill came between: the report, and no checkpoints."""
        if self.accelerator.is_main_process:
            if not (self.directory / REPORT).exists():
                write_report(self.directory)
            self.store.clear()
            shutil.rmtree(self.directory / "bank", ignore_errors=True)
        self.accelerator.wait_for_everyone()


def make_accelerator(config: JobConfig, directory: Path | None = None) -> Accelerator:
    """The accelerator of a configuration, its trackers writing into `directory/track`.

    Raises:
        ConfigError: when cuda or fp16 is asked for where there is none.
        MissingExtraError: when an experiment tracker is not installed.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: cuda was asked for, but torch sees no CUDA device; use device=auto or device=cpu")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if config.precision == "fp16" and _on_cpu(config):
        raise ConfigError("precision: fp16 needs a GPU; use precision=bf16 or precision=no")
    for tracker in config.track:
        if find_spec(tracker) is None and tracker == "tensorboard":
            raise MissingExtraError(tracker, "track", "track: tensorboard")
        if find_spec(tracker) is None:  # used where it is, never pinned: their caps would pull core packages down
            raise ConfigError(f"track: {tracker} is not installed: pip install {tracker}")
    _forget_other_settings(config)
    return Accelerator(
        cpu=_on_cpu(config),
        mixed_precision=config.precision,
        log_with=list(config.track) or None,
        project_dir=None if directory is None else directory / "track",
    )


def _on_cpu(config: JobConfig) -> bool:
    # said outright, since accelerate forms a group of CPU processes only when it is told to
    return config.device == "cpu" or not torch.cuda.is_available()


def _forget_other_settings(config: JobConfig) -> None:
    """accelerate keeps device and precision for the whole process; an earlier job's must not rule this one."""
    if not AcceleratorState._shared_state:
        return
    state = AcceleratorState()
    if (state.mixed_precision, state.device.type == "cpu") != (config.precision, _on_cpu(config)):
        AcceleratorState._reset_state(reset_partial_state=True)


@contextmanager
def open_job(name: str, config: JobConfig) -> Iterator[Job]:
    """Choose, make or resume the run directory of a job and hold its lock.

    Raises:
        ConfigError: when the directory holds a run of another configuration; the changed keys are named.
        CheckpointError: when another process works in it, or it holds something that is no run.
    """
    with _claim(name, config) as directory:
        accelerator = make_accelerator(config, directory)
        finished = _read_result(directory)
        if config.track and finished is None:
            accelerator.init_trackers(config.name)
        monitor = Monitor(directory, accelerator)
        store = CheckpointStore(directory / "checkpoints", config.keep_checkpoints)
        try:
            job = Job(name, directory, config, accelerator, monitor, store, finished)
            if finished is not None:
                job.tidy()
            yield job
        finally:
            if accelerator.trackers:
                accelerator.end_training()


@contextmanager
def _claim(name: str, config: JobConfig) -> Iterator[Path]:
    """The run directory, locked by the main process; the others are told which one it is."""
    _forget_other_settings(config)
    state = PartialState(cpu=_on_cpu(config))
    chosen: list[str | None] = [None]
    lock = None
    if state.is_main_process:
        directory, lock = _choose(name, config)
        chosen = [str(directory)]
    broadcast_object_list(chosen)
    assert chosen[0] is not None
    try:
        yield Path(chosen[0])
    finally:
        if lock is not None:
            lock.close()


def _choose(name: str, config: JobConfig) -> tuple[Path, Any]:
    if config.out is not None:
        directory = Path(config.out)
        _check(directory, config)
        lock = _lock(directory)
        if lock is None:
            raise CheckpointError(f"{directory}: another process is working in this run; wait, or choose another out=")
        _adopt(directory, config)
        return directory, lock
    number = 1
    while True:
        directory = Path("runs") / name / (config.name if number == 1 else f"{config.name}-{number}")
        # an unfinished run of this very configuration is the one to go on with; anything else is left alone
        fresh = not directory.exists()
        if fresh or (not (directory / RESULT).exists() and _same(directory, config)):
            lock = _lock(directory)
            if lock is not None:
                _adopt(directory, config)
                return directory, lock
        number += 1


def _lock(directory: Path) -> Any:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / ".lock").open("w")
    except OSError as error:
        raise CheckpointError(
            f"{directory} cannot be used as a run directory ({error.strerror}); choose another out="
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def _saved(directory: Path, config: Config) -> Config | None:
    path = directory / CONFIG
    return load_config(type(config), path, []) if path.exists() else None


def _changed(saved: JobConfig, config: JobConfig) -> list[str]:
    return [key for key in differences(saved, config) if key.split(".")[0] not in FREE_TO_CHANGE]


def _same(directory: Path, config: JobConfig) -> bool:
    try:
        saved = _saved(directory, config)
    except ConfigError:  # somebody else's directory, or a run of another version: not ours to go on with
        return False
    return saved is not None and not _changed(saved, config)


def _check(directory: Path, config: JobConfig) -> None:
    """Refuse a directory that is no run of this configuration, before anything, a lock included, is written there."""
    if not directory.is_dir():
        return
    try:
        saved = _saved(directory, config)
    except ConfigError as error:
        raise CheckpointError(
            f"{directory} holds a run of another job or another version of synthkd (its {CONFIG} is not one of this "
            "job); choose another out="
        ) from error
    if saved is None:
        others = sorted(p.name for p in directory.iterdir() if p.name != ".lock")
        if others:
            raise CheckpointError(
                f"{directory} exists and is no run of synthkd (it holds {', '.join(others[:3])}); choose another out="
            )
    # where nothing but the configuration stands, the run failed before it began and this is the corrected one
    elif any((directory / name).exists() for name in (RESULT, "checkpoints", METRICS)) and (
        changed := _changed(saved, config)
    ):
        raise ConfigError(
            f"{directory} holds a run with another configuration; changed: {', '.join(changed)}. "
            "Choose another out=, or run with the old values"
        )


def _adopt(directory: Path, config: JobConfig) -> None:
    if not _same(directory, config):
        write_atomically(directory / CONFIG, dump_config(config).encode())


def _read_result(directory: Path) -> Mapping[str, Any] | None:
    path = directory / RESULT
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text())
        if not isinstance(values, dict) or "job" not in values:
            raise ValueError("it is no result of a job")
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged ({error}); delete it to finish the run again") from error
    return values


def training_bytes(count: int) -> int:
    """Bytes of `count` float32 parameters and the two moments an optimiser keeps of each."""
    return 3 * 4 * count


def disk_line(config: JobConfig, checkpoint: int, other: int = 0) -> str:
    """What a run keeps on disk while it runs, as a line of its plan."""
    kept = config.keep_checkpoints * checkpoint
    bank = f" and {other / 1e6:,.0f} MB of memory bank" if other else ""
    return f"  disk: about {kept / 1e6:,.1f} MB of checkpoints{bank} while it runs"


def scored(result: Proportion | None) -> dict[str, Any]:
    """An accuracy as it stands in result.json; null where there was nothing to measure it on."""
    if result is None:
        return {"accuracy": None}
    return {"accuracy": result.value, "accuracy_interval": [result.low, result.high], "n": result.n}


def describe_model(model: Classifier, latency: float) -> dict[str, Any]:
    """Size and kind of a model as they stand in result.json."""
    recipe = model.recipe
    arch = recipe.get("arch") or recipe.get("model") or type(model).__name__
    sizes = [f"{key} {recipe[key]}" for key in ("width", "depth") if recipe.get(key) is not None]
    return {
        "arch": " ".join([str(arch), *sizes]),
        "parameters": parameters(model),
        "bytes": sum(t.numel() * t.element_size() for t in model.state_dict().values()),
        "latency_ms": round(latency, 4),
    }
