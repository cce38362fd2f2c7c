"""What several processes cannot do together, and how many of them a run was begun with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from synthkd.errors import CheckpointError, ConfigError
from synthkd.pipelines.config import DistillConfig, TeachConfig, TrainingConfig
from synthkd.pipelines.run.directory import CONFIG, has_work
from synthkd.settings import StreamData, TrainedTeacher
from synthkd.system.files import write_atomically

PROCESSES = "processes.json"
"""File of a run directory with the number of its processes; a run of one process has none."""


def require_shareable(config: DistillConfig | TeachConfig, processes: int) -> None:
    """Refuse what several processes cannot do together, before anything is read.

    Args:
        config: of the job.
        processes: their number.

    Raises:
        ConfigError: with the key, and what to leave out.
    """
    if processes == 1:
        return
    refusals = _of_student(config) if isinstance(config, DistillConfig) else iter(())
    if (refusal := next(refusals, None)) is not None:
        raise ConfigError(refusal)
    if config.adapt_batch_size:
        raise ConfigError(
            "adapt_batch_size: a step is tried in one process only; leave torchrun out, or set distill.batch_size (or "
            "training.batch_size) yourself"
        )
    key, wanted = (
        ("distill.batch_size", config.distill.batch_size)
        if isinstance(config, DistillConfig)
        else ("training.batch_size", config.training.batch_size)
    )
    if wanted % processes:
        raise ConfigError(
            f"{key}: {wanted} images cannot be shared out evenly among {processes} processes; choose a multiple"
        )


def _of_student(config: DistillConfig) -> Iterator[str]:
    """Why several processes cannot distill by this configuration."""
    if config.real is not None and isinstance(config.real.data, StreamData):
        key = config.key_of(config.real)
        yield f"{key}.data.kind: a stream is read in one process only; leave torchrun out, or take another kind"
    if config.black_box is not None:
        yield "teacher.kind: a black box is asked in one process only; leave torchrun out"
    if any(isinstance(one, TrainedTeacher) and one.training.dp is not None for one in config.every_teacher):
        yield "teacher.training.dp: runs in one process; leave torchrun out, or teach first and load the teacher"
    if config.sync == "exact":  # each process sees the whole batch, and decides as one process does
        return
    if config.width is not None:
        yield "width: the width of a student changes in one process only; leave torchrun out, or width"
    if config.online is not None:
        yield "online: peers learn together in one process only; leave torchrun out, or online"
    adapt = config.distill.adapt
    keys = [f"distill.adapt.{name}" for name in ("temperature", "weights", "strength") if getattr(adapt, name)]
    keys += ["team.selection"] if config.team.weighting == "selected" else []
    if keys:
        yield f"{keys[0]} adapts in one process only; leave torchrun out, or {keys[0]}"


def depends_on_processes(name: str, config: TrainingConfig) -> bool:
    """Whether the weights that a job trains depend on the number of processes by more than the rounding of sums.

    Args:
        name: of the job.
        config: of the job.
    """
    return name in ("distill", "teach") and config.sync == "fast"


def require_same_processes(directory: Path, processes: int) -> None:
    """Refuse to go on with a run, or with a part inside, that another number of processes has begun.

    Args:
        directory: the run directory; what is not begun yet may be begun by any number.
        processes: their number now.

    Raises:
        ConfigError: the refusal, with the number that the run was begun with.
        CheckpointError: the record is damaged.
    """
    if not any(has_work(run) for run in (directory, *(path.parent for path in directory.rglob(CONFIG)))):
        return
    begun = _recorded(directory / PROCESSES)
    if begun != processes:
        start = f"start it by torchrun --nproc-per-node {begun}" if begun > 1 else "start it without torchrun"
        raise ConfigError(
            f"{directory} was begun by {_counted(begun)}, and {_counted(processes)} would give other weights; {start}, "
            "or choose another out="
        )


def keep_processes(directory: Path, processes: int) -> None:
    """Write down how many processes train a run; the directory is locked."""
    path = directory / PROCESSES
    if processes > 1:
        write_atomically(path, json.dumps({"processes": processes}).encode())
    else:
        path.unlink(missing_ok=True)


def _recorded(path: Path) -> int:
    try:
        return int(json.loads(path.read_text())["processes"])
    except FileNotFoundError:
        return 1
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged; restore it from a copy, or choose another out=") from error


def _counted(processes: int) -> str:
    return "one process" if processes == 1 else f"{processes} processes"
