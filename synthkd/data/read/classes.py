"""Matching of the classes of two sets: labels are indices, which mean something only together with the class names."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from synthkd.data.read.decode import some
from synthkd.errors import DataError

_NAMED = 5  # most names in a message


@dataclass(frozen=True)
class Aligned:
    """Labels as indices into another set's class names.

    Attributes:
        labels: int64 `[N]`, indices into `class_names`.
        class_names: the other set's names; if those are numbers, this set's names for the classes that it has.
        note: the assumption that was made, in a line; empty if the names match.
    """

    labels: Tensor
    class_names: tuple[str, ...]
    note: str


def align_labels(
    labels: Tensor, names: Sequence[str], targets: Sequence[str], of: str, among: str, unnamed: bool = False
) -> Aligned:
    """Express labels as indices into the class names of another set.

    Names are compared as text, numbers as numbers ("07" is 7). If one set has names and the other only numbers, class
    number i is taken for the i-th name. The numbered set may have fewer classes than there are names, but not more, and
    each of its numbers must stand for a name. A class without images may be missing from the other set. With a network
    without class names, class i is the i-th of the set if both have as many classes, also where those are named 1 to N.

    Args:
        labels: int64 `[N]`, indices into `names`.
        names: one for each class.
        targets: class names of the other set.
        of: name of the set in messages.
        among: name of the other set in messages.
        unnamed: the other set is the classes of a network that does not name them, and `targets` are their numbers.

    Raises:
        DataError: images of a class that the other set does not have, with its name and the remedy.
    """
    used = labels.unique().tolist()
    mine, theirs = _numbers(names), _numbers(targets)
    places = _places(mine, theirs) if mine is not None and theirs is not None else _places(names, targets)
    by_number = f"classes taken by number, since only one of {of} and {among} names them"
    note = ""
    if unnamed and len(names) == len(targets) and mine != theirs:
        places, note = [*range(len(names))], by_number
    # By number only if the comparison by name fails, because it is a guess.
    if any(places[label] is None for label in used) and (mine is None) != (theirs is None):
        numbered, named = (mine, targets) if mine is not None else (theirs, names)
        if numbered is not None and max(numbered) < len(named):
            places = _places(mine or range(len(names)), theirs or range(len(targets)))
            note = by_number
    if absent := [names[label] for label in used if places[label] is None]:
        raise DataError(
            f"{of} has images of classes that {among} does not have: {some(absent, _NAMED)} (it has "
            f"{some(targets, _NAMED)}); name the classes alike in both (directories, class_names), or leave those "
            "images out"
        )
    moved = torch.tensor([-1 if place is None else place for place in places], dtype=torch.int64)
    class_names = list(targets)
    if theirs is not None:  # a name tells more than a number
        for name, place in zip(names, places, strict=True):
            if place is not None:
                class_names[place] = name
    return Aligned(moved[labels], tuple(class_names), note)


def _numbers(names: Sequence[str]) -> list[int] | None:
    """The names as numbers; None if one is no number or two are equal, such as 7 and 07."""
    if not all(name.isdecimal() for name in names):
        return None
    numbers = [int(name) for name in names]
    return numbers if len(set(numbers)) == len(numbers) else None


def _places(mine: Sequence[Hashable], theirs: Sequence[Hashable]) -> list[int | None]:
    """The index of each of mine among theirs; None where it is not there."""
    index = {name: place for place, name in enumerate(theirs)}
    return [index.get(name) for name in mine]
