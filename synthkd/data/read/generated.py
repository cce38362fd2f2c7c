"""The images of a dataset that `synthkd generate` wrote, in any of its formats, as a listing of files.

The names of the classes come from its `dataset.json`, whatever the names of the directories. The soft labels are left
aside; `synthkd.data.written.stored` reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from synthkd.data.read.class_folders import LABELS
from synthkd.data.read.decode import in_a_line
from synthkd.data.read.entries import Listing
from synthkd.data.read.folder_or_zip import is_image, read_tree
from synthkd.data.read.labels import Written
from synthkd.data.read.packed import labelled
from synthkd.data.read.parquet import list_files
from synthkd.data.read.webdataset import list_shards
from synthkd.errors import DataError
from synthkd.system.files import inside
from synthkd.system.sealed import unsealed
from synthkd.system.text import parse_json

SPLIT = "train"
"""The only part of a generated dataset."""


def list_generated(path: Path, cache: Path | None = None) -> Listing | None:
    """The images of a generated dataset, with its class names; None if the path is none.

    Args:
        path: the dataset, the run that holds it in `dataset/`, or its `train/`.
        cache: as of `list_tar`.

    Raises:
        DataError: a damaged description, or files that are missing.
    """
    top = find_generated(path)
    if top is None:
        return None
    try:
        about = unsealed((top / LABELS).read_bytes())
        names, form = tuple(map(str, about["class_names"])), about["format"]
        files = [inside(top, str(name)) for name in dict.fromkeys(about["files"])]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{top / LABELS} is damaged ({in_a_line(error)}); generate the dataset again") from error
    if form == "folder":
        return _folder(top / SPLIT, names)
    if missing := [file for file in files if not file.is_file()]:
        raise DataError(f"{missing[0]} is missing, though {LABELS} lists it; copy or generate the dataset again")
    listing = list_shards(files, cache) if form == "webdataset" else list_files(files)
    assert isinstance(listing, Listing)
    return replace(listing, class_names=names)


def find_generated(path: Path) -> Path | None:
    """The directory of the generated dataset that a path names; None if it names none."""
    tops = [path / "dataset", path, *([path.parent] if path.name == SPLIT else [])]
    return next(
        (top for top in tops if (about := _about(top)) and {"format", "files", "class_names"} <= {*about}), None
    )


def _about(top: Path) -> Mapping[str, Any] | None:
    try:
        value = parse_json((top / LABELS).read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _folder(train: Path, names: tuple[str, ...]) -> Listing:
    """The images of the class directories, whose names begin with the number of the class."""
    root = read_tree(train)
    written = [
        Written(entry.name, entry.read, directory.partition("_")[0])
        for directory, inside_it in root.visible().items()
        for entry in inside_it.entries(files_first=True)
        if is_image(entry.name)
    ]
    if not written:
        raise DataError(f"{train} holds no images; copy or generate the dataset again")
    return labelled(written, class_names=names)
