"""Image files of a set before any is decoded, and the rules for members of an archive."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Protocol

from synthkd.data.read.decode import Reader

LARGEST_FILE = 1 << 28
"""Most bytes of an unpacked member of an archive; an uncompressed image of `decode.LARGEST` pixels has fewer."""


@dataclass(frozen=True, slots=True)
class InFolder:
    """Reads a file below a folder: returns its path."""

    root: Path
    name: str

    def __call__(self) -> Path:
        return self.root / self.name


@dataclass(frozen=True, slots=True)
class InFile:
    """Reads some bytes of a file; raises `ValueError` for too many, or where the file ends before them."""

    path: Path
    offset: int
    size: int

    def __call__(self) -> bytes:
        check_size(self.size)
        with self.path.open("rb") as file:
            file.seek(self.offset)
            content = file.read(self.size)
        if len(content) != self.size:
            raise ValueError(f"cut off: {len(content)} of {self.size} bytes")
        return content


class ImageTable(Protocol):
    """Encoded images in the rows of something."""

    def content(self, row: int) -> Path | bytes:
        """The file of an image or its bytes; raises any error where there are none."""


@dataclass(frozen=True, slots=True)
class InTable:
    """Reads a row of a table."""

    table: ImageTable
    row: int

    def __call__(self) -> Path | bytes:
        content = self.table.content(self.row)
        if isinstance(content, bytes):
            check_size(len(content))
        return content


@dataclass(frozen=True, slots=True)
class Entry:
    """One image file.

    Attributes:
        name: its path below the folder, or its name in the archive; messages call it so.
        read: returns the file or its bytes; raises if it must not or cannot be read.
        label: index into the class names of its set; None without a class.
        test: whether it is in the test part of a dataset.
        image: as `read`, of an entry that is refused for its label alone; None for all others.
    """

    name: str
    read: Reader
    label: int | None = None
    test: bool = False
    image: Reader | None = None


@dataclass(frozen=True)
class Listing:
    """The image files of a set in order; none is decoded yet.

    A file that must not or cannot be read stays in the listing, so that one error can report all bad files.

    Attributes:
        entries: the files, training images first; if there are class names, each readable file has a label.
        class_names: one per class; empty if the files have no labels.
        ignored: names of the files and directories that were left aside.
    """

    entries: Sequence[Entry]
    class_names: tuple[str, ...]
    ignored: Sequence[str]


def refused_entry(name: str, reason: str, image: Reader | None = None) -> Entry:
    """An entry whose reader raises `ValueError` with the reason; `image` reads it where labels are left aside."""

    def refuse() -> NoReturn:
        raise ValueError(reason)

    return Entry(name, refuse, image=image)


def objection(name: str, others: Container[str]) -> str:
    """Why the name of an archive's member is refused, given the names before it; empty if it is not."""
    # Nothing is extracted, but an honest archive has no such name. A backslash separates directories on Windows.
    if name.startswith("/") or "\\" in name or ".." in name.split("/"):
        return "unsafe name, it leads out of the archive"
    # A name that occurs twice would let one reader see another image than the next.
    return "the archive holds this name twice" if name in others else ""


def check_size(size: int) -> None:
    """Raise `ValueError` if a member has more than `LARGEST_FILE` bytes unpacked."""
    if size > LARGEST_FILE:
        raise ValueError(f"too large: {size / 2**20:.0f} MiB unpacked, at most {LARGEST_FILE >> 20} are allowed")
