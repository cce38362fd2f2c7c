"""YAML to plain data and back, in YAML 1.2's core schema. Nothing here imports torch.

`1e-3` is a number; `yes`, `no`, `on` and `off` are text; a key stands once.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.reader import ReaderError

from synthkd.errors import ConfigError
from synthkd.settings.plain import LONGEST, plain, show

LARGEST_FILE = 1 << 20
"""Bytes of a file at most; the names of a thousand classes are 20 kB."""
MOST_NODES = 200_000
"""Values in a file at most."""

_TYPES = (
    ("merge", r"<<", "<"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
)
"""Tag, pattern and first characters of every plain scalar that is no text."""


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}  # noqa: RUF012 - those of YAML 1.1

    # Collections are built with deep=True. By default PyYAML fills them later, from generators, and an alias to
    # its own parent would make data that contains itself; so it is an error.

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=True)
        except (ValueError, TypeError, AttributeError, LookupError):  # of PyYAML's constructors for a written tag
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            raise ConstructorError(None, None, f"the value does not fit its tag {tag}", node.start_mark) from None

    def construct_mapping(self, node: MappingNode, deep: bool = True) -> dict[Any, Any]:
        keys = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise ConstructorError(None, None, f"a key must be text, got {show(key)}", key_node.start_mark)
            if key in keys:
                raise ConstructorError(None, None, f"duplicate key '{key}'", key_node.start_mark)
            keys.add(key)
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


# The dumper has the scalars of YAML 1.1 besides: it quotes text that readers of either version would take for a number
# or a boolean, so that all of them read the same from a run's config.yaml.
for _dialect in (_Loader, _Dumper):
    for _tag, _pattern, _first in _TYPES:
        _dialect.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))
_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.construct_mapping)
_Loader.add_constructor("tag:yaml.org,2002:seq", _Loader.construct_list)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_whole_number)
_Dumper.add_representer(str, _Dumper.represent_text)


def parse(text: str) -> object:
    """The data in YAML text.

    Raises:
        yaml.YAMLError: no YAML, or out of proportion to any configuration.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is not None and _count(node, {}) > MOST_NODES:
            raise ConstructorError(None, None, f"more than {MOST_NODES:,} values, aliases counted", node.start_mark)
        return None if node is None else loader.construct_document(node)
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None
    except (ValueError, OverflowError):  # of chr; those of values have become YAML errors
        raise yaml.MarkedYAMLError(
            problem="an escape stands for no character", problem_mark=loader.get_mark()
        ) from None
    finally:
        loader.dispose()


def dump(data: object) -> str:
    """Plain data as YAML, its keys in their order; `parse` reads it back equal."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def reason(error: yaml.YAMLError) -> str:
    """Place and cause of an error, in one line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    if isinstance(error, ReaderError):
        return f"character {error.position + 1} may not stand in YAML: {error.reason}"
    return " ".join(str(error).split())


def read_yaml(path: Path) -> dict[str, Any]:
    """The plain data in a YAML file; an empty file has no keys.

    Raises:
        ConfigError: it cannot be read, is no section of keys, or is out of proportion to any configuration.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise ConfigError(f"{path}: a configuration has at most {LARGEST_FILE >> 20} MiB; is it another file?")
        data = parse(content.decode("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the configuration: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: the configuration must be UTF-8 text") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {reason(error)}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected lines of key: value, got {show(data)}")
    section: dict[str, Any] = plain(data)
    return section


def _count(node: Node, counts: dict[Node, int]) -> int:
    """Values in a node, each alias counted as all that it stands for; `counts` holds those of the nodes so far."""
    if node not in counts:
        counts[node] = 1  # so that a node inside itself ends here; building it is an error that says where
        items = node.value if isinstance(node, SequenceNode | MappingNode) else ()
        counts[node] += sum(
            _count(one, counts) for item in items for one in (item if isinstance(item, tuple) else (item,))
        )
    return counts[node]
