"""Room on the disk: asked for before a job begins, and its end said in one line."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from synthkd.errors import CheckpointError

_TORCH_SAYS = ("PytorchStreamWriter failed writing", "inline_container.cc")  # torch.save has no error number for it


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
    """Inside, a disk that runs full is a CheckpointError; what was committed stays, and the same command resumes."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if not full and not any(words in str(error) for words in _TORCH_SAYS):
            raise
        where = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
        raise CheckpointError(f"the disk is full{where}; free some space, then the same command resumes") from error


def size(count: int) -> str:
    """Bytes as people read them."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
