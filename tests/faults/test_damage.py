"""What is handed over, or read by a later step, is what was written: damage and loss are noticed, and name the file."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from synthkd.compression.export import export_onnx
from synthkd.compression.predict import OnnxModel
from synthkd.data.written.stored import read_stored
from synthkd.data.written.unfinished import Part, PartStore
from synthkd.errors import CheckpointError, DataError, ModelError
from synthkd.generators.embedding import Embedding, Fourier
from synthkd.generators.files import read_saved
from synthkd.models import load
from synthkd.pipelines import cli
from synthkd.pipelines.run.result import read_result
from synthkd.privacy import copies
from synthkd.reports import report
from synthkd.reports.results import TeachResult
from synthkd.system.sealed import sealed
from synthkd.training.checkpoint import CheckpointStore
from synthkd.types import ImageSpec

TEACHER = {
    "kind": "train", "data": {"kind": "digits"}, "model": {"arch": "convnet", "width": 4}, "training": {"steps": 5}
}  # fmt: skip
RECIPE = {
    "teacher": TEACHER,
    "student": {"arch": "convnet", "width": 4},
    "device": "cpu",
    "threads": 1,
}
DISTILLATION = {
    "transfer_set": {"generator": {"width": 8, "latent": 16, "batch_size": 20}},
    "distill": {"batch_size": 8},
    "phases": [{"kind": "joint", "steps": 4}],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished distillation with two students, a dataset of its generator in each format, and a compression."""
    top = tmp_path_factory.mktemp("runs")
    online = {"peers": [{"model": RECIPE["student"]}]}
    (top / "distill.yaml").write_text(json.dumps({**RECIPE, **DISTILLATION, "online": online}))
    compression = {**RECIPE, "distillation": DISTILLATION, "export": {"formats": ["onnx"]}}
    (top / "compress.yaml").write_text(json.dumps(compression))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "run_page", lambda _: b"a new page")  # a real one takes longer than these runs
        patch.setattr(copies, "MOST_EXTRACTED", 100)
        patch.setattr(import_module("synthkd.pipelines.compress"), "SYNTHETIC", 100)
        assert cli.main(["distill", str(top / "distill.yaml"), f"out={top / 'distill'}"]) == 0
        for form in ("folder", "webdataset"):
            assert generated(top, form) == 0
        assert cli.main(["compress", str(top / "compress.yaml"), f"out={top / 'compress'}"]) == 0
        yield top


def generated(top: Path, form: str) -> int:
    words = [f"run={top / 'distill'}", "per_class=3", f"format={form}", "shard_size=20", "device=cpu"]
    return cli.main(["generate", *words, f"out={top / form}"])


def again(top: Path, run: str) -> int:
    if run in ("folder", "webdataset"):
        return generated(top, run)
    return cli.main([run, str(top / f"{run}.yaml"), f"out={top / run}"])


