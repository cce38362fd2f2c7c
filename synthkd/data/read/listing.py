"""Image files of a folder, a zip or a WebDataset tar, with their classes and parts, for a score or for a training.

A set is `CLASS/**/image`, or `train/CLASS/...` beside `test/CLASS/...`; a tar is a WebDataset. Classes are the sorted
names of the directories, or the numbers in a tar. A set for a score may also be flat, without classes, and one of its
parts is chosen. A set for a training needs classes; `val`, `valid` or `validation` replace a missing `test`.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import replace
from pathlib import Path

from synthkd.data.read.decode import some
from synthkd.data.read.entries import Entry, Listing
from synthkd.data.read.folder_or_zip import PARTS, Directory, is_image, read_tree
from synthkd.data.read.webdataset import list_tar
from synthkd.errors import DataError

_TEST_PARTS = ("test", "val", "valid", "validation")


def list_scored(path: Path, split: str | None = None) -> Listing:
    """The images of a set for a score, with a directory per class or all in one place, sorted by their path.

    Args:
        path: a folder, a .zip or a .tar.
        split: one of the directories `train`, `test`, ... inside; None if there are none.

    Raises:
        DataError: a folder or archive that cannot be read, no images, images beside class directories, a split that is
            missing, or none although the set has parts.
    """
    if _is_tar(path):
        return list_tar(path)
    root = read_tree(path)
    images = root.images()
    top = images if path.is_dir() else _unwrapped(images, (split,))
    if split is not None:
        if split not in top.directories:
            raise DataError(f"{path} has no images in {split}/; its directories with images: {some([*top.visible()])}")
        top = top.directories[split]
    elif parts := _parts(top):
        raise DataError(f"{path} is divided into parts; choose one of them: split={' or split='.join(parts)}")
    flat, classes = [top.files[name] for name in sorted(top.files)], top.visible()
    if not (flat or classes or root.refused):
        raise DataError(f"{path} holds no images; check the path")
    if flat and classes:
        raise DataError(
            f"{path}: {len(flat)} images ({some([entry.name for entry in flat], 3)}) lie beside directories of images "
            f"({some([*classes], 3)}); move them into a directory, or away"
        )
    # Refused members stay in the list: as bad files they are counted and named with the others.
    entries = [*flat, *_labelled(classes, files_first=False), *root.refused]
    ignored = {name for name in root.leaves() if not name.endswith("/")} - {*images.leaves()}
    return Listing(entries, tuple(classes), sorted(ignored))


def list_dataset(path: Path) -> Listing:
    """The images of a set for a training: every class of both parts, training images first.

    Args:
        path: a folder, a .zip or a .tar. A tar has no test part.

    Raises:
        DataError: a folder or archive that cannot be read, no classes, a class without images, or parts with different
            classes.
    """
    if _is_tar(path):
        listing = list_tar(path)
        if not listing.class_names:
            raise DataError(f"{path} has no labels to train on; put the class of each KEY.png as a number into KEY.cls")
        return listing
    if not path.is_dir() and not (path.suffix.lower() == ".zip" and path.exists()):
        problem = "is no folder, .zip or .tar" if path.exists() else "does not exist"
        raise DataError(f"{path} {problem}; set root to a folder or .zip with one directory per class, or to a .tar")
    root = read_tree(path)
    top = root if path.is_dir() else _unwrapped(root, ("train", *_TEST_PARTS))
    directories = top.visible()
    train = directories.get("train")
    # A class may have the name "train" (cars, planes, trains): a part is recognised by the class directories inside.
    if train is not None and train.visible():
        entries, classes = _both_parts(path, directories, train)
    elif directories and set(directories) <= set(_TEST_PARTS):
        raise DataError(f"{path} has {some([*directories])} but no train/; add it, or set root to one of them")
    else:
        entries, classes = _one_part(path, top)
    ignored = {*root.leaves()} - {entry.name for entry in entries}
    return Listing([*entries, *root.refused], classes, sorted(ignored))


def _is_tar(path: Path) -> bool:
    """Whether the path is one of a tar or a pattern of several."""
    return path.suffix.lower() == ".tar" and not path.is_dir()


def _unwrapped(top: Directory, parts: Container[str | None]) -> Directory:
    """The root of the set in a zip: directories that hold one directory and no image are entered.

    Zipping a folder puts all its content below the name of the folder.

    Args:
        top: the root of the zip.
        parts: names of directories that are parts of the set, and are never entered.
    """
    while len(inner := top.visible()) == 1 and not any(map(is_image, top.files)) and not any(n in parts for n in inner):
        (top,) = inner.values()
    return top


def _parts(top: Directory) -> list[str]:
    """The parts of a tree of images; none if names such as `train` are those of classes."""
    directories = top.visible()
    parts = [name for name in directories if name in PARTS]
    hold_classes = any(directories[name].directories for name in parts)
    return parts if hold_classes or len(parts) == len(directories) else []


def _both_parts(
    where: Path, directories: Mapping[str, Directory], train: Directory
) -> tuple[list[Entry], tuple[str, ...]]:
    """The images of `train` and of the test part, if there is one, and the class names."""
    entries, classes = _one_part(where, train)
    test_name = next((name for name in _TEST_PARTS if name in directories), None)
    if strangers := [name for name in directories if name not in ("train", *_TEST_PARTS)]:
        raise DataError(
            f"{where}: train/ holds class directories, but beside it is {some(strangers)}; move it into train/ or away"
        )
    if test_name is None:
        return entries, classes
    test, test_classes = _one_part(where, directories[test_name])
    if test_classes != classes:
        missing, extra = sorted({*classes} - {*test_classes}), sorted({*test_classes} - {*classes})
        raise DataError(
            f"{where}: train/ and {test_name}/ must have the same classes; only in train/: {some(missing)}; only in "
            f"{test_name}/: {some(extra)}"
        )
    return [*entries, *(replace(entry, test=True) for entry in test)], classes


def _one_part(where: Path, part: Directory) -> tuple[list[Entry], tuple[str, ...]]:
    """The images of each class directory of a part, and the class names."""
    classes, path = part.visible(), where / part.name
    if not classes:
        raise DataError(f"{path} has no class directories; put the images of each class into a directory of its name")
    entries = [entry for entry in _labelled(classes, files_first=True) if is_image(entry.name)]
    filled = {entry.label for entry in entries}
    if empty := [name for label, name in enumerate(classes) if label not in filled]:
        raise DataError(f"{path}: no images in class {some(empty)}; add some, or remove the directory")
    return entries, tuple(classes)


def _labelled(classes: Mapping[str, Directory], files_first: bool) -> list[Entry]:
    """The files of each class directory, labelled with its index."""
    labelled = enumerate(classes.values())
    return [replace(entry, label=label) for label, inside in labelled for entry in inside.entries(files_first)]
