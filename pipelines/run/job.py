"""The frame of every job that trains: device and processes, log and checkpoints, result and report."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list
from torch import Tensor

from synthkd.errors import ConfigError, MissingExtraError
from synthkd.models import Classifier, parameters
from synthkd.pipelines.config import TrainingConfig
from synthkd.pipelines.run.directory import (
    TRACKED,
    choose,
    choose_device,
    on_cpu,
)
from synthkd.pipelines.run.disk import full_disk
from synthkd.pipelines.run.finished import Content, finished_result, read_result
from synthkd.reports.report import has_report, write_report
from synthkd.reports.results import KINDS, JobResult, ModelDescription, write_result
from synthkd.training.checkpoint import CheckpointStore
from synthkd.training.monitor import Monitor
from synthkd.types import Stateful


@dataclass(frozen=True)
class Job:
    """An open run.

    Attributes:
        name: the job ("distill").
        directory: the run directory, locked against a second process.
        accelerator: device, precision, processes and trackers.
        monitor: the log.
        store: the checkpoints.
        finished: the content of result.json where the run was complete before; else None.
    """

    name: str
    directory: Path
    config: TrainingConfig
    accelerator: Accelerator
    monitor: Monitor
    store: CheckpointStore
    finished: JobResult | None

    @property
    def device(self) -> torch.device:
        """The device of models and batches."""
        device: torch.device = self.accelerator.device
        return device

    def finish(self, content: Content) -> Content:
        """Write result.json and the report, remove the checkpoints, and return the completed content of result.json."""
        resumed = sum(row.get("kind") == "resume" for row in self.monitor.rows())
        content = finished_result(replace(content, interrupted=resumed), self.config, self.directory, self.device)
        if self.accelerator.is_main_process:
            write_result(self.directory, content)
        self.tidy()
        return content

    def tidy(self) -> None:
        """Finish what a kill may have interrupted after result.json: write the report, remove the checkpoints."""
        if self.accelerator.is_main_process:
            if not has_report(self.directory, self.name):
                write_report(self.directory)
            self.store.clear()
            shutil.rmtree(self.directory / "bank", ignore_errors=True)
        self.accelerator.wait_for_everyone()


def make_accelerator(config: TrainingConfig, directory: Path | None = None) -> Accelerator:
    """The accelerator of a configuration, whose trackers write into `directory/track`.

    Raises:
        ConfigError: the configuration names cuda or fp16, and there is no GPU; or a tracker that is not installed.
        MissingExtraError: tensorboard is not installed.
    """
    choose_device(config)
    if config.precision == "fp16" and on_cpu(config):
        raise ConfigError("precision: fp16 needs a GPU; use precision=bf16 or precision=no")
    for tracker in config.track:
        if find_spec(tracker) is None and tracker == "tensorboard":
            raise MissingExtraError(tracker, "track", "track: tensorboard")
        # Other trackers are no extra of synthkd: their upper bounds would hold core packages back.
        if find_spec(tracker) is None:
            raise ConfigError(f"track: {tracker} is not installed: pip install {tracker}")
    _forget_other_settings(config)
    return Accelerator(
        cpu=on_cpu(config),  # accelerate forms a group of CPU processes only if this is set
        mixed_precision=config.precision,
        log_with=list(config.track) or None,
        project_dir=None if directory is None else directory / TRACKED,
    )


def process_state(config: TrainingConfig) -> PartialState:
    """Number of processes under this configuration, and which of them this one is."""
    _forget_other_settings(config)
    return PartialState(cpu=on_cpu(config))


def _forget_other_settings(config: TrainingConfig) -> None:
    """Forget the device and precision of an earlier job, which accelerate keeps for the whole process."""
    if not AcceleratorState._shared_state:
        return
    state = AcceleratorState()
    if (state.mixed_precision, state.device.type == "cpu") != (config.precision, on_cpu(config)):
        AcceleratorState._reset_state(reset_partial_state=True)


@contextmanager
def open_job(name: str, config: TrainingConfig) -> Iterator[Job]:
    """Choose, create or resume the run directory of a job, and hold its lock until the end.

    Raises:
        ConfigError: the directory holds a run of another configuration; the changed keys are named.
        CheckpointError: another process works in it, it holds something that is no run, or the disk is full.
    """
    with full_disk(), _claim(name, config) as directory:
        accelerator = make_accelerator(config, directory)
        finished = read_result(directory, KINDS[name])
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
def _claim(name: str, config: TrainingConfig) -> Iterator[Path]:
    """The run directory, chosen and locked by the main process, which broadcasts its path to the others."""
    state = process_state(config)
    chosen: list[str | None] = [None]
    lock = None
    if state.is_main_process:
        directory, lock = choose(name, config)
        chosen = [str(directory)]
    broadcast_object_list(chosen)
    assert chosen[0] is not None
    try:
        yield Path(chosen[0])
    finally:
        if lock is not None:
            lock.close()


def training_bytes(count: int) -> int:
    """Bytes of `count` float32 parameters and of their two moments in an optimizer."""
    return 3 * 4 * count


def generator_bytes(generator: Stateful) -> int:
    """Upper bound of the bytes of a generator's checkpoint, from its state before training.

    The factor 3 stands for the two moments of each parameter, which the optimizer adds during training.
    """

    def held(state: object) -> int:
        if isinstance(state, Tensor):
            return state.nbytes
        inside = state.values() if isinstance(state, Mapping) else state if isinstance(state, list | tuple) else ()
        return sum(map(held, inside))

    return 3 * held(generator.state_dict())


def disk_line(config: TrainingConfig, checkpoint: int, shared: int = 0, other: int = 0) -> str:
    """The disk space of a run while it runs, as a line of its plan.

    Args:
        config: how many checkpoints are kept.
        checkpoint: bytes of each.
        shared: bytes that the checkpoints share.
        other: bytes of a memory bank on disk.
    """
    checkpoints = config.keep_checkpoints * checkpoint + shared
    bank = f" and {other / 1e6:,.0f} MB of memory bank" if other else ""
    return f"  disk: about {checkpoints / 1e6:,.1f} MB of checkpoints{bank} while it runs"


def describe_model(model: Classifier, latency: float) -> ModelDescription:
    """Architecture and size of a model, with the milliseconds that one image takes."""
    recipe = model.recipe
    arch = recipe.get("arch") or recipe.get("model") or type(model).__name__
    sizes = [f"{key} {recipe[key]}" for key in ("width", "depth") if recipe.get(key) is not None]
    return ModelDescription(
        arch=" ".join([str(arch), *sizes]),
        parameters=parameters(model),
        bytes=sum(t.numel() * t.element_size() for t in model.state_dict().values()),
        latency_ms=round(latency, 4),
    )
