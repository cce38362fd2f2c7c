"""Nothing outside of `out=` is written, but for the file that is asked for; what killed processes left there goes."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from synthkd.compression.export import export_onnx
from synthkd.models import build_model, save
from synthkd.pipelines import cli
from synthkd.pipelines.run import job
from synthkd.settings import ZooModel
from synthkd.types import ImageSpec

RECIPE = {"data": {"kind": "digits"}, "model": {"arch": "mlp", "width": 8}, "training": {"steps": 2}, "device": "cpu"}


@pytest.fixture(autouse=True)
def _no_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "write_report", lambda _: None)  # takes longer than these runs


def teach(top: Path, out: Path) -> int:
    (top / "teach.yaml").write_text(json.dumps(RECIPE))
    return cli.main(["teach", str(top / "teach.yaml"), f"out={out}"])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


LINKS = [".lock", "metrics.jsonl", "report.html", "teacher", "checkpoints", "teacher/config.json", "checkpoints/rows"]


@pytest.mark.parametrize("name", LINKS)
def test_a_link_in_a_run_leads_nowhere(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    outside, out = tmp_path / "outside", tmp_path / "run"
    assert teach(tmp_path, out) == 0
    (out / "result.json").unlink()
    link = out / name
    outside.mkdir()
    target = outside / "target"
    if name == "checkpoints/rows":
        link.parent.mkdir()
        (link.parent / ".lock").touch()  # nobody else's run
    if link.is_dir() or name.startswith("checkpoints"):
        (target / "step_00000001").mkdir(parents=True)
        (target / "step_00000001" / "model.safetensors").write_bytes(b"somebody else's")
    else:
        target.write_bytes(b"somebody else's\n")
    if link.exists():
        link.rename(tmp_path / "aside")
    link.symlink_to(target)
    before = contents(outside)
    capsys.readouterr()
    assert teach(tmp_path, out) == 6
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"error: {link} is a link or no plain file, and a run writes into its own folder only; remove it, or choose "
        "another out="
    )
    assert contents(outside) == before
    link.unlink()
    assert teach(tmp_path, out) == 0


@pytest.mark.parametrize("name", ["metrics.jsonl", "private.json", "config.yaml"])
def test_what_is_no_plain_file_does_not_hang(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    out = tmp_path / "run"
    assert teach(tmp_path, out) == 0
    (out / "result.json").unlink()
    (out / name).unlink(missing_ok=True)
    capsys.readouterr()
    os.mkfifo(out / name)
    assert teach(tmp_path, out) == 6
    (line,) = capsys.readouterr().err.splitlines()
    assert str(out) in line


def test_a_run_whose_whole_folder_is_a_link_is_where_that_leads(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    assert teach(tmp_path, tmp_path / "run") == 0
    assert (tmp_path / "disk" / "result.json").exists()


def test_what_dead_processes_left_is_not_counted_and_goes(tmp_path: Path) -> None:
    out = tmp_path / "run"
    left = [
        out / ".config.yaml.4711.tmp", out / "teacher" / ".model.safetensors.4711.tmp",
        out / "checkpoints" / ".partial_00000001_4711" / "state.pt",
    ]  # fmt: skip
    out.mkdir()
    (out / ".lock").touch()
    left[0].write_bytes(b"half of it")
    assert teach(tmp_path, out) == 0, "a kill before there was a configuration"
    assert not left[0].exists()
    (out / "result.json").unlink()
    others = out / "inner" / ".config.yaml.4711.tmp"  # of a run that another process may be working in
    others.parent.mkdir()
    (out / "inner" / ".lock").touch()
    for path in (*left, others):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half of it")
    assert teach(tmp_path, out) == 0
    assert not any(path.exists() for path in left)
    assert others.exists()
    assert {path.name for path in (out / "teacher").iterdir()} == {"config.json", "model.safetensors"}


def test_features_are_saved_only_where_nothing_else_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    save(build_model(ZooModel(arch="mlp", width=8), ImageSpec(1, 8, 8, 10), [0.3], [0.4]).eval(), tmp_path / "judge")
    images = np.random.default_rng(0).integers(0, 256, (60, 1, 8, 8), dtype=np.uint8)
    for name in ("real", "made"):
        np.savez(tmp_path / f"{name}.npz", images=images, labels=np.arange(60) % 10)
    precious = tmp_path / "precious"
    precious.mkdir()
    save_file({"weights": torch.ones(2)}, precious / "weights.safetensors")
    (precious / "text.safetensors").write_text("somebody else's")
    (precious / "folder.safetensors").mkdir()
    (precious / "notes.txt").write_text("somebody else's")
    before = contents(precious)
    (tmp_path / "link.safetensors").symlink_to(precious / "weights.safetensors")

    def evaluate(target: Path, out: str, *more: str) -> int:
        words = [f"real={tmp_path / 'real.npz'}", "features.kind=teacher", "cache=null", "subsets=2", "device=cpu"]
        words += ["teacher.kind=load", f"teacher.model={tmp_path / 'judge'}", "subset_size=20", "splits=2", *more]
        return cli.main(
            ["evaluate", str(tmp_path / "made.npz"), *words, f"save_features={target}", f"out={tmp_path / out}"]
        )

    names = ("weights.safetensors", "text.safetensors", "folder.safetensors", "notes.txt", "new.txt")
    below = precious / "notes.txt" / "new.safetensors"
    for target in (*(precious / name for name in names), tmp_path / "link.safetensors", below):
        for more in ([], ["--dry-run"]):
            assert evaluate(target, "refused", *more) == 2, target
            (line,) = capsys.readouterr().err.splitlines()
            assert line.startswith("error: save_features: ")
            assert str(target if target != below else target.parent) in line
    assert contents(precious) == before
    assert not (tmp_path / "refused" / "result.json").exists()
    saved = tmp_path / "saved.safetensors"
    assert evaluate(saved, "first") == 0
    assert evaluate(saved, "second") == 0, "what an evaluation saved may be saved again"
    with safe_open(saved, "pt") as file:
        assert file.metadata()["format"] == "synthkd features 1"


def test_an_exported_file_opens_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    model = build_model(ZooModel(arch="mlp", width=8), ImageSpec(1, 8, 8, 10), [0.3], [0.4])
    export_onnx(model.eval(), tmp_path / "ours.onnx")
    content = (tmp_path / "ours.onnx").read_bytes()
    Image.new("L", (8, 8)).save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)

    def hostile(place: str) -> Path:
        model = onnx.load_model_from_string(content)
        del model.metadata_props[1:]  # a checksum is no signature: whoever changes a file could write another
        model.metadata_props[0].value = model.metadata_props[0].value.replace('"format":2', '"format":1')
        weight = next(one for one in model.graph.initializer if one.raw_data)
        (tmp_path / "secret.bin").write_bytes(weight.raw_data)
        outside = onnx.TensorProto()
        outside.CopyFrom(weight)
        outside.ClearField("raw_data")
        outside.data_location = onnx.TensorProto.EXTERNAL
        outside.external_data.add(key="location", value="secret.bin")
        inner = onnx.helper.make_graph([], "inner", [], [], initializer=[outside])
        if place == "initializer":
            weight.CopyFrom(outside)
        elif place == "attribute":
            model.graph.node.append(onnx.helper.make_node("Constant", [], ["c"], value=outside))
        elif place == "subgraph":
            model.graph.node.append(onnx.helper.make_node("If", ["c"], [], then_branch=inner, else_branch=inner))
        else:
            node = onnx.helper.make_node("Constant", [], ["c"], value=outside)
            made = onnx.helper.make_function("d", "f", [], ["c"], [node], model.opset_import)
            model.functions.append(made)
        path = tmp_path / f"{place}.onnx"
        path.write_bytes(model.SerializeToString())
        return path

    for place in ("initializer", "attribute", "subgraph", "function"):
        path = hostile(place)
        assert cli.main(["predict", str(path), "image.png"]) == 4
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.splitlines() == [
            f"error: {path} keeps weights in another file ('secret.bin'), which is not opened; export it again"
        ]
    assert cli.main(["predict", "ours.onnx", "image.png"]) == 0
