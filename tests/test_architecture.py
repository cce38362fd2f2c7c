"""The rules of the house, read from the syntax trees of the sources: layers, circles, sizes, docstrings, names."""

import ast
import statistics
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import structure

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ["synthkd", "generators", "pipelines"]  # each may import those before it
ENTRY = ROOT / "synthkd" / "__main__.py"
OPTIONAL = {
    "datasets", "dp_accounting", "hypothesis", "mlflow", "mlxtend", "onnx", "onnx2pytorch", "onnxruntime",
    "onnxscript", "opacus", "optuna", "pyarrow", "pynvml", "pytest", "tensorboard", "timm", "torch_fidelity", "torchao",
    "torchmetrics", "trackio", "transformers", "wandb", "webdataset",
}  # fmt: skip

MODULES = structure.modules(ROOT, LAYERS, "synthkd")
DEFINITIONS = [one for module in MODULES.values() for one in structure.definitions(module)]
FUNCTIONS = [one for one in DEFINITIONS if isinstance(one.node, structure.Function)]


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
    return {ROOT / module.path: module.tree for module in MODULES.values()}


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
    "pkgutil.resolve_name", "runpy.run_module", "runpy.run_path", "torch.export.load", "torch.hub.load",
    "torch.jit.load", "yaml.full_load", "yaml.unsafe_load",
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


# Circles

FOLDED = {
    "modules": structure.as_modules,
    "folders": structure.as_folders,
    "packages": structure.as_layers(LAYERS[1:], "synthkd"),
}
"""What an import is between, for each sort of circle."""


@pytest.mark.parametrize("sort", FOLDED)
def test_there_is_no_circle(sort):
    edges = [edge for edge in structure.imports(MODULES) if edge.module != "synthkd.__main__"]
    assert structure.circles(edges, FOLDED[sort]) == []


def plant(root: Path, files: dict[str, str]) -> list[structure.Import]:
    """The imports of a tree of these files."""
    for name, source in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return structure.imports(structure.modules(root, ["house", "annex"], "house"))


def test_an_import_in_a_function_closes_a_circle_of_modules(tmp_path):
    files = {
        "house/__init__.py": "",
        "house/hall.py": "import house.cellar\nfrom house.cellar import wine\n",
        "house/cellar.py": "wine = 1\n\n\ndef stairs():\n    from house.hall import wine\n    return wine\n",
    }
    edges = plant(tmp_path, files)
    line = "house.hall -> house.cellar: closed by house/cellar.py:5 imports house.hall"
    assert structure.circles(edges, structure.as_modules) == [line]
    assert structure.circles([edge for edge in edges if ":5" not in edge.place], structure.as_modules) == []


def test_every_circle_is_found_however_long(tmp_path):
    around = {f"house/m{n}.py": f"from house import m{(n + 1) % 5}\n" for n in range(5)}
    lines = structure.circles(plant(tmp_path / "one", around), structure.as_modules)
    assert [line.count("->") for line in lines] == [4]
    pairs = {f"house/m{n}.py": f"import house.m{n ^ 1}\n" for n in range(6)}
    lines = structure.circles(plant(tmp_path / "three", pairs), structure.as_modules)
    assert [line.count("->") for line in lines] == [1, 1, 1]


def test_a_circle_of_folders_is_found_where_no_module_closes_one(tmp_path):
    files = {
        "house/up/bed.py": "from house.down.cup import tea\nfrom house.down import mug\n",
        "house/up/lamp.py": "",
        "house/down/__init__.py": "from house.down import cup\n",
        "house/down/cup.py": "tea = 1\n",
        "house/down/mug.py": "\nimport house.up.lamp\n",
    }
    edges = plant(tmp_path, files)
    assert structure.circles(edges, structure.as_modules) == []
    line = "house.up -> house.down: closed by house/down/mug.py:2 imports house.up.lamp"
    assert structure.circles(edges, structure.as_folders) == [line]


def test_a_circle_of_packages_is_found_where_no_folder_closes_one(tmp_path):
    files = {
        "house/hall.py": "from house.annex import shed\n",
        "house/garden.py": "",
        "annex/__init__.py": "import house.garden\nfrom house import garden\n",
        "annex/shed.py": "",
    }
    edges = plant(tmp_path, files)
    assert structure.circles(edges, structure.as_folders) == []
    line = "house.annex -> house: closed by house/hall.py:1 imports house.annex.shed"
    assert structure.circles(edges, structure.as_layers(["annex"], "house")) == [line]


# Sizes


def test_few_modules_stand_on_top():
    top = [name for name, module in MODULES.items() if module.path.parent == Path("synthkd")]
    top.remove("synthkd")
    assert len(top) <= 10, f"move one of them into the room it belongs to: {', '.join(top)}"


def test_files_are_short():
    lines = {str(module.path): module.lines for module in MODULES.values()}
    assert {path: count for path, count in lines.items() if count > 350} == {}, "split these files"
    assert statistics.median(lines.values()) <= 160


