"""A recipe is a program, a folder is data: what somebody sent runs nothing, whatever job it is given to."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from synthkd.errors import ConfigError, ModelError
from synthkd.imports import allowing, resolve
from synthkd.models import build_model, load, save
from synthkd.pipelines.cli import main
from synthkd.settings import ZooModel
from synthkd.system.sealed import sealed, unsealed
from synthkd.types import ImageSpec

REFUSED = "nothing of it was run"
DISTILL = {
    "teacher": {
        "kind": "train",
        "data": {"kind": "digits"},
        "model": {"arch": "convnet", "width": 4},
        "training": {"steps": 4, "batch_size": 32},
    },
    "student": {"arch": "mlp", "width": 8},
    "transfer_set": {
        "generator": {"batch_size": 16, "width": 4, "latent": 8, "steps": 1},
        "bank": {"capacity": 64},
    },
    "phases": [{"kind": "joint", "steps": 4, "every": 2}],
    "distill": {"batch_size": 16},
    "mix": {"mixup": 0.0},
    "device": "cpu",
}
FACTORY = """
import torch
from torch import nn


def make(width):
    body = (nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*body, nn.Linear(width, 10))
"""
RUN_ALL = """
import contextlib, io, json, sys
from synthkd.pipelines.cli import main

found = []
for words in json.load(sys.stdin):
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        found.append(main(words))
    found[-1] = [found[-1], said.getvalue()]
