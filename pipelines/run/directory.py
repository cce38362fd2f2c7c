"""The run directory of a job: chosen, locked, checked against the configuration, and finished by a result."""

from __future__ import annotations

import errno
import fcntl
import functools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import torch

from synthkd.data.read.splits import RealData, Splits
from synthkd.errors import CheckpointError, ConfigError
from synthkd.imports import allowing
from synthkd.pipelines.config import JobConfig
from synthkd.pipelines.run.disk import full_disk
from synthkd.privacy.journal import JOURNAL, PRIVATE, Identity, Journal, Part
from synthkd.reports.files import REPORT as REPORT
from synthkd.reports.results import RESULT as RESULT
from synthkd.reports.results import JobResult, result_values
from synthkd.settings.load import differences, dump_config, load_config
from synthkd.system.files import is_temporary, write_atomically
from synthkd.system.sealed import tensor_digest
from synthkd.training.monitor import FILE_NAME as METRICS

if TYPE_CHECKING:
    from accelerate import Accelerator

LOCK, TRACKED = ".lock", "track"
CONFIG = "config.yaml"
WORK = (RESULT, "checkpoints", "parts", JOURNAL)
"""What in a run directory another configuration must not go on from: results, checkpoints, parts of a dataset, and the
count of looks at private images. A log alone is of a run that failed before its first checkpoint."""
FREE_TO_CHANGE = {
    "name", "out", "device", "threads", "checkpoint_every", "keep_checkpoints", "track", "cache", "batch_size", "trust"
}  # fmt: skip
"""Keys that may differ when a run is resumed: they change rounding at most."""

Config = TypeVar("Config", bound=JobConfig)
Work = TypeVar("Work", bound=Callable[..., Any])
Content = TypeVar("Content", bound=JobResult)


@dataclass(frozen=True)
class Result(Generic[Content]):
    """The outcome of a job.

    Attributes:
        directory: the run directory.
        content: the content of result.json.
        summary: what is printed, a line each.
    """

    directory: Path
    content: Content
    summary: tuple[str, ...] = ()

    @functools.cached_property
    def values(self) -> Mapping[str, Any]:
        """The content as it stands in result.json: `result.values["student"]["accuracy"]`."""
        return result_values(self.content)

    def __str__(self) -> str:
        return "\n".join(self.summary)


@dataclass(frozen=True)
class Plan:
    """What a job would do, as printed by --dry-run."""

    lines: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.lines)


def trusting(job: Work) -> Work:
    """A job that runs the code which its configuration names, or files in the folders of its `trust`, and no other."""

    @functools.wraps(job)
    def run(config: JobConfig, **more: Any) -> Any:
        folders = (config.trust,) if isinstance(config.trust, str) else config.trust
        with allowing(config.model_dump(), folders):
            return job(config, **more)

    return cast(Work, run)


@contextmanager
def run_directory(name: str, config: JobConfig) -> Iterator[Path]:
    """The run directory of a job of one process, chosen or resumed, and locked until the end.

    Raises:
        ConfigError: when the directory holds a run of another configuration; the changed keys are named.
        CheckpointError: when another process works in it, or it holds something that is no run.
    """
    with full_disk():
        directory, lock = choose(name, config)
        try:
            yield directory
        finally:
            lock.close()


def choose(name: str, config: JobConfig) -> tuple[Path, Any]:
    """The run directory of a job and the open file that locks it; for the errors see `run_directory`."""
    if config.out is not None:
        directory = Path(config.out)
        _check(directory, config)
        lock = _lock(directory)
        if lock is None:
            raise CheckpointError(f"{directory}: another process is working in this run; wait, or choose another out=")
        _enter(directory, config, lock)
        return directory, lock
    number = 1
    while True:
        directory = Path("runs") / name / (config.name if number == 1 else f"{config.name}-{number}")
        # an unfinished run of this very configuration is the one to go on with; anything else is left alone
        fresh = not directory.exists()
        if fresh or (not (directory / RESULT).exists() and _same(directory, config)):
            lock = _lock(directory)
            if lock is not None:
                _enter(directory, config, lock)
                return directory, lock
        number += 1


