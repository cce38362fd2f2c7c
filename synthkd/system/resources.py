"""Recognise errors that report a lack of memory or disk, whichever library raised them."""

from __future__ import annotations

import errno
import os
import re
import resource
import sqlite3
from collections.abc import Iterator

NO_THREAD = "can't start new thread"
"""Python's message if memory, or the number of threads that the system allows, is used up."""
_OUT_OF_MEMORY = re.compile(
    r"out of memory|(can't|cannot|could not|unable to|failed to) (allocate|mmap)|not enough memory|bad_?alloc"
    r"|could not (create|execute) a (primitive|memory)|ALLOC_FAILED|failed to map segment(?!.*not permitted)"
    rf"|{NO_THREAD}",
    re.IGNORECASE,
)
"""Messages of torch, oneDNN, CUDA's libraries and the loader of shared objects, whose errors carry no errno."""


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error, then the error from which or during which it was raised, and so on back to the first."""
    visited: set[int] = set()  # a chain of causes may be a circle
    current: BaseException | None = error
    while current is not None and id(current) not in visited:
        visited.add(id(current))
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def out_of_memory(error: BaseException) -> bool:
    """Whether this error itself, not one of its causes, reports a lack of memory."""
    if isinstance(error, MemoryError) or errno_of(error) == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError | ImportError) and _OUT_OF_MEMORY.search(str(error)) is not None


def errno_of(error: BaseException) -> int | None:
    """The errno of an error, or None if it has none.

    Errors of sqlite and of libraries in Rust (safetensors) have no `errno` attribute; theirs is read from sqlite's own
    code or from the message.
    """
    if isinstance(error, OSError):
        return error.errno
    if isinstance(error, sqlite3.Error):
        # sqlite reports a file that reached `ulimit -f` as a plain I/O error.
        limited = resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY
        codes = {
            sqlite3.SQLITE_FULL: errno.ENOSPC,
            sqlite3.SQLITE_NOMEM: errno.ENOMEM,
            sqlite3.SQLITE_IOERR: errno.EFBIG if limited else errno.EIO,
        }
        # The low byte is the kind of error; the other bytes say in which operation it happened.
        return codes.get(getattr(error, "sqlite_errorcode", 0) & 0xFF)
    match = re.search(r"\(os error (\d+)\)", str(error))
    return int(match[1]) if match and int(match[1]) in errno.errorcode else None


def reason(error: BaseException) -> str:
    """The system's text for the errno of an error, in lower case; the error's own message if it has no errno."""
    code = errno_of(error)
    return str(error) if code is None else os.strerror(code).lower()


def size(count: int) -> str:
    """A number of bytes for people: "1.2 GB", or "35.0 MB" below a gigabyte."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
