"""What a tar holds, kept from one start of a run to the next, so that an unchanged tar is not gone through again."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from synthkd.data.read.entries import InFile
from synthkd.data.read.labels import Written
from synthkd.system.files import write_atomically
from synthkd.system.sealed import sealed, unsealed

SETTLED = 2_000_000_000
"""Nanoseconds since the last change of a tar before what it holds is kept: a file that changes again so soon may keep
its time, of which some file systems know the second only."""
_FORMAT = "synthkd shard 2"


@dataclass(frozen=True)
class Shard:
    """What a tar holds.

    Attributes:
        images: in the order of their keys, with their labels.
        refused: `(name, reason)` of each member that is never read.
        bad: `(name, reason)` of each image without a label that can be read.
        ignored: names of the files that belong to no image.
        files: name -> reader of every file, of a tar in which no image has a label; else empty.
        lasts: whether whoever reads the unchanged tar again finds the same at the same places.
    """

    images: Sequence[Written]
    refused: Sequence[tuple[str, str]] = ()
    bad: Sequence[tuple[str, str]] = ()
    ignored: Sequence[str] = ()
    files: Mapping[str, InFile] = field(default_factory=dict)
    lasts: bool = True


def remembered(tar: Path, cache: Path | None, read: Callable[[Path], Shard]) -> Shard:
    """What a tar holds: by the cache if it is unchanged, else as `read` finds it, for the cache of the next start.

    A cache that is damaged, or that cannot be written, costs reading the tar, and nobody is told.

    Args:
        tar: an existing file.
        cache: a folder, or None.
        read: goes through the tar.

    Raises:
        OSError: there is no such file, where a folder is given.
    """
    if cache is None:
        return read(tar)
    about, path = tar.stat(), str(tar.resolve())
    key = {
        "format": _FORMAT,
        "path": path,
        "size": about.st_size,
        "time": about.st_mtime_ns,
        # Builds with a fixed time, `cp -p` and `rsync -t` set the time of change, and sizes of tars are rounded up. The
        # next two are set by the system alone.
        "status": about.st_ctime_ns,
        "inode": about.st_ino,
    }
    # Named by the path alone, so that what a changed tar holds takes the place of what it held.
    file = cache / f"{hashlib.sha256(path.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}.shard"
    with suppress(OSError, ValueError, KeyError, TypeError):
        values = unsealed(file.read_bytes(), bare=False)
        if {name: values[name] for name in key} == key:
            return _from_json(values, tar, about.st_size)
    shard = read(tar)
    if shard.lasts and time.time_ns() - about.st_mtime_ns > SETTLED:
        with suppress(OSError):
            write_atomically(file, sealed({**key, **_to_json(shard)}), 0o600)
    return shard


def _to_json(shard: Shard) -> dict[str, Any]:
    # In columns, which take a fraction of the memory of a list for each image.
    images = [*shard.images]
    return {
        "images": [*_columns([(one.name, one.read) for one in images]), [one.label for one in images]],
        "refused": [*shard.refused],
        "bad": [*shard.bad],
        "ignored": [*shard.ignored],
        "files": _columns([*shard.files.items()]),
    }


def _columns(files: Sequence[tuple[str, Any]]) -> list[list[Any]]:
    """Names, offsets and sizes."""
    return [[name for name, _ in files], [read.offset for _, read in files], [read.size for _, read in files]]


def _from_json(values: Mapping[str, Any], tar: Path, end: int) -> Shard:
    """What a tar of `end` bytes holds. Raises `ValueError` or `TypeError` for what `_to_json` never writes."""
    *places, labels = values["images"]
    images, files = _placed(places, tar, end), _placed(values["files"], tar, end)
    written = [Written(*one, label) for one, label in zip(images, _all(labels, int, str, type(None)), strict=True)]
    refused, bad = (
        [(name, reason) for name, reason in map(_texts, _all(values[kind], list))] for kind in ("refused", "bad")
    )
    return Shard(written, refused, bad, _texts(values["ignored"]), dict(files))


def _placed(columns: Sequence[Any], tar: Path, end: int) -> list[tuple[str, InFile]]:
    """Names of files, which all differ, with their readers of places in the tar, from columns as of `_columns`."""
    names, offsets, sizes = columns
    if len({*_texts(names)}) != len(names):
        raise ValueError("a name twice")
    readers = []
    for offset, size in zip(_all(offsets, int), _all(sizes, int), strict=True):
        if not 0 <= offset <= offset + size <= end:
            raise ValueError("a place outside the tar")
        readers.append(InFile(tar, offset, size))
    return [*zip(names, readers, strict=True)]


def _texts(column: Any) -> list[str]:
    return _all(column, str)


def _all(column: Any, *types: type) -> list[Any]:
    """The column, a list in which each value is exactly of one of the types: a bool is no int."""
    if type(column) is not list or not {*map(type, column)} <= {*types}:
        raise ValueError(f"no list of {types}")
    return column
