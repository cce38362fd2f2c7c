"""Sample grids: images as one PNG, one column per class, enlarged to a readable size."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from synthkd.errors import DataError
from synthkd.system.files import write_atomically
from synthkd.types import to_uint8

ROWS = 6
"""Images of a class that a sample grid shows."""
MOST_CLASSES = 20
"""Classes that a sample grid shows at most, a column each."""
FEWEST_CLASSES = 10
"""Classes that it shows of large images, if there are so many."""
WIDEST, HIGHEST = 850, 600
"""Pixels of a grid that more columns and rows than the fewest may fill."""
SMALLEST_CELL = 48
GAP = 4
GREY = (128, 128, 128, 255)


def chosen(classes: Sequence[int], height: int, width: int) -> tuple[list[int], int]:
    """What a sample grid shows: classes, evenly spaced among all, and the number of rows.

    Of many classes or large images it shows a part, since each image takes time to sample and room on the page.

    Args:
        classes: that have images.
        height, width: of an image.

    Returns:
        The class of each column, and rows from 2 to `ROWS`.
    """
    scale = _scale(height, width)
    room = max(FEWEST_CLASSES, WIDEST // (scale * width + GAP))
    columns = min(len(classes), MOST_CLASSES, room)
    rows = min(ROWS, max(2, HIGHEST // (scale * height + GAP)))
    return [classes[column * len(classes) // columns] for column in range(columns)], rows


def _scale(height: int, width: int) -> int:
    """How often the pixels of small images are repeated."""
    return max(1, -(-SMALLEST_CELL // min(height, width)))


def save_grid(images: Tensor, columns: int, path: Path, labels: Sequence[str] | None = None) -> None:
    """Write images as a grid, atomically; small ones are enlarged without smoothing, gaps are transparent.

    Args:
        images: float in `[0, 1]` or uint8 `[rows * columns, C, H, W]`, C 1 or 3, row after row: image `i` is in column
            `i % columns`. Values that are not finite are drawn black.
        columns: images in a row, one per class.
        path: the PNG file.
        labels: names of the columns, written above them; shortened where a column is too narrow.

    Raises:
        DataError: images of another shape, a row that is not full, or another number of labels than columns.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise DataError(
            f"a grid needs images [N, C, H, W] with 1 or 3 channels, got {list(images.shape)}; "
            "convert them to grey or RGB first"
        )
    if columns < 1 or len(images) == 0 or len(images) % columns:
        raise DataError(f"a grid needs whole rows, got {len(images)} images for {columns} columns; add or drop images")
    if labels is not None and len(labels) != columns:
        raise DataError(f"a grid needs one label per column, got {len(labels)} for {columns} columns")

    pixels = images.cpu() if images.dtype == torch.uint8 else to_uint8(images.float().nan_to_num(0.0, 0.0, 0.0)).cpu()
    scale = _scale(*pixels.shape[2:])
    cells = pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy().repeat(scale, axis=1).repeat(scale, axis=2)
    height, width = cells.shape[1:3]
    rows = len(cells) // columns

    names, font = _fit(labels or (), width)
    top = 0 if not names else int(font.size) + 6
    canvas = np.zeros((top + rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 4), dtype=np.uint8)
    for index, cell in enumerate(cells):
        y, x = top + index // columns * (height + GAP), index % columns * (width + GAP)
        canvas[y : y + height, x : x + width, :3] = cell
        canvas[y : y + height, x : x + width, 3] = 255
    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    for column, name in enumerate(names):
        # Mid-grey on transparent is readable on a white page and on a dark one.
        draw.text((column * (width + GAP) + width / 2, 0), name, fill=GREY, font=font, anchor="ma")
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    write_atomically(path, buffer.getvalue())


def _fit(labels: Sequence[str], width: int) -> tuple[list[str], ImageFont.FreeTypeFont]:
    """The largest font in which every label fits into `width` pixels; at the smallest, labels are cut with `…`."""
    names = [" ".join(label.split()) for label in labels]
    fonts = [_font(size) for size in (14, 13, 12, 11, 10)]
    font = next((font for font in fonts if all(font.getlength(name) <= width for name in names)), fonts[-1])
    return [_cut(name, width, font) for name in names], font


def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # Pillow's own scalable font, since a size is given
    return font


def _cut(name: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    if font.getlength(name) <= width:
        return name
    while name and font.getlength(name + "…") > width:
        name = name[:-1]
    return name.rstrip() + "…"
