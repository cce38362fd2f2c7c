"""The rules that keep the layers apart, read from the syntax trees of the sources."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ["synthkd", "generators", "pipelines"]  # each may import those before it
ENTRY = ROOT / "synthkd" / "__main__.py"
OPTIONAL = {
    "datasets", "dp_accounting", "hypothesis", "mlflow", "mlxtend", "onnx", "onnxruntime", "onnxscript", "opacus",
    "optuna", "pyarrow", "pynvml", "pytest", "tensorboard", "timm", "torch_fidelity", "torchao", "torchmetrics",
    "trackio", "wandb", "webdataset",
}  # fmt: skip


def sources() -> list[Path]:
    return [path for layer in LAYERS for path in (ROOT / layer).rglob("*.py") if not linked(path)]


def linked(path: Path) -> bool:
    return any(parent.is_symlink() for parent in path.parents if ROOT in parent.parents)


def layer_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in LAYERS else "synthkd"


def imported(tree: ast.AST) -> Iterator[tuple[ast.stmt, str]]:
    """Every import statement with each full module name it may bind."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node, node.module or ""
            yield from ((node, f"{node.module}.{alias.name}") for alias in node.names)


@pytest.fixture(scope="module")
def trees() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text(encoding="utf-8"), str(path)) for path in sources()}


def test_all_sources_are_seen(trees):
    assert {path.relative_to(ROOT).parts[0] for path in trees} == set(LAYERS)
    assert len(trees) == len({path.resolve() for path in trees})


def test_imports_go_one_way(trees):
    wrong = []
    for path, tree in trees.items():
        own = LAYERS.index(path.relative_to(ROOT).parts[0])
        for node, module in imported(tree):
            ours = module.partition(".")[0] == "synthkd"
            if path != ENTRY and ours and LAYERS.index(layer_of(module)) > own:
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} imports {module}")
    assert wrong == []


def test_imports_are_absolute_and_by_the_installed_name(trees):
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path, tree in trees.items()
        for node, module in imported(tree)
        if getattr(node, "level", 0) > 0 or module.partition(".")[0] in ("generators", "pipelines", "configs")
    ]
    assert wrong == []


def test_every_torch_load_spells_weights_only(trees):
    wrong = []
    for path, tree in trees.items():
        for node, module in imported(tree):
            if module == "torch.load":
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} imports load from torch")
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                spelled = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                if spelled.get("weights_only") != "True":
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node)}")
    assert wrong == []


RUNS_CODE = {
    "__import__", "compile", "eval", "exec", "importlib.import_module", "importlib.util.module_from_spec",
    "importlib.util.spec_from_file_location", "joblib.load", "pickle.Unpickler", "pickle.load", "pickle.loads",
    "pkgutil.resolve_name", "runpy.run_module", "runpy.run_path", "torch.hub.load", "torch.jit.load", "yaml.full_load",
    "yaml.unsafe_load",
}  # fmt: skip
"""What makes code of a name, or of data."""


def test_code_is_imported_by_name_in_one_module_only(trees):
    """It is where `synthkd.imports` decides whose word is enough."""
    wrong = []
    for path, tree in trees.items():
        if path == ROOT / "synthkd" / "imports.py":
            continue
        taken = {module for _, module in imported(tree)} & RUNS_CODE
        wrong += [f"{path.relative_to(ROOT)} imports {name}" for name in taken]
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            spelled = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            loose = {
                "np.load": spelled.get("allow_pickle") != "False",
                "yaml.load": spelled.get("Loader") not in ("_Loader", "yaml.SafeLoader"),
            }
            called = ast.unparse(node.func)
            if called in RUNS_CODE or loose.get(called) or spelled.get("trust_remote_code", "False") != "False":
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node)}")
    assert wrong == []


def test_optional_packages_are_imported_where_they_are_used(trees):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert {"timm", "track"} <= set(extras)
    wrong = []
    for path, tree in trees.items():
        for statement in at_import(tree.body):
            for _, module in imported(statement):
                if module.partition(".")[0] in OPTIONAL:
                    wrong.append(f"{path.relative_to(ROOT)}:{statement.lineno} imports {module} for everybody")
    assert wrong == []


def at_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The import statements that run when the module is imported: not in functions, not for type checkers."""
    for statement in body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            yield statement
        elif isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING":
            yield from at_import(statement.orelse)
        elif not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            for field in ("body", "orelse", "finalbody"):
                yield from at_import(getattr(statement, field, []))
            for handler in getattr(statement, "handlers", []):
                yield from at_import(handler.body)
