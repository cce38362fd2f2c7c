"""The student of a finished distillation is exported and measured without a step of training."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from synthkd.compression import run_onnx
from synthkd.errors import ConfigError, ModelError
from synthkd.models import build, load, save
from synthkd.pipelines import cli, distill
from synthkd.pipelines.compress import compress
from synthkd.pipelines.config import CompressConfig, DistillConfig
from synthkd.pipelines.run.result import Plan
from synthkd.settings import ZooModel
from synthkd.settings.load import load_config
from synthkd.types import ImageSpec

SPEC = ImageSpec(1, 8, 8, 10)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("finished")
    torch.manual_seed(0)
    save(build(ZooModel(arch="convnet", width=4), SPEC).eval(), top / "teacher", {})
    recipe: dict[str, Any] = {
        "teacher": {"kind": "load", "model": str(top / "teacher")},
        "student": {"arch": "mlp", "width": 4},
        "transfer_set": {"generator": {"batch_size": 20, "width": 4, "latent": 8, "steps": 1}},
        "phases": [{"kind": "joint", "steps": 2, "every": 2}],
        "distill": {"batch_size": 8},
        "device": "cpu",
    }
    distill(load_config(DistillConfig, recipe, [f"out={top / 'run'}"]))
    return top / "run"


def config_for(run: Path, out: Path, *settings: str) -> CompressConfig:
    return load_config(CompressConfig, None, [f"finished={run}", f"out={out}", "device=cpu", *settings])


def test_the_student_of_a_finished_run_is_handed_over_as_it_is(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    out = tmp_path / "run"
    command = ["compress", f"finished={finished}", f"out={out}", "device=cpu", "test={kind: digits}"]
    assert cli.main([*command, "export.formats=[int8]"]) == 0
    assert "export:  student.int8.onnx" in capsys.readouterr().out
    name = "student/model.safetensors"
    assert (out / name).read_bytes() == (finished / name).read_bytes()
    assert not {"teach", "distill", "audit"} & {path.name for path in out.iterdir()}, "nothing was trained"
    assert run_onnx(out / "export/student.int8.onnx", torch.zeros(1, 1, 8, 8)).shape == (1, 10)
    report = json.loads((out / "privacy_report.json").read_text())["verdict"]
    assert report["text"].startswith("NO GUARANTEE")
    assert "how they were made" in (out / "privacy_report.html").read_text()


@pytest.mark.parametrize("word", ["true", "FOLDER"])
def test_a_teacher_that_is_a_program_is_trusted_by_true_or_by_its_folder(
    finished: Path, tmp_path: Path, word: str
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    program = tmp_path / "there" / "teacher.pt"
    program.parent.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and what people have
        torch.jit.trace(load(finished.parent / "teacher"), torch.rand(2, 1, 8, 8)).save(program)  # type: ignore[no-untyped-call]
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["teacher"] = {"kind": "load", "model": str(program), "channels": 1, "size": 8, "classes": 10}
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(ModelError, match=r"a program of TorchScript, which would run.* say trust="):
        compress(config_for(run, tmp_path / "out", "export.formats=[]"))
    trust = word.replace("FOLDER", str(program.parent))
    compress(config_for(run, tmp_path / "out", "export.formats=[]", f"trust={trust}"))
    assert (tmp_path / "out" / "privacy_report.json").exists()


def test_to_trust_the_programs_of_a_finished_run_trusts_no_function(finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["teacher"] = {"kind": "load", "model": "antigravity:fly", "channels": 1, "size": 8, "classes": 10}
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(ModelError, match="code that would be imported and called; nothing of it was run"):
        compress(config_for(run, tmp_path / "out", "export.formats=[]", "trust=true"))


DRAWN: dict[str, Any] = {
    "by a generator": ({"kind": "generated", "generator": {"kind": "procedural"}}, {"kind": "joint", "every": 2}),
    "as an album": ({"kind": "procedural"}, {"kind": "refine"}),
}


def run_of(finished: Path, out: Path, transfer_set: dict[str, Any], phase: dict[str, Any]) -> None:
    """A run with teacher and student of the finished one."""
    recipe = yaml.safe_load((finished / "config.yaml").read_text())
    recipe = {key: recipe[key] for key in ("teacher", "student", "device")} | {"transfer_set": transfer_set}
    recipe |= {"phases": [{**phase, "steps": 2}], "distill": {"batch_size": 8}}
    distill(load_config(DistillConfig, recipe, [f"out={out}"]))


@pytest.mark.parametrize("source", DRAWN)
def test_a_student_of_drawn_pictures_is_calibrated_on_such(finished: Path, tmp_path: Path, source: str) -> None:
    pytest.importorskip("onnxruntime")
    run_of(finished, tmp_path / "drawn", *DRAWN[source])
    assert not (tmp_path / "drawn/generator").exists(), "it has no weights"
    compress(config_for(tmp_path / "drawn", tmp_path / "out", "export.formats=[int8]"))
    assert run_onnx(tmp_path / "out/export/student.int8.onnx", torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def test_a_student_of_real_images_alone_has_no_images_to_be_calibrated_on(finished: Path, tmp_path: Path) -> None:
    run_of(finished, tmp_path / "real", {"kind": "real", "data": {"kind": "digits"}}, {"kind": "refine"})
    with pytest.raises(ConfigError, match=r"saved no generator, .* a source of kind generated or procedural"):
        compress(config_for(tmp_path / "real", tmp_path / "out", "export.formats=[]"))


def test_its_plan_trains_nothing(finished: Path, tmp_path: Path) -> None:
    plan = compress(config_for(finished, tmp_path / "run", "export.formats=[program]"), dry_run=True)
    assert isinstance(plan, Plan)
    assert f"that of {finished}" in str(plan)
    assert "nothing is trained" in str(plan)


def test_what_is_no_finished_student_is_refused_in_a_line(finished: Path, tmp_path: Path) -> None:
    def refuses(said: str, run: Path, *settings: str) -> None:
        with pytest.raises(ConfigError, match=said) as raised:
            compress(config_for(run, tmp_path / "out", "export.formats=[]", *settings))
        assert "\n" not in str(raised.value)

    refuses("no directory", tmp_path / "nowhere")
    refuses("no run of `synthkd distill`", finished.parent / "teacher")
    refuses("student: nothing is trained", finished, "student.arch=mlp")
    refuses("distillation: nothing is trained", finished, "distillation.inherit=true")
    refuses("audit: nothing is trained", finished, "audit.canaries=100")
    asked = Path(shutil.copytree(finished, tmp_path / "asked"))
    settings = yaml.safe_load((asked / "config.yaml").read_text())
    settings["teacher"] = {"kind": "labels", "url": "http://127.0.0.1", "queries": 100, "size": 8, "classes": 10}
    settings["transfer_set"] = {"generator": {"kind": "procedural"}}
    (asked / "config.yaml").write_text(yaml.safe_dump(settings))
    refuses("is a black box, whose size and speed are not known", asked)
    copy = Path(shutil.copytree(finished, tmp_path / "copy"))
    shutil.rmtree(copy / "generator")
    (copy / "result.json").unlink()
    refuses("is not finished; finish it first", copy)
    with pytest.raises(ConfigError, match="a teacher is missing: set teacher, or finished"):
        load_config(CompressConfig, None, [])


def test_a_student_that_was_extended_since_is_not_shown_as_it_was(finished: Path, tmp_path: Path) -> None:
    longer = Path(shutil.copytree(finished, tmp_path / "longer"))
    config = config_for(longer, tmp_path / "run", "export.formats=[]")
    compress(config)
    assert "was complete already" in str(compress(config))
    distill(load_config(DistillConfig, longer / "config.yaml", ["more=2", f"out={longer}"], in_place=True))
    with pytest.raises(ConfigError, match=r"the student of .*longer has changed since; choose another out="):
        compress(config)
    shutil.rmtree(longer)
    assert "was complete already" in str(compress(config))
