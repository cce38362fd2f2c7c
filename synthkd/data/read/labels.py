"""Labels that are written beside images, numbers or names: which classes there are, and the label of each image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from synthkd.data.read.decode import Reader
from synthkd.data.read.entries import Entry, Listing, refused_entry

CLASSES = 100_000
"""Bound of the labels; a larger one is an identifier that somebody took for a label."""


@dataclass(frozen=True)
class Written:
    """An image with its label as it is written.

    Attributes:
        name: of the image, for messages.
        read: returns the file or its bytes.
        label: a number or a name; None without one.
    """

    name: str
    read: Reader
    label: int | str | None


def in_order(names: Iterable[str]) -> list[str]:
    """Different names in the order of classes: by number where all are different numbers, else as text."""
    ordered = sorted(set(names))
    if all(name.isdecimal() for name in ordered) and len(set(map(int, ordered))) == len(ordered):
        ordered.sort(key=int)
    return ordered


def labelled(
    items: Sequence[Written],
    refused: Sequence[Entry] = (),
    ignored: Sequence[str] = (),
    class_names: Sequence[str] = (),
    numbers_are_names: bool = False,
) -> Listing:
    """The listing of images whose labels are written beside them.

    Among labelled images, one without a label is a bad file, and so is a name among numbers.

    Args:
        items: in order.
        refused: entries that are bad files already.
        ignored: as of a listing.
        class_names: one per class, for labels that are numbers; empty: the classes are named by their numbers.
        numbers_are_names: a number is the name of a class, as that of a class folder, and the classes are those that
            occur; False: it is the index of a class, and there are all classes from 0 to the largest.
    """
    texts = {str(item.label).strip() for item in items if item.label is not None}
    if not texts:
        return Listing([*(Entry(item.name, item.read) for item in items), *refused], (), ignored)
    most = len(class_names) or CLASSES
    if numbers_are_names or not any(map(str.isdecimal, texts)):
        names = in_order(texts)
        index = {name: place for place, name in enumerate(names)}
    else:
        # Bounded by its digits first: text of any length is no number to compute with.
        index = {text: int(text) for text in texts if text.isdecimal() and len(text) < 20 and int(text) < most}
        names = list(class_names) or list(map(str, range(max(index.values(), default=-1) + 1)))
    entries = []
    for item in items:
        text = None if item.label is None else str(item.label).strip()
        if text is None:
            entries.append(refused_entry(item.name, "no label, though others have one", item.read))
        elif text not in index:
            reason = f"label must be a whole number in 0..{most - 1}, got {text[:20]!r}"
            entries.append(refused_entry(item.name, reason, item.read))
        else:
            entries.append(Entry(item.name, item.read, index[text]))
    return Listing([*entries, *refused], tuple(names), ignored)
