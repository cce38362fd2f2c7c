"""Labelled images of a folder, an archive or a table: decoded at once, or on demand if they are large together.

`listing` has the rules about class directories and parts, `decode` those about conversions. Notes name the conversions
and the files that were ignored or left out. One error names all files that cannot be read.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from synthkd.data.read.decode import some, with_reasons
from synthkd.data.read.decoding import Decoding
from synthkd.data.read.entries import Listing
from synthkd.data.read.fit import Fit
from synthkd.data.read.listing import list_dataset
from synthkd.data.read.on_disk import DiskImages, ImageFiles, Pixels, require_same, survey, where_kept
from synthkd.data.read.packed import Entries, as_packed
from synthkd.data.read.splits import Source
from synthkd.errors import DataError
from synthkd.settings import FolderData, FolderTest, UnlabelledData
from synthkd.system.shares import of_all

CACHE = Path("~/.cache/synthkd/images")
"""Folder of the cache unless the settings name another."""


@dataclass(frozen=True)
class Storage:
    """Where the images of a folder are kept.

    Attributes:
        memory: most bytes of all decoded images that are kept in memory; larger sets are decoded on demand.
        folder: of the cache: decoded images that are not in memory, and what tars hold.
        workers: processes that decode ahead of a training; None: one for each core, at most `MOST_WORKERS`.
    """

    memory: float = math.inf
    folder: Path = CACHE
    workers: int | None = None


IN_MEMORY = Storage()
"""All images in memory, however many there are."""
MOST_WORKERS = 4
"""Most processes that decode unless the settings say otherwise; each decodes some 500 images of 224 pixels a second."""


def read_folder(
    root: str | Path,
    channels: int = 3,
    size: int | tuple[int, int] | None = None,
    skip_bad: bool = False,
    lacks_classes: bool = False,
    listed: Callable[[Path, Path], Listing] | None = None,
    resize: int | tuple[int, int] | None = None,
    storage: Storage = IN_MEMORY,
) -> Source:
    """Read the images of a folder or archive, training images first.

    Images that fit the limit of the storage are all decoded now. Of others the headers are checked, and the pixels are
    decoded when they are needed. With `skip_bad` every pixel is decoded now, because the bad files decide which images
    there are.

    Args:
        root: a folder, an archive (or a pattern of .tar shards), a table or a parquet file; `~` is expanded.
        channels: 1 (grey) or 3 (RGB) of the result; images are converted.
        size: (height, width) of the result in pixels, or the side of a square: the centre of each image, as large as it
            can be, or cut out after `resize`. None: nothing is cut off.
        skip_bad: leave unreadable files out, with a note, instead of raising.
        lacks_classes: a class directory may be empty, since nothing trains on the images.
        listed: lists the files of the path, labelled or not, with the folder of the cache; None: as a labelled dataset.
        resize: the shorter side, or (height, width), that images are resized to before their centre is cut out.
        storage: where the images are kept.

    Returns:
        Images uint8 `[N, channels, H, W]` with labels (-1 without one), class names, the number of training images and
        notes.

    Raises:
        DataError: no class directories or images; unreadable files (unless `skip_bad`); sizes that differ without
            `size`; train and test splits with different classes.
    """
    where = Path(root).expanduser()
    crop = (size, size) if isinstance(size, int) else size
    fit = None if crop is None and resize is None else Fit(resize, crop)
    cache = storage.folder.expanduser()
    with of_all().agreed():
        listing = list_dataset(where, lacks_classes, cache) if listed is None else listed(where, cache)
        is_large = _needed(listing, channels, fit) > storage.memory
    require_same(where, listing, of_all(), str(is_large))
    if is_large:
        return _on_disk(where, listing, channels, fit, skip_bad, storage)
    with of_all().agreed():
        return _in_memory(where, listing, channels, fit, skip_bad)


def _in_memory(where: Path, listing: Listing, channels: int, fit: Fit | None, skip_bad: bool) -> Source:
    """The images of all files, decoded."""
    count, decoding = len(listing.entries), Decoding(listing)
    sizes: Counter[tuple[int, int]] = Counter()
    entries = Entries()
    images: Tensor | None = None
    for entry, image in decoding.images(channels, fit):
        height, width = image.shape[1:]
        sizes[height, width] += 1
        if images is None:
            # One tensor for all, filled in place: joining single images at the end would need twice the memory.
            images = _allocate(count, channels, height, width, where)
        # With a second size the set is refused at the end, after all other files were checked too.
        if len(sizes) == 1:
            images[len(entries)] = image
            entries.append(entry)
    _refuse(where, count, [] if skip_bad else decoding.bad, sizes)
    if images is None:
        raise DataError(f"{where}: none of the {count} files is a readable image: {with_reasons(decoding.bad)}")
    return _source(images[: len(entries)], entries.labels, entries.in_test, listing, decoding.notes(_IGNORED))


def read_files(
    root: str | Path,
    settings: FolderData | FolderTest | UnlabelledData,
    lacks_classes: bool = False,
    listed: Callable[[Path, Path], Listing] | None = None,
) -> Source:
    """Read the images of a folder or archive as settings say; arguments, result and errors as of `read_folder`."""
    storage = Storage(settings.memory * 1e9, Path(settings.cache or CACHE), settings.workers)
    return read_folder(
        root, settings.channels, settings.size, settings.skip_bad, lacks_classes, listed, settings.resize, storage
    )


_IGNORED = "files or folders ignored, not images of a class"


def _needed(listing: Listing, channels: int, fit: Fit | None) -> int:
    """Bytes of all images decoded, if they all are as large as the first; a set of other sizes is refused anyway."""
    first = next(Decoding(listing).images(channels, fit), None)
    return 0 if first is None else len(listing.entries) * first[1].nbytes


def _source(pixels: Pixels, labels: Tensor, in_test: Tensor, listing: Listing, notes: Sequence[str]) -> Source:
    return Source(
        images=pixels,
        labels=labels,
        class_names=listing.class_names,
        train=int((~in_test).sum()) if as_packed(listing.entries).in_test.any() else None,
        notes=tuple(notes),
    )


def _on_disk(where: Path, listing: Listing, channels: int, fit: Fit | None, skip_bad: bool, storage: Storage) -> Source:
    """The images as files that are decoded on demand, after a survey of them all."""
    count = len(listing.entries)
    about = survey(listing.entries, channels, fit, of_all())
    sizes, bad = about.sizes, [(listing.entries[row].name, reason) for row, reason in about.bad.items()]
    _refuse(where, count, [] if skip_bad else bad, sizes)
    if not sizes:
        raise DataError(f"{where}: none of the {count} files is a readable image: {with_reasons(bad)}")
    ((height, width),) = sizes
    workers = min(MOST_WORKERS, os.cpu_count() or 1) if storage.workers is None else storage.workers
    shape = (channels, height, width)
    files = ImageFiles(where, listing.entries, about.digests, shape, fit, storage.folder.expanduser(), workers)
    is_good = torch.ones(count, dtype=torch.bool)
    is_good[[*about.bad]] = False
    good = is_good.nonzero()[:, 0]
    with of_all().agreed():
        images = DiskImages(files, files.cache(), good)
    if skip_bad and (unreadable := images.unreadable(of_all())):
        bad += [(listing.entries[int(good[row])].name, reason) for row, reason in unreadable]
        keep = torch.ones(len(good), dtype=torch.bool)
        keep[[row for row, _ in unreadable]] = False
        images = images.part(keep)
    notes = [f"{len(images):,} images{where_kept(images)} (cache: {files.folder})"]
    notes += Decoding(listing, bad).notes(_IGNORED)
    every = as_packed(listing.entries)
    return _source(images, every.labels[images.numbers], every.in_test[images.numbers], listing, notes)


def _allocate(count: int, channels: int, height: int, width: int, where: Path) -> Tensor:
    try:
        return torch.empty(count, channels, height, width, dtype=torch.uint8)
    except RuntimeError as error:
        need = count * channels * height * width / 2**30
        raise DataError(
            f"{where}: {count} images of {channels}x{height}x{width} need {need:.0f} GiB of memory; set size to a "
            "smaller number of pixels"
        ) from error


def _refuse(where: Path, count: int, bad: Sequence[tuple[str, str]], sizes: Counter[tuple[int, int]]) -> None:
    """Raise one error with all that is wrong with the files."""
    problems = []
    if bad:
        problems.append(
            f"{len(bad)} of {count} files cannot be read as images: {with_reasons(bad)}; delete them, or set "
            "skip_bad: true to leave them out"
        )
    if len(sizes) > 1:
        counts = [f"{height}x{width} ({number})" for (height, width), number in sizes.most_common()]
        problems.append(f"images have {len(sizes)} different sizes, height x width: {some(counts)}; set size or resize")
    if problems:
        raise DataError(f"{where}: " + "; also, ".join(problems))
