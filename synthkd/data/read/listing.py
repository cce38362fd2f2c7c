"""Image files of a folder, a zip or a WebDataset tar with their classes and parts: to be scored, or to be trained on.

A set is `CLASS/**/image`, or `train/CLASS/...` beside `test/CLASS/...`; a tar is a WebDataset. Classes are the sorted
names of the directories, or the numbers in a tar. A set that is scored may also be flat, without classes, and one part
of it is chosen. A set that is trained on needs classes; `val`, `valid` or `validation` stand in for a missing `test`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from synthkd.data.read.decode import some
from synthkd.data.read.directories import PARTS, Directory, is_image, read_tree
from synthkd.data.read.entries import Entry, Listing
from synthkd.data.read.webdataset import list_tar
from synthkd.errors import DataError

_TEST_PARTS = ("test", "val", "valid", "validation")


def list_scored(path: Path, split: str | None = None) -> Listing:
    """The images of a set that is scored, with a directory per class or all in one place, sorted by their path.

    Args:
        path: a folder, a .zip or a .tar.
        split: which of the directories `train`, `test`, ... inside is meant; None where there are none.

    Raises:
        DataError: a folder or archive that cannot be read, no images, images beside class directories, or a split that
            is not there or has to be chosen.
    """
    if _is_tar(path):
        return list_tar(path)
    tree = read_tree(path)
    top = tree.root.images()
    while tree.may_be_wrapped and (inner := _only_directory(top)) and inner != split:
        top = top.directories[inner]
    if split is not None:
        if split not in top.directories:
            raise DataError(f"{path} has no images in {split}/; its directories with images: {some([*top.visible()])}")
        top = top.directories[split]
    elif parts := _parts(top):
        raise DataError(f"{path} is divided into parts; choose one of them: split={' or split='.join(parts)}")
    flat, classes = [top.files[name] for name in sorted(top.files)], top.visible()
    if not (flat or classes or tree.refused):
        raise DataError(f"{path} holds no images; check the path")
    if flat and classes:
        raise DataError(
            f"{path}: {len(flat)} images ({some([entry.name for entry in flat], 3)}) lie beside directories of images "
            f"({some([*classes], 3)}); move them into a directory, or away"
        )
    images = {entry.name for entry in tree.root.images().entries(files_first=False)}
    ignored = sorted(set(tree.root.names()) - images)
    return Listing([*flat, *_labelled(classes, files_first=False), *tree.refused], tuple(classes), ignored)


def list_dataset(path: Path) -> Listing:
    """The images of a set that is trained on: every class of both parts, training images first.

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
    tree = read_tree(path)
    top, ignored = tree.root, list[str]()
    while tree.may_be_wrapped and (inner := _only_directory(top)) and inner not in ("train", *_TEST_PARTS):
        ignored += _beside_classes(top)
        top = top.directories[inner]
    listing = _both_parts(path, top)
    return Listing([*listing.entries, *tree.refused], listing.class_names, [*ignored, *listing.ignored])


def _is_tar(path: Path) -> bool:
    """Whether the path is one of a tar or a pattern of several."""
    return path.suffix.lower() == ".tar" and not path.is_dir()


def _only_directory(top: Directory) -> str | None:
    """Name of the directory that holds all images; None where there are several, or images beside it."""
    directories = [*top.visible()]
    return directories[0] if len(directories) == 1 and not any(map(is_image, top.files)) else None


def _parts(top: Directory) -> list[str]:
    """The parts that a tree of images is divided into; none where `train` is a class (cars, planes, trains)."""
    directories = top.visible()
    parts = [name for name in directories if name in PARTS]
    hold_classes = any(directories[name].directories for name in parts)
    return parts if hold_classes or len(parts) == len(directories) else []


def _both_parts(where: Path, top: Directory) -> Listing:
    """The classes in `top`, or those in its `train` and, where there is one, in its test part."""
    directories = top.visible()
    train = directories.get("train")
    # A class may itself be called "train": here a part is recognised by the class directories inside.
    if train is None or not train.visible():
        if directories and set(directories) <= set(_TEST_PARTS):
            raise DataError(f"{where} has {some([*directories])} but no train/; add it, or set root to one of them")
        return _one_part(where, top)

    listing = _one_part(where, train)
    test_name = next((name for name in _TEST_PARTS if name in directories), None)
    others = [name for name in directories if name not in ("train", test_name)]
    if strangers := [name for name in others if name not in _TEST_PARTS]:
        raise DataError(
            f"{where}: train/ holds class directories, but beside it is {some(strangers)}; move it into train/ or away"
        )
    entries, names = [*listing.entries], listing.class_names
    ignored = [*_beside_classes(top), *listing.ignored, *(directories[name].name for name in others)]
    if test_name is not None:
        test = _one_part(where, directories[test_name])
        if test.class_names != names:
            missing, extra = sorted(set(names) - set(test.class_names)), sorted(set(test.class_names) - set(names))
            raise DataError(
                f"{where}: train/ and {test_name}/ must have the same classes; only in train/: {some(missing)}; only "
                f"in {test_name}/: {some(extra)}"
            )
        entries += [replace(entry, test=True) for entry in test.entries]
        ignored += test.ignored
    return Listing(entries, names, ignored)


def _one_part(where: Path, part: Directory) -> Listing:
    """The images of each class directory of a part."""
    classes, path = part.visible(), where / part.name
    if not classes:
        raise DataError(f"{path} has no class directories; put the images of each class into a directory of its name")
    files = _labelled(classes, files_first=True)
    images = [entry for entry in files if is_image(entry.name)]
    filled = {entry.label for entry in images}
    if empty := [name for label, name in enumerate(classes) if label not in filled]:
        raise DataError(f"{path}: no images in class {some(empty)}; add some, or remove the directory")
    ignored = [entry.name for entry in files if not is_image(entry.name)]
    return Listing(images, tuple(classes), [*_beside_classes(part), *ignored])


def _labelled(classes: Mapping[str, Directory], files_first: bool) -> list[Entry]:
    """The files of each class directory, labelled with its index."""
    labelled = enumerate(classes.values())
    return [replace(entry, label=label) for label, inside in labelled for entry in inside.entries(files_first)]


def _beside_classes(part: Directory) -> list[str]:
    """Files and hidden directories beside the class directories of a part."""
    hidden = [inside.name for name, inside in part.directories.items() if name not in part.visible()]
    return sorted([*(entry.name for entry in part.files.values()), *hidden])
