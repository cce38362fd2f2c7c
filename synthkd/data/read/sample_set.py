"""A set of images in a fixed order, every image decoded, checked and hashed before any score begins.

The first decoded files stay in memory, up to `KEPT` bytes. The others are decoded again in each pass over the batches,
so that memory stays bounded; a file that changed in between is an error. Blocks of arrays are not copied.
"""

from __future__ import annotations

import hashlib
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain
from pathlib import Path

import torch
from torch import Tensor

from synthkd.data.read.decode import Decoded, in_threads, read_and_decode, refuse_bad, some
from synthkd.data.read.decoding import Decoding, channels_first
from synthkd.data.read.entries import Listing
from synthkd.data.read.on_disk import CHUNK, DiskImages
from synthkd.data.read.packed import Entries
from synthkd.errors import DataError
from synthkd.types import in_channels

KEPT = 1 << 29
"""Bytes of decoded files that a set keeps in memory."""


@dataclass(frozen=True)
class Samples:
    """A set of images in a fixed order.

    Attributes:
        name: in tables.
        count: number of images, without the bad files.
        labels: int64 `[count]`, index into `class_names`; None if the source has none.
        class_names: one per class; empty without labels. If a source only numbers its classes, the numbers up to the
            largest label.
        digest: sha256 in hex of pixels, sizes, order and labels: the same for a folder and an archive or array of the
            same images.
        notes: conversions and files that were ignored or left out, one line per kind.
        bad: `(file, reason)` of each unreadable file that was left out, as `skip_bad` allowed.
        batches: largest size of a batch -> uint8 batches `[n, C, H, W]` in order, from the start at every call. A batch
            never mixes sizes or channel counts; it ends where they change.
        images: rows -> the images of these rows, each uint8 `[C, H, W]`; for a few images, e.g. of a grid.
    """

    name: str
    count: int
    labels: Tensor | None = field(repr=False)
    class_names: tuple[str, ...]
    digest: str
    notes: tuple[str, ...]
    bad: tuple[tuple[str, str], ...]
    batches: Callable[[int], Iterator[Tensor]] = field(repr=False)
    images: Callable[[Iterable[int]], list[Tensor]] = field(repr=False)


def in_memory(
    name: str,
    blocks: Sequence[Tensor],
    labels: Tensor | None = None,
    class_names: tuple[str, ...] = (),
    notes: Sequence[str] = (),
) -> Samples:
    """The set of images in consecutive blocks.

    Args:
        name: in tables.
        blocks: uint8 `[n, C, H, W]`, contiguous; not copied.
        labels: int64 `[N]`, or None.
        class_names: one for each class; empty without labels.
        notes: conversions of the images, one line per kind.

    Raises:
        DataError: no images.
    """
    # Row r lies in the first block that ends after r.
    ends = list(accumulate(map(len, blocks)))
    if not ends or ends[-1] == 0:
        raise DataError(f"{name}: there are no images; check the source that should give them")

    def stream() -> Iterator[Tensor]:
        return chain.from_iterable(blocks)

    def image(row: int) -> Tensor:
        block = bisect(ends, row)
        return blocks[block][row - ends[block]]  # counted from the end of its block

    return _samples(name, stream, image, [_Print.of(image) for image in stream()], labels, class_names, notes)


def on_disk(
    name: str,
    images: DiskImages,
    labels: Tensor,
    class_names: tuple[str, ...],
    notes: Sequence[str] = (),
    channels: int | None = None,
) -> Samples:
    """The set of images that are decoded on demand; `channels` as of `from_files`, the others as of `in_memory`."""

    def stream() -> Iterator[Tensor]:
        blocks = images.split(CHUNK)
        return chain.from_iterable(block if channels is None else in_channels(block, channels) for block in blocks)

    def image(row: int) -> Tensor:
        block = images[torch.tensor([row])]
        return (block if channels is None else in_channels(block, channels))[0]

    return _samples(name, stream, image, [_Print.of(image) for image in stream()], labels, class_names, notes)


