"""Device, processes, precision and trackers of a job."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState

from synthkd.errors import ConfigError, MissingExtraError
from synthkd.pipelines.config import JobConfig, TrainingConfig
from synthkd.pipelines.run.directory import TRACKED
from synthkd.pipelines.run.group import join
from synthkd.processes import ONE_PROCESS, Processes
from synthkd.system.environment import own_environment
from synthkd.system.hardware import has_bfloat16_units
from synthkd.types import WHOLE, Part


def choose_device(config: JobConfig) -> torch.device:
    """The device of the configuration; also sets torch's number of threads.

    Raises:
        ConfigError: when cuda is required and there is none.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: cuda was asked for, but torch sees no CUDA device; use device=auto or device=cpu")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    return torch.device("cpu" if _on_cpu(config) else "cuda")


def make_accelerator(config: TrainingConfig, directory: Path | None = None) -> Accelerator:
    """The accelerator of a configuration; its trackers write into `directory/track`, and none without it.

    Raises:
        ConfigError: when cuda or fp16 is required and there is no GPU, or a tracker without an extra is missing.
        MissingExtraError: when a tracker with an extra is not installed.
        CheckpointError: see `join`.
    """
    choose_device(config)
    if config.precision == "fp16" and _on_cpu(config):
        raise ConfigError("precision: fp16 needs a GPU; use precision=bf16 or precision=no")
    for tracker in config.track:
        if find_spec(tracker) is None:
            if tracker == "tensorboard":
                raise MissingExtraError(tracker, "track", "track: tensorboard")
            # The other trackers have no extra: their upper bounds would hold core packages back.
            raise ConfigError(f"track: {tracker} is not installed: pip install {tracker}")
    _reset_accelerate(config)
    with own_environment():
        join(_on_cpu(config))
        return Accelerator(
            cpu=_on_cpu(config),  # explicitly: accelerate joins processes on CPUs to a group only when told so
            mixed_precision=mixed_precision(config),
            log_with=list(config.track) if directory is not None and config.track else None,
            project_dir=None if directory is None else directory / TRACKED,
        )


def mixed_precision(config: JobConfig) -> str:
    """The mixed precision of a job: `precision`, of which auto is bf16 on a device with units for it, and else no."""
    precision = str(getattr(config, "precision", "no"))
    if precision != "auto":
        return precision
    return "bf16" if has_bfloat16_units(torch.device("cpu" if _on_cpu(config) else "cuda")) else "no"


def sharing(config: TrainingConfig, accelerator: Accelerator) -> Processes:
    """The processes that share the passes of whole batches; one alone with `sync: fast`."""
    return Processes.of(accelerator) if config.sync == "exact" else ONE_PROCESS


def rows_of_process(processes: Processes, accelerator: Accelerator) -> Part:
    """The part of each batch that this process draws: all of it where passes are shared."""
    return WHOLE if processes.world > 1 else Part(accelerator.process_index, accelerator.num_processes)


def process_state(config: JobConfig) -> PartialState:
    """The number of processes under this configuration, and the index of this one.

    Raises:
        CheckpointError: see `join`.
    """
    _reset_accelerate(config)
    with own_environment():
        return join(_on_cpu(config))


def _on_cpu(config: JobConfig) -> bool:
    return config.device == "cpu" or not torch.cuda.is_available()


def _reset_accelerate(config: JobConfig) -> None:
    """Forget device and precision of an earlier job in this process, which accelerate keeps in shared state."""
    if not AcceleratorState._shared_state:
        return
    state = AcceleratorState()
    if (state.mixed_precision, state.device.type == "cpu") != (mixed_precision(config), _on_cpu(config)):
        AcceleratorState._reset_state(reset_partial_state=True)
