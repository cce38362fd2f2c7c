"""Plain data: dicts with text as keys, lists, text, numbers, booleans and None. Nothing here imports torch."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePath
from typing import Any

from synthkd.errors import ConfigError
from synthkd.settings.base import Settings

DEEPEST = 50
"""Largest number of levels that are nested in each other."""
LONGEST = 1000
"""Largest number of bits of a whole number, and of its digits in a file."""


def plain(value: object, path: tuple[str, ...] = ()) -> Any:
    """A value as plain data: configurations and mappings become dicts, tuples lists, paths text.

    Args:
        value: what somebody wrote, or a configuration.
        path: keys that lead to the value, for the message.

    Raises:
        ConfigError: it holds anything else, text that is not UTF-8, or more than any configuration needs.
    """
    # Depth and size come first: data that contains itself would never end, and digits of a huge number take seconds.
    if len(path) > DEEPEST:
        raise ConfigError(f"{'.'.join(path[:3])}...: nested in more than {DEEPEST} levels")
    if isinstance(value, int) and value.bit_length() > LONGEST:
        raise ConfigError(f"{'.'.join(path)}: a whole number of more than {LONGEST} bits")
    if isinstance(value, Settings):
        return plain(value.model_dump(), path)
    # The name of a file may hold bytes that are not UTF-8, which Python keeps as lone surrogates.
    if isinstance(value, str) and not value.isascii() and value != value.encode(errors="replace").decode():
        raise ConfigError(f"{'.'.join(path)}: {show(value)} is not UTF-8; rename it, or change into its folder (cd)")
    if isinstance(value, Mapping):
        return {str(plain(key, path)): plain(item, (*path, str(key))) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, (*path, str(index))) for index, item in enumerate(value)]
    if isinstance(value, PurePath):
        return str(value)
    if value is None or isinstance(value, str | int | float):
        return value
    raise ConfigError(
        f"{'.'.join(path)}: expected text, a number, true, false, null, a list or a section, got {show(value)}"
    )


def differing(
    first: object, second: object, path: str = "", same: Callable[[object, object], bool] = operator.eq
) -> Iterator[str]:
    """Dotted paths at which plain data differs; of sections with different `kind` the path of that `kind` alone.

    Args:
        first, second: plain data.
        path: keys that lead to both.
        same: tells whether two values, neither of them sections, are equal.
    """
    if isinstance(first, dict) and isinstance(second, dict):
        kind_changed = first.get("kind") != second.get("kind")
        for key in ["kind"] if kind_changed else dict.fromkeys([*first, *second]):
            yield from differing(first.get(key), second.get(key), f"{path}.{key}" if path else key, same)
    elif isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        for index, (one, other) in enumerate(zip(first, second, strict=True)):
            yield from differing(one, other, f"{path}.{index}", same)
    elif not same(first, second):
        yield path


def show(value: object) -> str:
    """A value as YAML would write it, in at most 80 characters."""
    if isinstance(value, str | list | tuple):
        value = value[:80]
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
