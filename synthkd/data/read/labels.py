"""Labels that are written beside images, numbers or names, and the order of their classes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from synthkd.data.read.decode import Reader

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


def as_label(value: object) -> int | str | None:
    """The label in a value of a table or a JSON file: a number or a name; None for null and NaN, which are no label.

    Whole floats are integers: pandas writes integers as floats where one of them is missing.

    Raises:
        ValueError: neither a number nor a name.
    """
    if isinstance(value, float):
        value = None if math.isnan(value) else int(value) if value.is_integer() else value
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int):
        return int(value)
    raise ValueError(f"label must be a whole number or a name, got {str(value)[:20]!r}")


def in_order(names: Iterable[str]) -> list[str]:
    """Different names in the order of classes: by number where all are different numbers, else as text."""
    ordered = sorted(set(names))
    if all(name.isdecimal() for name in ordered) and len(set(map(int, ordered))) == len(ordered):
        ordered.sort(key=int)
    return ordered
