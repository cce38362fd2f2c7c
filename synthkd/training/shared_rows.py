"""Rows that the checkpoints of a run share, e.g. the images of a memory bank.

Rows are written once, into files `first-stop-sha256.safetensors` that never change. Later checkpoints refer to a file
as long as they need any of its rows. A full bank would otherwise be written again with every checkpoint. Rows that are
in files already, as those of a bank on disk, are not written at all: a checkpoint gets a link to each file.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import Tensor

from synthkd.errors import CheckpointError
from synthkd.system.files import sha256, write_atomically
from synthkd.training.row_log import Ints, RowFile, RowFiles, share, verified

BLOCK_BYTES = 1 << 25
"""Of rows that are in memory at a time: a bank may be larger than the memory."""
SEGMENTS = "segments"
"""Key of the names of row files in the dict that replaces `Rows` in a saved state."""
_FILE_NAME = re.compile(r"(\d+)-(\d+)-([0-9a-f]{64})\.safetensors")


@dataclass(frozen=True)
class Block:
    """Rows `first`, `first + 1`, ...: a tensor `[N, ...]` for each column, by name."""

    first: int
    columns: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))


@dataclass(frozen=True)
class Rows:
    """Numbered rows in a state: each is written once and never changed, and the oldest leave first.

    A checkpoint writes the rows that are not in the checkpoint before it, block by block; a block should fit the
    memory.

    Attributes:
        first: number of the oldest row.
        stop: number that the next row will get.
        blocks: number of a row -> the rows from this number on, in order.
        files: that hold the rows already; None: a checkpoint writes them.
    """

    first: int
    stop: int
    blocks: Callable[[int], Iterator[Block]]
    files: RowFiles | None = None


def save_rows(folder: Path, rows: Rows, earlier: Sequence[str]) -> dict[str, Any]:
    """Write the rows that are in no earlier file, flushed to the disk, and return what finds them in the folder again.

    Args:
        folder: of the row files.
        rows: the rows to save.
        earlier: names of the files of these rows in the checkpoint before, in order.

    Returns:
        The names of all their files under `SEGMENTS`, and what else `open_rows` needs.
    """
    numbers: dict[str, Any] = {"first": rows.first, "stop": rows.stop}
    if rows.files is None:
        return {SEGMENTS: _written(folder, rows, earlier)} | numbers
    files = rows.files.flushed()
    for one in files:
        share(one.path, folder / one.path.name)
    if folder.exists():
        flush(folder)
    return numbers | {
        SEGMENTS: [one.path.name for one in files],
        "columns": {name: [code, list(shape)] for name, (code, shape) in rows.files.columns.items()},
        "files": [[one.first, one.rows, one.sha256] for one in files],
    }


def _written(folder: Path, rows: Rows, earlier: Sequence[str]) -> list[str]:
    # A file stays as long as one of its rows does; `open_rows` skips the rows that have left.
    names = [name for name in earlier if _FILE_NAME.fullmatch(name) and _span(name)[1] > rows.first]
    for block in rows.blocks(_span(names[-1])[1] if names else rows.first):
        data = serialise({name: column.contiguous() for name, column in block.columns.items()})
        digest = hashlib.sha256(data).hexdigest()
        # With the checksum in its name a file needs no manifest, and rows of other content never overwrite it.
        names.append(f"{block.first}-{block.first + len(block)}-{digest}.safetensors")
        write_atomically(folder / names[-1], data)
    # The names must be on the disk before a checkpoint refers to them.
    if folder.exists():
        flush(folder)
    return names


def open_rows(folder: Path, saved: Mapping[str, Any]) -> Rows:
    """The rows of what `save_rows` returned, in verified files; a file is read when its block is.

    Raises:
        OSError, ValueError: a file is missing, or its sha256 differs.
    """
    names, first, stop = saved[SEGMENTS], saved["first"], saved["stop"]
    if "files" in saved:
        listed = [RowFile(folder / name, *one) for name, one in zip(names, saved["files"], strict=True)]
        columns = {name: (code, tuple(shape)) for name, (code, shape) in saved["columns"].items()}
        files = verified(columns, listed)
        return Rows(first, stop, lambda start: file_blocks(files, range(first, stop), first, start), files)
    # All files now, not when they are read: as long as nothing is restored, an older checkpoint can take over.
    for name in names:
        match = _FILE_NAME.fullmatch(name)
        if match is None or sha256(folder / name) != match[3]:
            raise ValueError(f"{folder.name}/{name}: its sha256 differs from its name")
    return Rows(first, stop, lambda start: _blocks(folder, names, max(start, first)))


def file_blocks(files: RowFiles, numbers: Ints | range, first: int, start: int) -> Iterator[Block]:
    """The rows of these numbers in files, as rows `first`, `first + 1`, ... of which those before `start` are left out.

    Raises:
        CheckpointError: a row is missing or damaged.
    """
    count = max(1, BLOCK_BYTES // files.record.itemsize)
    for begin in range(max(start, first) - first, len(numbers), count):
        yield Block(first + begin, files.read(np.asarray(numbers[begin : begin + count], dtype=np.int64)))


def flush(path: Path) -> None:
    """Force the content of a file, or the entries of a folder, onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _blocks(folder: Path, names: Sequence[str], first: int) -> Iterator[Block]:
    for name in names:
        begin, stop = _span(name)
        if stop <= first:
            continue
        path = folder / name
        try:
            columns = load_file(path)
        except (OSError, SafetensorError) as error:  # `open_rows` has verified the file, so this happened since
            raise CheckpointError(f"{path} went or changed while it was read ({error}); try again") from error
        start = max(first, begin)  # a file may begin with rows that have left
        yield Block(start, {name: column[start - begin :] for name, column in columns.items()})


def _span(name: str) -> tuple[int, int]:
    """The number of the first row in a file, and the one after its last."""
    first, stop, _ = name.split("-")
    return int(first), int(stop)
