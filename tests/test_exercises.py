"""The exercises of CONTRIBUTING.md, carried out: their files are written beside the package, tested and used.

And the map of CONTRIBUTING.md, which has every room and only imports upwards.
"""

import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import structure
import torch
import yaml

from synthkd import pipelines
from synthkd.data.read.splits import split
from synthkd.metrics.features import Features
from synthkd.metrics.named_scores import SuiteOptions
from synthkd.metrics.score import ScoredSet
from synthkd.metrics.suite import measure
from synthkd.pipelines import cli, distill, generate, teach
from synthkd.pipelines.config import DistillConfig, GenerateConfig, TeachConfig
from synthkd.settings import DataSettings
from synthkd.settings.load import load_config

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\S*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
FILES = {name: code for kind, code in BLOCKS if kind == "python" for name in re.findall(r"\A# (\S+\.py)$", code, re.M)}
ADDED = [code for kind, code in BLOCKS if kind == "python" and code.startswith("# added to ")]
SECTIONS = [yaml.safe_load(text) for kind, text in BLOCKS if kind == "yaml"]

DIGITS = {"kind": "digits", "per_class": 20}
QUICK = {"batch_size": 32, "steps": 2}
SIDES = (("generated", 1.0), ("real", 0.0))


def name_of(path: str) -> str:
    """The name by which the file of an exercise is imported."""
    dotted = path.removesuffix(".py").replace("/", ".")
    return f"synthkd.{dotted}" if path.startswith(("generators/", "pipelines/")) else dotted


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with every file of the exercises, which can be imported as if they were in the package."""
    for path, code in FILES.items():
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(code, encoding="utf-8")
        package = name_of(path).rpartition(".")[0]
        if package.startswith("synthkd"):
            search = importlib.import_module(package).__path__
            monkeypatch.setattr(sys.modules[package], "__path__", [*dict.fromkeys([*search, str(file.parent)])])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for path in FILES:
        package, _, name = name_of(path).rpartition(".")
        if sys.modules.pop(name_of(path), None) and package:
            vars(sys.modules[package]).pop(name, None)


TESTS = [path for path in FILES if path.startswith("tests/")]


def test_there_is_an_exercise_for_each_kind_of_thing() -> None:
    headings = re.findall(r"^### An? (.+)$", TEXT, re.MULTILINE)
    assert headings == ["loss", "generator", "dataset format", "score", "job"]
    assert len(FILES) == sum(kind == "python" for kind, _ in BLOCKS) - len(ADDED)
    assert len(TESTS) == 4
    for path in FILES:
        assert not (ROOT / path).exists(), f"{path} is there already"
        assert path == "my_terms.py" or (ROOT / path).parent.is_dir(), f"{path}: no such folder any more"


@pytest.mark.parametrize("path", [path for path in FILES if path not in TESTS])
def test_an_exercise_keeps_the_rules_of_the_house(folder: Path, path: str) -> None:
    known = structure.modules(folder, [Path(path).parts[0] if "/" in path else "."], "synthkd")
    (module,) = [module for module in known.values() if str(module.path) == path]
    for one in structure.definitions(module):
        assert one.documented or not one.public or path == "my_terms.py", one.name
        if isinstance(one.node, structure.Function):
            assert None not in one.annotations.values(), one.name


def run_tests(path: Path, folder: Path) -> None:
    """Call the test functions of a file, once for each set of their parameters; `tmp_path` is `folder`."""
    spec = importlib.util.spec_from_file_location(f"exercise_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    functions = [function for name, function in vars(module).items() if name.startswith("test_")]
    assert functions
    for function in functions:
        place = {"tmp_path": folder} if "tmp_path" in inspect.signature(function).parameters else {}
        marks = [mark.args for mark in getattr(function, "pytestmark", ()) if mark.name == "parametrize"]
        for case in [{name: value} for name, values in marks for value in values] or [{}]:
            function(**place, **case)


@pytest.mark.parametrize("path", TESTS)
def test_the_tests_of_an_exercise_pass(folder: Path, path: str) -> None:
    run_tests(folder / path, folder)


def test_a_loss_is_a_term_of_a_recipe(folder: Path) -> None:
    source = {
        "teacher": {"kind": "train", "data": DIGITS, "model": {"arch": "convnet", "width": 4}, "training": QUICK},
        "student": {"arch": "mlp", "width": 8, "depth": 1},
        "transfer_set": {"kind": "real", "data": DIGITS},
        "phases": [{"kind": "refine", "steps": 2}],
        "device": "cpu",
        "log_every": 1,
    }
    (section,) = [section for section in SECTIONS if "distill" in section]
    run = distill(load_config(DistillConfig, source | section, [f"out={folder / 'run'}"])).directory
    assert '"student/my_terms:sure"' in (run / "metrics.jsonl").read_text(encoding="utf-8")


def test_a_generator_makes_a_dataset(folder: Path) -> None:
    teacher = {"kind": "train", "data": DIGITS, "model": {"arch": "convnet", "width": 4}, "training": QUICK}
    (section,) = [section["transfer_set"] for section in SECTIONS if "transfer_set" in section]
    source = {"teacher": teacher, "per_class": 3, "device": "cpu", **section}
    result = generate(load_config(GenerateConfig, source, [f"out={folder / 'run'}"]))
    assert result.values["dataset"]["count"] == 30


def test_a_dataset_format_trains_a_teacher(folder: Path) -> None:
    table = folder / "images.csv"
    table.write_text("".join(f"{n % 2},{','.join(str(250 * (n % 2) + n % 5) for _ in range(64))}\n" for n in range(40)))
    source = importlib.import_module("synthkd.data.read.pixel_table").read_pixel_table(table)
    splits = split(source, "table", test_fraction=0.2, holdout_fraction=0.1, seed=0)
    recipe = {"data": DIGITS, "model": {"arch": "mlp"}, "training": QUICK, "device": "cpu"}
    result = teach(load_config(TeachConfig, recipe, [f"out={folder / 'run'}"]), splits=splits)
    assert result.values["data"]["class_names"] == ["0", "1"]
    assert result.values["teacher"]["n"] == 8


@pytest.mark.usefixtures("folder")
def test_a_score_stands_beside_the_others() -> None:
    rows = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    generated, real = (ScoredSet(name, Features(rows + shift, None, "net", "", ""), None) for name, shift in SIDES)
    (spread,) = importlib.import_module("synthkd.metrics.spread").spread_score(generated, real)
    others = measure(generated, real, SuiteOptions(subsets=2, subset_size=10)).scores
    assert spread.name not in {score.name for score in others}
    assert (spread.n, spread.extractor) == (others[0].n, others[0].extractor)


def test_every_kind_of_dataset_has_a_case_where_the_exercise_says() -> None:
    kinds = {settings.__name__ for settings in get_args(get_args(DataSettings)[0])}
    cases = re.findall(r"case (\w+)\(\)", (ROOT / "synthkd/data/read/real.py").read_text(encoding="utf-8"))
    assert set(cases) == kinds


def test_every_generator_has_a_case_where_the_exercise_says() -> None:
    text = (ROOT / "generators/build.py").read_text(encoding="utf-8")
    assert {"InversionSettings", "PythonGenerator"} <= set(re.findall(r"case (\w+)\(\):", text))


@pytest.mark.usefixtures("folder")
def test_a_job_is_a_command_and_a_function(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cli, "VERBS", dict(cli.VERBS))
    monkeypatch.setattr(pipelines, "__all__", [*pipelines.__all__, "brightness"])
    (code,) = ADDED
    exec(code, vars(cli))
    assert cli.main(["brightness", "data.kind=digits"]) == 0
    assert re.fullmatch(r"digits: mean brightness 0\.3\d\d\n", capsys.readouterr().out)
    assert cli.main(["brightness", "data.kind=digits", "--dry-run"]) == 0
    assert capsys.readouterr().out == "digits: not measured\n"
    assert cli.main(["config", "show", "brightness", "data.kind=digits"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["data"]["kind"] == "digits"
    assert cli.main(["brightness"]) == 2
    assert "data: required" in capsys.readouterr().err
    config = importlib.import_module("synthkd.pipelines.config.brightness").BrightnessConfig
    assert str(pipelines.brightness(load_config(config, None, ["data.kind=digits"]), dry_run=True))


# The map

MODULES = structure.modules(ROOT, ["synthkd", "generators", "pipelines"], "synthkd")


def map_lines() -> list[str]:
    """The rooms of the map by the name of their package, from top to bottom."""
    (drawing,) = [text for kind, text in BLOCKS if not kind]
    rooms: list[str] = []
    for indent, name in re.findall(r"^( *)(\w+)/ ", drawing, re.MULTILINE):
        depth = len(indent) // 2
        path = [*rooms[-1].split("/")[:depth], name] if depth else [name]
        rooms.append("/".join(path))
    return [
        room.replace("/", ".") if room.startswith("synthkd") else f"synthkd.{room}".replace("/", ".") for room in rooms
    ]


def test_the_map_has_every_room() -> None:
    packages = {name for name, module in MODULES.items() if module.path.name == "__init__.py"}
    assert sorted(map_lines()) == sorted(packages)


def test_a_room_imports_only_from_rooms_above_it_on_the_map() -> None:
    order = {room: line for line, room in enumerate(map_lines())}
    wrong = []
    for edge in structure.imports(MODULES):
        room, other = structure.as_folders(edge)
        if room != other and {room, other} <= order.keys() and order[room] < order[other]:
            wrong.append(f"{edge}, and {other} stands below {room}")
    assert wrong == []
