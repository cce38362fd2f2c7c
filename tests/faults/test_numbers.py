"""Numbers out of proportion: every numeric setting has two bounds, and what is outside them ends in a line that names
its key."""

import importlib
import math
from functools import cache

import pytest

from synthkd.pipelines.cli import VERBS
from synthkd.settings import LARGE

DIGITS = {"kind": "digits"}
TEACHER = {"kind": "train", "data": DIGITS, "model": {"arch": "mlp"}}
SMALL = {
    "audit": {"teacher": {"kind": "load", "model": "m"}, "members": "a", "nonmembers": "b"},
    "compress": {"teacher": TEACHER, "student": {"arch": "mlp"}},
    "distill": {"teacher": TEACHER, "student": {"arch": "mlp"}},
    "evaluate": {"generated": ["a"], "real": "b"},
    "generate": {"teacher": TEACHER, "per_class": 1},
    "teach": {"data": DIGITS, "model": {"arch": "mlp"}},
}
HOSTILE = (0, -1, 2**31, 2**63, 10**30, 1e308, math.nan, math.inf, -0.0, "", [])


@cache
def model(job):
    module, _, name = VERBS[job].config.partition(":")
    return getattr(importlib.import_module(module), name)


def numbers(job):
    """Every numeric key of a job: its path, the sections on the way to it, and the schemas it may have there."""
    root = model(job).model_json_schema()
    seen = set()

    def alternatives(schema):
        if "$ref" in schema:
            return alternatives(root["$defs"][schema["$ref"].rpartition("/")[2]])
        members = schema.get("anyOf") or schema.get("oneOf") or [schema]
        return [schema] if members == [schema] else [found for member in members for found in alternatives(member)]

    def walk(schema, path):
        found = alternatives(schema)
        if any(one.get("type") in ("integer", "number") and "enum" not in one for one in found):
            yield path, found
        for one in found:
            if "items" in one:
                yield from walk(one["items"], (*path, 0))
            if isinstance(one.get("additionalProperties"), dict):
                yield from walk(one["additionalProperties"], (*path, "key"))
            kind = one.get("properties", {}).get("kind", {})
            kind = kind.get("const", (kind.get("enum") or [None])[0])
            for key, inside in one.get("properties", {}).items():
                if (one.get("title"), kind, key) not in seen:
                    seen.add((one.get("title"), kind, key))
                    yield from walk(inside, (*path, *([{"kind": kind}] if kind else []), key))

    return list(walk(root, ()))


def written(path, value):
    """Nested data in which `path` leads to `value`; a dict on the path is merged into what comes after it."""
    for step in reversed(path):
        value = {**step, **value} if isinstance(step, dict) else [value] if step == 0 else {step: value}
    return value


def dotted(path):
    return ".".join(str(step) for step in path if not isinstance(step, dict))


def is_schedule(schemas):
    return any("start" in one.get("properties", {}) and "until" in one["properties"] for one in schemas)


def inside(value, schemas):
    for one in schemas:
        whole, numeric = one.get("type") == "integer", isinstance(value, int | float)
        low, high = one.get("minimum", -LARGE), one.get("maximum", LARGE)
        above, below = one.get("exclusiveMinimum", -math.inf), one.get("exclusiveMaximum", math.inf)
        if numeric and one.get("type") in ("integer", "number") and not (whole and isinstance(value, float)):
            if "enum" in one:
                return value in one["enum"]
            if low <= value <= high and above < value < below:
                return True
    return False


@pytest.mark.parametrize("job", SMALL)
def test_every_number_in_the_settings_has_two_bounds(job):
    for path, schemas in numbers(job):
        curve = is_schedule(schemas) or (path[-1] in ("start", "end") and "begin" in str(schemas))
        for one in schemas:
            if one.get("type") in ("integer", "number") and "enum" not in one and not curve:
                assert {"minimum", "exclusiveMinimum"} & one.keys(), dotted(path)
                assert {"maximum", "exclusiveMaximum"} & one.keys(), dotted(path)
