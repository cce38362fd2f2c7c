"""Classes of one set found again in another: labels are indices, and mean something only with the names behind them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from synthkd.data.read.decode import some
from synthkd.errors import DataError

_SHOWN = 5  # names in a message


@dataclass(frozen=True)
class Aligned:
    """Labels in terms of another set's classes.

    Attributes:
        labels: int64 `[N]`, indices into the other set's class names.
        class_names: the other set's; where those are numbers, this set's name of each class it has.
        note: what had to be assumed, in a line; empty where the names said everything.
    """

    labels: Tensor
    class_names: tuple[str, ...]
    note: str


def align_labels(labels: Tensor, names: Sequence[str], known: Sequence[str], of: str, among: str) -> Aligned:
    """Express labels as indices into the names of another set.

    Names are compared as they are, but numbers as numbers ("07" is 7). A set that only numbers its classes is taken by
    number where the other one has names: class i of it is the i-th name there. It may have fewer classes than there are
    names, since its numbers go no further than its labels; with more, or with any that no name stands for, it is
    refused. A class without an image is never missed.

    Args:
        labels: int64 `[N]`, indices into `names`.
        names: one for each class.
        known: names of the classes to find these among.
        of: how messages call the set.
        among: how messages call the other one.

    Raises:
        DataError: images of a class that is not among the others, with its name and the remedy.
    """
    used = labels.unique().tolist()
    mine, theirs = _numbers(names), _numbers(known)
    places = _places(mine, theirs) if mine is not None and theirs is not None else _places(names, known)
    note = ""
    if any(places[label] is None for label in used) and (mine is None) != (theirs is None):
        numbered, named = (mine, known) if mine is not None else (theirs, names)
        if numbered is not None and max(numbered) < len(named):
            places = _places(mine or range(len(names)), theirs or range(len(known)))
            note = f"classes taken by number, since only one of {of} and {among} names them"
    if absent := [names[label] for label in used if places[label] is None]:
        raise DataError(
            f"{of} has images of classes that {among} does not have: {some(absent, _SHOWN)} (it has "
            f"{some(known, _SHOWN)}); name the classes alike in both (directories, class_names), or leave those images "
            "out"
        )
    moved = torch.tensor([-1 if place is None else place for place in places], dtype=torch.int64)
    shown = list(known)
    if theirs is not None:  # names say more than numbers
        for name, place in zip(names, places, strict=True):
            if place is not None:
                shown[place] = name
    return Aligned(moved[labels], tuple(shown), note)


def _numbers(names: Sequence[str]) -> list[int] | None:
    """The names as numbers, or None where one is no number or two are the same."""
    if not all(name.isdecimal() for name in names):
        return None
    numbers = [int(name) for name in names]
    return numbers if len(set(numbers)) == len(numbers) else None


def _places(mine: Sequence[Hashable], theirs: Sequence[Hashable]) -> list[int | None]:
    """Where each of mine stands among theirs; None where it does not."""
    found = {one: place for place, one in enumerate(theirs)}
    return [found.get(one) for one in mine]
