"""YAML file, then dotted overrides, to a frozen configuration; and back. Nothing here imports torch.

The dialect is YAML 1.2's core schema: `1e-3` is a number, `yes`, `no`, `on` and `off` are text, and a key may stand
only once. What is not written keeps its default, at every depth: `training.optimizer.lr=1e-3` changes the learning rate
and nothing else. Everything that is wrong is said at once, before anything runs.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.reader import ReaderError

from synthkd.errors import ConfigError
from synthkd.settings.base import Settings
from synthkd.settings.problems import Schema, Shape, explain, show

Config = TypeVar("Config", bound=Settings)

# Of what is written in a configuration; a thousand class names are 20 kB.
LARGEST_FILE = 1 << 20
MOST_NODES = 200_000
DEEPEST = 50
TOLD = 50
LONGEST = 1000


def load_config(model: type[Config], source: str | Path | Mapping[str, Any] | None, overrides: Sequence[str]) -> Config:
    """Build the configuration of a job.

    Args:
        model: the job's configuration class.
        source: a YAML file, the same as a mapping, or None for the defaults alone.
        overrides: `key.subkey=value`, the value in YAML; an index reaches into a list (`phases.0.steps=10`). The more
            specific one wins, whatever the order; among equals the last. Setting a section to another `kind` drops
            the keys that `source` gave it.

    Raises:
        ConfigError: with one line per problem.
    """
    shape = _shape(model)
    if source is None:
        data: dict[str, Any] = {}
    elif isinstance(source, Mapping):
        data = _plain(source, ())
    else:
        data = read_yaml(Path(source))
    problems: list[str] = []
    failed: list[str] = []
    assignments: list[tuple[list[str], Any]] = []
    for override in overrides:
        try:
            assignments.append(_parse(override))
        except ConfigError as error:
            problems.append(str(error))
            failed.append(override.partition("=")[0].strip())
    for keys, value in sorted(assignments, key=lambda pair: (len(pair[0]), pair[0][-1] != "kind")):
        try:
            data = _assigned(shape, shape.root, data, keys, value, ())
        except ConfigError as error:
            problems.append(str(error))
    model.refuse_old_form(data)
    data = _with_defaults(shape, shape.root, data, {})
    try:
        # As JSON, because only there strict validation takes a list for a tuple; it coerces nothing else.
        config = model.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        absent = {f"{key}: required" for key in failed}  # because what was given for it is wrong
        problems += [line for line in explain(shape, data, error) if line not in absent]
        config = None
    if problems:
        more = [f"and {len(problems) - TOLD} problems more"] if len(problems) > TOLD else []
        raise ConfigError("\n".join(problems[:TOLD] + more))
    assert config is not None
    return config


def dump_config(config: Settings) -> str:
    """The resolved configuration as YAML, in the order of the model's fields; `load_config` reads it back equal."""
    return yaml.dump(_plain(config, ()), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def differences(first: Settings, second: Settings) -> list[str]:
    """Dotted keys in which two configurations differ; where the kinds of a section differ, that `kind` alone."""
    return list(_differing(_plain(first, ()), _plain(second, ()), ""))


@functools.cache
def _shape(model: type[Settings]) -> Shape:
    return Shape(model)


# --- overrides and defaults -----------------------------------------------------------------------------------------


def _parse(override: str) -> tuple[list[str], Any]:
    key, equals, text = override.partition("=")
    keys = key.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"{override}: expected key=value or section.key=value")
    if not text.strip():
        raise ConfigError(f"{key}: empty value; write {key}=null for none, {key}=\"''\" for empty text")
    try:
        return keys, _plain(_parsed(text), tuple(keys))
    except yaml.YAMLError as error:
        raise ConfigError(f"{key}: the value is not YAML: {_trouble(error)}") from None


def _assigned(shape: Shape, schema: Schema, node: Any, keys: Sequence[str], value: Any, path: tuple[str, ...]) -> Any:
    """A copy of `node` in which the place that `keys` lead to holds `value`."""
    if not keys:
        return value
    key, rest, here = keys[0], keys[1:], (*path, keys[0])
    branch = shape.pick(schema, node if isinstance(node, list | dict) else {})
    if isinstance(node, list):
        if not key.isdecimal() or int(key) >= len(node):
            raise ConfigError(f"{'.'.join(here)}: expected an index below {len(node)}, got {key}")
        items = list(node)
        inside = branch.get("items", {}) if branch else {}
        items[int(key)] = _assigned(shape, inside, items[int(key)], rest, value, here)
        return items
    section = node if isinstance(node, dict) else {}
    if key == "kind" and not rest and shape.pick(schema, {"kind": value}) not in (None, branch):
        return {"kind": value}
    inside = branch.get("properties", {}).get(key, {}) if branch else {}
    default = inside.get("default")
    child = section.get(key, default if isinstance(default, list) else None)
    return {**section, key: _assigned(shape, inside, child, rest, value, here)}


def _with_defaults(shape: Shape, schema: Schema, written: Any, default: Any) -> Any:
    """Complete a section by its field's default, which may differ from the defaults of the section's own class."""
    branch = shape.pick(schema, written)
    if branch is None:
        return written
    if isinstance(written, list):
        return [_with_defaults(shape, branch.get("items", {}), item, None) for item in written]
    base = default if isinstance(default, dict) and shape.pick(schema, default) is branch else {}
    complete = {**base, **written}
    for key, inside in branch.get("properties", {}).items():
        if key in written:
            complete[key] = _with_defaults(shape, inside, written[key], base.get(key, inside.get("default")))
    return complete


