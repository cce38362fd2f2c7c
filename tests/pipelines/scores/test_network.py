"""How good a network is: every form of it gives the same numbers, on every form of the images."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from synthkd.compression import export_onnx
from synthkd.compression.export import export_program
from synthkd.errors import ConfigError, DataError, ModelError, SynthkdError
from synthkd.metrics.utility import predict
from synthkd.models import Classifier, build, save
from synthkd.pipelines import cli
from synthkd.pipelines.config import EvaluateConfig
from synthkd.pipelines.evaluate import evaluate
from synthkd.pipelines.run.result import Plan, Result
from synthkd.settings import ZooModel
from synthkd.settings.load import load_config
from synthkd.types import ImageSpec

SPEC = ImageSpec(1, 8, 8, 6)
NAMES = tuple("abcdef")


def network(seed: int, spec: ImageSpec = SPEC) -> Classifier:
    torch.manual_seed(seed)
    names = NAMES[: spec.classes]
    return build(
        ZooModel(arch="mlp", width=8, depth=1), spec, (0.5,) * spec.channels, (0.1,) * spec.channels, names
    ).eval()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two saved networks, an exported program, and 70 images as a folder, with other classes, and as .npz."""
    top = tmp_path_factory.mktemp("files")
    save(network(0), top / "model", {})
    save(network(1), top / "other", {})
    export_program(network(0), top / "model.pt2")
    images = torch.randint(256, (70, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(70) % 6
    for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        path = top / "photos" / NAMES[label] / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(path)
    np.savez(top / "set.npz", images=images[:, 0].numpy(), labels=labels.numpy())
    np.savez(top / "plain.npz", images=images[:, 0].numpy())
    return top


def run(out: Path, **recipe: Any) -> Result[Any]:
    result = evaluate(load_config(EvaluateConfig, {**recipe, "device": "cpu", "out": str(out)}, []))
    assert isinstance(result, Result)
    return result


def truth(top: Path) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    held = np.load(top / "set.npz")
    images = torch.from_numpy(held["images"])[:, None]
    one, other = (predict(network(seed), images, torch.device("cpu")) for seed in (0, 1))
    return one, other, torch.from_numpy(held["labels"])


def test_a_network_against_another_is_counted_image_by_image(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    command = ["evaluate", f"model={files / 'model'}", f"against={files / 'other'}", f"data={files / 'set.npz'}"]
    assert cli.main([*command, f"out={out}", "device=cpu"]) == 0
    told = capsys.readouterr().out
    one, other, labels = truth(files)
    assert f"against:     {files / 'other'}" in told
    content = run(out, model=str(files / "model"), against=str(files / "other"), data=str(files / "set.npz")).content
    right, theirs = one == labels, other == labels
    assert content.quality.top1.value == right.double().mean().item()
    assert content.against.agreement.value == (one == other).double().mean().item()
    assert content.against.top1.value == theirs.double().mean().item()
    assert (content.against.only_model, content.against.only_other) == (
        int((right & ~theirs).sum()),
        int((theirs & ~right).sum()),
    )
    page = (out / "report.html").read_text()
    assert "What is confused most" in page
    assert "Against" in page
    assert (content.images.n, content.class_names) == (70, NAMES)
    assert any("taken by number" in note for note in content.images.notes)
    save(network(2), tmp_path / "changed", {})
    moved = run(tmp_path / "two", model=str(tmp_path / "changed"), data=str(files / "set.npz"))
    save(network(3), tmp_path / "changed", {})
    with pytest.raises(ConfigError, match="has changed since"):
        run(moved.directory, model=str(tmp_path / "changed"), data=str(files / "set.npz"))


@pytest.mark.parametrize("unnamed", ["model", "against"])
def test_a_network_without_class_names_is_compared_by_number(files: Path, tmp_path: Path, unnamed: str) -> None:
    plain = network(1)
    plain.class_names = ()
    save(plain, tmp_path / "plain", {})
    recipe = {"model": str(files / "model"), "against": str(files / "model"), unnamed: str(tmp_path / "plain")}
    content = run(tmp_path / "run", **recipe, data=str(files / "photos")).content
    one, other, _ = truth(files)
    assert content.against.agreement.value == (one == other).double().mean().item()
    note = "classes taken by number, since only one of the model and against names them"
    assert content.images.notes == (note,), "the images' names are those of the network that has some"


def test_every_form_of_a_network_and_of_images_gives_the_same_accuracy(files: Path, tmp_path: Path) -> None:
    one, _, labels = truth(files)
    expected = (one == labels).double().mean().item()
    forms: dict[str, dict[str, Any]] = {
        "folder": {"model": str(files / "model"), "data": str(files / "photos")},
        "program": {"model": str(files / "model.pt2"), "data": str(files / "photos"), "trust": str(files)},
        "section": {"model": {"kind": "load", "model": str(files / "model")}, "data": {"path": str(files / "photos")}},
    }
    for name, form in forms.items():
        assert run(tmp_path / name, **form).content.quality.top1.value == expected, name
    pytest.importorskip("onnxruntime")
    export_onnx(network(0), path := tmp_path / "model.onnx")
    content = run(tmp_path / "onnx", model=str(path), data=str(files / "photos")).content
    assert (content.quality.top1.value, content.model.form) == (expected, "ONNX, float32")


def test_a_program_of_somebody_else_is_measured_where_its_images_are_said(files: Path, tmp_path: Path) -> None:
    one, _, labels = truth(files)
    path = tmp_path / "theirs.pt2"
    number = torch.export.Dim("n")
    body = network(0).body  # it normalises nothing
    torch.export.save(torch.export.export(body, (torch.rand(2, 1, 8, 8),), dynamic_shapes=({0: number},)), path)
    said = {"kind": "load", "model": str(path), "channels": 1, "size": 8, "classes": 6, "mean": [0.5], "std": [0.1]}
    with pytest.raises(ConfigError, match=r"does not say what images it takes; say it: model\.kind=load model\.model="):
        run(tmp_path / "out", model=str(path), data=str(files / "photos"), trust=True)
    content = run(tmp_path / "out", model=said, data=str(files / "photos"), trust=True).content
    assert content.quality.top1.value == (one == labels).double().mean().item()
    with pytest.raises(ModelError, match=r"model .*theirs\.pt2\) must give logits \[N, 5\]"):
        run(tmp_path / "five", model={**said, "classes": 5}, data=str(files / "photos"), trust=True)


@pytest.mark.parametrize("count", [None, 1, 8])
def test_an_onnx_file_of_somebody_else_is_measured_by_onnx_runtime(
    files: Path, tmp_path: Path, count: int | None
) -> None:
    """Also one that takes a fixed number of images at once."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    one, _, labels = truth(files)
    path = tmp_path / "theirs.onnx"
    export_onnx(network(0), path)
    model = onnx.load(str(path))
    del model.metadata_props[:]
    if count is not None:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = count
    onnx.save(model, str(path))
    with pytest.raises(ConfigError, match=r"synthkd did not export .*theirs\.onnx, which does not say"):
        run(tmp_path / "out", model=str(path), data=str(files / "set.npz"))
    said = {"kind": "load", "model": str(path), "channels": 1, "size": 8, "classes": 6}
    content = run(tmp_path / "out", model=said, data=str(files / "set.npz")).content
    expected = (one == labels).double().mean().item()
    assert (content.quality.top1.value, content.model.form) == (expected, "ONNX, run by ONNX Runtime")


def test_images_without_labels_are_enough_to_compare(files: Path, tmp_path: Path) -> None:
    one, other, _ = truth(files)
    content = run(
        tmp_path / "run", model=str(files / "model"), against=str(files / "other"), data=str(files / "plain.npz")
    ).content
    assert content.quality is None
    assert content.against.agreement.value == (one == other).double().mean().item()
    np.save(tmp_path / "alone.npy", np.load(files / "plain.npz")["images"])
    recipe = {"model": str(files / "model"), "against": str(files / "other"), "data": str(tmp_path / "alone.npy")}
    assert run(tmp_path / "alone", **recipe).content.against == content.against
    assert "Both networks give the same class" in (tmp_path / "run/report.html").read_text()


def test_a_plan_writes_nothing(files: Path, tmp_path: Path) -> None:
    recipe = {"model": str(files / "model"), "data": str(files / "photos"), "out": str(tmp_path / "run")}
    plan = evaluate(load_config(EvaluateConfig, recipe, []), dry_run=True)
    assert isinstance(plan, Plan)
    assert "70 of 6 classes" in str(plan)
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_measured_is_refused_in_a_line(files: Path, tmp_path: Path) -> None:
    def refuses(error: type[SynthkdError], said: str, **recipe: Any) -> None:
        given = {"model": str(files / "model"), "data": str(files / "photos"), **recipe}
        with pytest.raises(error, match=said) as raised:
            run(tmp_path / f"out {said}"[:20], **{key: value for key, value in given.items() if value is not None})
        assert "\n" not in str(raised.value)

    refuses(ConfigError, "model: .*nothing does not exist, so it is no network", model=str(files / "nothing"))
    refuses(ConfigError, "model: .*no\\.pt2 does not exist", model=str(files / "no.pt2"))
    refuses(ConfigError, "data is missing", data=None)
    refuses(ConfigError, "model is missing", model=None)
    refuses(ConfigError, "real: it is for scores of images", real="x")
    given = {"k": 3, "subsets": 5, "subset_size": 10, "splits": 2, "show_real": False}
    for key, value in given.items():
        refuses(ConfigError, f"{key}: it is for scores of images", **{key: value})
    refuses(ModelError, "If you trust it, say trust=true", model=str(files / "model.pt2"))
    refuses(DataError, "carry no labels, so they need a network to compare with", data=str(files / "plain.npz"))
    save(network(0, ImageSpec(1, 8, 8, 3)), tmp_path / "three", {})
    refuses(ConfigError, "they must be the same", against=str(tmp_path / "three"))
    refuses(DataError, "images of classes that the model does not have", model=str(tmp_path / "three"))
    save(network(0, ImageSpec(1, 9, 9, 6)), tmp_path / "nine", {})
    refuses(DataError, "has images of 1x8x8", model=str(tmp_path / "nine"), data=str(files / "set.npz"))
    for name in ("a/000.png", "b/001.png"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True)
        (tmp_path / "photos" / name).write_bytes((files / "photos" / name).read_bytes())
    (tmp_path / "photos/a/torn.png").write_bytes(b"no image")
    refuses(DataError, r"1 of 3 files cannot be read .*torn\.png", data=str(tmp_path / "photos"))
    recipe = {"model": str(files / "model"), "data": str(tmp_path / "photos")}
    assert len(run(tmp_path / "skipped", **recipe, skip_bad=1).content.images.skipped) == 1


def wide_photos(top: Path) -> Path:
    """Two colour photos of other sizes than any network here takes."""
    rng = np.random.default_rng(0)
    for name, shape in (("a/0.png", (20, 30, 3)), ("b/1.png", (30, 20, 3))):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(top / name)
    return top


def test_photos_are_cropped_to_the_shape_of_a_network_of_oblong_images(tmp_path: Path) -> None:
    photos = wide_photos(tmp_path / "photos")
    save(network(0, ImageSpec(3, 8, 16, 2)), tmp_path / "model", {})
    arrays = []
    for name in ("a/0.png", "b/1.png"):
        with Image.open(photos / name) as photo:
            arrays.append(np.asarray(ImageOps.fit(photo, (16, 8), method=Image.Resampling.BILINEAR)))
    np.savez(tmp_path / "set.npz", images=np.stack(arrays), labels=np.arange(2), class_names=np.array(["a", "b"]))
    found = run(tmp_path / "photos-run", model=str(tmp_path / "model"), data=str(photos)).content
    expected = run(tmp_path / "npz-run", model=str(tmp_path / "model"), data=str(tmp_path / "set.npz")).content
    assert (found.images.n, found.images.digest) == (2, expected.images.digest)
    assert found.quality == expected.quality


def test_channels_of_a_set_of_files_and_their_conversions_are_told(tmp_path: Path) -> None:
    photos = wide_photos(tmp_path / "photos")
    save(network(0, ImageSpec(1, 8, 8, 2)), tmp_path / "grey", {})
    save(network(0, ImageSpec(3, 8, 8, 2)), tmp_path / "colour", {})
    grey = run(tmp_path / "one", model=str(tmp_path / "grey"), data=str(photos))
    assert any("2 images turned from colour to grey: a/0.png" in line for line in grey.summary)
    plain = run(tmp_path / "two", model=str(tmp_path / "colour"), data=str(photos)).content
    asked = run(tmp_path / "three", model=str(tmp_path / "colour"), data={"path": str(photos), "channels": 1}).content
    assert plain.images.notes == ()
    assert asked.images.notes == grey.content.images.notes
    assert asked.images.digest != plain.images.digest


def test_a_section_without_split_takes_the_images_of_its_path(files: Path, tmp_path: Path) -> None:
    model, photos = str(files / "model"), str(files / "photos")
    whole = run(tmp_path / "path", model=model, data=photos).content
    for kind, place in (("folder", {"root": photos, "channels": 1}), ("npz", {"path": str(files / "set.npz")})):
        found = run(tmp_path / kind, model=model, data={"data": {"kind": kind, **place}}).content
        assert (found.images.n, found.quality.top1) == (70, whole.quality.top1)
    part = {"data": {"kind": "folder", "root": photos, "channels": 1}, "split": "test"}
    assert run(tmp_path / "part", model=model, data=part).content.images.n == 14
    recipe = {"generated": [str(files / "set.npz")], "features": {"kind": "load", "model": model}, "cache": None}
    recipe["real"] = {"data": {"kind": "folder", "root": photos, "channels": 1}}
    plan = evaluate(load_config(EvaluateConfig, recipe, []), dry_run=True)
    assert "real: 70 images of photos" in str(plan)


def test_a_section_with_a_test_part_of_its_own_takes_that(files: Path, tmp_path: Path) -> None:
    held = np.load(files / "set.npz")
    parts = {"test_images": held["images"][:12], "test_labels": held["labels"][:12]}
    np.savez(tmp_path / "parts.npz", images=held["images"], labels=held["labels"], **parts)
    data = {"data": {"kind": "npz", "path": str(tmp_path / "parts.npz")}}
    assert run(tmp_path / "run", model=str(files / "model"), data=data).content.images.n == 12


def test_directories_counted_from_1_are_the_classes_of_a_network_without_names(files: Path, tmp_path: Path) -> None:
    for number, name in enumerate(NAMES, start=1):
        shutil.copytree(files / "photos" / name, tmp_path / "photos" / str(number))
    model = network(0)
    model.class_names = ()
    save(model, tmp_path / "unnamed", {})
    expected = run(tmp_path / "named", model=str(files / "model"), data=str(files / "photos")).content
    found = run(tmp_path / "run", model=str(tmp_path / "unnamed"), data=str(tmp_path / "photos")).content
    assert found.quality == expected.quality
    assert any("classes taken by number" in note for note in found.images.notes)
    recipe = {"generated": [str(tmp_path / "photos")], "real": str(tmp_path / "photos"), "cache": None}
    recipe["teacher"] = {"kind": "load", "model": str(tmp_path / "unnamed")}
    assert isinstance(evaluate(load_config(EvaluateConfig, recipe, []), dry_run=True), Plan)
    with pytest.raises(DataError, match="images of classes that the model does not have: 1, 2"):
        run(tmp_path / "refused", model=str(files / "model"), data=str(tmp_path / "photos"))
