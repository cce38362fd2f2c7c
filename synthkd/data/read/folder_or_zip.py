"""The tree of directories in an image folder or an archive, with a reader for each file.

No image is decoded here, and nothing is extracted to disk.
"""

from __future__ import annotations

import heapq
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from threading import Lock

from synthkd.data.read.decode import NOT_IMAGES, in_a_line
from synthkd.data.read.entries import Entry, check_size, objection, refused_entry
from synthkd.data.read.packed import FolderFiles, Names
from synthkd.errors import DataError

DEEPEST = 100
"""Most levels of directories in a folder or zip."""

PARTS = ("train", "test", "val", "valid", "validation", "holdout")
"""Names of directories that hold a part of a set, each with its own class directories."""

MOST_PACKED, FREELY_PACKED = 200, 1 << 26
"""Most bytes unpacked for each byte of a zip, and the unpacked bytes up to which that does not matter. Image files are
compressed already, so a zip of them hardly grows; one that does is a bomb."""


@dataclass
class Directory:
    """A directory of a set.

    Attributes:
        name: path below the root of the set; empty for the root.
        files: name within this directory -> the file, images or not; those of a folder are sorted.
        directories: name within this directory -> directory. The hidden directories of a folder are listed but empty.
        refused: of the root: members of an archive that are not read; reading them raises the reason.
    """

    name: str = ""
    files: dict[str, Entry] | FolderFiles = field(default_factory=dict)
    directories: dict[str, Directory] = field(default_factory=dict)
    refused: list[Entry] = field(default_factory=list)

    def visible(self) -> dict[str, Directory]:
        """The directories that are not hidden, sorted by name."""
        return {name: self.directories[name] for name in sorted(self.directories) if not _is_hidden(name)}

    def subdirectory(self, name: str) -> Directory:
        """The directory of that name; a new one if it is missing."""
        return self.directories.setdefault(name, Directory(f"{self.name}/{name}" if self.name else name))

    def entries(self, files_first: bool) -> Iterator[Entry]:
        """All files at any depth outside hidden directories, sorted by name in each directory.

        Args:
            files_first: the files of a directory come before its subdirectories; False: all are sorted together.
        """
        directories = self.visible()
        files: Iterator[tuple[str, Entry | Directory]]
        if isinstance(self.files, FolderFiles):
            files = self.files.in_order()
        else:
            files = iter(sorted(self.files.items(), key=_name))
        inner = iter(directories.items())
        for _, one in chain(files, inner) if files_first else heapq.merge(files, inner, key=_name):
            if isinstance(one, Directory):
                yield from one.entries(files_first)
            else:
                yield one

    def images(self) -> Directory:
        """The tree without hidden directories, files that are no images, and directories without images."""
        files: dict[str, Entry] | FolderFiles
        if isinstance(self.files, FolderFiles):
            files = self.files.where(is_image)
        else:
            files = {name: entry for name, entry in self.files.items() if is_image(name)}
        directories = {name: inside.images() for name, inside in self.visible().items()}
        return Directory(self.name, files, {name: d for name, d in directories.items() if d.files or d.directories})

    def leaves(self) -> Iterator[str]:
        """Names of all files at any depth, hidden ones too, and of empty directories, which end in a slash."""
        yield from self.files.paths() if isinstance(self.files, FolderFiles) else (e.name for e in self.files.values())
        for inside in self.directories.values():
            yield from inside.leaves() if inside.files or inside.directories else (f"{inside.name}/",)


def _name(item: tuple[str, object]) -> str:
    return item[0]


def is_image(name: str) -> bool:
    """Whether a file may be an image, by its name: not hidden, and without a suffix that excludes it."""
    base = name.rpartition("/")[2]
    return not base.startswith(".") and NOT_IMAGES.fullmatch(os.path.splitext(base)[1]) is None


def _is_hidden(directory: str) -> bool:
    return directory.startswith((".", "__"))