def test_functions_are_short():
    assert {one.name: one.lines for one in FUNCTIONS if one.lines > 60} == {}, "split these functions"
    lines = sorted(one.lines for one in FUNCTIONS)
    assert statistics.median(lines) <= 6
    assert lines[int(0.9 * len(lines))] <= 20


# Documentation and annotations


def test_everything_public_has_a_docstring():
    assert [one.name for one in DEFINITIONS if one.public and not one.documented] == []


def test_everything_is_annotated():
    wrong = [
        f"{one.name}: {parameter}"
        for one in FUNCTIONS
        for parameter, annotation in one.annotations.items()
        if annotation is None
    ]
    assert wrong == []


STATES = {"state_dict", "load_state_dict"}
"""torch has Any in these itself."""
ANYTHING = {
    "generators/embedding.py:Embedding.from_state",
    "generators/embedding.py:Embedding.statement",
    "pipelines/run/result.py:Result.values",
    "synthkd/compression/onnx_file.py:needed",
    "synthkd/compression/onnx_file.py:onnx_bytes",
    "synthkd/data/bank_disk.py:age_ordered",
    "synthkd/data/bank_rows.py:saved_rows",
    "synthkd/data/read/row_groups.py:leaf",
    "synthkd/data/read/row_groups.py:opened",
    "synthkd/data/read/samples.py:open_samples",
    "synthkd/data/written/card.py:card",
    "synthkd/data/written/writers.py:needed",
    "synthkd/imports.py:own",
    "synthkd/privacy/report.py:plain",
    "synthkd/privacy/report.py:privacy_report",
    "synthkd/reports/privacy.py:groups",
    "synthkd/reports/results/codec.py:to_json",
    "synthkd/reports/results/file.py:parse_result",
    "synthkd/reports/results/file.py:result_values",
    "synthkd/settings/base.py:Settings.refuse_old_form",
    "synthkd/settings/load.py:load_config",
    "synthkd/settings/plain.py:plain",
    "synthkd/settings/yaml_text.py:read_yaml",
    "synthkd/system/sealed.py:sealed",
    "synthkd/system/sealed.py:unsealed",
    "synthkd/system/text.py:parse_json",
    "synthkd/training/checkpoint.py:CheckpointStore.save",
    "synthkd/training/monitor.py:Monitor.rows",
    "synthkd/training/monitor.py:read_rows",
    "synthkd/training/shared_rows.py:open_rows",
    "synthkd/training/shared_rows.py:save_rows",
}
"""Functions that read or write whatever somebody put into a file (JSON, YAML, a checkpoint), or give what was imported
by name."""


def test_any_is_no_annotation_of_what_is_public():
    wrong = [
        f"{one.name}: {parameter}"
        for one in FUNCTIONS
        if one.public and one.name not in ANYTHING and one.node.name not in STATES
        for parameter, annotation in one.annotations.items()
        if structure.mentions(annotation, "Any") and "NDArray" not in ast.unparse(annotation)  # numpy has it itself
    ]
    assert wrong == [], "use a dataclass, a TypedDict, a protocol or object"


def test_the_list_of_functions_that_take_anything_is_up_to_date():
    used = {one.name for one in FUNCTIONS if any(structure.mentions(a, "Any") for a in one.annotations.values())}
    assert used >= ANYTHING, "take what no longer needs Any from the list"


# Names

FORBIDDEN = {
    "Pupil": "a student is a student",
    "Lessons": "auxiliary layers or terms",
    "Beside": "extra inputs of the contrastive terms",
    "Probed": "say what was measured",
    "Order": "say what is ordered",
    "Flowed": "say what flowed",
    "look": "forward, evaluation, release or check",
    "looks": "evaluations, releases or checks",
    "printed": "say what the text is",
    "f1": "plain",
    "f2": "dp_teacher",
    "f3": "dp_generator",
    "f4": "dp_both",
}
"""Names that say nothing to a reader from the field, and what says it."""
ON_DISK = {
    ("synthkd/settings/compression.py", "f1"),
    ("synthkd/settings/compression.py", "f2"),
    ("synthkd/settings/compression.py", "f3"),
    ("synthkd/settings/compression.py", "f4"),
    ("synthkd/privacy/journal.py", "looks"),
    ("pipelines/student/held_out.py", "look"),
    ("synthkd/privacy/verdict.py", "found"),
}
"""Words of files that earlier versions wrote and that are still read, and of seeds."""


def test_names_are_those_of_the_field():
    wrong = [
        f"{module.path}:{line} {name}: {FORBIDDEN[name]}"
        for module in MODULES.values()
        for name, line in (*structure.identifiers(module.tree), *structure.keys(module.tree))
        if name in FORBIDDEN and (str(module.path), name) not in ON_DISK
    ]
    assert wrong == []


PARTICIPLES = {"asked", "found", "kept", "known", "made", "said", "seen", "shown", "told"}


def test_variables_name_what_they_hold():
    wrong = [
        f"{module.path}:{line} {name}"
        for module in MODULES.values()
        for name, line in structure.bound(module.tree)
        if name in PARTICIPLES and (str(module.path), name) not in ON_DISK
    ]
    assert wrong == [], "a participle does not say what the variable holds"
