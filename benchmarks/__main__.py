"""List the benchmarks, or print the tables of those that are named from their results: nothing is measured."""

from __future__ import annotations

import argparse
import ast
import importlib
from collections.abc import Sequence
from pathlib import Path

from benchmarks import common


def purpose(name: str) -> str:
    """The first line of a script's docstring, without importing it."""
    source = (Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


def main(argv: Sequence[str] | None = None) -> None:
    """Print a line for each script, or the tables of the scripts that `argv` names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of a benchmark")
    names = parser.parse_args(argv).names
    if unknown := sorted({*names} - {*common.scripts()}):
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(common.scripts())}")
    for name in names:
        print(importlib.import_module(f"benchmarks.{name}").tables(common.read(name)))
    if not names:
        print(*(f"{name:20} {purpose(name)}" for name in common.scripts()), sep="\n")


if __name__ == "__main__":
    main()
