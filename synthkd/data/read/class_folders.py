"""The classes of a tree of images: by the directories, or by the `dataset.json` of NVIDIA's dataset_tool."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from synthkd.data.read.decode import in_a_line
from synthkd.data.read.entries import Listing, refused_entry
from synthkd.data.read.folder_or_zip import Directory
from synthkd.data.read.labels import Written, in_order
from synthkd.data.read.packed import labelled
from synthkd.errors import DataError
from synthkd.system.text import parse_json

LABELS = "dataset.json"
"""Name of the file with the labels of NVIDIA's dataset_tool, and of the description of a generated dataset."""
_NUMBERED = re.compile(r"([0-9]{1,18})_(.+)")


def class_directories(part: Directory) -> dict[str, Directory]:
    """The directories by the names of their classes, in the order of the classes.

    Names that are numbers are sorted by number. `0003_name` is class `name`, and its number gives its place. All other
    names are sorted as text.
    """
    directories = part.visible()
    numbered = [_NUMBERED.fullmatch(name) for name in directories]
    places = {match[2]: (int(match[1]), match[0]) for match in numbered if match is not None}
    # Only where all have numbers, and neither a number nor a name is that of two.
    if directories and len(places) == len({place for place, _ in places.values()}) == len(directories):
        return {name: directories[whole] for name, (_, whole) in sorted(places.items(), key=lambda item: item[1])}
    return {name: directories[name] for name in in_order(directories)}


def by_labels_file(where: Path, part: Directory) -> Listing | None:
    """The images of a part with the labels of its `dataset.json`; None if it has none of NVIDIA's form.

    Such a file says `{"labels": [["00000/img00000000.png", 3], ...]}`, or null for images without labels. The folders
    beside it are no classes.

    Raises:
        DataError: labels of another form.
    """
    labels = _labels(where, part)
    if labels is None:
        return None
    prefix = f"{part.name}/" if part.name else ""
    images = [entry for entry in part.images().entries(files_first=False) if entry.name != prefix + LABELS]
    written = [Written(entry.name, entry.read, labels.get(entry.name.removeprefix(prefix))) for entry in images]
    names = {one.name for one in written}
    missing = [prefix + name for name in labels if prefix + name not in names]
    return labelled(written, [refused_entry(name, f"missing, though {LABELS} has its label") for name in missing])


def _labels(where: Path, part: Directory) -> Mapping[str, int] | None:
    """Name of an image below the part -> its label; empty if the file says that there are none."""
    if LABELS not in part.files:
        return None
    try:
        content = part.files[LABELS].read()
        value = parse_json(content if isinstance(content, bytes) else content.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(
            f"{where / part.files[LABELS].name} cannot be read ({in_a_line(error)}); fetch it anew"
        ) from error
    if not isinstance(value, dict) or "labels" not in value:
        return None
    pairs = value["labels"] or []
    if not isinstance(pairs, list) or not all(map(_is_pair, pairs)):
        raise DataError(
            f'{where / part.files[LABELS].name}: labels must be a list of ["FILE", NUMBER], one number for each image; '
            "write the number of its class"
        )
    return dict(pairs)


def _is_pair(pair: object) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) and type(pair[1]) is int
