"""Parquet files with an image column, as `synthkd generate` and Hugging Face datasets write them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from synthkd.data.read.compressed import Temporary, temporary
from synthkd.data.read.decode import in_a_line, some
from synthkd.data.read.entries import Entry, InFile, Listing, refused_entry
from synthkd.data.read.labels import Written
from synthkd.data.read.packed import WrittenImages, labelled
from synthkd.errors import DataError
from synthkd.imports import optional

IMAGES = ("image", "img")
"""Names of the column of images."""
ROWS = 64
"""Rows that are in memory at a time."""


def is_parquet(path: Path) -> bool:
    """Whether the path is one of a parquet file or a pattern of several."""
    return path.suffix.lower() == ".parquet" and not path.is_dir()


def list_parquet(path: Path) -> Listing:
    """The images of a parquet file: a column `image` (or `img`) of encoded files, and `label` if there is one.

    Args:
        path: a file, or a pattern (`train-*.parquet`) of several, which are taken in sorted order.

    Returns:
        The listing. The classes have the names that Hugging Face datasets keeps in the schema, else their numbers.

    Raises:
        DataError: no such file, a damaged one, or one without such a column.
        MissingExtraError: pyarrow is not installed.
    """
    files = [path] if path.exists() else sorted(path.parent.glob(path.name))
    if not files:
        raise DataError(f"{path} does not exist; check the path")
    return list_files(files)


def list_files(files: Sequence[Path]) -> Listing:
    """The images of several parquet files; see `list_parquet`."""
    written = WrittenImages()
    refused: list[Entry] = []
    names: tuple[str, ...] = ()
    for file in files:
        try:
            about = file.stat()
            content = _content(file.resolve(), about.st_size, about.st_mtime_ns, file.name)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DataError(f"{file} is not a readable parquet file ({in_a_line(error)}); fetch it anew") from error
        names = names or content.class_names
        refused += content.refused
        for one in content.written:
            written.append(one)
    if not written and not refused:
        raise DataError(f"{files[0]} holds no images; check the path")
    return labelled(written, refused, class_names=names)


@dataclass(frozen=True)
class _Content:
    """The images of a file, which are one after another in a temporary file, and the rows that have none."""

    class_names: tuple[str, ...]
    written: WrittenImages
    refused: tuple[Entry, ...]


@cache
def _content(file: Path, size: int, _: int, name: str) -> _Content:
    """What a parquet file holds, read a few rows at a time; one that has changed has another time, so is read again."""
    parquet = optional("pyarrow.parquet", "data", "the parquet format")
    written, refused = WrittenImages(), list[Entry]()
    # Without threads and buffers, which would read row groups ahead.
    with parquet.ParquetFile(file, pre_buffer=False) as opened, temporary(size) as images:
        # Before any row is read, because compression lets a small file claim any number of equal rows.
        if opened.metadata.num_rows > size:
            raise ValueError("it claims more rows than it has bytes")
        columns = opened.schema_arrow.names
        image = next((name for name in IMAGES if name in columns), None)
        if image is None:
            raise DataError(f"{file} has no column image, only {some(columns)}; rename the column of the images")
        wanted = [image, *(["label"] if "label" in columns else [])]
        for batch in opened.iter_batches(batch_size=ROWS, columns=wanted, use_threads=False):
            for number, row in enumerate(batch.to_pylist(), start=len(written) + len(refused)):
                one = _image(row, image, images, f"{name}: row {number}")
                written.append(one) if isinstance(one, Written) else refused.append(one)
        return _Content(_class_names(opened.schema_arrow.metadata or {}), written, tuple(refused))


def _image(row: dict[str, Any], column: str, images: Temporary, number: str) -> Written | Entry:
    """An image of a row, whose bytes are put into the temporary file."""
    value, label = row[column], row.get("label")
    content = value.get("bytes") if isinstance(value, dict) else value
    name = (value.get("path") if isinstance(value, dict) else None) or number
    if not isinstance(content, bytes):
        return refused_entry(str(name), "no encoded image")
    read = InFile(images.path, images.add(content), len(content))
    if label is not None and not (isinstance(label, str) or type(label) is int):
        return refused_entry(str(name), f"label must be a number or a name, got {str(label)[:20]!r}", read)
    return Written(str(name), read, label)


def _class_names(metadata: dict[bytes, bytes]) -> tuple[str, ...]:
    """The names of the classes in a schema; empty without them."""
    text = metadata.get(b"huggingface")
    names: Any = None if text is None else json.loads(text)
    for key in ("info", "features", "label", "names"):
        names = names.get(key) if isinstance(names, dict) else None
    return tuple(map(str, names)) if isinstance(names, list) else ()
