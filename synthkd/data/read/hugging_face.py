"""Folders of Hugging Face, which `datasets.save_to_disk` wrote, and of shards, parquet or tar, named by their part."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from synthkd.data.read import webdataset
from synthkd.data.read.compressed import is_tar
from synthkd.data.read.decode import in_a_line, some
from synthkd.data.read.entries import Entry, InTable, Listing
from synthkd.data.read.labels import Written, as_label
from synthkd.data.read.packed import WrittenImages, labelled, packed
from synthkd.data.read.parquet import IMAGES, has_images, list_files
from synthkd.errors import DataError
from synthkd.imports import optional

TEST_PARTS = ("test", "validation", "valid", "val")
"""Names of parts that a test part may have, the first one that is there, with labels if others have some, is taken."""
_IMAGE_ENDINGS = tuple(f".{suffix}" for suffix in webdataset.IMAGES)
_SAVED, _SAVED_PARTS = "dataset_info.json", "dataset_dict.json"
_PART = re.compile(r"(train|test|validation|valid|val)(?=[-_.]|$)")


def list_hugging_face(path: Path, cache: Path | None = None) -> Listing | None:
    """The images of such a folder, those of its test part marked as such; None if it is none.

    Args:
        path: a folder of `save_to_disk`, of one dataset or of several parts; or one with shards
            (`train-00000-of-00002.parquet`) in it or in its `data/`, the first with a column of images; or one with
            WebDataset shards (`train-0000.tar`), without directories and images.
        cache: as of `list_tar`.

    Raises:
        DataError: damaged files, no column of images, or a test part with classes that the training part lacks.
        MissingExtraError: datasets or pyarrow is not installed.
    """
    if (path / _SAVED_PARTS).is_file() or ((path / _SAVED).is_file() and any(path.glob("*.arrow"))):
        return _saved(path)
    tables = [files for folder in (path, path / "data") if (files := sorted(folder.glob("*.parquet")))]
    shards = next((files for files in tables if has_images(files[0])), [])
    # A table without images is about the images beside it, as img2dataset's is; alone it is refused.
    if tables and not shards and not _holds_others(path):
        shards = tables[0]
    read = list_files if shards else partial(_list_tars, cache=cache)
    shards = shards or _tars(path)
    if not shards:
        return None
    parts: dict[str, list[Path]] = {}
    for shard in shards:
        match = _PART.match(shard.name)
        parts.setdefault(match[1] if match else "", []).append(shard)
    return _joined(path, {name: partial(read, files) for name, files in parts.items()})


def _holds_others(path: Path) -> bool:
    """Whether a folder has tars, images or directories beside those of parquet."""
    return any(
        one.name.lower().endswith(_IMAGE_ENDINGS) or is_tar(one) or (one.is_dir() and one.name != "data")
        for one in path.iterdir()
        if not one.name.startswith(".")
    )


def _tars(path: Path) -> list[Path]:
    """The tars of a folder of nothing but shards, sorted."""
    tars = []
    with os.scandir(path) as inside:
        for one in inside:
            if one.name.startswith("."):
                continue
            if one.name.lower().endswith(_IMAGE_ENDINGS) or one.is_dir():
                return []
            if is_tar(path / one.name):
                tars.append(path / one.name)
    return sorted(tars)


def _list_tars(shards: Sequence[Path], cache: Path | None) -> Listing:
    listing = webdataset.list_shards(shards, cache)
    if isinstance(listing, Listing):
        return listing
    folder, part = shards[0].parent, _PART.match(shards[0].name)
    # A pattern of all tars would train on the test part.
    which, start = ("those of each part", part[1]) if part else ("them", "")
    raise DataError(f"{folder} has tars of class directories; name {which} by a pattern: {folder}/{start}*.tar")


def _saved(path: Path) -> Listing:
    """The images of a folder of `save_to_disk`. Their bytes stay in its memory-mapped files."""
    datasets = optional("datasets", "data", "folders of Hugging Face datasets")
    try:
        whole = datasets.load_from_disk(str(path))
        parts = whole if isinstance(whole, Mapping) else {"": whole}
        return _joined(path, {name: partial(_listed, path / name, part) for name, part in parts.items()})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} is no readable folder of save_to_disk ({in_a_line(error)}); save it anew") from error


def _listed(path: Path, part: Any) -> Listing:
    """The images of one dataset of the library."""
    datasets = optional("datasets", "data", "folders of Hugging Face datasets")
    column = next((name for name in IMAGES if name in part.column_names), None)
    if column is None:
        raise DataError(f"{path} has no column image, only {some(part.column_names)}; rename the column of the images")
    part = part.cast_column(column, datasets.Image(decode=False))
    names = tuple(getattr(part.features.get("label"), "names", None) or ())
    labels = part["label"][:] if "label" in part.column_names else [None] * len(part)
    written, table = WrittenImages(), _Saved(part, column)
    for row, label in enumerate(labels):
        written.append(Written(f"row {row}", InTable(table, row), as_label(label)))
    if not written:
        raise DataError(f"{path} holds no images; check the path")
    return labelled(written, class_names=names)


class _Saved:
    """The images of one dataset of the library."""

    def __init__(self, part: Any, column: str) -> None:
        self._part, self._column = part, column

    def content(self, row: int) -> bytes | Path:
        """The bytes of an image, or its file."""
        image = self._part[row][self._column]
        content: bytes | None = image["bytes"]
        return Path(image["path"]) if content is None else content


def _joined(path: Path, parts: Mapping[str, Any]) -> Listing:
    """The training part and the test part as one listing; a single part is the whole set."""
    candidates = [name for name in TEST_PARTS if name in parts]
    if len(parts) == 1 or not candidates or "train" not in parts:
        if len(parts) > 1:
            raise DataError(f"{path} has the parts {some([*parts])}; name one `train` and one `test`, or give one file")
        (alone,) = parts.values()
        listing: Listing = alone()
        return listing
    train: Listing = parts["train"]()
    # The test part of a contest has no labels, and its validation part is what there is to test on.
    read = ((name, parts[name]()) for name in candidates)
    chosen = next(((name, one) for name, one in read if one.class_names or not train.class_names), None)
    if chosen is None:
        return replace(train, ignored=[*train.ignored, *(f"part {name}" for name in parts if name != "train")])
    test, tested = chosen
    if extra := [name for name in tested.class_names if name not in train.class_names]:
        raise DataError(f"{path}: {test} has classes that train does not have: {some(extra)}; leave their images out")
    entries = packed(_in_part("train", train, train.class_names), _in_part(test, tested, train.class_names))
    aside = [f"part {name}" for name in parts if name not in ("train", test)]
    return Listing(entries, train.class_names, [*train.ignored, *tested.ignored, *aside])


def _in_part(name: str, listing: Listing, class_names: Sequence[str]) -> Iterator[Entry]:
    places = {class_name: place for place, class_name in enumerate(class_names)}
    for entry in listing.entries:
        label = None if entry.label is None else places[listing.class_names[entry.label]]
        yield replace(entry, name=f"{name}: {entry.name}", label=label, test=name != "train")
