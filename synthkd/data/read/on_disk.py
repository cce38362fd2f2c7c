"""Images that are not all in memory: files that are decoded when somebody asks for them, and kept in a cache."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from torch import Tensor

from synthkd.data.read.decode import Decoded, decode, in_a_line, in_threads, upright_size, with_reasons
from synthkd.data.read.decoding import channels_first
from synthkd.data.read.entries import Entry, Listing
from synthkd.data.read.fit import Fit
from synthkd.data.read.packed import NAMES, as_packed
from synthkd.data.read.row_cache import RowCache
from synthkd.errors import DataError
from synthkd.processes import Processes
from synthkd.system.resources import size
from synthkd.system.shares import ALONE, Shares

CHUNK = 256
"""Images that are in memory at a time where all are read one after another."""


@dataclass(frozen=True)
class Survey:
    """What is known of files before their pixels are decoded.

    Attributes:
        digests: sha256 of the bytes of each, uint8 `[N, 32]`; zeros if they cannot be read.
        sizes: (height, width) of the images as they will be decoded -> number of files.
        bad: number of a file that is no image -> why; in order.
    """

    digests: NDArray[np.uint8]
    sizes: Counter[tuple[int, int]]
    bad: Mapping[int, str]


def survey(entries: Sequence[Entry], channels: int, fit: Fit | None, shares: Shares = ALONE) -> Survey:
    """Read every file once, in threads. Only what its header does not tell is decoded.

    Args:
        entries: the files.
        channels: 1 or 3 of the decoded images.
        fit: their size.
        shares: the processes; each reads its share of the files.
    """
    span = shares.span(len(entries))
    rows = range(span.start, span.stop)
    digests, sizes = np.zeros((len(rows), 32), dtype=np.uint8), Counter[tuple[int, int]]()
    bad: dict[int, str] = {}
    with shares.agreed():
        results = in_threads(lambda row: _surveyed(entries[row], channels, fit), rows)
        for row, (digest, shape, reason) in zip(rows, results, strict=True):
            if digest:
                digests[row - span.start] = np.frombuffer(digest, dtype=np.uint8)
            if shape is None:
                bad[row] = reason
            else:
                sizes[shape] += 1
    each = shares.values((sizes, bad))
    every = shares.rows(torch.from_numpy(digests)).numpy()
    return Survey(
        every, sum((one for one, _ in each), Counter()), {row: why for _, one in each for row, why in one.items()}
    )


def _surveyed(entry: Entry, channels: int, fit: Fit | None) -> tuple[bytes, tuple[int, int] | None, str]:
    """The digest of a file, empty if it cannot be read, and the (height, width) of its image, or why it has none."""
    try:
        content = _content(entry)
    except Exception as error:  # archives meet arbitrary bytes
        return b"", None, in_a_line(error)
    digest = hashlib.sha256(content).digest()
    whole = upright_size(content)
    if whole is not None:
        return digest, whole if fit is None else fit.size(*whole), ""
    decoded = decode(content, channels, fit)
    if decoded.pixels is None:
        return digest, None, decoded.reason
    height, width = decoded.pixels.shape[:2]
    return digest, (height, width), ""


def _content(entry: Entry) -> bytes:
    source = entry.read()
    return source if isinstance(source, bytes) else source.read_bytes()


def require_same(where: Path, listing: Listing, shares: Shares, about: str = "") -> None:
    """Check that every process lists the same files; one that saw others would wait for the others for ever.

    Args:
        where: path of the files, for messages.
        listing: of this process.
        shares: the processes.
        about: what else they have to agree on.

    Raises:
        DataError: they do not.
    """
    if shares.world == 1:
        return
    entries = as_packed(listing.entries)
    digest = hashlib.sha256(f"{about} {listing.class_names}".encode(*NAMES))
    for name in entries.names():
        digest.update(name.encode(*NAMES) + b"\0")
    digest.update(entries.labels.numpy().data)
    digest.update(entries.in_test.numpy().data)
    each = shares.values((digest.digest(), len(entries)))
    for rank, one in enumerate(each):
        if one != each[0]:
            raise DataError(
                f"{where}: process {rank} finds {one[1]:,} images here, and process 0 finds {each[0][1]:,} or others; "
                "give all processes the same files, at the same path on each machine"
            )


@dataclass(frozen=True)
class ImageFiles:
    """The files of a set, all of one size once they are decoded.

    Attributes:
        where: path of the set, for messages.
        entries: the files.
        digests: sha256 of each, uint8 `[N, 32]`; zeros if it cannot be read.
        shape: `(C, H, W)` of the decoded images.
        fit: their size.
        folder: of the cache.
        workers: processes that decode ahead of a training.
    """

    where: Path
    entries: Sequence[Entry]
    digests: NDArray[np.uint8]
    shape: tuple[int, int, int]
    fit: Fit | None
    folder: Path
    workers: int

    def decode(self, number: int) -> Decoded:
        """The image of a file, or why it has none; never raises."""
        try:
            content = _content(self.entries[number])
        except Exception as error:
            return Decoded(None, reason=in_a_line(error))
        if hashlib.sha256(content).digest() != self.digests[number].tobytes():
            return Decoded(None, reason="changed since the run began")
        return decode(content, self.shape[0], self.fit)

    def cache(self) -> RowCache:
        """The cache of these images: of these contents, decoded in this way by this version of Pillow."""
        key = hashlib.sha256(f"1 {PIL.__version__} {self.shape} {self.fit}".encode())
        key.update(self.digests.data)
        return RowCache(self.folder / f"{key.hexdigest()[:32]}.images", len(self.entries), self.shape)


class DiskImages:
    """Images uint8 `[N, C, H, W]` that are decoded on demand; a selection of them gives a tensor in memory.

    It has what code that goes through images needs of a tensor: `len`, `shape`, `images[rows]` and `split`.

    Args:
        files: all files of the set.
        cache: of the decoded images.
        numbers: int64 `[N]`, the files of these images.
    """

    dtype = torch.uint8

    def __init__(self, files: ImageFiles, cache: RowCache, numbers: Tensor) -> None:
        self.files, self.numbers = files, numbers
        self._cache = cache

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def shape(self) -> torch.Size:
        """`[N, C, H, W]`."""
        return torch.Size([len(self), *self.files.shape])

    @property
    def nbytes(self) -> int:
        """Bytes of all images in memory, where they are not."""
        return self.shape.numel()

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        """Images in memory, uint8 `[n, C, H, W]`.

        Raises:
            DataError: a file that cannot be decoded, or that has changed since the survey.
        """
        numbers = self.numbers[rows].tolist()
        images = torch.empty(len(numbers), *self.files.shape, dtype=torch.uint8)
        absent = [place for place, number in enumerate(numbers) if not self._cache.read(number, images[place])]
        for place, decoded in zip(absent, in_threads(self.files.decode, [numbers[one] for one in absent]), strict=True):
            images[place] = self._kept(numbers[place], decoded)
        return images

    def decode(self, rows: Tensor) -> int:
        """Decode images into the cache that it lacks, for a process that does not need them itself.

        Returns:
            How many it lacked. A bad file is passed over: who asks for its image will get the error.
        """
        absent = self.numbers[rows]
        absent = absent[~self._cache.has(absent)]
        for number in absent.tolist():
            decoded = self.files.decode(number)
            if decoded.pixels is not None:
                self._cache.write(number, channels_first(decoded.pixels))
        return len(absent)

    def lacking(self) -> int:
        """How many images are not decoded yet."""
        return int((~self._cache.has(self.numbers)).sum())

    def split(self, count: int) -> Iterator[Tensor]:
        """All images in order, in blocks of at most `count`."""
        return (self[torch.arange(len(self))[first : first + count]] for first in range(0, len(self), count))

    def part(self, rows: Tensor) -> DiskImages:
        """Some of the images, still on disk."""
        return DiskImages(self.files, self._cache, self.numbers[rows])

    def unreadable(self, shares: Shares = ALONE) -> list[tuple[int, str]]:
        """The row of each image that cannot be decoded, and why; all others are in the cache then.

        Args:
            shares: the processes; each decodes its share of the images, into its cache.
        """
        rows = torch.arange(len(self))[shares.span(len(self))]
        bad = []
        with shares.agreed():
            absent = rows[~self._cache.has(self.numbers[rows])]
            numbers = self.numbers[absent].tolist()
            for row, number, decoded in zip(
                absent.tolist(), numbers, in_threads(self.files.decode, numbers), strict=True
            ):
                if decoded.pixels is None:
                    bad.append((row, decoded.reason))
                else:
                    self._cache.write(number, channels_first(decoded.pixels))
        return [one for each in shares.values(bad) for one in each]

    def digest(self) -> str:
        """sha256, in hexadecimal, of the contents of the files in order, and of how they are decoded."""
        result = hashlib.sha256(f"{self.files.shape} {self.files.fit}".encode())
        for numbers in self.numbers.split(1 << 16):
            result.update(self.files.digests[numbers.numpy()].data)
        return result.hexdigest()

    def _kept(self, number: int, decoded: Decoded) -> Tensor:
        files = self.files
        if decoded.pixels is None:
            name = files.entries[number].name
            raise DataError(f"{files.where}: {with_reasons([(name, decoded.reason)])} {REMEDY}")
        image = channels_first(decoded.pixels)
        self._cache.write(number, image)
        return image


REMEDY = "cannot be read as an image; delete it, or set skip_bad: true to leave out what cannot be read"
"""The end of the message about a bad file that is found while a job runs."""

Pixels = Tensor | DiskImages
"""uint8 `[N, C, H, W]`, in memory or on disk. `pixels[rows]` gives a tensor, and `pixels.split(n)` gives tensors."""


def part_of(pixels: Pixels, rows: Tensor) -> Pixels:
    """Some of the images, where all are: in memory, or on disk."""
    return pixels[rows] if isinstance(pixels, Tensor) else pixels.part(rows)


def read_rows(pixels: Pixels, rows: Tensor, processes: Processes) -> Tensor:
    """`pixels[rows]`, the same rows in every process; of images on disk each process decodes its share of them."""
    return pixels[rows] if isinstance(pixels, Tensor) else processes.samples(lambda own, _: pixels[own], rows)


def joined(parts: Sequence[Pixels]) -> Pixels:
    """The images of parts of one set, one after the other; where one is on disk, all that have images are."""
    on_disk = [part for part in parts if isinstance(part, DiskImages)]
    if not on_disk:
        return torch.cat([part for part in parts if isinstance(part, Tensor)])
    assert all(len(part) == 0 for part in parts if isinstance(part, Tensor))
    first = on_disk[0]
    return DiskImages(first.files, first._cache, torch.cat([part.numbers for part in on_disk]))


def where_kept(pixels: Pixels) -> str:
    """Where images that are not in memory are, as the end of a line; empty for images in memory."""
    if isinstance(pixels, Tensor):
        return ""
    return f", {size(pixels.nbytes)} decoded, read from disk"
