"""Disk and memory: checked before a job begins, and one error line when they run out."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from synthkd.errors import CheckpointError, DataError
from synthkd.system.resources import NO_THREAD, causes, errno_of, out_of_memory, reason, size

_EXHAUSTED = {
    errno.ENOSPC: ("the disk is full", "free some space"),
    errno.EDQUOT: ("the disk quota is used up", "free some space"),
    errno.EFBIG: ("a file is larger than allowed here", "raise the limit (ulimit -f)"),
    errno.EMFILE: ("too many files are open", "raise the limit (ulimit -n)"),
    errno.ENFILE: ("too many files are open on this machine", "close some"),
}
"""errno -> what has run out, and the remedy."""
_SMALLER = {
    "audit": "give shorter lists, or images and models of a smaller size",
    "compress": "make distillation.distill.batch_size, teacher.training.batch_size (with dp: physical_batch), "
    "generator.batch_size or bank.capacity of distillation.transfer_set (or set bank.storage to disk there), or the "
    "width of student or generator smaller",
    "distill": "make distill.batch_size (or set adapt_batch_size=true), generator.batch_size or bank.capacity of "
    "transfer_set (or set bank.storage to disk there), or the width of student or generator smaller",
    "evaluate": "make the sets, features.size or subset_size smaller, or choose other features",
    "generate": "make batch_size, generator.batch_size, shard_size or the generator's width smaller, or set "
    "format=folder",
    "predict": "make the images smaller, or close other programs",
    "teach": "make training.batch_size (or set adapt_batch_size=true; with dp: physical_batch), model.width or the "
    "images (data.size) smaller",
}
"""Job -> the settings that reduce its memory."""
_REQUEST = re.compile(r"allocate (\d+) bytes|allocate ([\d.]+ [KMGT]i?B)", re.IGNORECASE)


_in_job = ContextVar("_in_job", default=False)
"""Whether `resources` is entered already."""


def free_bytes(path: Path) -> int:
    """Free bytes of the disk that a path is on; the path need not exist."""
    path = path.absolute()
    existing = next(place for place in (path, *path.parents) if place.exists())
    return shutil.disk_usage(existing).free


def require_space(directory: Path, needed: int) -> None:
    """Check that a run fits the disk; files that an earlier start of the run has written are part of `needed` bytes.

    Raises:
        CheckpointError: when less is free than is needed.
    """
    # By inode: a bank on disk and its checkpoints have the same files.
    present = {
        about.st_ino: about.st_size for about in (path.stat() for path in directory.rglob("*") if path.is_file())
    }
    missing = needed - sum(present.values())
    free = free_bytes(directory)
    if missing > free:
        raise CheckpointError(
            f"{directory}: the run needs about {size(missing)} of disk, but {size(free)} are free; free some, ask for "
            "less, or choose another out="
        )


@contextmanager
def full_disk() -> Iterator[None]:
    """Inside, a full disk and any other refusal of the system to open, make or write a file is a `CheckpointError`.

    What was written before stays, and the same command resumes. The original cause decides: a library that meets a full
    disk may raise an error of its own about something else.
    """
    try:
        yield
    except BrokenPipeError:  # the reader of the output has ended, which is no fault
        raise
    except Exception as error:
        for cause in causes(error):
            if (code := errno_of(cause)) in _EXHAUSTED:
                wrong, remedy = _EXHAUSTED[code]
                name = getattr(cause, "filename", None)
                where = f" ({_text(name)})" if name else ""
                raise CheckpointError(f"{wrong}{where}; {remedy}, then the same command resumes") from error
        if isinstance(error, OSError) and error.filename is not None and error.errno is not None:
            raise CheckpointError(
                f"{_text(error.filename)}: {reason(error)}; choose another path, or change what is there"
            ) from error
        raise


@contextmanager
def resources(job: str) -> Iterator[None]:
    """Inside, a lack of disk or memory is a `CheckpointError` with the settings of the job that would reduce it.

    In a job that is part of another (a teacher of a distillation), the outer job's settings are the ones to change.
    """
    if _in_job.get():
        with full_disk():
            yield
        return
    token = _in_job.set(True)
    try:
        with full_disk():
            yield
    except DataError:  # a reader that ran out of memory has judged the file already, and names it
        raise
    except Exception as error:
        for cause in causes(error):
            if out_of_memory(cause):
                remedy = _SMALLER.get(job, "close other programs")
                raise CheckpointError(f"out of memory{_amount(cause)}; {remedy}") from error
        raise
    finally:
        _in_job.reset(token)


def _amount(error: BaseException) -> str:
    """What could not be allocated, as far as the error says it."""
    if NO_THREAD in str(error):
        return " for one more thread, or of threads (ulimit -u)"
    request = _REQUEST.search(str(error))
    return "" if request is None else f" ({size(int(request[1])) if request[1] else request[2]} were asked for)"


def _text(name: str | bytes | int) -> str:
    return os.fsdecode(name) if isinstance(name, bytes) else str(name)