def read_tree(path: Path) -> Directory:
    """The root directory of a folder, whose links are followed, or of a .zip.

    Raises:
        DataError: a directory that cannot be listed, more than `DEEPEST` levels of them, or no readable zip.
    """
    return _folder(path, path, {path.resolve()}) if path.is_dir() else _zip(path)


def _folder(root: Path, path: Path, entered: set[Path], level: int = 0) -> Directory:
    if level > DEEPEST:
        raise DataError(f"{path} lies below more than {DEEPEST} levels of directories; is {root} a folder of images?")
    try:
        with os.scandir(path) as inside:
            names, inner_names = _sorted_names(inside)
    except OSError as error:
        raise DataError(f"{path} cannot be listed ({error.strerror}); check its permissions") from error
    below_root = str(path.relative_to(root)) if level else ""
    directory = Directory(below_root, FolderFiles(root, below_root, names))
    # Links may lead in circles, or many of them to one place, so no directory is entered twice below a class directory.
    # Two classes, or two parts, may have links to the same place: each has its own set of entered directories.
    holds_classes = level == 0 or (level == 1 and path.name in PARTS)
    for name in inner_names:
        inner = path / name
        if _is_hidden(name):
            directory.subdirectory(name)
        elif (real := inner.resolve()) not in entered:
            below = set(entered) if holds_classes else entered
            below.add(real)
            directory.directories[name] = _folder(root, inner, below, level + 1)
    return directory


def _sorted_names(inside: Iterator[os.DirEntry[str]]) -> tuple[Names, list[str]]:
    """Names of the files and of the directories in one directory; a link counts as what it leads to."""
    files: list[str] = []
    directories: list[str] = []
    for entry in inside:
        try:
            is_directory = entry.is_dir()
        except OSError:  # a link in a circle
            is_directory = False
        (directories if is_directory else files).append(entry.name)
    return Names(sorted(files)), sorted(directories)


def _zip(path: Path) -> Directory:
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is not a readable .zip ({in_a_line(error)}); make it anew") from error
    # From the central directory alone, before any member is unpacked.
    unpacked, packed = sum(info.file_size for info in archive.infolist()), path.stat().st_size
    if unpacked > max(MOST_PACKED * packed, FREELY_PACKED):
        raise DataError(
            f"{path} has {packed >> 10} KiB and would unpack to {unpacked >> 20} MiB, more than {MOST_PACKED} times as "
            "much, as no images do; make it anew"
        )
    # The members share one open file. Unpacking one after another is cheap beside decoding, which runs in parallel.
    # A forked process opens the archive anew: it would share the place in the file with its parent.
    lock, opened = Lock(), {os.getpid(): archive}

    def read(info: zipfile.ZipInfo) -> bytes:
        check_size(info.file_size)
        with lock:
            if (process := os.getpid()) not in opened:
                opened.clear()
                opened[process] = zipfile.ZipFile(path)
            return opened[process].read(info)

    files: dict[str, Entry] = {}
    refused: list[Entry] = []
    for info in archive.infolist():
        if reason := objection(info.filename, () if info.is_dir() else files):
            refused.append(refused_entry(info.filename, reason))
        else:
            files[info.filename] = Entry(info.filename, partial(read, info))
    return tree_of(files, refused)


def tree_of(files: Mapping[str, Entry], refused: Iterable[Entry]) -> Directory:
    """The root directory of an archive.

    Args:
        files: name in the archive -> the file; a name that ends in a slash is a directory.
        refused: members that are not read.
    """
    root = Directory(refused=list(refused))
    for name, entry in files.items():
        *parents, base = name.split("/")
        if len(parents) > DEEPEST:
            root.refused.append(refused_entry(name, f"more than {DEEPEST} levels of directories"))
            continue
        directory = root
        for parent in parents:
            directory = directory.subdirectory(parent)
        if base:
            assert isinstance(directory.files, dict)
            directory.files[base] = entry
    return root
