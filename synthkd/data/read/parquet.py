"""Parquet files with an image column, as `synthkd generate` and Hugging Face datasets write them.

The images stay in the files, as `row_groups` reads them. A row group of many megabytes would be read again for each of
its images, so those of a file with such a one are copied into a temporary file. Repeated images count each time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, chain, repeat
from pathlib import Path
from typing import Any

from synthkd.data.read.compressed import Temporary, TooMuchError, temporary
from synthkd.data.read.decode import Reader, in_a_line, some
from synthkd.data.read.entries import Entry, InFile, InTable, Listing, refused_entry
from synthkd.data.read.labels import Written, as_label
from synthkd.data.read.packed import WrittenImages, labelled
from synthkd.data.read.row_groups import LARGEST_GROUP, NO_IMAGE, REMEDY, ROWS, RowGroups, encoded, leaf, opened
from synthkd.errors import DataError
from synthkd.system.patterns import matching

IMAGES = ("image", "img")
"""Names of the column of images."""


def is_parquet(path: Path) -> bool:
    """Whether the path is one of a parquet file or a pattern of several."""
    return path.suffix.lower() == ".parquet" and not path.is_dir()


def list_parquet(path: Path) -> Listing:
    """The images of a parquet file: a column `image` (or `img`) of encoded files, and `label` if there is one.

    Args:
        path: a file, or a pattern (`train-*.parquet`) of several; see `matching`.

    Returns:
        The listing. The classes have the names that Hugging Face datasets keeps in the schema, else their numbers.

    Raises:
        DataError: no such file, a damaged one, or one without such a column.
        MissingExtraError: pyarrow is not installed.
    """
    files = matching(path)
    if not files:
        raise DataError(f"{path} does not exist; check the path")
    return list_files(files)


def has_images(file: Path) -> bool:
    """Whether a parquet file has a column of images; also a damaged one, which `list_files` refuses.

    Raises:
        MissingExtraError: pyarrow is not installed.
    """
    try:
        with opened(file) as parquet:
            return any(name in parquet.schema_arrow.names for name in IMAGES)
    except (OSError, ValueError):
        return True


def list_files(files: Sequence[Path]) -> Listing:
    """The images of several parquet files; see `list_parquet`."""
    written = WrittenImages()
    refused: list[Entry] = []
    names: tuple[str, ...] = ()
    for file in files:
        try:
            with opened(file) as parquet:
                names = names or _class_names(parquet)
                for one in _rows(file, parquet):
                    written.append(one) if isinstance(one, Written) else refused.append(one)
        except TooMuchError as error:
            raise DataError(f"{file}: {error}; {REMEDY}") from error
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DataError(f"{file} is not a readable parquet file ({in_a_line(error)}); fetch it anew") from error
    if not written and not refused:
        raise DataError(f"{files[0]} holds no images; check the path")
    return labelled(written, refused, class_names=names)


def _rows(file: Path, parquet: Any) -> Iterator[Written | Entry]:
    """The rows of a file. Their images stay in it, or with a large row group lie in a temporary file."""
    about = file.stat()
    # Before any row is read, because compression lets a small file claim any number of equal rows.
    if parquet.metadata.num_rows > about.st_size:
        raise ValueError("it claims more rows than it has bytes")
    column = _column(file, parquet)
    if _largest_group(parquet, column) <= LARGEST_GROUP:
        return _in_groups(file, parquet, column)
    content = _unpacked(file.resolve(), about.st_size, about.st_mtime_ns, file.name)
    return chain(content.written, content.refused)


def _column(file: Path, parquet: Any) -> str:
    """The name of the column of images."""
    columns = parquet.schema_arrow.names
    column = next((name for name in IMAGES if name in columns), None)
    if column is None:
        raise DataError(f"{file} has no column image, only {some(columns)}; rename the column of the images")
    return column


def _largest_group(parquet: Any, column: str) -> int:
    """Bytes of the images of the largest row group: as claimed, or by the first rows of the one of most rows."""
    paths = [parquet.schema.column(number).path for number in range(len(parquet.schema))]
    numbers = [number for number, path in enumerate(paths) if path in (column, f"{column}.bytes")]
    groups = [*map(parquet.metadata.row_group, range(parquet.metadata.num_row_groups))]
    claimed = max((group.column(number).total_uncompressed_size for group in groups for number in numbers), default=0)
    # A repeated image is claimed once, so the rows may hold far more. One look at each file is cheap.
    rows: list[int] = [group.num_rows for group in groups]
    most = max(rows, default=0)
    if claimed > LARGEST_GROUP or most * claimed <= LARGEST_GROUP:
        return claimed
    wanted = [leaf(parquet, column, "bytes") or column]
    try:
        first = next(parquet.iter_batches(ROWS, [rows.index(most)], wanted, use_threads=False))
    except (OSError, ValueError):
        return claimed  # damaged: who reads these rows will be told
    return max(claimed, most * int(first.nbytes) // int(first.num_rows))


def _in_groups(file: Path, parquet: Any, column: str) -> Iterator[Written | Entry]:
    """The rows of a file whose images stay in it."""
    groups = range(parquet.metadata.num_row_groups)
    table = RowGroups(file, column, [*accumulate(parquet.metadata.row_group(one).num_rows for one in groups)])
    labels, names = "label" in parquet.schema_arrow.names, leaf(parquet, column, "path")
    wanted = [*([names] if names else []), *(["label"] if labels else [])]
    batches = parquet.iter_batches(ROWS, columns=wanted, use_threads=False)
    rows = chain.from_iterable(batch.to_pylist() for batch in batches)
    for row, values in enumerate(rows if wanted else repeat({}, parquet.metadata.num_rows)):
        yield _row(values, column, InTable(table, row), f"{file.name}: row {row}")


@dataclass(frozen=True)
class _Content:
    """The images of a file, which are one after another in a temporary file, and the rows that have none."""

    written: WrittenImages
    refused: tuple[Entry, ...]


@cache
def _unpacked(file: Path, size: int, _: int, name: str) -> _Content:
    """What a parquet file holds, read a few rows at a time; one that has changed has another time, so is read again."""
    written, refused = WrittenImages(), list[Entry]()
    with opened(file) as parquet, temporary(size) as images:
        column = _column(file, parquet)
        wanted = [column, *(["label"] if "label" in parquet.schema_arrow.names else [])]
        for batch in parquet.iter_batches(ROWS, columns=wanted, use_threads=False):
            for number, values in enumerate(batch.to_pylist(), start=len(written) + len(refused)):
                one = _copied(values, column, images, f"{name}: row {number}")
                written.append(one) if isinstance(one, Written) else refused.append(one)
        return _Content(written, tuple(refused))


def _copied(values: Mapping[str, Any], column: str, images: Temporary, number: str) -> Written | Entry:
    """The image of a row, whose bytes are put into the temporary file."""
    content = encoded(values[column])
    if content is None:
        return refused_entry(_name(values, column) or number, NO_IMAGE)
    return _row(values, column, InFile(images.path, images.add(content), len(content)), number)


def _row(values: Mapping[str, Any], column: str, read: Reader, number: str) -> Written | Entry:
    """The image of a row with the label in it."""
    name = _name(values, column) or number
    try:
        return Written(name, read, as_label(values.get("label")))
    except ValueError as error:
        return refused_entry(name, str(error), read)


def _name(values: Mapping[str, Any], column: str) -> str:
    value = values.get(column)
    return str((value.get("path") if isinstance(value, dict) else None) or "")


def _class_names(parquet: Any) -> tuple[str, ...]:
    """The names of the classes in a schema; empty without them."""
    text = (parquet.schema_arrow.metadata or {}).get(b"huggingface")
    names: Any = None if text is None else json.loads(text)
    for key in ("info", "features", "label", "names"):
        names = names.get(key) if isinstance(names, dict) else None
    return tuple(map(str, names)) if isinstance(names, list) else ()
