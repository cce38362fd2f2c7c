"""Writing a file so that a reader, or a kill, sees the old content or the new, never half of either."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from synthkd.resources import causes, number


def write_atomically(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write `data` to `path` through a synced temporary file beside it; missing folders are made.

    `mode` has the most that others than the owner may do with the file, as in `os.open`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        with naming(path), open(os.open(temporary, flags, mode), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Inside, a refusal of the system without a file's name gets this one: a write that fails does not say where."""
    try:
        yield
    except Exception as error:
        for cause in causes(error):
            if number(cause) is not None and getattr(cause, "filename", None) is None:
                cause.filename = str(path)  # type: ignore[attr-defined]
        raise
