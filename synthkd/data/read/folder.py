"""Labelled images of a folder, an archive or a table: every file is decoded before anything trains.

`listing` has the rules about class directories and parts, `decode` those about conversions. Notes name the conversions
and the files that were ignored or left out. One error names all files that cannot be read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from synthkd.data.read.decode import some, with_reasons
from synthkd.data.read.decoding import Decoding
from synthkd.data.read.entries import Entry, Listing
from synthkd.data.read.listing import list_dataset
from synthkd.data.read.splits import Source
from synthkd.errors import DataError


def read_folder(
    root: str | Path,
    channels: int = 3,
    size: int | None = None,
    skip_bad: bool = False,
    lacks_classes: bool = False,
    listed: Callable[[Path], Listing] | None = None,
) -> Source:
    """Decode every image of a folder or archive into one uint8 tensor, training images first.

    Args:
        root: a folder, an archive (or a pattern of .tar shards), a table or a parquet file; `~` is expanded.
        channels: 1 (grey) or 3 (RGB) of the result; images are converted.
        size: side of the result in pixels: the largest centred square of each image, resized with antialiasing. None:
            images stay as they are, and must all have one size.
        skip_bad: leave unreadable files out, with a note, instead of raising.
        lacks_classes: a class directory may be empty, since nothing trains on the images.
        listed: lists the files of the path, labelled or not; None: as a labelled dataset.

    Returns:
        Images uint8 `[N, channels, H, W]` with labels (-1 without one), class names, the number of training images and
        notes.

    Raises:
        DataError: no class directories or images; unreadable files (unless `skip_bad`); sizes that differ without
            `size`; train and test splits with different classes.
    """
    where = Path(root).expanduser()
    listing = list_dataset(where, lacks_classes) if listed is None else listed(where)
    count, decoding = len(listing.entries), Decoding(listing)
    sizes: Counter[tuple[int, int]] = Counter()
    entries: list[Entry] = []
    images: Tensor | None = None
    for entry, image in decoding.images(channels, size):
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
    has_test = any(entry.test for entry in listing.entries)
    return Source(
        images=images[: len(entries)],
        labels=torch.tensor([-1 if one.label is None else one.label for one in entries], dtype=torch.int64),
        class_names=listing.class_names,
        train=sum(not entry.test for entry in entries) if has_test else None,
        notes=tuple(decoding.notes("files or folders ignored, not images of a class")),
    )


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
        problems.append(
            f"images have {len(sizes)} different sizes, height x width: {some(counts)}; set size to resize them"
        )
    if problems:
        raise DataError(f"{where}: " + "; also, ".join(problems))
