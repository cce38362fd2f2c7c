"""YAML file, then dotted overrides, to a frozen configuration; and back. Nothing here imports torch.

A key that is not written keeps its default, at every depth: `training.optimizer.lr=1e-3` changes the learning rate and
nothing else. All problems are reported at once, before anything runs.
"""

from __future__ import annotations

import functools
import json
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from synthkd.errors import ConfigError
from synthkd.settings import yaml_text
from synthkd.settings.base import Settings
from synthkd.settings.plain import differing, plain
from synthkd.settings.problems import explain
from synthkd.settings.schema import Node, Schema, retired
from synthkd.system.patterns import matching

Config = TypeVar("Config", bound=Settings)

MOST_LINES = 50
"""Problems at most that are reported one by one."""


def load_config(
    model: type[Config],
    source: str | Path | Mapping[str, Any] | None,
    overrides: Sequence[str],
    *,
    in_place: bool = False,
) -> Config:
    """Build the configuration of a job.

    Args:
        model: the job's configuration class.
        source: a YAML file, the same as a mapping, or None for the defaults alone.
        overrides: `key.subkey=value`, the value in YAML; an index reaches into a list (`phases.0.steps=10`). The more
            specific one wins, whatever the order; among equals the last. Setting a section to another `kind` drops
            the keys that `source` gave it.
        in_place: paths in the file are relative to the working directory, as in a recipe that ships and in what a run
            recorded. False: to the folder of the file, unless they exist below the working directory alone. Those in a
            mapping and in overrides are relative to the working directory.

    Raises:
        ConfigError: with one line per problem.
    """
    schema = _schema(model)
    data: Any = {}
    if isinstance(source, Mapping):
        data = plain(source)
    elif source is not None:
        data = yaml_text.read_yaml(Path(source))
        if not in_place:
            data = plain(_beside(schema, schema.root, data, Path(source).parent))
    problems: list[str] = []
    malformed: list[str] = []
    assignments: list[tuple[list[str], Any]] = []
    for override in overrides:
        try:
            assignments.append(_parse(override))
        except ConfigError as error:
            problems.append(str(error))
            malformed.append(override.partition("=")[0].strip())
    # Short keys first, so that a section does not replace what is set inside it. Of keys of one length a kind comes
    # first, because it starts its section anew.
    for keys, value in sorted(assignments, key=lambda pair: (len(pair[0]), pair[0][-1] != "kind")):
        try:
            own = model.defaults_for(data) if isinstance(data, Mapping) else {}
            data = _assigned(schema, schema.root, data, keys, value, (), own)
        except ConfigError as error:
            problems.append(str(error))
    model.refuse_old_form(data)
    data = _completed(schema, schema.root, data, model.defaults_for(data) if isinstance(data, Mapping) else {})
    try:
        # As JSON, because only there strict validation takes a list for a tuple; it coerces nothing else.
        config = model.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        absent = {f"{key}: required" for key in malformed}  # the malformed override was to set it
        if malformed:  # and it may be what the whole lacks
            absent |= {str(one["ctx"]["error"]) for one in error.errors() if not one["loc"] and "error" in one["ctx"]}
        problems += [line for line in explain(schema, data, error) if line not in absent]
    if problems:
        more = [f"and {len(problems) - MOST_LINES} problems more"] if len(problems) > MOST_LINES else []
        raise ConfigError("\n".join(problems[:MOST_LINES] + more))
    return config


def dump_config(config: Settings) -> str:
    """The resolved configuration as YAML, in the order of the model's fields; `load_config` reads it back equal."""
    return yaml_text.dump(plain(config))


def differences(first: Settings, second: Settings, same: Callable[[object, object], bool] = operator.eq) -> list[str]:
    """Dotted keys in which two configurations differ; where the kinds of a section differ, that `kind` alone.

    Args:
        first, second: the configurations.
        same: tells whether two plain values are equal.
    """
    return list(differing(plain(first), plain(second), same=same))


_FOREIGN_BYTES = re.compile("[\udc80-\udcff]")
"""What stands for the bytes of a path that are not UTF-8."""


@functools.cache
def _schema(model: type[Settings]) -> Schema:
    return Schema(model)


