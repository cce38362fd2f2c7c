"""Decoding of a whole listing: the readable images, and notes on conversions and left-out files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from synthkd.data.read.decode import in_threads, read_and_decode, some, with_reasons
from synthkd.data.read.entries import Entry, Listing
from synthkd.data.read.fit import Fit
from synthkd.system.shares import Shares

_NAMED_IN_NOTE = 3


class Decoding:
    """Decodes the files of a listing once, in order.

    Args:
        listing: the files.
        bad: `(file, reason)` of files that are known to be unreadable.

    Attributes:
        bad: `(file, reason)` of each unreadable file so far.
        bad_rows: of those that were found here.
    """

    def __init__(self, listing: Listing, bad: Sequence[tuple[str, str]] = ()) -> None:
        self._listing = listing
        self._converted = Counter[str]()  # kind -> number of files
        self._first: dict[str, list[str]] = {}  # kind -> the first of them, as many as a note names
        self.bad = [*bad]
        self.bad_rows: list[int] = []

    def images(
        self, channels: int | None = None, fit: Fit | None = None, rows: range | None = None
    ) -> Iterator[tuple[Entry, Tensor]]:
        """The readable files with their images uint8 `[C, H, W]`.

        Args:
            channels, fit: as of `decode`.
            rows: of the files that are decoded; None: all.
        """
        entries = self._listing.entries
        rows = range(len(entries)) if rows is None else rows
        results = in_threads(lambda row: read_and_decode(entries[row].read, channels, fit), rows)
        for row, result in zip(rows, results, strict=True):
            entry = entries[row]
            if result.pixels is None:
                self.bad.append((entry.name, result.reason))
                self.bad_rows.append(row)
                continue
            for kind in result.kinds:
                self._count(kind, 1, [entry.name])
            yield entry, channels_first(result.pixels)

    def join(self, shares: Shares) -> None:
        """Know what each of the processes found in the files of its rows."""
        each = shares.values((self._converted, self._first, self.bad, self.bad_rows))
        self.bad, self.bad_rows = (
            [one for *_, bad, _ in each for one in bad],
            [row for *_, rows in each for row in rows],
        )
        self._converted, self._first = Counter(), {}
        for converted, first, *_ in each:
            for kind, count in converted.items():
                self._count(kind, count, first[kind])

    def _count(self, kind: str, count: int, first: Sequence[str]) -> None:
        """Add converted files, of which `first` names the first ones."""
        self._converted[kind] += count
        named = self._first.setdefault(kind, [])
        named += first[: _NAMED_IN_NOTE - len(named)]

    def notes(self, ignored: str) -> list[str]:
        """One line for each kind of conversion, for the ignored files (`ignored` says why) and for the bad files."""
        lines = [_named(count, f"images {kind}", self._first[kind]) for kind, count in sorted(self._converted.items())]
        if self._listing.ignored:
            lines.append(_named(len(self._listing.ignored), ignored, self._listing.ignored))
        if self.bad:
            lines.append(f"{len(self.bad)} unreadable files left out: {with_reasons(self.bad)}")
        return lines


def channels_first(pixels: NDArray[np.uint8]) -> Tensor:
    """Pixels `[H, W, C]` as a contiguous tensor `[C, H, W]`."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def _named(count: int, what: str, first: Sequence[str]) -> str:
    """How many files, and the first of them by name."""
    return f"{count} {what}: {some(first, _NAMED_IN_NOTE, count)}"
