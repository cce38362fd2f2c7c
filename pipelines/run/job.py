"""The frame of every job that trains: run directory, device, log, checkpoints, result and report."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from synthkd.models import Classifier, measure_latency, parameters, state_bytes
from synthkd.pipelines.config import TrainingConfig
from synthkd.pipelines.run.device import make_accelerator
from synthkd.pipelines.run.directory import inside_a_run
from synthkd.pipelines.run.disk import full_disk
from synthkd.pipelines.run.result import RESTORE, Content, finished_result, has_budget, read_result
from synthkd.pipelines.run.several import depends_on_processes, keep_processes, require_same_processes
from synthkd.pipelines.run.shared_work import on_main, shared_directory
from synthkd.reports.report import has_report, write_report
from synthkd.reports.results import KINDS, JobResult, ModelDescription, write_result
from synthkd.training.checkpoint import CheckpointStore
from synthkd.training.loop import Loop, Progress, Stage
from synthkd.training.monitor import Monitor
from synthkd.types import Stateful, earlier_bytes

LATENCY_SECONDS = 3.0
"""Time for the latency of a network; a fast one needs less."""


@dataclass(frozen=True)
class Job:
    """An open run.

    Attributes:
        name: of the job, e.g. "distill".
        directory: the run directory, locked against other runs.
        config: the configuration of the job.
        accelerator: device, precision, processes and trackers.
        monitor: the log.
        store: the checkpoints.
        finished: the content of result.json when the run was finished before, else None.
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

    def train(
        self, state: Mapping[str, Stateful], stages: Sequence[Stage], title: str, headline: Sequence[str] = ()
    ) -> Progress:
        """Run the stages with this run's seed, log and checkpoints, and return the time they took.

        Args:
            state: name -> object whose state goes into checkpoints.
            stages: the phases of the training, in order.
            title: what the display calls the training.
            headline: names of the logged numbers that the display shows.

        Raises:
            SynthkdError, Stopped: see `Loop.run`.
        """
        config = self.config
        intervals = (config.log_every, config.checkpoint_every)
        loop = Loop(self.accelerator, state, self.store, self.monitor, config.seed, *intervals, headline)
        return loop.run(stages, title)

    def finish(self, content: Content) -> Content:
        """Write result.json and the report, and return the completed content of result.json.

        The checkpoints are removed, but for the last one of a run that can be extended.
        """
        extensions = len(
            getattr(self.config, "extended", ())
        )  # each went on from a checkpoint, but was no interruption
        resumed = sum(row.get("kind") == "resume" for row in self.monitor.rows()) - extensions
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
            self.store.clear(keep=1 if self.name == "distill" and inside_a_run(self.directory) is None else 0)
            shutil.rmtree(self.directory / "bank", ignore_errors=True)
        self.accelerator.wait_for_everyone()


@contextmanager
def open_job(name: str, config: TrainingConfig) -> Iterator[Job]:
    """Choose, make or resume the run directory of a job, and hold its lock inside.

    Args:
        name: of the job, e.g. "distill".
        config: of the job.

    Raises:
        SynthkdError: see `run_directory`, `make_accelerator` and `read_result`.
    """
    with full_disk(), shared_directory(name, config) as directory:
        accelerator = make_accelerator(config, directory)
        processes = accelerator.num_processes
        finished = read_result(directory, KINDS[name])
        if finished is None and depends_on_processes(name, config):
            on_main(lambda: _begin(directory, processes))
        # A finished run logs nothing more, and would start an empty run of the tracker.
        if config.track and finished is None:
            accelerator.init_trackers(config.name)
        monitor = Monitor(directory, accelerator)
        remedy = RESTORE if has_budget(directory) else None
        store = CheckpointStore(directory / "checkpoints", config.keep_checkpoints, remedy)
        try:
            job = Job(name, directory, config, accelerator, monitor, store, finished)
            if finished is not None:
                job.tidy()
            yield job
        finally:
            for tracker in accelerator.trackers:  # no `end_training`, which would part the processes of an outer job
                tracker.finish()


def _begin(directory: Path, processes: int) -> None:
    """Bind a run to the number of its processes."""
    require_same_processes(directory, processes)
    keep_processes(directory, processes)


def training_bytes(count: int) -> int:
    """Bytes of `count` float32 parameters with the two moments that Adam keeps of each."""
    return 3 * 4 * count


def generator_bytes(generator: Stateful) -> int:
    """Upper bound for the bytes of a generator's checkpoint.

    It is three times the state before training, for that state has no moments of an optimiser yet, and the images of
    earlier rounds that are to come.
    """

    def size(state: object) -> int:
        if isinstance(state, Tensor):
            return state.nbytes
        items = state.values() if isinstance(state, Mapping) else state if isinstance(state, list | tuple) else ()
        return sum(map(size, items))

    return 3 * size(generator.state_dict()) + earlier_bytes(generator)


def disk_line(config: TrainingConfig, checkpoint: int, shared: int = 0, other: int = 0) -> str:
    """The line of a plan about the disk space that a run needs before it is finished.

    Args:
        config: of the job.
        checkpoint: bytes of one checkpoint.
        shared: bytes that all checkpoints share.
        other: bytes of a memory bank on disk.
    """
    checkpoints = config.keep_checkpoints * checkpoint + shared
    bank = f" and {other / 1e6:,.0f} MB of memory bank" if other else ""
    return f"  disk: about {checkpoints / 1e6:,.1f} MB of checkpoints{bank} while it runs"


def describe_model(model: Classifier, device: torch.device) -> ModelDescription:
    """Kind, size and latency (of one image) of a model on a device."""
    recipe = model.recipe
    arch = recipe.get("arch") or recipe.get("model") or type(model).__name__
    sizes = [f"{key} {recipe[key]}" for key in ("width", "depth") if recipe.get(key) is not None]
    return ModelDescription(
        arch=" ".join([str(arch), *sizes]),
        parameters=parameters(model),
        bytes=state_bytes(model),
        latency_ms=round(measure_latency(model, device, seconds=LATENCY_SECONDS).median_ms, 4),
    )
