import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from synthkd import pipelines
from synthkd.errors import MissingExtraError, TrainingError
from synthkd.imports import own
from synthkd.pipelines import cli, doctor
from synthkd.pipelines.config import DistillConfig
from synthkd.pipelines.config.recipes import KEYS, recipes
from synthkd.settings import yaml_text
from synthkd.settings.load import load_config

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def calls(monkeypatch):
    """Let `synthkd distill` call a stand-in, and collect its (configuration, dry_run)."""
    seen = []

    def distill(config, *, dry_run=False):
        seen.append((config, dry_run))
        return "a summary"

    jobs = SimpleNamespace(distill=distill)
    monkeypatch.setitem(sys.modules, "synthkd.stand_in_jobs", jobs)
    monkeypatch.setitem(cli.VERBS, "distill", replace(cli.VERBS["distill"], function="synthkd.stand_in_jobs:distill"))
    return seen


@pytest.fixture
def failing(monkeypatch):
    """Let `synthkd distill` raise what the test says."""

    def fail(error):
        monkeypatch.setitem(sys.modules, "synthkd.failing_jobs", SimpleNamespace(distill=Mock(side_effect=error)))
        monkeypatch.setitem(
            cli.VERBS, "distill", replace(cli.VERBS["distill"], function="synthkd.failing_jobs:distill")
        )

    return fail


def python(code: str, cwd: Path = ROOT) -> str:
    finished = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_a_job_gets_its_configuration_and_its_summary_is_printed(calls, capsys):
    assert cli.main(["distill", str(ROOT / "configs/digits.yaml"), "seed=3"]) == 0
    ((config, dry_run),) = calls
    assert isinstance(config, DistillConfig)
    assert (config.seed, dry_run) == (3, False)
    assert capsys.readouterr().out == "a summary\n"


@pytest.mark.parametrize(
    "words", [["digits", "seed=3", "--dry-run"], ["--dry-run", "digits", "seed=3"], ["digits", "--dry-run", "seed=3"]]
)
def test_a_recipe_is_found_by_name_and_options_may_stand_anywhere(calls, words, tmp_path, monkeypatch):
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    assert cli.main(["distill", *words]) == 0
    ((config, dry_run),) = calls
    assert dry_run
    assert config == load_config(DistillConfig, ROOT / "configs/digits.yaml", ["seed=3"])


def test_a_configuration_may_consist_of_settings_alone(calls):
    assert cli.main(["distill", "teacher={kind: load, model: t}", "student={arch: mlp}"]) == 0
    assert calls[0][0].teacher.model == "t"


@pytest.mark.parametrize("recipe", [[], ["digits"]])
def test_a_setting_may_be_longer_than_a_path(calls, recipe):
    names = [f"a class of number {number}" for number in range(40)]
    words = [f"teacher={{kind: load, model: t, class_names: {json.dumps(names)}}}", "student={arch: mlp}"]
    assert cli.main(["distill", *recipe, *words]) == 0
    assert calls[0][0].teacher.class_names == tuple(names)


def test_a_file_with_an_equals_sign_in_its_path_is_a_file(calls, tmp_path):
    path = tmp_path / "seed=1.yaml"
    path.write_text("teacher: {kind: load, model: here}\nstudent: {arch: mlp}\n")
    assert cli.main(["distill", str(path)]) == 0
    assert calls[0][0].teacher.model == str(path.parent / "here")


@pytest.mark.parametrize("name", ["lr=0.1", "it #2", "\N{GRINNING FACE}", "a\u2028b: 'c' \x7f"])
def test_a_run_may_have_any_name(calls, capsys, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    run = Path("runs", name)
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("teacher: {kind: load, model: t}\nstudent: {arch: mlp}\nphases: []\n")
    assert cli.main(["distill", str(run)]) == 0
    assert calls[0][0].out == str(run)
    capsys.readouterr()
    assert cli.main(["config", "show", "evaluate", str(run), "real=x"]) == 0
    assert yaml_text.parse(capsys.readouterr().out)["generated"] == [str(run)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["distill", "digits", "sed=1"], "error: sed: unknown key (did you mean 'seed'?)\n"),
        (["distill", "digits", "extra"], "error: extra: expected key=value or section.key=value\n"),
        (
            ["distill", "digits", "seed=x", "lr=1"],
            f"error: seed: expected a whole number >= 0 and <= {2**63 - 1}, got 'x'\nerror: lr: ",
        ),
        (["distill", "digits", "--seed=1"], "error: --seed=1: unknown option; settings are written key=value"),
        (
            ["distill", "digits", "generator.kind=pixels"],
            "error: generator is part of transfer_set now: move it into the transfer_set of this recipe\n",
        ),
        (
            ["distill", "teacher={kind: load, model: t}", "student={arch: mlp}", "generator.kind=pixels"],
            "error: generator is part of transfer_set now: write transfer_set: {kind: generated, generator: {kind: "
            "pixels}}\n",
        ),
        (["distill", "digit"], "error: digit: no such file and no such recipe (recipes of distill: "),
        (["distill", "dafl"], "; did you mean 'methods/dafl'?"),
        (["teach", "digits"], "error: digits: this recipe is for `synthkd distill`, not for `synthkd teach`\n"),
        (["recipes", "all"], "error: all: unexpected argument (see --help)\n"),
        (["destill", "digits"], "invalid choice: 'destill'"),
    ],
)
def test_a_mistake_ends_with_exit_code_2_and_calls_nothing(calls, capsys, words, message):
    try:
        code = cli.main(words)
    except SystemExit as exit_:  # argparse's own complaints
        code = exit_.code
    assert code == 2
    assert not calls
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (TrainingError("loss is nan"), 5, "error: loss is nan\n"),
        (
            MissingExtraError("timm", "timm", "timm:x"),
            7,
            "error: timm:x needs the package 'timm': pip install 'synthkd[timm]'\n",
        ),
        (KeyboardInterrupt(), 130, "interrupted; the same command resumes\n"),
    ],
)
def test_what_a_job_raises_becomes_a_line_and_an_exit_code(failing, capsys, error, code, message):
    failing(error)
    assert cli.main(["distill", "digits"]) == code
    assert capsys.readouterr().err == message