def _lock(directory: Path) -> Any:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # what was there is left as it is: it may be a link to something else, or the lock of another process
        file = os.fdopen(os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "rb", buffering=0)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _odd(directory / LOCK) from error
        raise CheckpointError(
            f"{directory} cannot be used as a run directory ({error.strerror}); choose another out="
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def _enter(directory: Path, config: JobConfig, lock: Any) -> None:
    try:
        _sweep(directory)
        if not (directory / RESULT).exists():
            (directory / REPORT).unlink(missing_ok=True)  # of an earlier end
        _adopt(directory, config)
    except BaseException:
        lock.close()
        raise


def _sweep(run: Path) -> None:
    """Remove what dead processes left half-written in a run that is locked, and refuse what is neither file nor folder.

    What is half-written in runs inside is left to those who lock them; trackers link as they like in their own folder.
    """
    folders = [(run, True)]
    while folders:
        folder, ours = folders.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                path, is_folder = Path(entry.path), entry.is_dir(follow_symlinks=False)
                if not is_folder and not entry.is_file(follow_symlinks=False):
                    raise _odd(path)
                if ours and is_temporary(entry.name):
                    shutil.rmtree(path) if is_folder else path.unlink()
                elif is_folder and path != run / TRACKED:
                    folders.append((path, ours and not (path / LOCK).exists()))


def _odd(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} is a link or no plain file, and a run writes into its own folder only; remove it, or choose another "
        "out="
    )


def _saved(directory: Path, config: Config) -> Config | None:
    path = directory / CONFIG
    return load_config(type(config), path, []) if path.is_file() else None


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
        others = sorted(p.name for p in directory.iterdir() if p.name != LOCK and not is_temporary(p.name))
        if others:
            raise CheckpointError(
                f"{directory} exists and is no run of synthkd (it holds {', '.join(others[:3])}); choose another out="
            )
    # without any work the run failed before there was some, and this is the corrected one
    elif _has_work(directory) and (changed := _changed(saved, config)):
        raise ConfigError(
            f"{directory} holds a run with another configuration; changed: {', '.join(changed)}. "
            "Choose another out=, or run with the old values"
        )


def _adopt(directory: Path, config: JobConfig) -> None:
    if not _same(directory, config):
        (directory / METRICS).unlink(missing_ok=True)  # log and pictures would be those of the other configuration
        shutil.rmtree(directory / "samples", ignore_errors=True)
        write_atomically(directory / CONFIG, dump_config(config).encode())


def _has_work(directory: Path) -> bool:
    return any((directory / name).exists() for name in WORK)


def keep_data(directory: Path, real: Splits | RealData, accelerator: Accelerator, private: bool = False) -> None:
    """Bind a run to the images that it looks at; of several processes, the main one does it.

    Args:
        directory: of the run, locked.
        real: the images.
        accelerator: which process this is.
        private: the run charges its looks at them.

    Raises:
        ConfigError: the run, or one inside it, has worked with other images.
        CheckpointError: what it wrote down of them, or of its looks at them, is damaged or gone.
    """
    if not accelerator.is_main_process:
        return
    if isinstance(real, Splits):
        parts = {"train": real.train, "holdout": real.holdout, "test": real.test}
    else:
        parts = {"train": real}
    found = {name: Part(images=len(part), content=_content(part)) for name, part in parts.items()}
    journal = Journal(directory)
    if journal.data == found:
        return
    if private and journal.data is None and (directory / METRICS).exists():
        raise journal.unproven(f"{PRIVATE} is gone, though the run has begun")
    runs = [directory, *(path.parent for path in directory.rglob(CONFIG))]
    if journal.data is not None and any(map(_has_work, runs)):
        raise ConfigError(
            f"{directory} has worked with other images ({_difference(journal.data, found)}); choose another out=, or "
            "run with the old images"
        )
    journal.bind(found)


def _content(part: RealData) -> str:
    about = json.dumps([str(part.spec), *part.class_names])
    return tensor_digest(about, {"images": part.images, "labels": part.labels})


def _difference(before: Identity, now: Identity) -> str:
    """What changed, part by part; no part of a digest."""
    told = []
    for name in sorted({*before, *now}):
        counts = [of[name].images if name in of else 0 for of in (before, now)]
        if counts[0] != counts[1]:
            told.append(f"{name}: {counts[0]:,} then, {counts[1]:,} now")
        elif before.get(name) != now.get(name):
            told.append(f"{name}: as many, with other content, labels or order")
    return "; ".join(told)


def choose_device(config: JobConfig) -> torch.device:
    """The device of the configuration; also sets torch's threads.

    Raises:
        ConfigError: when cuda is asked for where there is none.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: cuda was asked for, but torch sees no CUDA device; use device=auto or device=cpu")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    return torch.device("cpu" if on_cpu(config) else "cuda")


def on_cpu(config: JobConfig) -> bool:
    """Whether the configuration means the CPU here: when it says so, or torch sees no CUDA device."""
    return config.device == "cpu" or not torch.cuda.is_available()
