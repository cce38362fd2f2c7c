"""Labelled images of a folder, a .zip or a WebDataset .tar: every file decoded and judged before anything trains.

`listing` has the rules about class directories and parts, `decode` those about converting. Conversions, and files that
were ignored or left out, are named in the notes. All files that cannot be read are named in one error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from synthkd.data.read.decode import NAMED_IN_NOTE, conversion_notes, decode_in_order, some, with_reasons
from synthkd.data.read.listing import list_dataset
from synthkd.data.read.splits import Source
from synthkd.errors import DataError


def read_folder(root: str | Path, channels: int = 3, size: int | None = None, skip_bad: bool = False) -> Source:
    """Decode every image of a folder or archive into one uint8 tensor, training images first.

    Args:
        root: a folder, a .zip, or a .tar (or a pattern of .tar shards); `~` is expanded.
        channels: 1 (grey) or 3 (RGB) of the result; images are converted.
        size: side of the result in pixels: the largest centred square of each image, resized with antialiasing. None
            keeps images as they are, which must then all have one size.
        skip_bad: leave unreadable files out, with a note, instead of raising.

    Returns:
        Images uint8 `[N, channels, H, W]` with labels, class names, the number of training images and notes.

    Raises:
        DataError: no class directories or images; unreadable files (unless `skip_bad`); sizes that differ without
            `size`; train and test splits with different classes.
    """
    where = Path(root).expanduser()
    listing = list_dataset(where)
    entries = listing.entries
    bad: list[tuple[str, str]] = []
    conversions: list[tuple[str, str]] = []
    sizes: Counter[tuple[int, int]] = Counter()
    rows: list[int] = []  # of the entries that were decoded
    images: Tensor | None = None
    results = decode_in_order([entry.read for entry in entries], channels, size)
    for row, (entry, result) in enumerate(zip(entries, results, strict=True)):
        if result.pixels is None:
            bad.append((entry.name, result.reason))
            continue
        conversions += [(kind, entry.name) for kind in result.kinds]
        height, width = result.pixels.shape[:2]
        sizes[height, width] += 1
        if images is None:
            images = _allocate(len(entries), channels, height, width, where)
        if len(sizes) == 1:  # with a second size the set is refused, but the rest is still checked
            images[len(rows)] = torch.from_numpy(result.pixels).permute(2, 0, 1)
            rows.append(row)

    _refuse(where, len(entries), [] if skip_bad else bad, sizes)
    if images is None:
        raise DataError(f"{where}: none of the {len(entries)} files is a readable image: {with_reasons(bad)}")
    notes = conversion_notes(conversions)
    if listing.ignored:
        names = some(listing.ignored, NAMED_IN_NOTE)
        notes.append(f"{len(listing.ignored)} files or folders ignored, not images of a class: {names}")
    if bad:
        notes.append(f"{len(bad)} unreadable files left out: {with_reasons(bad)}")
    return Source(
        images=images[: len(rows)],
        labels=torch.tensor([entries[row].label for row in rows], dtype=torch.int64),
        class_names=listing.class_names,
        train=None if listing.train is None else sum(row < listing.train for row in rows),
        notes=tuple(notes),
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
