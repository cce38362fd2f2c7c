"""The structure of a tree of sources: who imports whom, circles, functions, names. Read from syntax trees alone."""

import ast
import graphlib
import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """A source file.

    Attributes:
        name: dotted, as it is imported; that of a package for its `__init__`.
        path: relative to the root of the tree.
        source: its text.
        tree: its syntax tree.
    """

    name: str
    path: Path
    source: str
    tree: ast.Module

    @property
    def lines(self) -> int:
        """Lines of the file."""
        return len(self.source.splitlines())


@dataclass(frozen=True)
class Import:
    """A module that imports another, and where."""

    module: str
    target: str
    place: str

    def __str__(self) -> str:
        return f"{self.place} imports {self.target}"


def modules(root: Path, folders: Iterable[str], package: str) -> dict[str, Module]:
    """Every module below the folders of `root`, by name; links are not followed.

    The folder `package` holds the package of that name, the other folders its subpackages.
    """
    by_name = {}
    for folder in folders:
        for path in sorted((root / folder).rglob("*.py")):
            relative = path.relative_to(root)
            if any((root / parent).is_symlink() for parent in relative.parents):
                continue
            parts = relative.with_suffix("").parts
            name = ".".join(parts if folder == package else (package, *parts)).removesuffix(".__init__")
            source = path.read_text(encoding="utf-8")
            by_name[name] = Module(name, relative, source, ast.parse(source, str(path)))
    return by_name


def imports(known: Mapping[str, Module]) -> list[Import]:
    """Every import of one known module by another, in functions too.

    `from a.b import c` imports `a.b.c` where that is a module, else `a.b`. That Python runs `a/__init__.py` as well
    does not count.
    """
    edges = []
    for module in known.values():
        for statement in ast.walk(module.tree):
            for name in imported_names(statement):
                target = next((prefix for prefix in prefixes(name) if prefix in known), module.name)
                if target != module.name:
                    edges.append(Import(module.name, target, f"{module.path}:{statement.lineno}"))  # type: ignore[attr-defined]
    return edges


def imported_names(node: ast.AST) -> list[str]:
    """The full names that an import statement may bind, none of any other node. Relative imports have none."""
    match node:
        case ast.Import(names):
            return [alias.name for alias in names]
        case ast.ImportFrom(base, names, 0):
            return [f"{base}.{alias.name}" for alias in names]
    return []


def prefixes(name: str) -> Iterator[str]:
    """A dotted name, then the packages it is in, the innermost first."""
    while name:
        yield name
        name = name.rpartition(".")[0]


# Circles

Ends = Callable[[Import], tuple[str, str]]


def as_modules(edge: Import) -> tuple[str, str]:
    """The two modules of an import."""
    return edge.module, edge.target


def as_folders(edge: Import) -> tuple[str, str]:
    """The two modules or folders at which the paths of an import part, so that both are in the same folder.

    `a.b.c` importing `a.d.e` is `a.b` importing `a.d`. A package and what is in it do not part: both ends are the same.
    """
    ours, theirs = edge.module.split("."), edge.target.split(".")
    for depth, (one, other) in enumerate(zip(ours, theirs, strict=False), start=1):
        if one != other:
            return ".".join(ours[:depth]), ".".join(theirs[:depth])
    return edge.module, edge.module


def as_layers(layers: Iterable[str], package: str) -> Ends:
    """The two layers of an import: subpackages that are layers of their own, and the rest of the package."""
    names = tuple(f"{package}.{layer}" for layer in layers)

    def layer_of(module: str) -> str:
        return next((name for name in names if f"{module}.".startswith(f"{name}.")), package)

    return lambda edge: (layer_of(edge.module), layer_of(edge.target))


