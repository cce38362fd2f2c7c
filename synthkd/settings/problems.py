"""Error lines for a configuration, in terms of what its author wrote. Nothing here imports torch.

pydantic decides whether a value is right. This module turns each of its errors into one line, with the help of the JSON
schema of the model, which has the keys, bounds and kinds that a message needs.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from synthkd.settings.plain import show
from synthkd.settings.schema import Node, Schema, kinds, properties, retired

Path = tuple[str | int, ...]


def explain(schema: Schema, data: Mapping[str, object], error: ValidationError) -> list[str]:
    """One line per problem: the path as written in `data`, what was expected, what was got, and the remedy.

    Args:
        schema: of the model that refused the data.
        data: plain data (dicts, lists, text, numbers, booleans, null) that was validated.
        error: raised by pydantic.
    """
    # A default that depends on another field is not made where that field is wrong, which is the problem to name.
    errors = error.errors(include_url=False, include_input=False)
    problems = [_problem(schema, data, each) for each in errors if each["type"] != "default_factory_not_called"]
    # A union without kinds (a number or a curve) fails once per member. What is wrong inside the intended member says
    # more than "expected a number or a curve", so vague lines remain only where there is no precise one.
    precise = {problem.path[:end] for problem in problems if not problem.vague for end in range(len(problem.path) + 1)}
    return list(dict.fromkeys(p.line for p in problems if not p.vague or p.path not in precise))


@dataclass(frozen=True)
class _Problem:
    path: Path
    message: str
    vague: bool = False

    @property
    def line(self) -> str:
        return f"{'.'.join(map(str, self.path))}: {self.message}" if self.path else self.message


@dataclass(frozen=True)
class _Place:
    """Where an error is.

    Attributes:
        path: keys and indices as written.
        value: what stands there; None where nothing does.
        node: schema of the value.
        section: schema of the section that the last key is in.
        union: node of which that section is one alternative.
        in_union: whether the error is about one member of a union at this place.
    """

    path: Path
    value: Any
    node: Node
    section: Node
    union: Node
    in_union: bool = False


def _place(schema: Schema, data: Mapping[str, object], location: Sequence[str | int]) -> _Place:
    """Follow pydantic's location through schema and data, without the tags of union members that nobody wrote."""
    place = _Place((), data, schema.root, schema.root, schema.root)
    for step in location:
        path, value, node = (*place.path, step), place.value, place.node
        branch = schema.pick(node, value)
        if not place.in_union and len(schema.alternatives(node)) > 1:
            # At a union the next step of the location is the tag of a member.
            place = _Place(place.path, value, node, place.section, place.union, in_union=True)
        elif branch is not None and isinstance(value, list) and isinstance(step, int):
            prefix = branch.get("prefixItems", ())
            item = prefix[step] if step < len(prefix) else branch.get("items", {})
            place = _Place(path, value[step] if step < len(value) else None, item, place.section, place.union)
        elif branch is not None and (step in value or step in properties(branch)):
            place = _Place(path, value.get(step), properties(branch).get(str(step), {}), branch, node)
    return place


def _problem(schema: Schema, data: Mapping[str, object], error: ErrorDetails) -> _Problem:
    place = _place(schema, data, error["loc"])
    path, value, node = place.path, place.value, place.node
    match error["type"]:
        case "missing":
            return _Problem(path, "required")
        case "extra_forbidden" if (key := str(path[-1])) in (fixed := retired(place.section)):
            return _Problem(path, f"fixed at {show(fixed[key])} now, got {show(value)}: leave it out")
        case "extra_forbidden":
            return _Problem(path, f"unknown key{_hint(schema, str(path[-1]), place)}")
        case "value_error":
            return _Problem(path, str(error["ctx"]["error"]))
        case "union_tag_not_found" | "union_tag_invalid" if isinstance(value, dict):
            choices = schema.kinds(node)
            names = ", ".join(map(repr, choices))
            if "kind" not in value:
                return _Problem((*path, "kind"), f"required, one of {names}")
            kind = value["kind"]
            return _Problem((*path, "kind"), f"expected one of {names}, got {show(kind)}{_closest(kind, choices)}")
    choices = [choice for alternative in schema.alternatives(node) for choice in alternative.get("enum", ())]
    expected = f"expected {schema.describe(node)}, got {show(value)}{_closest(value, choices)}"
    return _Problem(path, expected, vague=place.in_union)


def _hint(schema: Schema, key: str, place: _Place) -> str:
    """What may be meant by a key that its section does not have: another kind, a similar key, or another section."""
    owners = [kind for other in schema.alternatives(place.union) if key in properties(other) for kind in kinds(other)]
    if owners:
        return f" of kind {' | '.join(kinds(place.section))} (it belongs to kind {' | '.join(owners)})"
    names = list(properties(place.section))
    if similar := _closest(key, names):
        return similar
    if places := sorted(dict.fromkeys(schema.places(key)), key=lambda path: path.count("."))[:3]:
        return f" ({' or '.join(places)}?)"
    return f" (keys here: {', '.join(names)})"


def _closest(value: Any, choices: Sequence[Any]) -> str:
    """A question whether the most similar choice is meant; empty where there is none."""
    matches = (
        difflib.get_close_matches(value, [str(choice) for choice in choices], n=1) if isinstance(value, str) else []
    )
    return f" (did you mean '{matches[0]}'?)" if matches else ""
