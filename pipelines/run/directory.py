"""The run directory of a job: chosen, locked by one process, and checked against the configuration."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import TypeVar
from weakref import WeakSet

from synthkd.errors import CheckpointError, ConfigError
from synthkd.pipelines.config import JobConfig
from synthkd.pipelines.config.budget import as_asked
from synthkd.pipelines.run.disk import full_disk
from synthkd.privacy.journal import JOURNAL
from synthkd.reports.files import REPORT as REPORT
from synthkd.reports.results import RESULT as RESULT
from synthkd.settings.load import differences, dump_config, load_config
from synthkd.system.files import is_temporary, write_atomically
from synthkd.training.monitor import FILE_NAME as METRICS

LOCK, TRACKED = ".lock", "track"
CONFIG = "config.yaml"
WORK = (RESULT, "checkpoints", "parts", JOURNAL)
"""Work of a run, which another configuration must not continue: the result, checkpoints, parts of a dataset, and the
journal of private images. A run with a log alone failed before its first checkpoint."""
FREE_TO_CHANGE = {
    "name", "out", "device", "threads", "checkpoint_every", "keep_checkpoints", "track", "cache", "batch_size", "trust",
    "baseline",
}  # fmt: skip
"""Keys that may differ when a run is resumed: they change rounding at most, or what is measured at the end."""
FREE_OF_DATA = {"cache", "workers"}
"""Keys of images that may differ likewise."""

Config = TypeVar("Config", bound=JobConfig)

_LOCKS: WeakSet[FileIO] = WeakSet()
"""Lock files that this process holds."""


def _leave_locks() -> None:
    for file in _LOCKS:
        file.close()


# A lock ends when every process has closed its file: a worker would hold it until it notices that its run was killed.
os.register_at_fork(after_in_child=_leave_locks)


@contextmanager
def run_directory(name: str, config: JobConfig) -> Iterator[Path]:
    """Choose or resume the run directory of a job, and hold its lock inside.

    Without `out` it is `runs/<job>/<name>`, or the first of `<name>-2`, `<name>-3`, ... that is new or holds an
    unfinished run of this configuration.

    Args:
        name: of the job, e.g. "distill".
        config: of the job.

    Raises:
        ConfigError: when the directory holds a run of another configuration; the changed keys are named.
        CheckpointError: when another process works in it, it holds something that is no run, or the disk is full.
    """
    with full_disk():
        directory, lock = _choose(name, config)
        with lock:  # closing the file frees the lock
            _enter(directory, config)
            yield directory


def inside_a_run(directory: Path) -> Path | None:
    """The run directory that a run directory lies in; None for a run of its own."""
    return next((p for p in directory.resolve().parents if (p / LOCK).exists() and (p / CONFIG).exists()), None)


def has_work(directory: Path) -> bool:
    """Whether a run directory holds anything of `WORK`."""
    return any((directory / name).exists() for name in WORK)


def _choose(name: str, config: JobConfig) -> tuple[Path, FileIO]:
    """The run directory of a job and the open file that locks it."""
    if config.out is not None:
        directory = Path(config.out)
        _check(directory, config)
        lock = _lock(directory)
        if lock is None:
            raise CheckpointError(f"{directory}: another process is working in this run; wait, or choose another out=")
        return directory, lock
    number = 1
    while True:
        directory = Path("runs") / name / (config.name if number == 1 else f"{config.name}-{number}")
        # Finished runs, runs of other configurations, foreign folders and locked runs are left alone.
        resumable = not (directory / RESULT).exists() and _same(directory, config)
        if (resumable or not directory.exists()) and (lock := _lock(directory)) is not None:
            return directory, lock
        number += 1


def _lock(directory: Path) -> FileIO | None:
    """The locked lock file of a directory, which is made if missing; None when another process holds the lock.

    Raises:
        CheckpointError: the directory cannot be made, or its file system has no locks.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # Neither truncated nor followed: it may be the lock of another process, or a link to a file elsewhere.
        file = os.fdopen(os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "rb", buffering=0)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _no_plain_file(directory / LOCK) from error
        raise CheckpointError(
            f"{directory} cannot be used as a run directory ({error.strerror}); choose another out="
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return None
        raise CheckpointError(
            f"{directory}: this file system has no locks ({error.strerror}); choose an out= on another"
        ) from error
    _LOCKS.add(file)
    return file


def _enter(directory: Path, config: JobConfig) -> None:
    """Prepare a locked directory: remove remains of earlier processes, and save the configuration."""
    # First of all, so that nothing below reads or writes through a link.
    _sweep(directory)
    if not (directory / RESULT).exists():
        (directory / REPORT).unlink(missing_ok=True)  # of a result that was deleted to finish the run again
    if not _same(directory, config):
        # The log and the pictures are those of the other configuration.
        (directory / METRICS).unlink(missing_ok=True)
        shutil.rmtree(directory / "samples", ignore_errors=True)
        write_atomically(directory / CONFIG, dump_config(config).encode())


def _sweep(run: Path) -> None:
    """Remove half-written files of earlier processes, and refuse everything that is neither file nor folder.

    Half-written files of runs inside are left to the processes that lock those; trackers may link in their folder.
    """
    folders = [(run, True)]
    while folders:
        folder, ours = folders.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                path, is_folder = Path(entry.path), entry.is_dir(follow_symlinks=False)
                if not is_folder and not entry.is_file(follow_symlinks=False):
                    raise _no_plain_file(path)
                if ours and is_temporary(entry.name):
                    shutil.rmtree(path) if is_folder else path.unlink()
                elif is_folder and path != run / TRACKED:
                    folders.append((path, ours and not (path / LOCK).exists()))


def _no_plain_file(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} is a link or no plain file, and a run writes into its own folder only; remove it, or choose another "
        "out="
    )


def saved_config(directory: Path, config: Config) -> Config | None:
    """The configuration that a directory holds, read as one of the same job; None where there is none.

    Raises:
        ConfigError: it is one of another job, or of another version.
    """
    path = directory / CONFIG
    return load_config(type(config), path, [], in_place=True) if path.is_file() else None


def _changed(saved: JobConfig, config: JobConfig) -> list[str]:
    """The keys that differ and must not."""

    def same(one: object, other: object) -> bool:
        return one == other or None is not _place(one, saved) == _place(other, config)

    keys = [key.split(".") for key in differences(as_asked(saved, config), config, same)]
    return [".".join(key) for key in keys if key[0] not in FREE_TO_CHANGE and key[-1] not in FREE_OF_DATA]


def _place(value: object, config: JobConfig) -> Path | None:
    """Where a path lies below the folder that a run lies in, with which it may be moved; None of anything else."""
    if config.out is None or not isinstance(value, str):
        return None
    folder = Path(config.out).parent
    return Path(value).relative_to(folder) if Path(value).is_relative_to(folder) else None


def _same(directory: Path, config: JobConfig) -> bool:
    """Whether a directory holds a run of this configuration."""
    try:
        saved = saved_config(directory, config)
    except ConfigError:  # another job's configuration, or one of another version
        return False
    return saved is not None and not _changed(saved, config)


def _check(directory: Path, config: JobConfig) -> None:
    """Refuse a directory that is no run of this configuration; comes before anything, even a lock, is written there."""
    if not directory.is_dir():
        return
    try:
        saved = saved_config(directory, config)
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
    # A run without work failed early, and its configuration may be corrected in place.
    elif has_work(directory) and (changed := _changed(saved, config)):
        raise ConfigError(
            f"{directory} holds a run with another configuration; changed: {', '.join(changed)}. "
            "Choose another out=, or run with the old values"
        )
