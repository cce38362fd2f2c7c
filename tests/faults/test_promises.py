"""The page of promises names tests that are there."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_each_promise_has_a_test_that_is_there() -> None:
    rows = [line for line in (ROOT / "docs/faults.md").read_text().splitlines() if line.startswith("| ")]
    promises = [row for row in rows if row != "| promise | test |"]
    named = [re.fullmatch(r"\| .+ \| `(test_\w+\.py)::(test_\w+)` \|", row) for row in promises]
    assert len(named) > 40
    for row, match in zip(promises, named, strict=True):
        assert match is not None, row
        tree = ast.parse((Path(__file__).parent / match[1]).read_text())
        assert match[2] in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, row
