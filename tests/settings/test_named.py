"""Every setting is shown in use: a recipe or a benchmark sets it, or the README or a doc names it with when and why."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from synthkd.pipelines.config import (
    AuditConfig,
    CompressConfig,
    DistillConfig,
    EvaluateConfig,
    GenerateConfig,
    TeachConfig,
)
from synthkd.settings.schema import Schema, properties

TOP = Path(__file__).parents[2]
JOBS = (AuditConfig, CompressConfig, DistillConfig, EvaluateConfig, GenerateConfig, TeachConfig)
CODE = re.compile(r"^```.*?^```|`[^`]+`", re.MULTILINE | re.DOTALL)
"""Code blocks and code spans of Markdown."""


def settings() -> Iterator[tuple[str, str]]:
    """(section, key) of every setting of every job."""
    for job in JOBS:
        root = Schema(job).root
        for section in (root, *root.get("$defs", {}).values()):
            for key in properties(section):
                yield section["title"], key


def keys_of(data: Any) -> Iterator[str]:
    """The keys in the data of a recipe."""
    for key, value in data.items() if isinstance(data, dict) else ():
        yield key
        yield from keys_of(value)
    for item in data if isinstance(data, list) else ():
        yield from keys_of(item)


def named_in_recipes() -> set[str]:
    return {key for path in (TOP / "configs").rglob("*.yaml") for key in keys_of(yaml.safe_load(path.read_text()))}


def named_in_benchmarks() -> set[str]:
    """Keys and dotted keys in strings, and keyword arguments."""
    names: set[str] = set()
    for path in (TOP / "benchmarks").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg:
                names.add(node.arg)
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                names.update(node.value.partition("=")[0].split("."))
    return names


def named_in_docs() -> set[str]:
    pages = [TOP / "README.md", *(TOP / "docs").glob("*.md")]
    return {
        word for page in pages for code in CODE.findall(page.read_text()) for word in re.findall(r"[A-Za-z_]\w*", code)
    }


def test_every_setting_is_named_in_a_recipe_a_benchmark_or_a_doc() -> None:
    named = named_in_recipes() | named_in_benchmarks() | named_in_docs()
    unnamed = sorted({f"{section}.{key}" for section, key in settings() if key not in named})
    assert not unnamed, "show each in use, or make it a constant: " + ", ".join(unnamed)
