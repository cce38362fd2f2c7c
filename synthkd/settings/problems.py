"""What is wrong with a configuration, in the words of the person who wrote it. Nothing here imports torch.

pydantic decides whether a value is right; this module says so in one line per problem. It walks the JSON schema of the
model beside the data, because the schema is plain data that holds all that a message needs: keys, bounds, kinds.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

Schema = Mapping[str, Any]
Path = tuple[str | int, ...]

_BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


class Shape:
    """The sections, keys and kinds of a configuration model, read from its JSON schema."""

    def __init__(self, model: type[BaseModel]) -> None:
        self.root: Schema = model.model_json_schema()
        self._definitions: Schema = self.root.get("$defs", {})

    def alternatives(self, schema: Schema) -> list[Schema]:
        """What may stand at `schema`, null left out; one entry where it is no union."""
        if "$ref" in schema:
            return self.alternatives(self._definitions[schema["$ref"].rpartition("/")[2]])
        members = schema.get("anyOf") or schema.get("oneOf")
        if members is None:
            return [] if schema.get("type") == "null" else [schema]
        return [alternative for member in members for alternative in self.alternatives(member)]

    def pick(self, schema: Schema, value: Any) -> Schema | None:
        """The section or list of `schema` that `value` is meant to be, by its `kind` where there are several."""
        if isinstance(value, list):
            return next((a for a in self.alternatives(schema) if a.get("type") == "array"), None)
        if not isinstance(value, dict):
            return None
        sections = [a for a in self.alternatives(schema) if a.get("type") == "object"]
        if len(sections) == 1:
            return sections[0]
        if "kind" in value:
            return next((a for a in sections if value["kind"] in kinds(a)), None)
        return next((a for a in sections if "default" in a.get("properties", {}).get("kind", {})), None)

    def describe(self, schema: Schema) -> str:
        """What `schema` expects, as a noun phrase."""
        alternatives = self.alternatives(schema)
        phrases = [self._phrase(alternative) for alternative in alternatives if not kinds(alternative)]
        if choices := [kind for alternative in alternatives for kind in kinds(alternative)]:
            phrases.append("a section with kind " + " | ".join(choices))
        if any(member.get("type") == "null" for member in schema.get("anyOf", ())):
            phrases.append("null")
        return " or ".join(phrases)

    def _phrase(self, schema: Schema) -> str:
        if "const" in schema:
            return show(schema["const"])
        if "enum" in schema:
            return "one of " + ", ".join(show(choice) for choice in schema["enum"])
        bounds = " and ".join(f"{sign} {_bound(schema[key])}" for key, sign in _BOUNDS.items() if key in schema)
        match schema.get("type"):
            case "integer":
                return f"a whole number {bounds}".strip()
            case "number":
                return f"a number {bounds}".strip()
            case "boolean":
                return "true or false"
            case "string":
                return f"text that matches {schema['pattern']}" if "pattern" in schema else "text"
            case "array" if "prefixItems" in schema:
                return f"a list [{', '.join(self.describe(item) for item in schema['prefixItems'])}]"
            case "array":
                few = f" of at most {schema['maxItems']} items" if "maxItems" in schema else ""
                return f"a list{few}, each item {self.describe(schema.get('items', {}))}"
            case "object":
                few = f" of at most {schema['maxProperties']} keys" if "maxProperties" in schema else ""
                return f"a section{few} of key: value"
        return "a value"

    def places(self, key: str, schema: Schema | None = None, path: tuple[str, ...] = ()) -> Iterator[str]:
        """Dotted path of every key of that name, in all kinds of all sections."""
        for alternative in self.alternatives(self.root if schema is None else schema):
            if "items" in alternative:
                yield from self.places(key, alternative["items"], (*path, "0"))
            for name, child in alternative.get("properties", {}).items():
                if name == key:
                    yield ".".join((*path, name))
                yield from self.places(key, child, (*path, name))


def kinds(section: Schema) -> list[str]:
    """The values of `kind` that choose this section."""
    kind = section.get("properties", {}).get("kind", {})
    return [kind["const"]] if "const" in kind else list(kind.get("enum", ()))


def _bound(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def show(value: Any) -> str:
    """`value` as it would be written in YAML, shortened to fit a line."""
    if isinstance(value, str | list | tuple):
        value = value[:80]
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def explain(shape: Shape, data: Mapping[str, Any], error: ValidationError) -> list[str]:
    """One line per problem: the path as written in `data`, what was expected, what was got, and the remedy.

    Args:
        shape: of the model that refused the data.
        data: plain data (dicts, lists, text, numbers, booleans, null) that was validated.
        error: what pydantic found.
    """
    # A default that follows from another field is not made where that field is wrong, which is the problem to name.
    errors = error.errors(include_url=False, include_input=False)
    problems = [_problem(shape, data, one) for one in errors if one["type"] != "default_factory_not_called"]
    # A union without kinds (a number or a curve) fails once per member; what is said of the member that was meant is
    # more than "expected a number or a curve", which stays only where nothing better is known.
    known = {problem.path[:end] for problem in problems if not problem.vague for end in range(len(problem.path) + 1)}
    lines = dict.fromkeys(problem.line for problem in problems if not problem.vague or problem.path not in known)
    return list(lines)


@dataclass(frozen=True)
class _Problem:
    path: Path
    message: str
    vague: bool = False

    @property
    def line(self) -> str:
        return f"{'.'.join(map(str, self.path))}: {self.message}" if self.path else self.message


def _problem(shape: Shape, data: Mapping[str, Any], error: Any) -> _Problem:
    """Follow pydantic's location through schema and data, leaving out the union tags that nobody wrote."""
    value: Any = data
    path: Path = ()
    schema = section = union = shape.root
    tagged = False
    for step in error["loc"]:
        branch = shape.pick(schema, value)
        if not tagged and len(shape.alternatives(schema)) > 1:
            tagged = True
        elif branch is not None and isinstance(value, list) and isinstance(step, int):
            prefix = branch.get("prefixItems", ())
            schema = prefix[step] if step < len(prefix) else branch.get("items", {})
            value, path, tagged = value[step] if step < len(value) else None, (*path, step), False
        elif branch is not None and (step in value or step in branch.get("properties", {})):
            section, union, tagged = branch, schema, False
            schema = branch.get("properties", {}).get(step, {})
            value, path = value.get(step), (*path, step)

    match error["type"]:
        case "missing":
            return _Problem(path, "required")
        case "extra_forbidden":
            return _Problem(path, f"unknown key{_hint(shape, str(path[-1]), section, union)}")
        case "value_error":
            return _Problem(path, str(error["ctx"]["error"]))
        case "union_tag_not_found" | "union_tag_invalid" if isinstance(value, dict):
            choices = [kind for alternative in shape.alternatives(schema) for kind in kinds(alternative)]
            listed = ", ".join(map(repr, choices))
            if "kind" not in value:
                return _Problem((*path, "kind"), f"required, one of {listed}")
            got = value["kind"]
            return _Problem((*path, "kind"), f"expected one of {listed}, got {show(got)}{_closest(got, choices)}")
    choices = [choice for alternative in shape.alternatives(schema) for choice in alternative.get("enum", ())]
    expected = f"expected {shape.describe(schema)}, got {show(value)}{_closest(value, choices)}"
    return _Problem(path, expected, vague=tagged)


def _hint(shape: Shape, key: str, section: Schema, union: Schema) -> str:
    """Where a key that `section` does not have may belong."""
    others = [other for other in shape.alternatives(union) if key in other.get("properties", {})]
    owners = [kind for other in others for kind in kinds(other)]
    if owners:
        return f" of kind {' | '.join(kinds(section))} (it belongs to kind {' | '.join(owners)})"
    names = list(section.get("properties", {}))
    if near := _closest(key, names):
        return near
    if places := sorted(dict.fromkeys(shape.places(key)), key=lambda place: place.count("."))[:3]:
        return f" ({' or '.join(places)}?)"
    return f" (keys here: {', '.join(names)})"


def _closest(value: Any, choices: list[Any]) -> str:
    near = difflib.get_close_matches(value, [str(choice) for choice in choices], n=1) if isinstance(value, str) else []
    return f" (did you mean '{near[0]}'?)" if near else ""
