"""The sections, keys and kinds of a configuration model, from its JSON schema. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from synthkd.settings.plain import show

Node = Mapping[str, Any]
"""A part of a JSON schema: what may stand at one place of the data."""

_BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


class Schema:
    """The JSON schema of a configuration model.

    Attributes:
        root: the node of the whole configuration.
    """

    def __init__(self, model: type[BaseModel]) -> None:
        self.root: Node = model.model_json_schema()
        self._definitions: Node = self.root.get("$defs", {})

    def alternatives(self, node: Node) -> list[Node]:
        """The members of a union, null left out, or the node itself; references are resolved."""
        if "$ref" in node:
            return self.alternatives(self._definitions[node["$ref"].rpartition("/")[2]])
        members = node.get("anyOf") or node.get("oneOf")
        if members is None:
            return [] if node.get("type") == "null" else [node]
        return [alternative for member in members for alternative in self.alternatives(member)]

    def pick(self, node: Node, value: object) -> Node | None:
        """The alternative that a list or a section is meant to be, a section by its `kind`; None if there is none."""
        if isinstance(value, list):
            return next((a for a in self.alternatives(node) if a.get("type") == "array"), None)
        if not isinstance(value, dict):
            return None
        sections = [a for a in self.alternatives(node) if a.get("type") == "object"]
        # Also with a wrong `kind`, whose error then names the kind that is expected.
        if len(sections) == 1:
            return sections[0]
        if "kind" in value:
            return next((a for a in sections if value["kind"] in kinds(a)), None)
        return next((a for a in sections if "default" in properties(a).get("kind", {})), None)

    def kinds(self, node: Node) -> list[str]:
        """The kinds of all alternatives."""
        return [kind for alternative in self.alternatives(node) for kind in kinds(alternative)]

    def describe(self, node: Node) -> str:
        """What may stand at a node, as a noun phrase."""
        phrases = [self._phrase(a) for a in self.alternatives(node) if not kinds(a)]
        if choices := self.kinds(node):
            phrases.append("a section with kind " + " | ".join(choices))
        if any(member.get("type") == "null" for member in node.get("anyOf", ())):
            phrases.append("null")
        return " or ".join(phrases)

    def _phrase(self, node: Node) -> str:
        if "const" in node:
            return show(node["const"])
        if "enum" in node:
            return "one of " + ", ".join(show(choice) for choice in node["enum"])
        bounds = " and ".join(f"{sign} {_bound(node[key])}" for key, sign in _BOUNDS.items() if key in node)
        match node.get("type"):
            case "integer":
                return f"a whole number {bounds}".strip()
            case "number":
                return f"a number {bounds}".strip()
            case "boolean":
                return "true or false"
            case "string":
                return f"text that matches {node['pattern']}" if "pattern" in node else "text"
            case "array" if "prefixItems" in node:
                return f"a list [{', '.join(self.describe(item) for item in node['prefixItems'])}]"
            case "array":
                limit = f" of at most {node['maxItems']} items" if "maxItems" in node else ""
                return f"a list{limit}, each item {self.describe(node.get('items', {}))}"
            case "object":
                limit = f" of at most {node['maxProperties']} keys" if "maxProperties" in node else ""
                return f"a section{limit} of key: value"
        return "a value"

    def places(self, key: str, node: Node | None = None, path: tuple[str, ...] = ()) -> Iterator[str]:
        """Dotted path of every key of a name, in all kinds of all sections below a node (default: the root)."""
        for alternative in self.alternatives(self.root if node is None else node):
            if "items" in alternative:
                yield from self.places(key, alternative["items"], (*path, "0"))
            for name, child in properties(alternative).items():
                if name == key:
                    yield ".".join((*path, name))
                yield from self.places(key, child, (*path, name))


def properties(section: Node) -> Mapping[str, Node]:
    """The keys of a section and the nodes of their values."""
    nodes: Mapping[str, Node] = section.get("properties", {})
    return nodes


def kinds(section: Node) -> list[str]:
    """The values of `kind` that select a section."""
    kind = properties(section).get("kind", {})
    return [kind["const"]] if "const" in kind else list(kind.get("enum", ()))


def retired(section: Node) -> Mapping[str, object]:
    """Keys that a section had in earlier versions, and the value of each that is fixed now."""
    fixed: Mapping[str, object] = section.get("retired", {})
    return fixed


def _bound(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"
