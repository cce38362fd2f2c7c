"""The batch size of a training: that of the settings, or with `adapt_batch_size` the largest tried that fits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator

from synthkd.errors import ConfigError
from synthkd.pipelines.config import TrainingConfig
from synthkd.training.loop import Stage, Values, at_first_steps
from synthkd.training.memory import fitting_batch_size, restored
from synthkd.training.monitor import FILE_NAME, Monitor, Row, read_rows
from synthkd.types import Stateful

EVENT = "batch_size"
"""Kind of the event that logs the choice, and the field with the number."""

MARGIN = 0.8
"""Of the largest size that fitted, this part is taken where the one that was asked for did not fit."""


@dataclass(frozen=True)
class BatchSize:
    """The images of a batch over all processes.

    Attributes:
        images: that each step takes.
        wanted: that the settings ask for.
        adapted: whether `adapt_batch_size` chose them.
        processes: that share a batch.
    """

    images: int
    wanted: int
    adapted: bool = False
    processes: int = 1

    @property
    def of_process(self) -> int:
        """Images of a batch in one process: no pass of a network in the run has more."""
        return max(1, self.images // self.processes)

    @property
    def note(self) -> str:
        """How the number came about, in words; empty if it is simply that of the settings."""
        if not self.adapted:
            return ""
        if self.images == self.wanted:
            return "adapt_batch_size: they fit the memory"
        return f"adapt_batch_size: {self.wanted:,} do not fit the memory"

    def logged(self, stages: Sequence[Stage], monitor: Monitor) -> list[Stage]:
        """The stages of the training, the first of which logs an adapted number as an event.

        Args:
            stages: of the training.
            monitor: the log.
        """

        def log(step: int) -> Values:
            if _logged_choice(monitor.rows()) != self.images:
                text = f"batch size {self.images:,} ({self.note})"
                monitor.event(step, text, kind=EVENT, **{EVENT: self.images})
            return {}

        if not self.adapted:
            return list(stages)
        return at_first_steps("batch size", log, stages)


def choose_batch_size(
    config: TrainingConfig,
    wanted: int,
    accelerator: Accelerator,
    directory: Path | None,
    parts: Sequence[Stateful],
    attempt: Callable[[int], object],
) -> BatchSize:
    """The batch size of the settings, or with `adapt_batch_size` the largest tried that fits the memory.

    Args:
        config: of the job.
        wanted: images that the settings ask for.
        accelerator: the processes.
        directory: the run directory; None for a dry run.
        parts: what a trial changes; they are restored after it.
        attempt: takes a step of the training, with as much memory, on batches of so many images.

    Raises:
        ConfigError: several processes.
        CheckpointError: not even one image fits.
    """
    if not config.adapt_batch_size:
        return BatchSize(wanted, wanted, processes=accelerator.num_processes)
    if accelerator.num_processes > 1:
        raise ConfigError(
            "adapt_batch_size: a step is tried in one process only; leave torchrun out, or set distill.batch_size (or "
            "training.batch_size) yourself"
        )
    # A resumed run keeps the number of its first start, since another one would draw other batches.
    if directory is not None and any((directory / "checkpoints").glob("step_*")):
        earlier = _logged_choice(read_rows(directory / FILE_NAME))
        if earlier is not None:
            return BatchSize(earlier, wanted, adapted=True)
    with restored(parts):
        images = fitting_batch_size(wanted, attempt)
    if images < wanted:
        # A part of the memory stays free for what a trial does not do: evaluations, pictures, and the fragments of a
        # long run.
        images = max(1, int(MARGIN * images))
    return BatchSize(images, wanted, adapted=True)


def _logged_choice(rows: Sequence[Row]) -> int | None:
    """The newest choice in a log, or None."""
    choices = [int(row[EVENT]) for row in rows if row.get("kind") == EVENT]
    return choices[-1] if choices else None