def circles(edges: Iterable[Import], ends: Ends) -> list[str]:
    """A line for each circle: its members, and the import that closes it, which is the step from the last to the first.

    That step is the one that the fewest statements make, since it is the easiest to do without. It is taken away, and
    circles are looked for until the rest has none.
    """
    statements: dict[tuple[str, str], list[Import]] = defaultdict(list)
    for edge in edges:
        if len({*ends(edge)}) == 2:
            statements[ends(edge)].append(edge)
    lines = []
    while circle := _circle(statements):
        steps = [*itertools.pairwise(circle)]
        closing = min(steps, key=lambda step: len(statements[step]))
        first = steps.index(closing) + 1
        members = [module for module, _ in (*steps[first:], *steps[:first])]
        lines.append(f"{' -> '.join(members)}: closed by {', '.join(map(str, statements.pop(closing)))}")
    return lines


def _circle(steps: Iterable[tuple[str, str]]) -> list[str]:
    """The names along one circle, from one of them back to it; empty where there is none."""
    graph: dict[str, list[str]] = defaultdict(list)
    for module, target in steps:
        graph[module].append(target)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(reversed(error.args[1]))  # there, each stands before the one that imports it
    return []


# Functions and names


@dataclass(frozen=True)
class Definition:
    """A module, class or function.

    Attributes:
        name: with its path, for messages.
        node: its syntax.
        public: neither it nor what it is in begins with an underscore, and it is in no function.
    """

    name: str
    node: ast.Module | ast.ClassDef | Function
    public: bool

    @property
    def documented(self) -> bool:
        """Whether it has a docstring."""
        return ast.get_docstring(self.node) is not None

    @property
    def lines(self) -> int:
        """Lines of a function, without those of its docstring."""
        assert not isinstance(self.node, ast.Module)
        first = self.node.body[0]
        docstring = (first.end_lineno or 0) - first.lineno + 1 if self.documented else 0
        return (self.node.end_lineno or 0) - self.node.lineno + 1 - docstring

    @property
    def annotations(self) -> dict[str, ast.expr | None]:
        """Annotation of each parameter but self and cls, and of the `return` of a function."""
        assert isinstance(self.node, Function)
        given = self.node.args
        every = [*given.posonlyargs, *given.args, given.vararg, *given.kwonlyargs, given.kwarg]
        named = {one.arg: one.annotation for one in every if one is not None and one.arg not in ("self", "cls")}
        return {**named, "return": self.node.returns}


def definitions(module: Module) -> list[Definition]:
    """The module, and every class and function in it, at every depth."""
    rows = [Definition(str(module.path), module.tree, True)]

    def visit(node: ast.AST, name: str, public: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | Function):
                inner = Definition(f"{name}{child.name}", child, public and is_public(child.name))
                rows.append(inner)
                visit(child, f"{inner.name}.", inner.public and isinstance(child, ast.ClassDef))
            else:
                visit(child, name, public)

    visit(module.tree, f"{module.path}:", True)
    return rows


def is_public(name: str) -> bool:
    """Whether a name has no underscore in front. `__init__` and its like are told by their class."""
    return not name.startswith("_")


def mentions(annotation: ast.expr | None, word: str) -> bool:
    """Whether an annotation has a name in it, also where it is a text."""
    return annotation is not None and re.search(rf"\b{word}\b", ast.unparse(annotation)) is not None


def identifiers(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every name that code gives or uses, with its line: variables, parameters, attributes, classes, imports."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(name) | ast.Attribute(_, name) | ast.arg(name):
                yield name, node.lineno
            case ast.ClassDef(name) | ast.FunctionDef(name) | ast.AsyncFunctionDef(name):
                yield name, node.lineno
            case ast.keyword(str() as name):
                yield name, node.lineno
            case ast.alias(name, given):
                yield from ((part, node.lineno) for part in [*name.split("."), given] if part)
            case ast.ExceptHandler(_, str() as name):
                yield name, node.lineno


def keys(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every text in code that is one word: keys, kinds, values of settings."""
    for node in ast.walk(tree):
        match node:
            case ast.Constant(str() as text) if text.isidentifier():
                yield text, node.lineno


def bound(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every variable and parameter, with the lines where it is given a value."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(name, ast.Store()) | ast.arg(name):
                yield name, node.lineno
