"""Write docs/api.md: every public name of each package, with its signature and the first paragraph of its docstring.

Run `python docs/make_api.py` in the root of a checkout after a change; `tests/test_library.py` compares.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import re
from pathlib import Path
from types import GenericAlias, ModuleType
from typing import ForwardRef

from pydantic import BaseModel

PAGE = Path(__file__).with_name("api.md")
PACKAGES = (
    "synthkd",
    "synthkd.losses",
    "synthkd.schedules",
    "synthkd.data",
    "synthkd.data.read",
    "synthkd.data.written",
    "synthkd.generators",
    "synthkd.taps",
    "synthkd.models",
    "synthkd.distillation",
    "synthkd.metrics",
    "synthkd.privacy",
    "synthkd.compression",
    "synthkd.training",
    "synthkd.reports",
    "synthkd.pipelines",
    "synthkd.pipelines.config",
    "synthkd.settings",
    "synthkd.types",
    "synthkd.rng",
    "synthkd.errors",
)
HEAD = """# What is public

Each package with the names that can be imported from it, as in `from synthkd.losses import distillation_loss`. The
docstring of a name goes on with its arguments, shapes, errors and papers: `help(distillation_loss)`. Programs that use
them are in [library.md](library.md). This page is written by `python docs/make_api.py`.
"""


def page() -> str:
    """The text of docs/api.md."""
    return "\n".join([HEAD, *map(section, PACKAGES)])


def section(package: str) -> str:
    """One package: its heading, its first paragraph, and a line for each public name."""
    module = importlib.import_module(package)
    lines = [entry(module, name) for name in public(module)]
    bare = [line for line in lines if ": " not in line]
    lines = [line for line in lines if ": " in line]
    if bare:
        lines.append(f"- and {', '.join(bare)}")
    return "\n".join([f"## {package}", "", paragraph(inspect.getdoc(module)), "", *lines, ""])


def public(module: ModuleType) -> list[str]:
    """The names that a package exports; of a module those of its classes and functions."""
    if hasattr(module, "__all__"):
        return sorted(module.__all__, key=str.lower)
    tree = ast.parse(inspect.getsource(module))
    names = [node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    return sorted((name for name in names if not name.startswith("_")), key=str.lower)


def entry(module: ModuleType, name: str) -> str:
    """The line of one name; of a constant or an alias without a docstring the name alone."""
    value = getattr(module, name)
    # inspect takes the alias dict[str, float] for a class
    if (inspect.isclass(value) and not isinstance(value, GenericAlias)) or inspect.isfunction(value):
        return f"- `{name}{signature(value)}`: {paragraph(inspect.getdoc(value))}"
    text = paragraph(constant_doc(module, name))
    return f"- `{name}`: {text}" if text else f"`{name}`"


def signature(value: type | object) -> str:
    """Parameters in parentheses; empty for what nobody constructs by hand: settings have keys, protocols nothing."""
    is_class = inspect.isclass(value)
    if is_class and (issubclass(value, BaseModel | BaseException | dict) or getattr(value, "_is_protocol", False)):
        return ""
    given = inspect.signature(value)
    parameters = list(given.parameters.values())
    shown = [parameter(one) for one in parameters]
    keywords = [one.kind is inspect.Parameter.KEYWORD_ONLY for one in parameters]
    if True in keywords:
        shown.insert(keywords.index(True), "*")
    gives = "" if is_class or given.return_annotation is inspect.Signature.empty else f" -> {given.return_annotation}"
    return f"({', '.join(shown)}){gives}"


def parameter(one: inspect.Parameter) -> str:
    """A parameter with its annotation, and with its default where that is short."""
    star = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}.get(one.kind, "")
    of = one.annotation
    text = f"{star}{one.name}: {of.__forward_arg__ if isinstance(of, ForwardRef) else of}"
    if one.default is inspect.Parameter.empty:
        return text
    default = repr(one.default)
    return f"{text} = {default if len(default) < 20 and '<' not in default else '...'}"


def constant_doc(module: ModuleType, name: str) -> str | None:
    """The text below the assignment of a constant or an alias, in the module that a package has it from."""
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
            return constant_doc(importlib.import_module(node.module or ""), name)
    body = ast.parse(inspect.getsource(module)).body
    for node, below in itertools.pairwise(body):
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id == name and isinstance(below, ast.Expr):
            return str(ast.literal_eval(below.value))
    return None


def paragraph(text: str | None) -> str:
    """The first paragraph of a docstring in one line; empty without one."""
    return re.sub(r"\s+", " ", (text or "").split("\n\n")[0]).strip()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
