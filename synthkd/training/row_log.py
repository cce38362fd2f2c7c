"""Numbered records in files that only grow: what is written is never changed, so a checkpoint may share the files.

A record is a row of several columns with its number and a checksum. A reader gets any rows by `pread`, which leaves
nothing in the memory of the process, and notices a damaged row when it reads it.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from synthkd.errors import CheckpointError
from synthkd.system.files import naming

Ints = NDArray[np.int64]
Columns = Mapping[str, tuple[str, tuple[int, ...]]]
"""Name of a column -> numpy's code of its type, and the shape of a row."""
_NAME = re.compile(r"\d+-[0-9a-f]{16}\.rows")
_VERIFIED = 1 << 30  # bytes of the newest files whose sha256 is computed when files are opened
_COPIED = 1 << 25  # bytes of records that are in memory at a time while many are written


@dataclass(frozen=True)
class RowFile:
    """The first rows of a file, which may grow afterwards.

    Attributes:
        path: of the file.
        first: number of its first row.
        rows: how many of its rows are meant.
        sha256: of these rows, in hexadecimal.
    """

    path: Path
    first: int
    rows: int
    sha256: str


@dataclass(eq=False)
class RowFiles:
    """Rows of several files, to read.

    Attributes:
        columns: of each row.
        files: by ascending numbers; there may be gaps between them.
    """

    columns: Columns
    files: list[RowFile]
    _open: dict[Path, int] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.record = record_type(self.columns)

    def __del__(self) -> None:
        for path in list(self._open):
            self._close(path)

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_open": {}}  # a process that gets a copy opens the files itself

    def read(self, numbers: Ints) -> dict[str, Tensor]:
        """The rows of these numbers, in their order: a tensor `[N, ...]` for each column, int64 for one of int32.

        Raises:
            CheckpointError: a row is missing or damaged.
        """
        records = np.empty(len(numbers), self.record)
        memory, size = records.view(np.uint8).reshape(-1).data, self.record.itemsize
        places = self._places(numbers)
        if len(numbers) > 1:
            _announce(places, size)  # so that a disk answers several requests at once
        for row, (number, (descriptor, offset)) in enumerate(zip(numbers.tolist(), places, strict=True)):
            part = memory[row * size : (row + 1) * size]
            if os.preadv(descriptor, [part], offset) != size or not _is_whole(part, number):
                raise CheckpointError(f"{self._file_of(number)}: row {number} is damaged; {REMEDY}")
        columns = {name: torch.from_numpy(np.ascontiguousarray(records[name])) for name in self.columns}
        return {name: one.long() if one.dtype == torch.int32 else one for name, one in columns.items()}

    def flushed(self) -> tuple[RowFile, ...]:
        """All files with the rows that they have now, which are on the disk."""
        return tuple(self.files)

    def _file_of(self, number: int) -> Path:
        return self.files[int(np.searchsorted([one.first for one in self.files], number, "right")) - 1].path

    def _places(self, numbers: Ints) -> list[tuple[int, int]]:
        """Descriptor and offset of each row."""
        firsts = np.array([one.first for one in self.files], dtype=np.int64)
        index = np.searchsorted(firsts, numbers, "right") - 1
        offsets = (numbers - firsts[index]) * self.record.itemsize
        descriptors = {number: self._descriptor(self.files[number].path) for number in set(index.tolist())}
        return [(descriptors[one], offset) for one, offset in zip(index.tolist(), offsets.tolist(), strict=True)]

    def _descriptor(self, path: Path) -> int:
        if path not in self._open:
            try:
                self._open[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise CheckpointError(f"{path} went while it was needed ({error.strerror}); {REMEDY}") from error
            if hasattr(os, "posix_fadvise"):  # a row is read alone, without its neighbours
                os.posix_fadvise(self._open[path], 0, 0, os.POSIX_FADV_RANDOM)
        return self._open[path]

    def _close(self, path: Path) -> None:
        if (descriptor := self._open.pop(path, None)) is not None:
            os.close(descriptor)


REMEDY = "start the same command again, which goes on from the last checkpoint"


class RowLog(RowFiles):
    """Files of a folder that grow by rows; they are this log's own, but others may hold links to them.

    Args:
        folder: of the files; what an earlier process left there is removed.
        columns: of each row.
        rows_per_file: a file with so many rows is followed by the next one.

    Attributes:
        stop: the number that the next row gets.
    """

    def __init__(self, folder: Path, columns: Columns, rows_per_file: int) -> None:
        self._growing: tuple[int, hashlib._Hash] | None = None  # descriptor of the last file, and the sha256 of it
        super().__init__(columns, [])
        self.folder, self.stop = folder, 0
        self._rows_per_file = max(1, rows_per_file)
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob("*.rows"):
            path.unlink()

    def __del__(self) -> None:
        if self._growing is not None:
            os.close(self._growing[0])
        super().__del__()

    def __getstate__(self) -> dict[str, object]:
        return super().__getstate__() | {"_growing": None}

    def append(self, columns: Mapping[str, Tensor]) -> Ints:
        """Write rows at the end, and return their numbers int64 `[N]`.

        Raises:
            OSError: they cannot be written; the error names the file.
        """
        count, first, done = len(next(iter(columns.values()))), self.stop, 0
        while done < count:
            left = self._rows_per_file - self.files[-1].rows if self._growing is not None else 0
            if left <= 0:
                self._begin()
                left = self._rows_per_file
            some = min(count - done, left, max(1, _COPIED // self.record.itemsize))
            self._write({name: values[done : done + some] for name, values in columns.items()}, some)
            done += some
        return np.arange(first, self.stop)

    def continue_from(self, files: RowFiles) -> None:
        """Have the rows of other files, which stay as they are, in place of the own ones; later rows go into new files.

        Raises:
            OSError: a file can be neither linked nor copied.
        """
        if files is self:
            return
        wanted = files.flushed()
        for one in list(self.files):
            self.drop(one.path)
        for one in wanted:
            path = self.folder / one.path.name
            share(one.path, path)
            self.files.append(RowFile(path, one.first, one.rows, one.sha256))
        self.stop = max((one.first + one.rows for one in self.files), default=0)

    def begin_at(self, number: int) -> None:
        """Start anew, with this number for the next row."""
        for one in list(self.files):
            self.drop(one.path)
        self.stop = number

    def drop(self, path: Path) -> None:
        """Forget a file whose rows nobody needs; links to it stay."""
        if self.files[-1].path == path:
            self._seal()
        self.files = [one for one in self.files if one.path != path]
        self._close(path)
        path.unlink(missing_ok=True)

    def flushed(self) -> tuple[RowFile, ...]:
        """All files with the rows that they have now, which are on the disk."""
        if self._growing is not None:
            os.fsync(self._growing[0])
        return tuple(self.files)

    def _begin(self) -> None:
        self._seal()
        # A random part, since an earlier process may have written other rows of these numbers.
        path = self.folder / f"{self.stop}-{secrets.token_hex(8)}.rows"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        self._growing = descriptor, hashlib.sha256()
        self.files.append(RowFile(path, self.stop, 0, self._growing[1].hexdigest()))

    def _write(self, columns: Mapping[str, Tensor], count: int) -> None:
        assert self._growing is not None
        records = np.empty(count, self.record)
        for name, values in columns.items():
            records[name] = values.numpy()
        records["number"] = np.arange(self.stop, self.stop + count)
        size = self.record.itemsize
        data = records.view(np.uint8).reshape(-1).data
        records["checksum"] = [zlib.crc32(data[at : at + size - 4]) for at in range(0, count * size, size)]
        (descriptor, digest), last = self._growing, self.files[-1]
        offset, done = last.rows * size, 0
        with naming(last.path):
            while done < len(data):  # the system may write less than it is given
                done += os.pwrite(descriptor, data[done:], offset + done)
        digest.update(data)
        self.files[-1] = RowFile(last.path, last.first, last.rows + count, digest.copy().hexdigest())
        self.stop += count

    def _seal(self) -> None:
        """Write no more into the last file."""
        if self._growing is not None:
            os.fsync(self._growing[0])
            os.close(self._growing[0])
            self._growing = None


def record_type(columns: Columns) -> np.dtype[np.void]:
    """numpy's type of a record: the columns, the number of the row, and the crc32 of all before it."""
    own = [("number", "<i8"), ("checksum", "<u4")]
    return np.dtype([*((name, code, tuple(shape)) for name, (code, shape) in columns.items()), *own])


def verified(columns: Columns, files: Sequence[RowFile]) -> RowFiles:
    """Files that can be read: each is as long as it says, and the newest have their sha256.

    Of large logs not all is read: a row of an older file is checked when it is drawn.

    Raises:
        OSError, ValueError: a file is missing, cut off or changed.
    """
    left, size = _VERIFIED, record_type(columns).itemsize
    for one in sorted(files, key=lambda one: -one.first):
        if _NAME.fullmatch(one.path.name) is None:
            raise ValueError(f"{one.path.name} is no name of a file of rows")
        if one.path.stat().st_size < one.rows * size:
            raise ValueError(f"{one.path.parent.name}/{one.path.name} is cut off")
        if left > 0 and _digest(one.path, one.rows * size) != one.sha256:
            raise ValueError(f"{one.path.parent.name}/{one.path.name}: its sha256 differs from the one in the state")
        left -= one.rows * size
    return RowFiles(columns, sorted(files, key=lambda one: one.first))


def share(source: Path, target: Path) -> None:
    """Give a file a second name, or where the file system has no such links, copy it.

    Raises:
        OSError: neither is possible.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists() and target.samefile(source):
        return
    # Under another name first: somebody may need what the name stands for now, and it is never missing.
    partial = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    partial.unlink(missing_ok=True)
    try:
        os.link(source, partial)
    except OSError:
        with naming(target):
            shutil.copyfile(source, partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
    os.replace(partial, target)


def _digest(path: Path, length: int) -> str:
    result = hashlib.sha256()
    with path.open("rb") as file:
        while length > 0 and (block := file.read(min(length, 1 << 20))):
            result.update(block)
            length -= len(block)
    return result.hexdigest()


def _announce(places: Sequence[tuple[int, int]], size: int) -> None:
    if hasattr(os, "posix_fadvise"):
        for descriptor, offset in places:
            os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_WILLNEED)


def _is_whole(record: memoryview, number: int) -> bool:
    written = int.from_bytes(record[-12:-4], "little", signed=True)
    return written == number and zlib.crc32(record[:-4]) == int.from_bytes(record[-4:], "little")
