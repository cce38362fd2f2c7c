"""Temporary files that last as long as the process: what compressed sets hold, unpacked once and in order."""

from __future__ import annotations

import atexit
import bz2
import gzip
import lzma
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from io import BufferedIOBase
from pathlib import Path
from typing import IO

from synthkd.data.read.decode import in_a_line
from synthkd.data.read.folder_or_zip import FREELY_PACKED, MOST_PACKED

_OPENERS: Mapping[bytes, Callable[[Path], BufferedIOBase]] = {
    b"\x1f\x8b": gzip.GzipFile,
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
}
"""First bytes -> what reads such a file."""
ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_BLOCK = 1 << 20


def is_tar(path: Path) -> bool:
    """Whether the path is one of a tar, compressed or not, or a pattern of several."""
    return path.name.lower().endswith(ENDINGS) and not path.is_dir()


def plain_tar(path: Path) -> Path:
    """The tar itself if it is not compressed, else its unpacked copy.

    Raises:
        ValueError: a damaged file, or one that unpacks to far more than images do.
        OSError: the file cannot be read, or its copy not be written.
    """
    with path.open("rb") as file:
        start = file.read(8)
    opener = next((opener for magic, opener in _OPENERS.items() if start.startswith(magic)), None)
    if opener is None:
        return path
    about = path.stat()
    return _unpacked(path.resolve(), opener, about.st_size, about.st_mtime_ns)


@cache
def _unpacked(path: Path, opener: Callable[[Path], BufferedIOBase], size: int, _: int) -> Path:
    """The unpacked copy; a file that has changed since has another time, so it is unpacked again."""
    with temporary(size) as copy:
        try:
            with opener(path) as packed:
                while block := packed.read(_BLOCK):
                    copy.add(block)
        except (EOFError, ValueError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
            raise ValueError(in_a_line(error)) from error  # those of zlib and lzma are of no class of Python's
    return copy.path


class TooMuchError(ValueError):
    """A file that unpacks to far more than images do."""


class Temporary:
    """A file that grows by blocks of bytes; see `temporary`.

    Attributes:
        path: where it lies.
    """

    def __init__(self, file: IO[bytes], most: int) -> None:
        self.path, self._file, self._most = Path(file.name), file, most

    def add(self, block: bytes) -> int:
        """Append a block, and return where it begins; raises `TooMuchError` where the whole is more than images are."""
        start = self._file.tell()
        if start + len(block) > self._most:
            raise TooMuchError(f"it unpacks to more than {self._most >> 20} MiB, as no images do")
        self._file.write(block)
        return start


@contextmanager
def temporary(packed: int) -> Iterator[Temporary]:
    """Context manager with a new file that is deleted when the process ends.

    Args:
        packed: bytes of the file that is unpacked, which bound those of its content.
    """
    with tempfile.NamedTemporaryFile(prefix="synthkd-", delete=False) as file:
        atexit.register(Path(file.name).unlink, missing_ok=True)
        yield Temporary(file, max(MOST_PACKED * packed, FREELY_PACKED))
