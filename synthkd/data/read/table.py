"""A table of image files and their labels: .csv or .tsv, with a header or without."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from synthkd.data.read.decode import in_a_line, some
from synthkd.data.read.entries import Listing, refused_entry
from synthkd.data.read.labels import Written
from synthkd.data.read.packed import labelled
from synthkd.errors import DataError

FILES = ("file", "file_name", "filename", "path", "filepath", "image", "image_path", "img")
LABELS = ("label", "class", "class_name", "category", "target")
"""Names of the columns in a header, whatever their case."""


def is_table(path: Path) -> bool:
    """Whether the path is one of a table."""
    return path.suffix.lower() in (".csv", ".tsv") and not path.is_dir()


def list_table(path: Path) -> Listing:
    """The images that a table names, in its order.

    Args:
        path: a .csv, or a .tsv with tabs in place of commas. Paths in it are relative to its folder. Its header names a
            column of files and one of labels; without such a header they are the first and the second of two columns.

    Returns:
        The listing. The classes are the labels that occur, sorted by number if all are numbers.

    Raises:
        DataError: a file that cannot be read, or without these columns.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",") if row]
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist; check the path") from error
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path} is no table in UTF-8 ({in_a_line(error)}); save it anew") from error
    file_column, label_column, first = _columns(path, rows)
    written, refused = [], []
    names: set[str] = set()
    for row in rows[first:]:
        name = row[file_column].strip() if len(row) > file_column else ""
        label = row[label_column].strip() if len(row) > label_column else ""
        if not name or name in names:
            refused.append(
                refused_entry(name or str(row), "the table names it twice" if name else "a row without a file")
            )
            continue
        names.add(name)
        written.append(Written(name, partial(Path, path.parent / name), label or None))
    if not written:
        raise DataError(f"{path} names no images; write lines `file,label`")
    return labelled(written, refused, numbers_are_names=True)


def _columns(path: Path, rows: Sequence[Sequence[str]]) -> tuple[int, int, int]:
    """The columns of files and of labels, and the row of the first image."""
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    files, labels = ([place for place, cell in enumerate(header) if cell in names] for names in (FILES, LABELS))
    if files and labels:
        return files[0], labels[0], 1
    if len(header) == 2 and (path.parent / rows[0][0].strip()).is_file():
        return 0, 1, 0
    raise DataError(
        f"{path} has the columns {some(rows[0] if rows else [])}; name one `file` and one `label` in its first line"
    )
