"""The files of a large set in a few arrays: a million of them take some 50 bytes each beside their names."""

from __future__ import annotations

import itertools
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import overload

import numpy as np
import torch
from torch import Tensor

from synthkd.data.read.decode import Reader
from synthkd.data.read.entries import Entry, ImageTable, InFile, InFolder, InTable, Listing, refused_entry
from synthkd.data.read.labels import CLASSES, Written, in_order

NAMES = ("utf-8", "surrogatepass")
"""How names become bytes: that of a file may be no text."""


class Names(Sequence[str]):
    """Texts in one block of bytes."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._bytes, self._ends = bytearray(), array("q", [0])
        for name in names:
            self.append(name)

    def append(self, name: str) -> None:
        """Add a text at the end."""
        self._bytes += name.encode(*NAMES)
        self._ends.append(len(self._bytes))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __iter__(self) -> Iterator[str]:
        begin = 0
        for end in itertools.islice(self._ends, 1, None):
            yield self._bytes[begin:end].decode(*NAMES)
            begin = end

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        row = range(len(self))[index]
        return self._bytes[self._ends[row] : self._ends[row + 1]].decode(*NAMES)


class FolderFiles(Mapping[str, Entry]):
    """The files of one directory of a folder by name, sorted; an entry is made when somebody asks for it.

    Args:
        root: of the folder.
        directory: path below it; empty for the root itself.
        names: of the files in this directory, sorted.
    """

    def __init__(self, root: Path, directory: str, names: Names) -> None:
        self._root, self._names = root, names
        self._prefix = f"{directory}/" if directory else ""

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __getitem__(self, name: str) -> Entry:
        place = bisect_left(self._names, name)
        if place == len(self._names) or self._names[place] != name:
            raise KeyError(name)
        return self._entry(name)

    def in_order(self) -> Iterator[tuple[str, Entry]]:
        """Each name with its entry."""
        return ((name, self._entry(name)) for name in self)

    def _entry(self, name: str) -> Entry:
        return Entry(self._prefix + name, InFolder(self._root, self._prefix + name))

    def where(self, is_wanted: Callable[[str], bool]) -> FolderFiles:
        """The files whose names are wanted."""
        if all(map(is_wanted, self)):
            return self
        return FolderFiles(self._root, self._prefix.removesuffix("/"), Names(filter(is_wanted, self)))

    def paths(self) -> Iterator[str]:
        """Names of the entries."""
        return (self._prefix + name for name in self)


class Entries(Sequence[Entry]):
    """Entries in arrays; those whose readers are of no known kind are kept as they are.

    Args:
        entries: the first ones.
    """

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._names, self._labels, self._test = Names(), array("i"), bytearray()
        self._place, self._offset, self._size = array("i"), array("q"), array("q")
        self._numbers: dict[Path | ImageTable, int] = {}  # a folder, an archive or a table -> its number
        self._places: list[Path | ImageTable] = []  # by number
        self._others: dict[int, Entry] = {}
        for entry in entries:
            self.append(entry)

    def append(self, entry: Entry) -> None:
        """Add an entry at the end."""
        read, place, offset, size = entry.read, -1, -1, -1
        if entry.image is not None:
            self._others[len(self)] = entry
        elif isinstance(read, InFolder) and read.name == entry.name:
            place = self._number(read.root)
        elif isinstance(read, InFile):
            place, offset, size = self._number(read.path), read.offset, read.size
        elif isinstance(read, InTable):
            place, offset = self._number(read.table), read.row
        else:
            self._others[len(self)] = entry
        self._names.append("" if place < 0 else entry.name)
        self._labels.append(-1 if entry.label is None else entry.label)
        self._test.append(entry.test)
        self._place.append(place)
        self._offset.append(offset)
        self._size.append(size)

    def __len__(self) -> int:
        return len(self._place)

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> list[Entry]: ...
    def __getitem__(self, index: int | slice) -> Entry | list[Entry]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        return self._at(range(len(self))[index])

    def __iter__(self) -> Iterator[Entry]:
        return map(self._at, range(len(self)))

    def names(self) -> Iterator[str]:
        """The name of each entry."""
        for row, name in enumerate(self._names):
            yield self._others[row].name if self._place[row] < 0 else name

    def _at(self, row: int) -> Entry:
        if self._place[row] < 0:
            return self._others[row]
        name, label = self._names[row], self._labels[row]
        return Entry(name, self._reader(row, name), None if label < 0 else label, bool(self._test[row]))

    def _reader(self, row: int, name: str) -> Reader:
        place, offset = self._places[self._place[row]], self._offset[row]
        if not isinstance(place, Path):
            return InTable(place, offset)
        return InFolder(place, name) if offset < 0 else InFile(place, offset, self._size[row])

    @property
    def labels(self) -> Tensor:
        """int64 `[N]`, -1 without one."""
        return torch.from_numpy(np.frombuffer(self._labels, dtype=np.intc).astype(np.int64))

    @property
    def in_test(self) -> Tensor:
        """Whether each is in the test part, bool `[N]`."""
        return torch.from_numpy(np.frombuffer(self._test, dtype=np.bool_).copy())

    def _number(self, place: Path | ImageTable) -> int:
        number = self._numbers.setdefault(place, len(self._places))
        if number == len(self._places):
            self._places.append(place)
        return number


class WrittenImages(Sequence[Written]):
    """Images with the labels that are written beside them, in arrays."""

    def __init__(self) -> None:
        self._images, self._codes = Entries(), array("i")
        self._labels: dict[int | str | None, int] = {}  # label -> its code
        self._values: list[int | str | None] = []  # by code

    def append(self, one: Written) -> None:
        """Add an image at the end."""
        code = self._labels.setdefault(one.label, len(self._values))
        if code == len(self._values):
            self._values.append(one.label)
        self._images.append(Entry(one.name, one.read))
        self._codes.append(code)

    @property
    def distinct(self) -> Sequence[int | str | None]:
        """The labels that occur, each once."""
        return self._values

    def __len__(self) -> int:
        return len(self._codes)

    @overload
    def __getitem__(self, index: int) -> Written: ...
    @overload
    def __getitem__(self, index: slice) -> list[Written]: ...
    def __getitem__(self, index: int | slice) -> Written | list[Written]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        entry = self._images[index]
        return Written(entry.name, entry.read, self._values[self._codes[index]])


def unused(leaves: Callable[[], Iterator[str]], entries: Entries) -> list[str]:
    """The leaves that are names of no entry, sorted, each once; `leaves` gives the same ones at every call."""
    # By hash, since two sets of a million names would take more memory than all else.
    used = np.fromiter(map(hash, entries.names()), dtype=np.int64, count=len(entries))
    missing = np.isin(np.fromiter(map(hash, leaves()), dtype=np.int64), used, invert=True)
    return sorted({name for name, is_missing in zip(leaves(), missing.tolist(), strict=True) if is_missing})


def packed(*parts: Iterable[Entry]) -> Entries:
    """All entries of several parts, one part after the other."""
    filled = [part for part in parts if not isinstance(part, Sequence) or len(part)]
    if len(filled) == 1 and isinstance(filled[0], Entries):
        return filled[0]
    return Entries(entry for part in parts for entry in part)


def without_labels(listing: Listing) -> Listing:
    """The same files without labels and classes; what was refused for its label alone is an image as the others."""
    entries = (replace(one, read=one.image or one.read, label=None, image=None) for one in listing.entries)
    return Listing(packed(entries), (), listing.ignored)


def as_packed(entries: Sequence[Entry]) -> Entries:
    """The same entries in arrays."""
    return entries if isinstance(entries, Entries) else Entries(entries)


def labelled(
    items: Sequence[Written],
    refused: Sequence[Entry] = (),
    ignored: Sequence[str] = (),
    class_names: Sequence[str] = (),
    numbers_are_names: bool = False,
) -> Listing:
    """The listing of images whose labels are written beside them.

    Among labelled images, one without a label is a bad file, and so is a name among numbers. Where there are class
    names, the number -1 is no label: Hugging Face writes it for the unlabelled images of a contest.

    Args:
        items: in order.
        refused: entries that are bad files already.
        ignored: as of a listing.
        class_names: one per class, for labels that are numbers; empty: the classes are named by their numbers.
        numbers_are_names: a number is the name of a class, as that of a class folder, and the classes are those that
            occur; False: it is the index of a class, and there are all classes from 0 to the largest.
    """
    distinct = items.distinct if isinstance(items, WrittenImages) else [item.label for item in items]
    unlabelled = (None, -1) if class_names else (None,)
    texts = {str(label).strip() for label in distinct if label not in unlabelled}
    if not texts:
        return Listing(packed((Entry(item.name, item.read) for item in items), refused), (), ignored)
    most = len(class_names) or CLASSES
    if numbers_are_names or not any(map(str.isdecimal, texts)):
        names = in_order(texts)
        index = {name: place for place, name in enumerate(names)}
    else:
        # Bounded by its digits first: text of any length is no number to compute with.
        index = {text: int(text) for text in texts if text.isdecimal() and len(text) < 20 and int(text) < most}
        names = list(class_names) or list(map(str, range(max(index.values(), default=-1) + 1)))
    entries = Entries()
    for item in items:
        text = None if item.label in unlabelled else str(item.label).strip()
        if text is None:
            entries.append(refused_entry(item.name, "no label, though others have one", item.read))
        elif text not in index:
            reason = f"label must be a whole number in 0..{most - 1}, got {text[:20]!r}"
            entries.append(refused_entry(item.name, reason, item.read))
        else:
            entries.append(Entry(item.name, item.read, index[text]))
    for entry in refused:
        entries.append(entry)
    return Listing(entries, tuple(names), ignored)
