"""synthkd as a library: the programs of docs/library.md run as they stand, and docs/api.md is what the code says."""

import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import structure

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
MINE, *PROGRAMS = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
TITLES = [program.splitlines()[0].removeprefix("# ") for program in PROGRAMS]
ACCURACY = {1: 80, 2: 75, 3: 80, 7: 80, 8: 60, 12: 60}
"""Percent of test digits that the student of a program gets right at least; by chance it is 10."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The reader's folder: their file, and what the programs leave."""
    top = tmp_path_factory.mktemp("reader")
    (top / "mine.py").write_text(MINE, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(top)
        patch.chdir(top)
        yield top
    sys.modules.pop("mine", None)


def test_there_are_twelve_programs_of_ten_lines_without_private_names() -> None:
    assert MINE.startswith("# mine.py\n")
    assert "synthkd" not in MINE, "it is what the reader has already"
    assert [int(title.partition(".")[0]) for title in TITLES] == list(range(1, 13))
    for title, program in zip(TITLES, PROGRAMS, strict=True):
        lines = [line for line in program.splitlines()[1:] if line.strip()]
        assert len(lines) <= 10, title
        assert not re.search(r"[ .]_[a-z]", program), title


@pytest.mark.parametrize("number", range(1, 13), ids=TITLES)
def test_a_program_runs(number: int, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(PROGRAMS[number - 1], TITLES[number - 1], "exec"), {"__name__": "__main__"})
    output = capsys.readouterr().out
    assert output
    if number in ACCURACY:
        last_line = output.splitlines()[-1]
        (first, *_) = re.findall(r"(\d+\.\d)%", last_line)
        assert float(first) > ACCURACY[number], output
    elif number == 10:
        assert "20 images are in the training set" in output
    assert {path.name for path in folder.iterdir()} <= {"mine.py", "runs", "__pycache__"}, "it leaves its run alone"


@pytest.fixture(scope="module")
def api() -> ModuleType:
    """The script that writes the page."""
    spec = importlib.util.spec_from_file_location("make_api", ROOT / "docs" / "make_api.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_public_names_is_current(api: ModuleType) -> None:
    committed = api.PAGE.read_text(encoding="utf-8")
    assert committed == api.page(), "run `python docs/make_api.py`"


def test_each_package_exports_names_that_are_there(api: ModuleType) -> None:
    for package in api.PACKAGES:
        module = importlib.import_module(package)
        names = api.public(module)
        assert names, package
        assert len(names) == len(set(names)), package
        for name in names:
            getattr(module, name)


def test_every_room_is_on_the_page_or_inside_another(api: ModuleType) -> None:
    inside = {
        "synthkd.system", "synthkd.reports.results", "synthkd.pipelines.dataset", "synthkd.pipelines.handover",
        "synthkd.pipelines.run", "synthkd.pipelines.scores", "synthkd.pipelines.student", "synthkd.pipelines.teacher",
        "synthkd.distillation.control", "synthkd.distillation.terms",
    }  # fmt: skip
    modules = structure.modules(ROOT, ["synthkd", "generators", "pipelines"], "synthkd")
    packages = {name for name, module in modules.items() if module.path.name == "__init__.py"}
    assert packages - set(api.PACKAGES) == inside
