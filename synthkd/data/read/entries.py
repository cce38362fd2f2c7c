"""Image files as a set lists them, before any is decoded, and what speaks against a member of an archive."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import NoReturn

from synthkd.data.read.decode import Reader

LARGEST_FILE = 1 << 28
"""Most bytes of an unpacked member of an archive; an uncompressed image of `decode.LARGEST` pixels has fewer."""


@dataclass(frozen=True)
class Entry:
    """One image file.

    Attributes:
        name: what messages call it: its path below the folder, or its name in the archive.
        read: gives the file or its bytes; raises where it must not or cannot be read.
        label: index into the class names of its set; None without a class.
        test: whether it is in the test part of a dataset.
    """

    name: str
    read: Reader
    label: int | None = None
    test: bool = False


@dataclass(frozen=True)
class Listing:
    """The image files of a set in order; none is decoded yet.

    A file that must not or cannot be read stays in the listing, so that all that is wrong with a set is reported at
    once.

    Attributes:
        entries: the files, training images first; where there are class names, the readable ones have a label.
        class_names: one per class; empty where the files have no labels.
        ignored: names of the files and directories that were passed over.
    """

    entries: Sequence[Entry]
    class_names: tuple[str, ...]
    ignored: Sequence[str]


def refused_entry(name: str, reason: str) -> Entry:
    """An entry whose reader raises `ValueError` with the reason."""

    def refuse() -> NoReturn:
        raise ValueError(reason)

    return Entry(name, refuse)


def objection(name: str, others: Container[str]) -> str:
    """What speaks against the name of an archive's member, given the names before it; empty when nothing does."""
    if name.startswith("/") or "\\" in name or ".." in name.split("/"):
        return "unsafe name, it leads out of the archive"
    return "the archive holds this name twice" if name in others else ""


def check_size(size: int) -> None:
    """Raise `ValueError` where a member has more than `LARGEST_FILE` bytes unpacked."""
    if size > LARGEST_FILE:
        raise ValueError(f"too large: {size / 2**20:.0f} MiB unpacked, at most {LARGEST_FILE >> 20} are allowed")
