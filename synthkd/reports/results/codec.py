"""Frozen dataclasses as JSON and back: the name of a field is its key, the order of the fields that of the keys."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Kind = TypeVar("Kind")

OMITTED = {"omitted": True}
"""Metadata of a field whose key is left out of the JSON while its value is None."""


def to_json(value: object) -> Any:
    """Dataclasses and mappings as dicts, sequences as lists, everything else as it is."""
    if is_dataclass(value):
        pairs = ((one, getattr(value, one.name)) for one in fields(value))
        return {one.name: to_json(part) for one, part in pairs if part is not None or one.metadata != OMITTED}
    if isinstance(value, Mapping):
        return {key: to_json(part) for key, part in value.items()}
    return [to_json(part) for part in value] if isinstance(value, list | tuple) else value


def from_json(kind: type[Kind], value: object) -> Kind:
    """What `to_json` wrote.

    Keys that `kind` does not have are ignored. A field with a default may be missing. One whose default is None may
    also hold something else than it should, and is None then: reports say "not measured" of it.

    Args:
        kind: a dataclass.
        value: what was parsed from JSON.

    Raises:
        ValueError: a field without a default is missing or holds something else.
    """
    result: Kind = _read(kind, value, kind.__name__)
    return result


def _read(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _read_union(arguments, value, where)
    if is_dataclass(hint) and isinstance(value, Mapping):
        return _read_fields(hint, value, where)
    if origin is tuple and isinstance(value, list | tuple):
        hints = [arguments[0]] * len(value) if arguments[-1] is ... else arguments
        if len(hints) == len(value):
            pairs = enumerate(zip(hints, value, strict=True))
            return tuple(_read(one, part, f"{where}[{place}]") for place, (one, part) in pairs)
    if isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, Mapping):
        return {key: _read(arguments[1], part, f"{where}.{key}") for key, part in value.items()}
    if _is_plain(hint, value):
        return value
    raise ValueError(f"{where} holds {str(value)[:40]!r}")


def _read_union(hints: tuple[Any, ...], value: Any, where: str) -> Any:
    """The value by the first of the types that it fits."""
    if value is None and types.NoneType in hints:
        return None
    *others, last = [hint for hint in hints if hint is not types.NoneType]
    for hint in others:
        try:
            return _read(hint, value, where)
        except ValueError:
            continue
    return _read(last, value, where)


def _read_fields(kind: Any, values: Mapping[str, Any], where: str) -> Any:
    hints, given = _hints(kind), {}
    for one in fields(kind):
        has_default = one.default is not MISSING or one.default_factory is not MISSING
        if one.name not in values:
            if has_default:
                continue
            raise ValueError(f"{where}.{one.name} is missing")
        try:
            given[one.name] = _read(hints[one.name], values[one.name], f"{where}.{one.name}")
        except ValueError:
            if one.default is not None:
                raise
    return kind(**given)


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _is_plain(hint: Any, value: Any) -> bool:
    """Whether a value is the number, truth value or text that a hint asks for; NaN and infinity are no numbers."""
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if get_origin(hint) is Literal:  # a word of another version is kept
        return isinstance(value, str)
    return hint in (str, bool) and isinstance(value, hint)
