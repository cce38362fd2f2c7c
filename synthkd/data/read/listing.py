"""Image files of a set with their classes and parts, for a score or for a training.

A set is `CLASS/**/image`, or `train/CLASS/...` beside `test/CLASS/...`, in a folder, a zip or a tar; or its labels are
written beside the images: WebDataset, a table, parquet, `dataset.json`. A set for a score may also be flat, without
classes, and one of its parts is chosen. A set for a training needs classes; `val`, `valid` or `validation` replace a
missing `test`.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from synthkd.data.read.class_folders import LABELS, by_labels_file, class_directories
from synthkd.data.read.compressed import is_tar
from synthkd.data.read.decode import in_a_line, read_and_decode, some
from synthkd.data.read.entries import Entry, Listing
from synthkd.data.read.folder_or_zip import PARTS, Directory, is_image, read_tree
from synthkd.data.read.generated import SPLIT, find_generated, list_generated
from synthkd.data.read.hugging_face import list_hugging_face
from synthkd.data.read.packed import as_packed, packed, unused, without_labels
from synthkd.data.read.parquet import is_parquet, list_parquet
from synthkd.data.read.table import is_table, list_table
from synthkd.data.read.webdataset import list_tar
from synthkd.errors import DataError

FORMS = "image folder, a .zip, .tar, .csv, .parquet or .npz, or a run"
"""What a path of images may be."""
_TEST_PARTS = ("test", "val", "valid", "validation")


def list_scored(path: Path, split: str | None = None) -> Listing:
    """The images of a set for a score, with a directory per class or all in one place, sorted by their path.

    Args:
        path: a folder, an archive, a table, a parquet file, or what `synthkd generate` wrote.
        split: one of the directories `train`, `test`, ... inside; None if there are none.

    Raises:
        DataError: a folder or file that cannot be read, no images, images beside class directories, a split that is
            missing, or none although the set has parts.
    """
    root = _opened(path)
    if isinstance(root, Listing):
        if any(entry.test for entry in root.entries):
            return _part_of(path, root, split)
        if split is not None and (split != SPLIT or find_generated(path) is None):
            raise DataError(f"{path} has no parts; leave out split={split}")
        return root
    images = root.images()
    top, whole = (_entered(path, tree, (split,)) for tree in (images, root))
    if split is not None:
        if split not in top.directories:
            raise DataError(f"{path} has no images in {split}/; its directories with images: {some([*top.visible()])}")
        top, whole = top.directories[split], whole.directories[split]
    elif parts := _parts(top):
        raise DataError(f"{path} is divided into parts; choose one of them as its split: {' or '.join(parts)}")
    if (listing := by_labels_file(path, whole)) is not None:
        return replace(listing, entries=packed(listing.entries, root.refused))
    flat, classes = top.files, class_directories(top)
    if not (flat or classes or root.refused):
        raise DataError(f"{path} holds no images; check the path")
    if flat and classes:
        first = [flat[name].name for name in sorted(flat)]
        raise DataError(
            f"{path}: {len(flat)} images ({some(first, 3)}) lie beside directories of images "
            f"({some([*classes], 3)}); move them into a directory, or away"
        )
    # Refused members stay in the list: as bad files they are counted and named with the others.
    alone = (flat[name] for name in sorted(flat))
    entries = packed(alone, _labelled(classes, files_first=False), root.refused)
    readable = packed(images.entries(files_first=False))
    ignored = [name for name in unused(root.leaves, readable) if not name.endswith("/")]
    return Listing(entries, tuple(classes), ignored)


def list_every(path: Path) -> Listing:
    """Every image of a path, sorted by its name, whatever directories it lies in; labels are left aside.

    Args:
        path: an image file, or one of the forms of `list_scored`.

    Raises:
        DataError: a folder or file that cannot be read, or no images.
    """
    readable = (".zip", ".tar", ".npz", ".npy", ".gz", ".tgz", ".bz2", ".xz")
    if path.is_file() and not (is_table(path) or is_parquet(path) or path.suffix.lower() in readable):
        return Listing([Entry(path.name, lambda: path)], (), ())
    root = _opened(path)
    if isinstance(root, Listing):
        return without_labels(root)
    entries = packed(root.images().entries(files_first=False), root.refused)
    if not len(entries):
        raise DataError(f"{path} holds no images; check the path")
    return Listing(entries, (), ())


def _part_of(path: Path, whole: Listing, split: str | None) -> Listing:
    """The training part or the test part of a listing with both."""
    if split not in ("train", "test"):
        raise DataError(f"{path} is divided into parts; choose one of them as its split: train or test")
    return replace(whole, entries=packed(one for one in whole.entries if one.test == (split == "test")))


def list_dataset(path: Path, lacks_classes: bool = False, cache: Path | None = None) -> Listing:
    """The images of a set for a training: every class of both parts, training images first.

    Args:
        path: a folder, an archive, a table, a parquet file, or what `synthkd generate` wrote. Only the first two have a
            test part.
        lacks_classes: a class may have no image.
        cache: as of `list_tar`.

    Raises:
        DataError: a folder or file that cannot be read, no classes, a class without images, or a test part with
            classes that the training part does not have.
    """
    root = _opened(path, cache)
    if isinstance(root, Listing):
        if not root.class_names:
            remedy = _REMEDIES.get(path.suffix.lower(), "add them")
            raise DataError(f"{path} has no labels to train on{_first_objection(root)}; {remedy}")
        return root
    top = _entered(path, root, ("train", *_TEST_PARTS))
    directories = top.visible()
    train = directories.get("train")
    # A class may have the name "train" (cars, planes, trains): a part is recognised by the class directories inside.
    if train is not None and train.visible():
        entries, classes = _both_parts(path, directories, train)
    elif directories and set(directories) <= set(_TEST_PARTS):
        raise DataError(f"{path} has {some([*directories])} but no train/; add it, or set root to one of them")
    else:
        entries, classes = _one_part(path, top, lacks_classes)
    return Listing(packed(entries, root.refused), classes, unused(root.leaves, as_packed(entries)))


def _first_objection(listing: Listing) -> str:
    """Why the first image is refused, in words; empty if it is not."""
    for entry in listing.entries[:1]:
        try:
            entry.read()
        except (OSError, ValueError) as error:
            return f" ({entry.name}: {in_a_line(error)})"
    return ""


def list_unlabelled(path: Path, cache: Path | None = None) -> Listing:
    """Every image of a set, sorted by path, without labels; of a set with a part `train`, the images of that part.

    Args:
        path: one of the forms of `list_scored`.
        cache: as of `list_tar`.

    Raises:
        DataError: a folder or file that cannot be read, or no images.
    """
    root = _opened(path, cache)
    if isinstance(root, Listing):
        return without_labels(replace(root, entries=packed(one for one in root.entries if not one.test)))
    top = _entered(path, root.images(), ("train", *_TEST_PARTS))
    if "train" in _parts(top):
        top = top.directories["train"]
    entries = packed(top.entries(files_first=False), root.refused)
    if not len(entries):
        raise DataError(f"{path} holds no images; check the path")
    return Listing(entries, (), unused(root.leaves, packed(root.images().entries(files_first=False))))


_REMEDIES = {
    ".tar": "put the class of each KEY.png into KEY.cls, or each class into a directory of its name",
    ".csv": "fill the column `label`",
    ".tsv": "fill the column `label`",
    ".parquet": "add a column `label`",
}


def _opened(path: Path, cache: Path | None = None) -> Listing | Directory:
    """The images of a set whose labels are written beside them, or the tree of directories of another set.

    Raises:
        DataError: a path that is neither, or that cannot be read.
    """
    kind = path.suffix.lower()
    if path.is_dir():
        return list_generated(path, cache) or list_hugging_face(path, cache) or read_tree(path)
    if is_table(path):
        return list_table(path)
    if is_parquet(path):
        return list_parquet(path)
    if is_tar(path):
        return list_tar(path, cache)
    if kind == ".zip" and path.exists():
        return read_tree(path)
    if not path.exists():
        raise DataError(f"{path} does not exist; check the path")
    remedy = ""
    if kind == ".npz":
        remedy = " of kind folder (set kind to npz, and path)"
    if kind == ".npy":
        remedy = " of kind folder (set kind to npz, and path)"
    if kind in (".gz", ".bz2", ".xz", ".zst", ".7z"):
        remedy = " (unpack it)"
    raise DataError(f"{path} is no set of images{remedy}; give an {FORMS}")


def _entered(path: Path, top: Directory, parts: Container[str | None]) -> Directory:
    """The root of a set: that of a folder, or the one inside the directories around all of an archive.

    Packing a folder puts all its content below the name of the folder, so directories that hold one directory and no
    image are entered.

    Args:
        path: of the set.
        top: the root of the tree.
        parts: names of directories that are parts of the set, and are never entered.
    """
    while (
        not path.is_dir()
        and len(inner := top.visible()) == 1
        and not any(_is_picture(name, entry) for name, entry in top.files.items())
        and LABELS not in top.files
        and not any(name in parts for name in inner)
    ):
        (top,) = inner.values()
    return top


def _is_picture(name: str, entry: Entry) -> bool:
    """Whether a file is an image: by its suffix, or, as a LICENSE has none either, by its content."""
    return is_image(name) and ("." in name or read_and_decode(entry.read).pixels is not None)


def _parts(top: Directory) -> list[str]:
    """The parts of a tree of images; none if names such as `train` are those of classes."""
    directories = top.visible()
    parts = [name for name in directories if name in PARTS]
    hold_classes = any(directories[name].directories for name in parts)
    return parts if hold_classes or len(parts) == len(directories) else []


def _both_parts(
    where: Path, directories: Mapping[str, Directory], train: Directory
) -> tuple[Sequence[Entry], tuple[str, ...]]:
    """The images of `train` and of the test part, if there is one, and the class names."""
    entries, classes = _one_part(where, train)
    test_name = next((name for name in _TEST_PARTS if name in directories), None)
    if strangers := [name for name in directories if name not in ("train", *_TEST_PARTS)]:
        raise DataError(
            f"{where}: train/ holds class directories, but beside it is {some(strangers)}; move it into train/ or away"
        )
    if test_name is None:
        return entries, classes
    test, test_classes = _one_part(where, directories[test_name], lacks_classes=True)
    if extra := [name for name in test_classes if name not in classes]:
        missing = [name for name in classes if name not in test_classes]
        raise DataError(
            f"{where}: train/ and {test_name}/ must have the same classes; only in train/: {some(missing)}; only in "
            f"{test_name}/: {some(extra)}"
        )
    place = {name: label for label, name in enumerate(classes)}
    moved = (replace(one, label=place[test_classes[one.label]], test=True) for one in test if one.label is not None)
    return packed(entries, moved), classes


def _one_part(where: Path, part: Directory, lacks_classes: bool = False) -> tuple[Sequence[Entry], tuple[str, ...]]:
    """The images of each class of a part, and the class names."""
    path = where / part.name
    if (listing := by_labels_file(where, part)) is not None:
        if not listing.class_names:
            raise DataError(f"{path / LABELS} has no labels to train on; make it anew with labels")
        return listing.entries, listing.class_names
    classes = class_directories(part)
    if not classes:
        raise DataError(f"{path} has no class directories; put the images of each class into a directory of its name")
    entries = packed(entry for entry in _labelled(classes, files_first=True) if is_image(entry.name))
    filled = {*entries.labels.unique().tolist()}
    empty = [name for label, name in enumerate(classes) if label not in filled]
    if empty and not lacks_classes:
        raise DataError(f"{path}: no images in class {some(empty)}; add some, or remove the directory")
    return entries, tuple(classes)


def _labelled(classes: Mapping[str, Directory], files_first: bool) -> Iterator[Entry]:
    """The files of each class directory, labelled with its index."""
    labelled = enumerate(classes.values())
    return (replace(entry, label=label) for label, inside in labelled for entry in inside.entries(files_first))