def test_a_defect_keeps_its_traceback(failing):
    failing(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        cli.main(["distill", "digits"])


def test_only_the_first_process_of_torchrun_prints(calls, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert cli.main(["distill", "digits"]) == 0
    assert len(calls) == 1
    assert cli.main(["recipes"]) == 0
    assert capsys.readouterr().out == ""


def test_config_show_prints_what_loads_equal(tmp_path, capsys):
    assert cli.main(["config", "show", "distill", "digits", "seed=5"]) == 0
    (tmp_path / "c.yaml").write_text(capsys.readouterr().out)
    expected = load_config(DistillConfig, ROOT / "configs/digits.yaml", ["seed=5"])
    assert load_config(DistillConfig, tmp_path / "c.yaml", []) == expected


@pytest.mark.parametrize(
    ("job", "forms", "recipes"),
    [("distill", "a YAML file, a run directory or the name of a recipe;", True), ("evaluate", "a YAML file;", False)],
)
def test_the_help_of_a_job_says_where_its_keys_are_and_what_a_configuration_is(job, forms, recipes, capsys):
    with pytest.raises(SystemExit):
        cli.main([job, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert f"CONFIG is {forms}" in text
    assert f"synthkd config schema {job}" in text
    assert ("synthkd recipes" in text) == recipes


def test_config_schema_describes_every_key(capsys):
    assert cli.main(["config", "schema", "distill"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert set(schema["properties"]) == set(DistillConfig.model_fields)
    assert schema["properties"]["checkpoint_every"]["description"] == "Steps between checkpoints."


@pytest.mark.parametrize("job", cli.VERBS)
def test_every_key_has_a_description_or_is_a_section_that_has_one(job):
    schema = own(cli.VERBS[job].config).model_json_schema()
    sections = {job: schema, **schema["$defs"]}
    plain = [
        f"{name}.{key}"
        for name, section in sections.items()
        for key, value in section.get("properties", {}).items()
        if not {"description", "const", "$ref"} & value.keys()  # a const is the `kind` of its section
    ]
    assert plain == []
    assert [
        name for name, section in sections.items() if "properties" in section and "description" not in section
    ] == []


def test_recipes_are_listed_and_every_one_is_valid(capsys):
    assert cli.main(["recipes"]) == 0
    out = capsys.readouterr().out
    assert {recipe.name for recipe in recipes()} == {
        path.relative_to(ROOT / "configs").with_suffix("").as_posix() for path in (ROOT / "configs").rglob("*.yaml")
    }
    for recipe in recipes():
        assert recipe.name in out
        assert recipe.summary in out
        assert recipe.job in cli.VERBS, f"configs/{recipe.name}.yaml: the first line must be '# <job>: <summary>'"
        assert cli.main(["config", "show", recipe.job, recipe.name]) == 0


def test_nothing_but_a_computing_verb_imports_torch():
    commands = [
        ["--help"],
        ["--version"],
        ["distill", "--help"],
        ["distill", "digits", "sed=1"],
        ["config", "show", "distill", "digits"],
        ["config", "schema", "teach"],
        ["recipes"],
    ]
    python(
        f"""
import sys
from synthkd.pipelines.cli import main
for words in {commands!r}:
    try:
        main(words)
    except SystemExit:
        pass
    heavy = {{"torch", "torchvision", "numpy", "matplotlib", "accelerate", "diffusers"}} & set(sys.modules)
    assert not heavy, (words, heavy)
"""
    )


def test_python_m_synthkd_works_beside_folders_of_the_same_names(tmp_path):
    for name in ("pipelines", "generators", "configs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('the wrong package')")
    finished = subprocess.run(
        [sys.executable, "-m", "synthkd", "recipes"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    assert "digits" in finished.stdout


def test_a_closed_pipe_is_no_error():
    command = f"set -o pipefail; '{sys.executable}' -m synthkd config schema distill | head -1"
    finished = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "{\n", "")


# --- doctor ---------------------------------------------------------------------------------------------------------


def test_doctor_reports_versions_devices_and_extras(capsys):
    import torch

    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert f"torch {torch.__version__}".split("+")[0] in out
    assert "cpu: " in out
    assert "\n  timm: " in out


def test_doctor_names_the_pip_line_of_what_is_missing_or_too_old(monkeypatch):
    versions = {"torch": "1.0", "numpy": None}
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda r: versions.get(r.name, real(r)) if r.name != "timm" else None)
    report = doctor.examine()
    assert "  torch 1.0: pip install 'torch>=2.10'" in report
    assert "  numpy missing: pip install 'numpy>=2.0'" in report
    assert "  timm: missing timm: pip install 'synthkd[timm]'" in report


def test_doctor_reads_the_checkout_when_nothing_is_installed(monkeypatch):
    def missing(name):
        raise doctor.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.metadata, "distribution", missing)
    required, extras = doctor._requirements()
    assert "torch>=2.10" in map(str, required)
    assert [str(requirement) for requirement in extras["timm"]] == ["timm>=1.0"]


def test_doctor_says_when_runs_cannot_be_written(tmp_path, monkeypatch):
    assert doctor._runs(tmp_path / "runs") == f"runs are written to {tmp_path / 'runs'}"
    monkeypatch.setattr(doctor.os, "access", lambda path, _: path != tmp_path)
    assert "cannot be written" in doctor._runs(tmp_path / "runs")


# --- the package ----------------------------------------------------------------------------------------------------

STAND_IN = """
import sys, importlib.abc, importlib.machinery
class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name in {f"synthkd.pipelines.{job}" for job in ("audit", "compress", "distill", "generate", "teach")}:
            return importlib.machinery.ModuleSpec(name, self)
    def exec_module(self, module):
        name = module.__name__.rpartition(".")[2]
        exec(f"def {name}(): return {name!r}\\nextra = 1", module.__dict__)
sys.meta_path.insert(0, Finder())
"""


@pytest.mark.parametrize(
    "imports",
    [
        "from synthkd.pipelines import distill",
        "import synthkd.pipelines.distill; from synthkd.pipelines import distill",
        "from synthkd.pipelines.distill import extra; from synthkd.pipelines import distill",
        "from synthkd.pipelines import distill; import synthkd.pipelines.distill",
        "import synthkd.pipelines.teach; import synthkd.pipelines; distill = synthkd.pipelines.distill",
        "import synthkd.pipelines.distill as distill",
        "import importlib; importlib.import_module('synthkd.pipelines.distill'); from synthkd.pipelines import *",
        "import synthkd.pipelines.distill; del sys.modules['synthkd.pipelines.distill']; "
        "import synthkd.pipelines.distill; from synthkd.pipelines import distill",
    ],
)
def test_a_job_of_the_package_is_the_function_in_any_import_order(imports):
    checks = """
assert distill() == "distill"
import synthkd.pipelines
assert synthkd.pipelines.distill() == "distill" and synthkd.pipelines.teach() == "teach"
from synthkd.pipelines.distill import extra
assert sys.modules["synthkd.pipelines.distill"].extra == 1
"""
    python(f"{STAND_IN}\n{imports}\n{checks}")


def test_the_package_alone_imports_no_job():
    python("import sys, synthkd, synthkd.pipelines; assert 'torch' not in sys.modules")


def test_the_jobs_of_the_package_are_the_verbs():
    assert pipelines.__all__ == list(cli.VERBS)
    for name, verb in cli.VERBS.items():
        assert verb.function == f"synthkd.pipelines.{name}:{name}"
        assert cli.own(verb.function) is getattr(pipelines, name)
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        pipelines.nonsense  # noqa: B018


@pytest.mark.parametrize("name", ["generators", "pipelines"])
def test_a_second_copy_of_a_package_is_refused(name):
    python(
        f"try:\n    import {name}\nexcept ImportError as error:\n    assert str(error) == 'import synthkd.{name}'\n"
        "else:\n    raise SystemExit(1)"
    )


def test_a_recorded_configuration_keeps_its_paths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = "data: {kind: npz, path: images.npz}\nmodel: {arch: mlp}\n"
    for name, expected in (("mine.yaml", str(tmp_path / "images.npz")), ("config.yaml", "images.npz")):
        (tmp_path / name).write_text(recipe)
        if name == "config.yaml":
            (tmp_path / ".lock").touch()  # of a run
        assert cli.main(["config", "show", "teach", str(tmp_path / name)]) == 0
        assert f"path: {expected}\n" in capsys.readouterr().out


def test_a_recorded_configuration_tells_its_job():
    for name, verb in cli.VERBS.items():
        fields = own(verb.config).model_fields
        assert [of for key, of in KEYS.items() if key in fields] == [name]
