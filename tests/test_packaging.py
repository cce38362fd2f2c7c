import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import synthkd

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FOLDERS = {"synthkd": "synthkd", **{name: f"synthkd/{name}" for name in ("configs", "generators", "pipelines")}}


def modules() -> list[str]:
    """The files that a wheel must have, by their path in the wheel, found without following links."""
    found = []
    for folder, installed in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            inside = path.relative_to(ROOT / folder)
            if not any((ROOT / folder / part).is_symlink() for part in inside.parents):
                found.append(f"{installed}/{inside.as_posix()}")
    return found


def test_every_package_of_the_tree_is_listed():
    packages = {path.rpartition("/")[0].replace("/", ".") for path in modules()}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == packages


@pytest.mark.parametrize("name", ["generators", "pipelines", "configs"])
def test_links_are_relative_and_lead_to_the_top_level(name):
    link = ROOT / "synthkd" / name
    if not link.is_symlink():
        pytest.skip("this checkout was made without symbolic links")
    assert link.readlink() == Path("..") / name


def test_version_is_that_of_the_project():
    assert synthkd.__version__ == PROJECT["project"]["version"]


def test_load_is_that_of_the_models():
    from synthkd.models.files import load

    assert synthkd.load is load
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        synthkd.nonsense  # noqa: B018


def test_constraints_pin_every_requirement_within_its_range():
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    project = PROJECT["project"]
    extras = project["optional-dependencies"].values()
    for requirement in map(Requirement, [*project["dependencies"], *(text for extra in extras for text in extra)]):
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


def test_the_suite_installs_every_extra():
    """Else the tests that need one are skipped everywhere."""
    extras = PROJECT["project"]["optional-dependencies"]
    assert {text for extra in extras.values() for text in extra} == set(extras["test"])


def test_the_wheel_has_the_tree_and_nothing_else(tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in FOLDERS:
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, tree)
    wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    finished = subprocess.run([*wheel, "-w", tmp_path, tree], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    (built,) = tmp_path.glob("*.whl")
    files = [name for name in zipfile.ZipFile(built).namelist() if not re.match(r"synthkd-[^/]*\.dist-info/", name)]
    data = PROJECT["tool"]["setuptools"]["package-data"]
    folders = {package: ROOT / package.replace(".", "/") for package in data}
    expected = {
        *modules(),
        *(
            path.relative_to(ROOT).as_posix()
            for package, patterns in data.items()
            for pattern in patterns
            for path in folders[package].glob(pattern)
        ),
    }
    named = {"synthkd/py.typed", "synthkd/configs/digits.yaml", "synthkd/reports/templates/run.html.jinja"}
    assert named < expected
    assert sorted(files) == sorted(expected)