def flip(path: Path, at: int = -1) -> None:
    """Change one bit."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def listed(run: Path) -> list[str]:
    return list(json.loads((run / "result.json").read_text())["files"])


def test_a_finished_run_says_so_only_while_all_that_it_hands_over_is_there(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = set()
    for run in ("distill", "folder", "webdataset", "compress"):
        handed = [runs / run / name for name in listed(runs / run)]
        handed += [path for path in (runs / run / "dataset").rglob("*") if path.is_file() and path not in handed]
        for file in handed:
            seen.add(str(file.relative_to(runs / run)))
            content = file.read_bytes()
            for damage in (Path.unlink, flip, lambda path: path.write_bytes(path.read_bytes()[:-1])):
                damage(file)
                assert again(runs, run) == 6, file
                said = capsys.readouterr().err.splitlines()
                assert len(said) == 1
                assert str(file) in said[0]
                assert "damaged" in said[0] or "missing" in said[0]
                file.write_bytes(content)
        capsys.readouterr()
        assert again(runs, run) == 0
        assert "was complete already" in capsys.readouterr().out
    assert {
        "student/model.safetensors", "student/config.json", "peers/1/model.safetensors", "generator/generator.json",
        "generator/model.safetensors", "dataset/dataset.json", "dataset/SHA256SUMS", "dataset/README.md",
        "dataset/train/metadata.jsonl", "dataset/train-000001.tar", "export/student.onnx", "privacy_report.json",
    } <= seen  # fmt: skip
    assert sum(name.endswith(".png") for name in seen) == 30


def test_the_remedy_that_is_named_works(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run, folder in (("distill", "student"), ("folder", "dataset"), ("webdataset", "dataset")):
        place = runs / run / folder
        before = {path: path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()}
        shutil.rmtree(place)
        assert again(runs, run) == 6
        assert f"delete {runs / run / 'result.json'}" in capsys.readouterr().err
        (runs / run / "result.json").unlink()
        assert again(runs, run) == 0
        for path in before:
            path.write_bytes(b"not what was made")
        (runs / run / "result.json").unlink()
        assert again(runs, run) == 0
        assert {path: path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()} == before


def test_a_page_that_is_gone_or_of_an_earlier_end_is_made_again(runs: Path) -> None:
    page = runs / "compress" / "privacy_report.html"
    page.unlink()
    assert again(runs, "compress") == 0
    assert page.exists()
    page = runs / "distill" / "report.html"
    page.write_text("of an earlier end")
    assert again(runs, "distill") == 0
    assert page.read_text() == "of an earlier end", "of a finished run it stays"
    (runs / "distill" / "result.json").unlink()
    assert again(runs, "distill") == 0
    assert page.read_text() == "a new page"


def test_a_result_of_an_earlier_version_is_taken_as_it_is_and_a_changed_one_is_not(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = runs / "distill" / "result.json"
    content = path.read_text()
    path.write_text(content.replace('"real_images_used": 0', '"real_images_used": 1', 1))
    assert path.read_text() != content
    assert again(runs, "distill") == 6
    assert f"{path} is damaged (it does not have its own checksum" in capsys.readouterr().err
    values = json.loads(content)
    del values["files"], values["checksum"]
    path.write_text(json.dumps(values))
    assert again(runs, "distill") == 0
    path.write_text(content)


JSON = {
    "distill/student/config.json": ("mean", [0.25], lambda path: load(path.parent), ModelError),
    "distill/generator/generator.json": ("seed", 7, lambda path: read_saved(path.parent), ModelError),
    "folder/dataset/dataset.json": ("std", [0.75], lambda path: read_stored(path.parent), DataError),
}


@pytest.mark.parametrize("name", JSON)
def test_whoever_reads_a_description_notices_a_changed_value(runs: Path, name: str) -> None:
    key, value, read, error = JSON[name]
    path = runs / name
    content = path.read_text()
    values = json.loads(content)
    assert values[key] != value
    path.write_text(json.dumps({**values, key: value}))
    with pytest.raises(error, match=r"json.*does not have its own checksum"):
        read(path)
    del values["checksum"]  # as of an earlier version
    path.write_text(json.dumps({**values, key: value}))
    read(path)
    path.write_text(content)
    read(path)


def test_weights_of_a_generator_are_those_that_were_saved(runs: Path) -> None:
    weights = runs / "distill" / "generator" / "model.safetensors"
    for damage in (flip, Path.unlink):
        content = weights.read_bytes()
        damage(weights)
        with pytest.raises(ModelError, match=r"model\.safetensors is missing or does not have the checksum"):
            read_saved(runs / "distill")
        weights.write_bytes(content)


def test_a_noisy_look_is_the_one_that_was_taken(tmp_path: Path) -> None:
    fourier = Fourier(ImageSpec(1, 8, 8, 2), 16, (0.5,), 0)
    path = tmp_path / "release.safetensors"
    Embedding(torch.ones(2, 16), torch.ones(2), fourier, 100, 1.0, "replace_one", False).save(path)
    assert Embedding.load(path).examples == 100
    content = path.read_bytes()
    for damaged in (content.replace(b'\\"examples\\": 100', b'\\"examples\\": 900'), content[:-1] + b"\x01"):
        assert damaged != content
        path.write_bytes(damaged)
        with pytest.raises(ModelError, match="does not have its own checksum"):
            Embedding.load(path)
    path.write_bytes(content)
    with safe_open(path, "pt") as file:
        tensors, facts = {name: file.get_tensor(name) for name in ("sums", "shares")}, file.metadata()["facts"]
    save_file(tensors, path, {"facts": facts})  # as an earlier version did
    Embedding.load(path)


def test_images_on_their_way_to_a_dataset_are_those_that_were_made(tmp_path: Path) -> None:
    images = torch.arange(128, dtype=torch.uint8).view(2, 1, 8, 8)
    store = PartStore(tmp_path)
    store.write(Part(0, images, torch.tensor([0, 1]), torch.zeros(2, 10)))
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    for at in range(len(content) - images.numel() - 96, len(content), 7):  # labels, logits and pixels
        flip(path, at)
        with pytest.raises(CheckpointError, match=r"is damaged; delete it and run the same command again"):
            list(store.read(0, 2))
        path.write_bytes(content)
    path.rename(tmp_path / "000000002-000000004.safetensors")
    with pytest.raises(CheckpointError, match="is damaged"):
        list(store.read(2, 4))


def test_a_list_of_files_leads_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"somebody else's")
    digest = hashlib.sha256(b"somebody else's").hexdigest()
    run = tmp_path / "run"
    run.mkdir()
    for name in ("../secret", str(tmp_path / "secret")):
        (run / "result.json").write_bytes(sealed({"job": "teach", "files": {name: {"bytes": 15, "sha256": digest}}}))
        with pytest.raises(CheckpointError, match="leads out of its folder"):
            read_result(run, TeachResult)
        spec = {"channels": 1, "height": 8, "width": 8, "classes": 10}
        saved = {"settings": {"kind": "pixels"}, "spec": spec, "seed": 0, "files": {name: digest}}
        (run / "generator.json").write_bytes(sealed(saved))
        with pytest.raises(ModelError, match="leads out of its folder"):
            read_saved(run)


def test_a_checkpoint_is_of_the_step_that_it_says(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(10, {"weights": torch.zeros(2)})
    store.save(20, {"weights": torch.ones(2)})
    manifest = tmp_path / "step_00000020" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"step": 20', '"step": 90'))
    found = store.latest()
    assert found is not None
    assert found.step == 10
    manifest.parent.rename(tmp_path / "step_00000090")
    found = store.latest()
    assert found is not None
    assert found.step == 10


def test_every_changed_byte_of_an_exported_file_is_noticed(runs: Path, tmp_path: Path) -> None:
    content = (runs / "compress" / "export" / "student.onnx").read_bytes()
    path = tmp_path / "student.onnx"
    path.write_bytes(content)
    assert OnnxModel(path).description.spec == ImageSpec(1, 8, 8, 10)
    for at in (*range(0, len(content), 97), *range(len(content) - 120, len(content))):
        path.write_bytes(content)
        flip(path, at)
        with pytest.raises(ModelError, match=r"student\.onnx "):
            OnnxModel(path)


def test_an_exported_file_of_an_earlier_version_is_taken_as_it_is(runs: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    path = tmp_path / "student.onnx"
    export_onnx(load(runs / "compress"), path)
    model = onnx.load(path)
    (description, checksum) = model.metadata_props
    assert (description.key, checksum.key) == ("synthkd", "sha256")
    model.metadata_props.remove(checksum)
    onnx.save(model, path)
    with pytest.raises(ModelError, match="does not have its own checksum"):
        OnnxModel(path)  # it says that it has one
    description.value = description.value.replace('"format":2', '"format":1')
    onnx.save(model, path)
    assert OnnxModel(path).description.spec == ImageSpec(1, 8, 8, 10)