# --- plain data -----------------------------------------------------------------------------------------------------


def _plain(value: Any, path: tuple[str, ...]) -> Any:
    """Dicts, lists, text, numbers, booleans and null; anything else is refused, and so is what is out of proportion."""
    if len(path) > DEEPEST:
        raise ConfigError(f"{'.'.join(path[:3])}...: nested in more than {DEEPEST} levels")
    if isinstance(value, int) and value.bit_length() > LONGEST:
        raise ConfigError(f"{'.'.join(path)}: a whole number of more than {LONGEST} bits")
    if isinstance(value, Settings):
        return _plain(value.model_dump(), path)
    if isinstance(value, str) and not value.isascii() and value != value.encode(errors="replace").decode():
        raise ConfigError(f"{'.'.join(path)}: {show(value)} is not UTF-8; rename the file or folder")
    if isinstance(value, Mapping):
        return {str(_plain(key, path)): _plain(item, (*path, str(key))) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, (*path, str(index))) for index, item in enumerate(value)]
    if isinstance(value, PurePath):
        return str(value)
    if value is None or isinstance(value, str | int | float):
        return value
    raise ConfigError(
        f"{'.'.join(path)}: expected text, a number, true, false, null, a list or a section, got {show(value)}"
    )


def _differing(first: Any, second: Any, path: str) -> Iterator[str]:
    if isinstance(first, dict) and isinstance(second, dict):
        kind_changed = first.get("kind") != second.get("kind")
        for key in ["kind"] if kind_changed else dict.fromkeys([*first, *second]):
            yield from _differing(first.get(key), second.get(key), f"{path}.{key}" if path else key)
    elif isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        for index, (one, other) in enumerate(zip(first, second, strict=True)):
            yield from _differing(one, other, f"{path}.{index}")
    elif first != second:
        yield path


# --- YAML -----------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: MappingNode, deep: bool = True) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise ConstructorError(None, None, f"a key must be text, got {show(key)}", key_node.start_mark)
            if key in seen:
                raise ConstructorError(None, None, f"duplicate key '{key}'", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=True)

    def construct_list(self, node: SequenceNode) -> list[Any]:
        return self.construct_sequence(node, deep=True)

    def construct_whole_number(self, node: ScalarNode) -> int:
        text = self.construct_scalar(node)
        if len(text) > LONGEST:
            raise ConstructorError(None, None, f"a number of {len(text)} digits", node.start_mark)
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


class _Dumper(yaml.SafeDumper):
    def represent_text(self, text: str) -> ScalarNode:
        # PyYAML writes Unicode's own line breaks bare into single quotes, where reading folds them to a space.
        breaks = any(character in text for character in "\x85\u2028\u2029")
        return self.represent_scalar("tag:yaml.org,2002:str", text, style='"' if breaks else None)


# The loader knows YAML 1.2's plain scalars only, the dumper those of 1.1 as well: text that either would take for a
# number or a boolean is dumped in quotes, so that other readers of a run's config.yaml see the same.
_Loader.yaml_implicit_resolvers = {}
for _dialect in (_Loader, _Dumper):
    for _tag, _pattern, _first in (
        ("merge", r"<<", "<"),
        ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
        ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
        ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
        (
            "float",
            r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
            "-+.0123456789",
        ),
    ):
        _dialect.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))
# Built at once and not by generators, so that an alias to its own parent is an error and not a loop.
_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.construct_mapping)
_Loader.add_constructor("tag:yaml.org,2002:seq", _Loader.construct_list)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_whole_number)
_Dumper.add_representer(str, _Dumper.represent_text)


def _parsed(text: str) -> Any:
    """What YAML says; `YAMLError` where that is out of proportion to any configuration."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is not None and _expanded(node, {}) > MOST_NODES:
            raise ConstructorError(None, None, f"more than {MOST_NODES:,} values, aliases counted", node.start_mark)
        return None if node is None else loader.construct_document(node)
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None
    finally:
        loader.dispose()


def _expanded(node: Node, known: dict[Node, int]) -> int:
    """Values in a node, each alias counted as all it stands for. A node inside itself is told of where it is built."""
    if node not in known:
        known[node] = 1
        inside = node.value if isinstance(node, SequenceNode | MappingNode) else ()
        known[node] += sum(
            _expanded(one, known) for item in inside for one in (item if isinstance(item, tuple) else (item,))
        )
    return known[node]


def read_yaml(path: Path) -> dict[str, Any]:
    """The plain data in a YAML file.

    Raises:
        ConfigError: it cannot be read, is no section of keys, or is out of proportion to any configuration.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise ConfigError(f"{path}: a configuration has at most {LARGEST_FILE >> 20} MiB; is it another file?")
        data = _parsed(content.decode("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the configuration: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: the configuration must be UTF-8 text") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {_trouble(error)}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected lines of key: value, got {show(data)}")
    plain: dict[str, Any] = _plain(data, ())
    return plain


def _trouble(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    if isinstance(error, ReaderError):
        return f"character {error.position + 1} may not stand in YAML: {error.reason}"
    return " ".join(str(error).split())
