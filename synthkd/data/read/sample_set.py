"""A set of images in a fixed order, every image decoded, checked and hashed before any score begins.

The first decoded files stay in memory, up to `KEPT` bytes. The others are decoded again in each pass over the batches,
so that memory stays bounded; a file that changed in between is an error. Blocks of arrays are not copied. Several
processes share all this, and each goes through its share of the batches.
"""

from __future__ import annotations

import hashlib
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from synthkd.data.read.decode import Decoded, in_threads, read_and_decode, refuse_bad, some
from synthkd.data.read.decoding import Decoding, channels_first
from synthkd.data.read.entries import Entry, Listing
from synthkd.data.read.on_disk import CHUNK, DiskImages, require_same
from synthkd.data.read.packed import Entries, as_packed
from synthkd.data.read.prints import Prints, Shape
from synthkd.errors import DataError
from synthkd.system.shares import ALONE, Shares, of_all
from synthkd.types import in_channels

Stream = Callable[[range], Iterator[Tensor]]
"""Rows -> their images uint8 `[C, H, W]`, in order."""
KEPT = 1 << 29
"""Bytes of decoded files that a set keeps in memory."""
READ_AGAIN = 16
"""Images of a set that each of several processes reads, whoever has read them, so that other files are noticed."""
BLOCK = 128
"""Images of a block. Of files each of several processes decodes whole blocks, since a network passes them so."""