def _parse(override: str) -> tuple[list[str], Any]:
    """The keys and the value of an override."""
    key, equals, text = override.partition("=")
    keys = key.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"{override}: expected key=value or section.key=value")
    if not text.strip():
        raise ConfigError(f"{key}: empty value; write {key}=null for none, {key}=\"''\" for empty text")
    if _FOREIGN_BYTES.search(text):  # YAML would name a character
        return keys, plain(text, tuple(keys))  # says what is wrong
    try:
        value = yaml_text.parse(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{key}: the value is not YAML: {yaml_text.reason(error)}") from None
    if not isinstance(value, dict | list) and text.count("#") > str(value).count("#"):
        raise ConfigError(f"{key}: YAML begins a comment at a # that is first or after a space; write {key}=\"'...'\"")
    return keys, plain(value, tuple(keys))


def _beside(schema: Schema, node: Node, data: Any, folder: Path) -> Any:
    """A copy of `data`, which is to be of schema `node`, with its relative paths below the folder."""
    if isinstance(data, str):
        # `timm:NAME` and `package.module:function` are no paths.
        if not any(one.get("path") for one in schema.alternatives(node)) or re.match(r"~|[\w.]+:", data):
            return data
        moved = folder / data
        return data if not _exists(moved) and _exists(Path(data)) else str(moved)
    branch = schema.pick(node, data)
    if branch is None:
        return data
    if isinstance(data, list):
        return [_beside(schema, branch.get("items", {}), item, folder) for item in data]
    children = branch.get("properties", {})
    return {key: _beside(schema, children.get(key, {}), value, folder) for key, value in data.items()}


def _exists(path: Path) -> bool:
    """Whether there is a file of that path or, if it is a pattern, of that form."""
    return bool(matching(path))


def _assigned(
    schema: Schema, node: Node, data: Any, keys: Sequence[str], value: Any, path: tuple[str, ...], own: Any
) -> Any:
    """A copy of `data`, which is to be of schema `node`, with `value` where the keys lead.

    `path` leads to `data`; `own` has the defaults there that differ from those of the schema.
    """
    if not keys:
        return value
    key, rest, here = keys[0], keys[1:], (*path, keys[0])
    branch = schema.pick(node, data if isinstance(data, list | dict) else {}) or {}
    if isinstance(data, list):
        if not key.isdecimal() or int(key) >= len(data):
            raise ConfigError(f"{'.'.join(here)}: expected an index below {len(data)}, got {key}")
        index = int(key)
        item = _assigned(schema, branch.get("items", {}), data[index], rest, value, here, None)
        return [*data[:index], item, *data[index + 1 :]]
    section = data if isinstance(data, dict) else {}
    if key == "kind" and not rest and schema.pick(node, {"kind": value}) not in (None, branch):
        return {"kind": value}  # the other keys are those of another kind
    child_node = branch.get("properties", {}).get(key, {})
    # An index reaches into the default of a list that is not written; a section begins empty, its defaults come later.
    own = own.get(key) if isinstance(own, Mapping) else None
    default = child_node.get("default") if own is None else own
    child = section.get(key, default if isinstance(default, list) else None)
    return {**section, key: _assigned(schema, child_node, child, rest, value, here, own)}


def _completed(schema: Schema, node: Node, written: Any, default: Any) -> Any:
    """Data without retired keys, completed by the default of its field, which may differ from those of its class."""
    branch = schema.pick(node, written)
    if branch is None:
        return written
    if isinstance(written, list):
        return [_completed(schema, branch.get("items", {}), item, None) for item in written]
    # The default of the field holds only for a section of the same kind: the learning rate of one optimizer is none for
    # another.
    base = default if isinstance(default, dict) and schema.pick(node, default) is branch else {}
    if written.get("kind", base.get("kind")) != base.get("kind"):
        base = {}
    fixed = retired(branch)
    complete = {**base, **{key: value for key, value in written.items() if key not in fixed or value != fixed[key]}}
    for key, child_node in branch.get("properties", {}).items():
        if key in written:
            complete[key] = _completed(schema, child_node, written[key], base.get(key, child_node.get("default")))
    return complete
