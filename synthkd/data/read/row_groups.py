"""Rows of parquet files that stay in the file: a row group is read when somebody asks for an image of it."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from synthkd.imports import optional

LARGEST_GROUP = 1 << 24
"""Most bytes of images of a row group that is read for each image of it; such a read takes some 10 ms."""
KEPT = 2 * LARGEST_GROUP
"""Bytes of row groups that a process keeps, beside the newest one: enough for all who read rows in order."""
ROWS = 64
"""Rows that are made from a row group at a time."""
REMEDY = "write it anew with row_group_size=100"
"""What helps a file whose row groups unpack to too much."""
_MOST = 4 * LARGEST_GROUP  # bytes of a row group: more than its file claims, and than its first rows let expect
_FILES = 64  # that a process keeps open


class RowGroups:
    """The encoded images of one parquet file.

    Args:
        path: of the file.
        column: of the images.
        ends: number of rows up to the end of each row group.
    """

    def __init__(self, path: Path, column: str, ends: Sequence[int]) -> None:
        self.path, self.column, self._ends = path, column, ends

    def content(self, row: int) -> bytes:
        """The bytes of an image.

        Args:
            row: of the file, from 0.

        Raises:
            ValueError: a row without an image, a damaged row group, or one of far more bytes than was to be expected.
            OSError: the file cannot be read.
        """
        group = bisect_right(self._ends, row)
        content = _kept().group(self, group).image(row - (self._ends[group - 1] if group else 0))
        if content is None:
            raise ValueError(NO_IMAGE)
        return content


NO_IMAGE = "no encoded image"
"""Why a row without bytes of an image is refused."""


def encoded(value: object) -> bytes | None:
    """The bytes of an image in a row, which stand alone or in a struct; None without them."""
    content = value.get("bytes") if isinstance(value, dict) else value
    return content if isinstance(content, bytes) else None


def opened(path: Path) -> Any:
    """A parquet file of pyarrow, without threads and buffers, which would read row groups ahead.

    Raises:
        OSError, ValueError: no readable parquet file.
        MissingExtraError: pyarrow is not installed.
    """
    return optional("pyarrow.parquet", "data", "the parquet format").ParquetFile(path, pre_buffer=False)


class _Group:
    """The images of a row group, as pyarrow holds them: only those that somebody asks for become bytes of Python.

    Args:
        file: of pyarrow.
        rows: the file.
        number: of the row group.
    """

    def __init__(self, file: Any, rows: RowGroups, number: int) -> None:
        self._parts: list[Any] = []
        self._ends: list[int] = []
        self.nbytes = 0
        name = leaf(file, rows.column, "bytes")
        # By a few rows, since a row group holds an image that is repeated once, and here it would be there many times.
        for batch in file.iter_batches(ROWS, [number], [name or rows.column], use_threads=False):
            self._parts.append(batch.column(0).flatten()[0] if name else batch.column(0))
            self._ends.append((self._ends[-1] if self._ends else 0) + batch.num_rows)
            self.nbytes += batch.nbytes
            if self.nbytes > _MOST:
                raise ValueError(f"a row group of {rows.path} unpacks to more than {_MOST >> 20} MiB; {REMEDY}")

    def image(self, row: int) -> bytes | None:
        """The bytes of an image; None without them."""
        part = bisect_right(self._ends, row)
        return encoded(self._parts[part][row - self._ends[part]].as_py())  # counted from the end of its part


class _Kept:
    """The row groups and the open files that a process used last."""

    def __init__(self) -> None:
        self._lock, self._bytes = Lock(), 0
        self._groups: OrderedDict[tuple[RowGroups, int], _Group] = OrderedDict()
        self._files: OrderedDict[RowGroups, Any] = OrderedDict()

    def group(self, rows: RowGroups, number: int) -> _Group:
        """A row group. One thread reads, and the others wait for it."""
        with self._lock:
            group = self._groups.pop((rows, number), None)
            if group is None:
                group = _Group(self._file(rows), rows, number)
                self._bytes += group.nbytes
                while self._groups and self._bytes > KEPT:
                    self._bytes -= self._groups.popitem(last=False)[1].nbytes
            self._groups[rows, number] = group
            return group

    def _file(self, rows: RowGroups) -> Any:
        file = self._files.pop(rows, None) or opened(rows.path)
        self._files[rows] = file
        if len(self._files) > _FILES:
            self._files.popitem(last=False)[1].close()
        return file


_OF_PROCESS: dict[int, _Kept] = {}


def _kept() -> _Kept:
    """What this process keeps. A forked one opens files anew: it may have been born while a thread held the lock."""
    process = os.getpid()
    if process not in _OF_PROCESS:
        _OF_PROCESS.clear()
    return _OF_PROCESS.setdefault(process, _Kept())


def leaf(file: Any, column: str, part: str) -> str:
    """The name of a part of a column of structs; empty without such a part."""
    kind = file.schema_arrow.field(column).type
    fields = [kind.field(number).name for number in range(kind.num_fields)]
    return f"{column}.{part}" if part in fields else ""
