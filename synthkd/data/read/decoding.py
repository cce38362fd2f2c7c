"""Decoding of a whole listing: the readable images, and notes on conversions and left-out files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from synthkd.data.read.decode import Decoded, in_threads, read_and_decode, some, with_reasons
from synthkd.data.read.entries import Entry, Listing
from synthkd.data.read.fit import Fit

_NAMED_IN_NOTE = 3


class Decoding:
    """Decodes the files of a listing once, in order.

    Args:
        listing: the files.
        bad: `(file, reason)` of files that are known to be unreadable.

    Attributes:
        bad: `(file, reason)` of each unreadable file so far.
    """

    def __init__(self, listing: Listing, bad: Sequence[tuple[str, str]] = ()) -> None:
        self._listing = listing
        self._conversions: dict[str, list[str]] = {}  # kind -> files
        self.bad = [*bad]

    def images(self, channels: int | None = None, fit: Fit | None = None) -> Iterator[tuple[Entry, Tensor]]:
        """The readable files with their images uint8 `[C, H, W]`; `channels` and `fit` as of `decode`."""
        entries = self._listing.entries
        results = in_threads(partial(_decoded, channels=channels, fit=fit), entries)
        for entry, result in zip(entries, results, strict=True):
            if result.pixels is None:
                self.bad.append((entry.name, result.reason))
                continue
            for kind in result.kinds:
                self._conversions.setdefault(kind, []).append(entry.name)
            yield entry, channels_first(result.pixels)

    def notes(self, ignored: str) -> list[str]:
        """One line for each kind of conversion, for the ignored files (`ignored` says why) and for the bad files."""
        lines = [_named(files, f"images {kind}") for kind, files in sorted(self._conversions.items())]
        if self._listing.ignored:
            lines.append(_named([*self._listing.ignored], ignored))
        if self.bad:
            lines.append(f"{len(self.bad)} unreadable files left out: {with_reasons(self.bad)}")
        return lines


def _decoded(entry: Entry, channels: int | None, fit: Fit | None) -> Decoded:
    return read_and_decode(entry.read, channels, fit)


def channels_first(pixels: NDArray[np.uint8]) -> Tensor:
    """Pixels `[H, W, C]` as a contiguous tensor `[C, H, W]`."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def _named(files: list[str], what: str) -> str:
    return f"{len(files)} {what}: {some(files, _NAMED_IN_NOTE)}"
