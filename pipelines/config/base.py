"""Settings that all jobs share, and settings that all jobs that train share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from synthkd.generators.method_settings import ContinuousSettings
from synthkd.generators.settings import WITHOUT_STUDENT, GeneratorOrAuto, InversionSettings
from synthkd.settings import Count, Listed, PathText, Seed, Settings, Threads


def require_terms(generator: GeneratorOrAuto, alone: str) -> None:
    """Refuse a generator that works without a student although each of its terms needs one.

    Args:
        generator: its settings.
        alone: the key by which it works without a student; empty where it always has one.

    Raises:
        ValueError: the refusal.
    """
    if alone and isinstance(generator, InversionSettings | ContinuousSettings) and generator.needs_student:
        raise ValueError(
            f"{alone}: the generator works without a student there, and all its terms compare with one: set any of the "
            f"generator's {WITHOUT_STUDENT}"
        )


class JobConfig(Settings):
    """Settings of every job."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "run"
    """Name of the run directory `runs/<job>/<name>`."""
    out: PathText | None = None
    """The run directory; the same command resumes it. None: `runs/<job>/<name>`, with a number if that one is taken."""
    seed: Seed = 0
    """Seed of every random number of the job."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU if there is one, else the CPU."""
    threads: Threads | None = None
    """CPU threads of torch; None: torch's default."""
    trust: bool | PathText | tuple[PathText, ...] = ()
    """A folder, or a list of folders, whose files may name code to run, e.g. own functions that build a saved model or
    generator, and may be programs. All other files are data only; besides them just this configuration may name code.
    true: the programs (TorchScript, torch.export) that this configuration itself names as a model may run."""


class TrainingConfig(JobConfig):
    """Settings of every job that trains."""

    sync: Literal["exact", "fast"] = "exact"
    """What several processes share. exact: batches, losses, BatchNorm moments and random numbers are those of one
    process, and only passes of networks are shared out. fast: each process computes the loss and the BatchNorm moments
    of its own part of a batch, and gradients are averaged; in `distill` each makes rounds of its own, if the generator
    is inversion or continuous."""
    precision: Literal["no", "bf16", "fp16", "auto"] = "no"
    """Mixed precision; bf16 saves time on GPUs and on CPUs with bfloat16 units. auto: bf16 on a device that has them
    (see `synthkd doctor`), else no; the numbers of a run then depend on the machine by more than rounding."""
    adapt_batch_size: bool = False
    """Reduce the batch size until a step, with all that the run holds beside it, fits the memory."""
    checkpoint_every: Count = 500
    """Steps between checkpoints."""
    keep_checkpoints: Count = 2
    """Number of the newest checkpoints that stay; the one before the last serves if the last is damaged."""
    log_every: Count = 20
    """Steps between log rows."""
    track: Annotated[tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...], Listed] = ()
    """Experiment trackers that get the numbers of the log too."""