def from_files(name: str, where: Path, listing: Listing, skip_bad: int, channels: int | None = None) -> Samples:
    """The set of the files of a listing; each is decoded once, and the first ones stay in memory.

    Args:
        name: in tables.
        where: path of the files, for messages.
        listing: the files in order.
        skip_bad: most unreadable files that may be left out.
        channels: 1 (grey) or 3 (RGB) of all images; None: as each file has.

    Raises:
        DataError: more unreadable files than allowed, or no readable file.
    """
    entries = Entries()
    prints: list[_Print] = []
    # Of images that are not stored only the fingerprints stay, for the digest and to notice a change.
    stored: list[Tensor] = []  # images of the first entries
    room = KEPT
    decoding = Decoding(listing)
    for entry, image in decoding.images(channels):
        entries.append(entry)
        prints.append(_Print.of(image))
        room -= image.nbytes
        if room >= 0:  # once below 0 it stays there, so the stored images are the first ones
            stored.append(image)
    refuse_bad(where, len(listing.entries), decoding.bad, skip_bad)

    def again(row: int, result: Decoded) -> Tensor:
        image = None if result.pixels is None else channels_first(result.pixels)
        if image is None or _Print.of(image) != prints[row]:
            raise DataError(f"{where}: {entries[row].name} has changed since it was checked; start again")
        return image

    def stream() -> Iterator[Tensor]:
        rest = range(len(stored), len(entries))
        results = in_threads(lambda row: read_and_decode(entries[row].read, channels), rest)
        return chain(stored, map(again, range(len(stored), len(entries)), results))

    def image_at(row: int) -> Tensor:
        return stored[row] if row < len(stored) else again(row, read_and_decode(entries[row].read, channels))

    labels = entries.labels if listing.class_names else None
    notes = decoding.notes("files ignored, no images")
    return _samples(name, stream, image_at, prints, labels, listing.class_names, notes, decoding.bad)


@dataclass(frozen=True)
class _Print:
    """Fingerprint of an image: its shape `(C, H, W)` and the sha256 of its pixels."""

    shape: tuple[int, ...]
    pixels: bytes

    @classmethod
    def of(cls, image: Tensor) -> _Print:
        return cls(tuple(image.shape), hashlib.sha256(image.numpy().reshape(-1).data).digest())


def _samples(
    name: str,
    stream: Callable[[], Iterator[Tensor]],
    image: Callable[[int], Tensor],
    prints: Sequence[_Print],
    labels: Tensor | None,
    class_names: tuple[str, ...],
    notes: Sequence[str],
    bad: Sequence[tuple[str, str]] = (),
) -> Samples:
    """The set of any source, from all its images in order and a function of one row."""
    # Byte order and type are fixed, so that the digest is the same on every machine.
    digest = hashlib.sha256(b"no labels" if labels is None else labels.numpy().astype("<i8").tobytes())
    for one in prints:
        digest.update(repr(one.shape).encode() + one.pixels)
    shapes = Counter(one.shape for one in prints)
    if len(shapes) > 1:
        counts = ["x".join(map(str, shape)) + f" ({number})" for shape, number in shapes.most_common()]
        notes = [*notes, f"{len(shapes)} different shapes, channels x height x width: {some(counts)}"]

    def batches(size: int) -> Iterator[Tensor]:
        if size < 1:
            raise DataError(f"{name}: a batch needs at least 1 image, got {size}")
        return _stacked(stream(), size)

    def images(rows: Iterable[int]) -> list[Tensor]:
        numbers = [int(row) for row in rows]
        if numbers and not 0 <= min(numbers) <= max(numbers) < len(prints):
            raise DataError(f"{name}: rows must be in 0..{len(prints) - 1}, got {min(numbers)}..{max(numbers)}")
        return [image(row) for row in numbers]

    return Samples(
        name, len(prints), labels, class_names, digest.hexdigest(), tuple(notes), tuple(bad), batches, images
    )


def _stacked(images: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """Batches of at most `size` consecutive images of one shape."""
    batch: list[Tensor] = []
    for image in images:
        if batch and (len(batch) == size or batch[0].shape != image.shape):
            yield torch.stack(batch)
            batch = []
        batch.append(image)
    if batch:
        yield torch.stack(batch)
