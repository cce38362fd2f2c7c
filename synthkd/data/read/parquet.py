"""Parquet files with an image column, as `synthkd generate` and Hugging Face datasets write them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from synthkd.data.read.decode import in_a_line, some
from synthkd.data.read.entries import Entry, Listing, check_size, refused_entry
from synthkd.data.read.labels import Written, labelled
from synthkd.errors import DataError
from synthkd.imports import optional

IMAGES = ("image", "img")
"""Names of the column of images."""


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
    parquet = optional("pyarrow.parquet", "data", "the parquet format")
    written: list[Written] = []
    refused: list[Entry] = []
    names: tuple[str, ...] = ()
    for file in files:
        try:
            metadata = parquet.read_metadata(file)
            # Before any row is read, because compression lets a small file claim any number of equal rows.
            if metadata.num_rows > file.stat().st_size:
                raise ValueError("it claims more rows than it has bytes")
            columns = parquet.read_schema(file).names
            image = next((name for name in IMAGES if name in columns), None)
            if image is None:
                raise DataError(f"{file} has no column image, only {some(columns)}; rename the column of the images")
            table = parquet.read_table(file, columns=[image, *(["label"] if "label" in columns else [])])
            names = names or _class_names(table.schema.metadata or {})
            rows = table.to_pylist()
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DataError(f"{file} is not a readable parquet file ({in_a_line(error)}); fetch it anew") from error
        for number, row in enumerate(rows):
            one = _image(row[image], f"{file.name}: row {number}", row.get("label"))
            written.append(one) if isinstance(one, Written) else refused.append(one)
    if not written and not refused:
        raise DataError(f"{files[0]} holds no images; check the path")
    return labelled(written, refused, class_names=names)


def _image(value: Any, where: str, label: Any) -> Written | Entry:
    """An image of a row, by its own name if it has one."""
    content = value.get("bytes") if isinstance(value, dict) else value
    name = str((value.get("path") if isinstance(value, dict) else None) or where)
    if not isinstance(content, bytes):
        return refused_entry(name, "no encoded image")
    if label is not None and not (isinstance(label, str) or type(label) is int):
        return refused_entry(name, f"label must be a number or a name, got {str(label)[:20]!r}")
    return Written(name, partial(_checked, content), label)


def _checked(content: bytes) -> bytes:
    check_size(len(content))
    return content


def _class_names(metadata: dict[bytes, bytes]) -> tuple[str, ...]:
    """The names of the classes in a schema; empty without them."""
    text = metadata.get(b"huggingface")
    names: Any = None if text is None else json.loads(text)
    for key in ("info", "features", "label", "names"):
        names = names.get(key) if isinstance(names, dict) else None
    return tuple(map(str, names)) if isinstance(names, list) else ()
