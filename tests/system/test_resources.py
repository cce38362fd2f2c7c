"""Errors that mean a lack of memory or disk are told from all others."""

import errno
import sqlite3

import pytest
import torch

from synthkd.system.resources import NO_THREAD, causes, errno_of, out_of_memory, reason, size


def chain() -> ValueError:
    try:
        try:
            raise OSError(errno.ENOSPC, "full")
        except OSError as first:
            raise KeyError("during") from first
    except KeyError:
        try:
            raise ValueError("last")
        except ValueError as error:
            return error


def test_causes_go_back_to_the_first_error() -> None:
    error = chain()
    assert [type(cause) for cause in causes(error)] == [ValueError, KeyError, OSError]
    error.__suppress_context__ = True
    assert list(causes(error)) == [error]
    circle = RuntimeError("a")
    circle.__cause__ = KeyError("b")
    circle.__cause__.__context__ = circle
    assert [type(cause) for cause in causes(circle)] == [RuntimeError, KeyError]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("could not create a primitive"),
        RuntimeError("could not execute a primitive"),
        RuntimeError("std::bad_alloc"),
        RuntimeError(NO_THREAD),
        ImportError("libx.so: failed to map segment from shared object"),
    ],
)
def test_a_lack_of_memory_is_recognised(error: BaseException) -> None:
    assert out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("shapes do not fit"),
        ValueError("out of memory"),
        ImportError("libx.so: failed to map segment from shared object: Operation not permitted"),
    ],
)
def test_other_errors_are_no_lack_of_memory(error: BaseException) -> None:
    assert not out_of_memory(error)


def test_numbers_of_errors() -> None:
    assert errno_of(OSError(errno.EDQUOT, "quota")) == errno.EDQUOT
    assert errno_of(Exception("I/O error: No space left on device (os error 28)")) == errno.ENOSPC
    assert errno_of(Exception("(os error 99999)")) is None
    assert errno_of(ValueError("plain")) is None
    full, other = sqlite3.OperationalError("database or disk is full"), sqlite3.OperationalError("locked")
    full.sqlite_errorcode, other.sqlite_errorcode = sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY  # type: ignore[misc]
    assert errno_of(full) == errno.ENOSPC
    assert errno_of(other) is None


def test_reasons_and_sizes_for_people() -> None:
    assert reason(OSError(errno.ENOSPC, "something else")) == "no space left on device"
    assert reason(ValueError("Its own words")) == "Its own words"
    assert [size(count) for count in (0, 35_000_000, 1_234_567_890_000)] == ["0.0 MB", "35.0 MB", "1,234.6 GB"]
