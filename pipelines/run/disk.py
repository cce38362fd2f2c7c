"""Room on the disk and in memory: asked for before a job begins, and its end said in one line."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
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
"""errno -> what has run out, and how there is more of it."""
_SMALLER = {
    "audit": "give shorter lists, or images and models of a smaller size",
    "compress": "make distill.batch_size, generator.batch_size, teacher.training.batch_size (with dp: physical_batch), "
    "bank.capacity (or set bank.storage=disk), or the width of student or generator smaller",
    "distill": "make distill.batch_size, generator.batch_size, bank.capacity (or set bank.storage=disk), or the width "
    "of student or generator smaller",
    "evaluate": "make the sets, features.size or subset_size smaller, or choose other features",
    "generate": "make batch_size, generator.batch_size, shard_size or the generator's width smaller, or set "
    "format=folder",
    "predict": "make the images smaller, or close other programs",
    "teach": "make training.batch_size (with dp: physical_batch), model.width or the images (data.size) smaller",
}
"""Job -> the settings that ask for less memory."""
_ASKED = re.compile(r"allocate (\d+) bytes|allocate ([\d.]+ [KMGT]i?B)", re.IGNORECASE)


def free_bytes(path: Path) -> int:
    """Bytes free where a path is, or will be."""
    path = path.absolute()
    existing = next(place for place in (path, *path.parents) if place.exists())
    return shutil.disk_usage(existing).free


def require_space(directory: Path, needed: int) -> None:
    """Refuse to begin what cannot end; what an earlier start of the run wrote counts as done.

    Raises:
        CheckpointError: when less is free than is needed.
    """
    missing = needed - sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    free = free_bytes(directory)
    if missing > free:
        raise CheckpointError(
            f"{directory}: the run needs about {size(missing)} of disk, but {size(free)} are free; free some, ask for "
            "less, or choose another out="
        )


@contextmanager
def full_disk() -> Iterator[None]:
    """Inside, a disk that runs full is a CheckpointError; what was committed stays, and the same command resumes.

    So is every other refusal of the system to open, make or write a file. The cause counts, not who met it: what a
    library or a reader made of a full disk is no more than a guess.
    """
    try:
        yield
    except BrokenPipeError:  # the reader of the output has seen enough
        raise
    except Exception as error:
        for cause in causes(error):
            if (code := errno_of(cause)) in _EXHAUSTED:
                wrong, remedy = _EXHAUSTED[code]
                raise CheckpointError(f"{wrong}{_where(cause)}; {remedy}, then the same command resumes") from error
        if isinstance(error, OSError) and error.filename is not None and error.errno is not None:
            raise CheckpointError(
                f"{_name(error.filename)}: {reason(error)}; choose another path, or change what is there"
            ) from error
        raise


@contextmanager
def resources(job: str) -> Iterator[None]:
    """Inside, disk or memory that runs out is a CheckpointError, which says what of the job would need less."""
    try:
        with full_disk():
            yield
    except Exception as error:
        # A reader that ran out of memory has judged what the file claims to hold, and says so.
        if isinstance(error, DataError):
            raise
        for cause in causes(error):
            if out_of_memory(cause):
                asked = _ASKED.search(str(cause))
                much = "" if asked is None else f" ({size(int(asked[1])) if asked[1] else asked[2]} were asked for)"
                if NO_THREAD in str(cause):
                    much = " for one more thread, or of threads (ulimit -u)"
                remedy = _SMALLER.get(job, "close other programs")
                raise CheckpointError(f"out of memory{much}; {remedy}") from error
        raise


def _where(error: BaseException) -> str:
    name = getattr(error, "filename", None)
    return f" ({_name(name)})" if name else ""


def _name(name: str | bytes | int) -> str:
    return os.fsdecode(name) if isinstance(name, bytes) else str(name)