class Batches(Protocol):
    """Goes through the images of a set in order, from the start at every call."""

    def __call__(self, size: int, shares: Shares = ALONE) -> Iterator[Tensor]:
        """uint8 batches `[n, C, H, W]`; one never mixes sizes or channel counts, it ends where they change.

        Args:
            size: largest number of images of a batch.
            shares: the processes; each gets a consecutive share of the batches, which do not depend on their number.
        """


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
        shape: `(C, H, W)` of the first image.
        batches: goes through all images; see `Batches`.
        images: rows -> the images of these rows, each uint8 `[C, H, W]`; for a few images, e.g. of a grid.
    """

    name: str
    count: int
    labels: Tensor | None = field(repr=False)
    class_names: tuple[str, ...]
    digest: str
    notes: tuple[str, ...]
    bad: tuple[tuple[str, str], ...]
    shape: Shape
    batches: Batches = field(repr=False)
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

    def image(row: int) -> Tensor:
        block = bisect(ends, row)
        return blocks[block][row - ends[block]]  # counted from the end of its block

    def stream(rows: range) -> Iterator[Tensor]:
        return map(image, rows)

    prints = Prints.of(stream(range(ends[-1])))  # of all images in each process, which has them all
    return _samples(name, stream, prints, labels, class_names, notes)


def on_disk(
    name: str,
    images: DiskImages,
    labels: Tensor,
    class_names: tuple[str, ...],
    notes: Sequence[str] = (),
    channels: int | None = None,
) -> Samples:
    """The set of images that are decoded on demand; `channels` as of `from_files`, the others as of `in_memory`."""

    def stream(rows: range) -> Iterator[Tensor]:
        parts = (torch.arange(first, min(first + CHUNK, rows.stop)) for first in range(rows.start, rows.stop, CHUNK))
        blocks = (images[part] for part in parts)
        return chain.from_iterable(block if channels is None else in_channels(block, channels) for block in blocks)

    return _samples(name, stream, _prints(len(images), stream), labels, class_names, notes)


def from_files(name: str, where: Path, listing: Listing, skip_bad: int, channels: int | None = None) -> Samples:
    """The set of the files of a listing; each is decoded once, and the first ones stay in memory.

    Of several processes (`of_all`) each decodes its share of the files and keeps the first ones of them.

    Args:
        name: in tables.
        where: path of the files, for messages.
        listing: the files in order.
        skip_bad: most unreadable files that may be left out.
        channels: 1 (grey) or 3 (RGB) of all images; None: as each file has.

    Raises:
        DataError: more unreadable files than allowed, no readable file, or not the same files in every process.
    """
    shares = of_all()
    require_same(where, listing, shares)
    own = _own(len(listing.entries), shares)
    decoding = Decoding(listing)
    # Of images that are not stored only the fingerprints stay, for the digest and to notice a change.
    stored: list[Tensor] = []  # the first images of this process
    room = KEPT

    def decoded() -> Iterator[Tensor]:
        nonlocal room
        for _, image in decoding.images(channels, rows=own):
            room -= image.nbytes
            if room >= 0:  # once below 0 it stays there, so the stored images are the first ones
                stored.append(image)
            yield image

    with shares.agreed():
        mine = Prints.of(decoded())
    first = sum(shares.values(len(mine))[: shares.rank])
    prints = mine.joined(shares)
    decoding.join(shares)
    refuse_bad(where, len(listing.entries), decoding.bad, skip_bad)
    entries = _without(listing.entries, decoding.bad_rows)

    def again(row: int, result: Decoded) -> Tensor:
        image = None if result.pixels is None else channels_first(result.pixels)
        if image is None or not prints.fits(row, image):
            at = " or is another one on another machine" if shares.world > 1 else ""
            raise DataError(f"{where}: {entries[row].name} has changed since it was checked{at}; start again")
        return image

    def read(row: int) -> Decoded:
        return read_and_decode(entries[row].read, channels)

    def decoded_again(rows: range) -> Iterator[Tensor]:
        return map(again, rows, map(read, rows) if len(rows) == 1 else in_threads(read, rows))

    def stream(rows: range) -> Iterator[Tensor]:
        begin, end = (min(max(row, first), first + len(stored)) for row in (rows.start, rows.stop))
        before, after = range(rows.start, min(rows.stop, begin)), range(max(rows.start, end), rows.stop)
        return chain(decoded_again(before), stored[begin - first : end - first], decoded_again(after))

    labels = entries.labels if listing.class_names else None
    notes = decoding.notes("files ignored, no images")
    return _samples(name, stream, prints, labels, listing.class_names, notes, decoding.bad)


def _without(entries: Sequence[Entry], bad: Sequence[int]) -> Entries:
    """The entries but for those of these rows."""
    rows = {*bad}
    return Entries(one for row, one in enumerate(entries) if row not in rows) if rows else as_packed(entries)


def _own(count: int, shares: Shares) -> range:
    """The rows of this process, in whole blocks."""
    blocks = shares.span(-(-count // BLOCK))
    return range(min(blocks.start * BLOCK, count), min(blocks.stop * BLOCK, count))


def _prints(count: int, stream: Stream) -> Prints:
    """The fingerprints of all images, of which each process takes its share."""
    shares = of_all()
    with shares.agreed():
        mine = Prints.of(stream(_own(count, shares)))
    return mine.joined(shares)


def _require_same_images(stream: Stream, count: int) -> None:
    """Read some images again that other processes have read; what has other pixels here than there is an error."""
    shares = of_all()
    with shares.agreed():
        for row in range(0, count, -(-count // READ_AGAIN)) if shares.world > 1 else ():
            next(stream(range(row, row + 1)))


def _samples(
    name: str,
    stream: Stream,
    prints: Prints,
    labels: Tensor | None,
    class_names: tuple[str, ...],
    notes: Sequence[str],
    bad: Sequence[tuple[str, str]] = (),
) -> Samples:
    """The set of any source, from a function of rows that gives their images in order."""
    _require_same_images(stream, len(prints))
    # Byte order and type are fixed, so that the digest is the same on every machine.
    digest = hashlib.sha256(b"no labels" if labels is None else labels.numpy().astype("<i8").tobytes())
    shapes = Counter[Shape]()
    rows = iter(prints.digests.numpy())
    for shape, count in prints.runs:
        shapes[shape] += count
        for pixels in islice(rows, count):
            digest.update(repr(shape).encode() + pixels.tobytes())
    if len(shapes) > 1:
        counts = ["x".join(map(str, shape)) + f" ({number})" for shape, number in shapes.most_common()]
        notes = [*notes, f"{len(shapes)} different shapes, channels x height x width: {some(counts)}"]

    def batches(size: int, shares: Shares = ALONE) -> Iterator[Tensor]:
        if size < 1:
            raise DataError(f"{name}: a batch needs at least 1 image, got {size}")
        rows = _own(len(prints), shares)
        own = [batch for batch in prints.ranges(size) if batch.start in rows]
        images = stream(range(own[0].start, own[-1].stop) if own else range(0))
        return (torch.stack([*islice(images, len(one))]) for one in own)

    def images(numbers: Iterable[int]) -> list[Tensor]:
        wanted = [int(number) for number in numbers]
        if wanted and not 0 <= min(wanted) <= max(wanted) < len(prints):
            raise DataError(f"{name}: rows must be in 0..{len(prints) - 1}, got {min(wanted)}..{max(wanted)}")
        return [next(stream(range(row, row + 1))) for row in wanted]

    return Samples(
        name=name,
        count=len(prints),
        labels=labels,
        class_names=class_names,
        digest=digest.hexdigest(),
        notes=tuple(notes),
        bad=tuple(bad),
        shape=prints.shape(0),
        batches=batches,
        images=images,
    )
