"""What every job has, and what every job that trains has."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from synthkd.generators.settings import (
    ALONE,
    GeneratorSettings,
    InversionSettings,
)
from synthkd.settings import (
    Count,
    Listed,
    Seed,
    Settings,
    Threads,
)


def require_terms(generator: GeneratorSettings, alone: str) -> None:
    """Refuse a generator whose every term needs a student where the key `alone` has it work without one."""
    if alone and isinstance(generator, InversionSettings) and generator.needs_student:
        raise ValueError(
            f"{alone}: the generator works without a student there, and all its terms compare with one: set any of "
            f"generator.{ALONE}"
        )


class JobConfig(Settings):
    """What every job has."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "run"
    """Names the run directory `runs/<job>/<name>`."""
    out: str | None = None
    """The run directory itself; the same command on it resumes. None: `runs/<job>/<name>`, numbered when taken."""
    seed: Seed = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Threads | None = None
    """CPU threads of torch; None leaves torch's own choice."""
    trust: str | tuple[str, ...] = ()
    """Folders, one or a list, whose files may name code that runs: own functions that built a model or a generator in
    them. Without it what is read is data, and only this recipe may name code."""


class TrainingConfig(JobConfig):
    """What every job that trains has."""

    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision; bf16 made small convolutional networks slower on CPUs where it was measured."""
    adapt_batch_size: bool = False
    """Reduce the batch size until a training step fits the memory, instead of failing."""
    checkpoint_every: Count = 500
    """Steps between checkpoints."""
    keep_checkpoints: Count = 2
    log_every: Count = 20
    """Steps between log rows."""
    track: Annotated[tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...], Listed] = ()
    """Experiment trackers beside the JSON lines that are always written."""
