"""Memory or disk that ran out: told from every other failure, whoever met it and however it was passed on."""

from __future__ import annotations

import errno
import os
import re
import resource
import sqlite3
from collections.abc import Iterator

NO_THREAD = "can't start new thread"
"""For want of memory, or because there are as many as are allowed."""
_OF_MEMORY = re.compile(
    r"out of memory|(can't|cannot|could not|unable to|failed to) (allocate|mmap)|not enough memory|bad_?alloc"
    r"|could not create a (primitive|memory)|ALLOC_FAILED|failed to map segment(?!.*not permitted)"
    rf"|{NO_THREAD}",
    re.IGNORECASE,
)
"""What torch, oneDNN, CUDA's libraries and the loader of modules say, whose errors have no number."""


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error, then what it was raised from or during, back to the first."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)


def out_of_memory(error: BaseException) -> bool:
    """Whether this very error says that there was no memory."""
    if isinstance(error, MemoryError) or number(error) == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError | ImportError) and _OF_MEMORY.search(str(error)) is not None


def number(error: BaseException) -> int | None:
    """The errno of an error, also of one by sqlite or by a library in Rust (safetensors), which has none to show."""
    if isinstance(error, OSError):
        return error.errno
    if isinstance(error, sqlite3.Error):
        limited = resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY
        failed = {
            sqlite3.SQLITE_FULL: errno.ENOSPC,
            sqlite3.SQLITE_NOMEM: errno.ENOMEM,
            sqlite3.SQLITE_IOERR: errno.EFBIG if limited else errno.EIO,
        }
        return failed.get(getattr(error, "sqlite_errorcode", 0) & 0xFF)
    told = re.search(r"\(os error (\d+)\)", str(error))
    return int(told[1]) if told and int(told[1]) in errno.errorcode else None


def reason(error: BaseException) -> str:
    """What the errno of an error means, where it has one; else what it says."""
    code = number(error)
    return str(error) if code is None else os.strerror(code).lower()


def size(count: int) -> str:
    """Bytes as people read them."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