print(json.dumps(found))
"""


def poisoned(folder: Path, command: str) -> None:
    """A saved model whose description names a function that runs a command."""
    config = json.loads((folder / "config.json").read_text())
    config["recipe"] = {"kind": "load", "model": "os:system", "options": {"command": command}}
    config.pop("checksum", None)
    (folder / "config.json").write_text(json.dumps(config))


def received(top: Path) -> None:
    """Folders that somebody could send; each would run a command that leaves a canary."""
    spec = ImageSpec(1, 8, 8, 10)
    model = build_model(ZooModel(arch="convnet", width=4), spec, (0.5,), (0.5,)).eval()
    save(model, top / "my_teacher")
    save(model, top / "their_model")
    poisoned(top / "their_model", "touch CANARY1")
    shutil.copytree(top / "their_model", top / "their_run/teach/teacher")
    generator = {"format": 1, "settings": {"kind": "pixels"}, "spec": dict(vars(spec)), "seed": 0}
    for run in ("their_run", "their_run2"):
        (top / run / "generator").mkdir(parents=True, exist_ok=True)
        (top / run / "generator/generator.json").write_text(json.dumps(generator))
    teacher = {"kind": "load", "model": "os:system", "options": {"command": "touch CANARY2"}, "channels": 1}
    (top / "their_run2/config.yaml").write_text(json.dumps({"teacher": {**teacher, "size": 8, "classes": 10}}))
    (top / "their_gen/hub").mkdir(parents=True)
    (top / "their_gen/hub/hubconf.py").write_text("import os\nos.system('touch CANARY3')\ndef f(**k): return None\n")
    hub = {"repo_or_dir": "their_gen/hub", "model": "f", "source": "local"}
    generator["settings"] = {"kind": "python", "target": "torch.hub:load", "options": hub}
    (top / "their_gen/generator.json").write_text(json.dumps(generator))


def words(job: str, recipe: dict[str, object], *more: str) -> list[str]:
    return [job, *(f"{key}={json.dumps(value)}" for key, value in recipe.items()), *more]


def test_a_received_folder_runs_nothing_in_any_job(tmp_path: Path) -> None:
    received(tmp_path)
    mine, theirs = ({"kind": "load", "model": name} for name in ("my_teacher", "their_model"))
    saved = {"kind": "saved", "path": "their_gen"}
    distillation = {key: DISTILL[key] for key in ("phases", "distill", "mix")}
    given = {"device": "cpu", "student": {"arch": "mlp"}}
    distill, made = {**distillation, **given}, {"generator": saved}
    compress = {**given, "distillation": distillation, "export": {"formats": []}}
    audited = {"members": {"data": {"kind": "digits"}, "split": "train"}, "nonmembers": {"data": {"kind": "digits"}}}
    cases = [
        words("generate", {"run": "their_run", "per_class": 1}, "--dry-run"),
        words("generate", {"run": "their_run", "per_class": 1}, "out=a"),
        words("generate", {"run": "their_run2", "per_class": 1}, "--dry-run"),
        words("generate", {"run": "their_run2", "per_class": 1}, "out=b"),
        words("generate", {"teacher": mine, "run": "their_gen", "per_class": 1}, "out=c"),
        words("generate", {"teacher": mine, "generator": saved, "per_class": 1}, "--dry-run"),
        words("generate", {"teacher": theirs, "generator": {"kind": "pixels"}, "per_class": 1}, "out=d"),
        words("distill", {**distill, "teacher": mine, "transfer_set": made}, "out=e"),
        words("distill", {**distill, "teacher": theirs}, "--dry-run"),
        words("distill", {**distill, "teacher": mine, "student": theirs, "inherit": False}, "out=f"),
        words("compress", {**compress, "teacher": mine}, f"distillation.transfer_set={json.dumps(made)}", "out=g"),
        words("compress", {**compress, "teacher": theirs}, "--dry-run"),
        words("teach", {"data": {"kind": "digits"}, "model": theirs, "device": "cpu"}, "out=h"),
        words("evaluate", {"generated": ["my_teacher"], "real": "my_teacher", "teacher": theirs}, "out=i"),
        words("audit", {**audited, "nonmembers": audited["members"], "student": theirs}, "--dry-run"),
    ]
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL],
        input=json.dumps(cases), cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    for case, (code, said) in zip(cases, json.loads(done.stdout.splitlines()[-1]), strict=True):
        assert (code, said.count("\n")) == (ModelError.exit_code, 1), (case, said)
        assert REFUSED in said, (case, said)
        assert "trust=their" in said, (case, said)
    assert not list(tmp_path.glob("CANARY*"))


def test_weights_of_a_network_in_memory_go_into_a_network_of_the_caller_alone(tmp_path: Path) -> None:
    settings = ZooModel(arch="mlp", width=4)
    save(build_model(settings, ImageSpec(1, 8, 8, 10)), tmp_path)
    config = unsealed((tmp_path / "config.json").read_bytes())
    config["recipe"] = {"kind": "given", "model": "os:system", "sha256": ""}
    (tmp_path / "config.json").write_bytes(sealed(config))
    for trust in (False, True):
        with pytest.raises(ModelError, match=r"given in memory \(os:system\): build it"):
            load(tmp_path, trust=trust)
    own = build_model(settings, ImageSpec(1, 8, 8, 10)).body
    assert load(tmp_path, network=own).body is own


def test_a_received_unfinished_run_runs_nothing_when_it_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = words("distill", DISTILL, "out=run")
    assert main(asked) == 0
    (tmp_path / "run/result.json").unlink()
    taught = unsealed((tmp_path / "run/teach/result.json").read_bytes())
    (tmp_path / "run/teach/result.json").write_bytes(sealed({**taught, "files": {}}))  # as a sender would make it
    poisoned(tmp_path / "run/teach/teacher", f"touch {tmp_path}/CANARY")
    capsys.readouterr()
    assert main(asked) == ModelError.exit_code
    said = capsys.readouterr().err
    assert REFUSED in said
    assert "run/teach/teacher/config.json" in said
    assert not (tmp_path / "CANARY").exists()


def test_functions_of_the_recipe_run_and_resume_without_further_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Teacher and student come from a function of the user's; the same recipe goes on, and reads what it saved."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("own_nets.py").write_text(FACTORY)
    own = {"kind": "load", "model": "own_nets:make", "channels": 1, "size": 8, "classes": 10}
    assert isinstance(DISTILL["teacher"], dict)
    teacher = DISTILL["teacher"] | {"model": {**own, "options": {"width": 6}}}
    asked = words("distill", {**DISTILL, "teacher": teacher, "student": {**own, "options": {"width": 3}}}, "out=run")
    assert main(asked) == 0
    Path("run/result.json").unlink()
    assert main(asked) == 0

    # another call has to say so: by the folder, or by the same function with the same options
    generate = ["generate", "run=run", "per_class=1", "device=cpu"]
    assert main([*generate, "out=refused"]) == ModelError.exit_code
    assert "run/teach/teacher/config.json names 'own_nets:make'" in capsys.readouterr().err
    assert main([*generate, "trust=run", "out=trusted"]) == 0
    assert main([*generate, "trust=nowhere", "--dry-run"]) == ConfigError.exit_code
    assert "trust: nowhere is no folder" in capsys.readouterr().err
    with pytest.raises(ModelError, match=REFUSED):
        load("run")
    assert load("run", trust=True).spec.classes == 10
    Image.new("L", (8, 8)).save("digit.png")
    assert main(["predict", "run", "digit.png"]) == ModelError.exit_code
    assert "say trust=run/student; or" in capsys.readouterr().err
    assert main(["predict", "run", "digit.png", "trust=run/student"]) == 0
    assert capsys.readouterr().out.startswith("digit.png\t")
    assert main(["predict", "run", "trust=run"]) == ConfigError.exit_code
    assert "no image beside it" in capsys.readouterr().err


def test_only_the_same_call_is_allowed_by_a_recipe(tmp_path: Path) -> None:
    source = tmp_path / "theirs" / "config.json"
    source.parent.mkdir()
    recipe = {"student": {"model": "os:getenv", "options": {"key": "HOME"}}}
    with pytest.raises(ModelError, match=REFUSED):
        resolve("os:getenv", "model", source, {"key": "HOME"})
    assert resolve("os:getenv", "model", None) is os.getenv  # the caller's own word, outside of any job
    with allowing(recipe):
        assert resolve("os:getenv", "model", source, {"key": "HOME"}) is os.getenv
        for target, options in (("os:getenv", {"key": "PATH"}), ("os:getenv", {}), ("os:system", {"key": "HOME"})):
            with pytest.raises(ModelError, match=REFUSED):
                resolve(target, "model", source, options)
        with pytest.raises(ModelError, match="this recipe does not name it"):
            resolve("os:system", "model", None)
    with allowing(recipe), allowing(folders=[source.parent]):
        assert resolve("os:system", "model", source) is os.system
        with pytest.raises(ModelError, match=REFUSED):
            resolve("os:system", "model", tmp_path / "theirs_too" / "config.json")
    with pytest.raises(ModelError, match=REFUSED):
        resolve("os:system", "model", source)
