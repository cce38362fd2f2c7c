"""Models from elsewhere: factories, weights files, and what is refused."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from synthkd.errors import ConfigError, MissingExtraError, ModelError
from synthkd.imports import allowing
from synthkd.models import Classifier, build_model, load, load_model, save
from synthkd.settings import LoadedModel, ZooModel
from synthkd.types import ImageSpec

SPEC = ImageSpec(3, 32, 32, 5)
HERE = "factories_of_a_user"

SOURCE = """
import torch
from torch import nn

def small(width=4):
    pool = nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(nn.Conv2d(3, width, 3, 2), nn.ReLU(), pool, nn.Flatten(), nn.Linear(width, 5))

def pretrained(width=4):
    model = small(width)
    for value in model.parameters():
        torch.nn.init.constant_(value, 0.1)
    return model

def with_new_head(width=4):
    model = pretrained(width)
    model[4].reset_parameters()
    return model

def double(width=4):
    return small(width).double()

def fails(width=4):
    raise RuntimeError("no luck")

def number():
    return 3

smallest = 4
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / f"{HERE}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, HERE, raising=False)
    return HERE


@pytest.fixture
def weights(factories: str, tmp_path: Path) -> Path:
    model = build_model(settings(f"{factories}:small"), SPEC)
    torch.save(model.body.state_dict(), tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


def settings(model: str, **more) -> LoadedModel:
    return LoadedModel(kind="load", model=model, **more)


@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:resnet10t", "timm:mobilenetv3_small_050"])
def test_libraries_round_trip(name: str, tmp_path: Path) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    fresh = build_model(settings(name), SPEC, (0.5,) * 3, (0.2,) * 3, tuple("abcde"))
    assert fresh.training
    assert fresh.spec == SPEC
    save_file(fresh.body.state_dict(), tmp_path / "w.safetensors")
    teacher = load_model(settings(name, weights=str(tmp_path / "w.safetensors"), size=32, classes=5))
    assert teacher.normalize.mean.flatten().tolist() == [0, 0, 0]  # a network with weights knows its own
    save(teacher, tmp_path / "teacher")
    back = load(tmp_path / "teacher")
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(teacher(images), back(images))
    assert back.recipe == {"kind": "load", "model": name, "options": {}}


def test_a_function_of_the_users(factories: str, tmp_path: Path) -> None:
    student = build_model(settings(f"{factories}:small", options={"width": 6}), SPEC)
    assert student.body[0].out_channels == 6
    save(student, tmp_path / "student")
    with pytest.raises(ModelError, match=f"config.json names '{factories}:small'.*trust="):
        load(tmp_path)
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(load(tmp_path, trust=True)(images), student.eval()(images))
    with allowing(folders=[tmp_path]):
        assert torch.equal(load_model(settings(str(tmp_path)))(images), student(images))
    with pytest.raises(ConfigError, match=r"write trust=.* beside the sections instead"):
        load_model(settings(str(tmp_path), options={"trust": True}))


def test_a_network_of_another_precision_runs_in_float32(factories: str) -> None:
    model = build_model(settings(f"{factories}:double"), SPEC)
    assert model.notes == ("float64 turned into float32",)
    assert model(torch.rand(2, 3, 32, 32)).dtype == torch.float32


def test_logits_of_a_named_tuple_in_training_mode() -> None:
    options = {"aux_logits": True, "init_weights": False}
    student = build_model(settings("torchvision:googlenet", options=options), SPEC)
    assert student(torch.rand(2, 3, 32, 32)).shape == (2, 5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision:resnet81", r"torchvision has no model 'resnet81'; did you mean resnet18"),
        ("torchvision:fasterrcnn_resnet50_fpn", "torchvision has no model"),
        ("timm:resnet81", r"timm has no model 'resnet81'; did you mean resnet"),
        ("timm:hf_hub:someone/something", "timm has no model 'hf_hub:someone/something'"),
        ("no_such_package.models:small", "no_such_package"),
        (f"{HERE}:smal", "did you mean 'small'"),
        (f"{HERE}:smallest", "must be a function, got a int"),
        ("runs/typo", "runs/typo. does not exist: give a directory that synthkd saved"),
    ],
)
@pytest.mark.usefixtures("factories")
def test_unknown_names(name: str, message: str) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    with pytest.raises(ConfigError, match=message):
        build_model(settings(name), SPEC)


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [("fails", {}, "no luck"), ("small", {"widht": 3}, "widht.*check its options"), ("number", {}, "got int")],
)
def test_factories_that_fail(factories: str, function: str, options: dict, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build_model(settings(f"{factories}:{function}", options=options), SPEC)


@pytest.mark.parametrize("option", ["weights", "num_classes"])
def test_nothing_is_downloaded(option: str) -> None:
    with pytest.raises(ConfigError, match=f"must not set {option}"):
        build_model(settings("torchvision:resnet18", options={option: "DEFAULT"}), SPEC)


@pytest.mark.parametrize("option", ["pretrained", "pretrained_cfg", "checkpoint_path"])
def test_nothing_is_downloaded_by_timm(option: str) -> None:
    pytest.importorskip("timm")
    with pytest.raises(ConfigError, match=f"must not set {option}"):
        build_model(settings("timm:resnet10t", options={option: True}), SPEC)


def test_timm_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'synthkd\[timm\]'"):
        build_model(settings("timm:resnet10t"), SPEC)


def test_torchvision_takes_three_channels_only() -> None:
    with pytest.raises(ConfigError, match="3 channels, got 1"):
        build_model(settings("torchvision:resnet18"), ImageSpec(1, 32, 32, 5))


def test_a_teacher_says_its_size_and_has_weights(factories: str, weights: Path) -> None:
    with pytest.raises(ConfigError, match="needs `size` and `classes`, got size=32, classes=None"):
        load_model(settings(f"{factories}:small", weights=str(weights), size=32))
    with pytest.raises(ConfigError, match="without weights"):
        load_model(settings("torchvision:resnet18", size=32, classes=5))


def test_a_function_without_weights_is_refused_unless_that_is_spelled_out(factories: str) -> None:
    random, more = torch.get_rng_state(), {"size": 32, "classes": 5}
    message = r"random weights.* in 4 of 4 parameters: 0\.weight, .*; set `weights` .* untrained=true"
    with pytest.raises(ConfigError, match=message):
        load_model(settings(f"{factories}:small", **more))
    with pytest.raises(ConfigError, match=r"in 2 of 4 parameters: 4\.weight, 4\.bias; set"):
        load_model(settings(f"{factories}:with_new_head", **more))
    loaded = load_model(settings(f"{factories}:pretrained", **more))
    assert torch.equal(loaded.body[0].weight, torch.full((4, 3, 3, 3), 0.1))
    for name in (f"{factories}:small", "torchvision:resnet18"):
        one, again = (load_model(settings(name, untrained=True, **more)) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    assert torch.equal(torch.get_rng_state(), random)


def test_contradictions_with_the_job(factories: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="set to 3x16x32 images, 5 classes, but this job has 3x32x32"):
        build_model(settings(f"{factories}:small", size=(16, 32)), SPEC)
    with pytest.raises(ConfigError, match="needs to know its images"):
        build_model(ZooModel(arch="mlp"))
    save(build_model(ZooModel(arch="mlp", width=4), SPEC), tmp_path)
    with pytest.raises(ConfigError, match=r"takes 3x32x32 images, 5 classes, but this job has 1x32x32"):
        build_model(settings(str(tmp_path)), ImageSpec(1, 32, 32, 5))
    for more, message in [
        ({"weights": "w.pt"}, "has its own weights"),
        ({"options": {"width": 3}}, "was saved with its own, got width; leave them out"),
        ({"classes": 6}, "the config says 3x32x32 images, 6 classes"),
        ({"mean": (0.5,) * 3, "std": (0.5,) * 3}, "has its own mean, std"),
    ]:
        with pytest.raises(ConfigError, match=message):
            load_model(settings(str(tmp_path), **more))


def test_a_saved_directory_as_student_starts_from_its_weights(tmp_path: Path) -> None:
    model = build_model(ZooModel(arch="mlp", width=4), SPEC)
    save(model, tmp_path)
    again = build_model(settings(str(tmp_path)), SPEC)
    assert again.training
    assert torch.equal(again.body.head.weight, model.body.head.weight)


def test_fresh_networks_take_the_normalisation_of_the_data_unless_they_have_one(factories: str) -> None:
    given = ((0.5,) * 3, (0.25,) * 3)
    fresh = build_model(settings(f"{factories}:small"), SPEC, *given)
    own = build_model(settings(f"{factories}:small", mean=(0.0,) * 3, std=(1.0,) * 3), SPEC, *given)
    assert fresh.normalize.mean.flatten().tolist() == [0.5] * 3
    assert own.normalize.mean.flatten().tolist() == [0.0] * 3
    assert own.normalize.std.flatten().tolist() == [1.0] * 3


def teacher(factories: str, weights: Path) -> Classifier:
    return load_model(settings(f"{factories}:small", weights=str(weights), size=32, classes=5))


@pytest.mark.parametrize("nest", ["plain", "state_dict", "model", "prefix", "both"])
@pytest.mark.parametrize("kind", [".pt", ".pth", ".bin"])
def test_nests_and_prefixes_are_unwrapped(factories: str, weights: Path, nest: str, kind: str) -> None:
    state = torch.load(weights, weights_only=True)
    saved = {f"module.{k}": v for k, v in state.items()} if nest in ("prefix", "both") else state
    if nest in ("state_dict", "model"):
        saved = {"epoch": 3, nest: saved}
    if nest == "both":
        saved = {"model": {"state_dict": saved, "arch": "small"}, "loss": 0.5}
    path = weights.with_name(f"{nest}{kind}")
    torch.save(saved, path)
    loaded = teacher(factories, path)
    assert not loaded.training
    assert all(torch.equal(v, state[k]) for k, v in loaded.body.state_dict().items())


def test_weights_that_do_not_fit_are_named(factories: str, weights: Path) -> None:
    state = torch.load(weights, weights_only=True)
    state["4.weight"] = state["4.weight"][:3]
    state["5.bias"] = state.pop("4.bias")
    torch.save(state, weights)
    with pytest.raises(
        ModelError,
        match=r"1 missing: 4\.bias; 1 unexpected: 5\.bias; "
        r"1 of another shape: 4\.weight \(\[3, 4\] in the file, \[5, 4\] in the model\)",
    ):
        teacher(factories, weights)


class _Malicious:
    """Unpickling this makes a directory."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (os.mkdir, (str(self.target),))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("form", ["zip", "legacy", "plain"])
def test_a_malicious_pickle_is_refused_by_name_and_not_run(factories: str, tmp_path: Path, form: str) -> None:
    path, target = tmp_path / "evil.pt", tmp_path / "ran"
    contents = {"0.weight": torch.zeros(1), "x": _Malicious(target)}
    if form == "plain":
        path.write_bytes(pickle.dumps(contents))
    else:
        torch.save(contents, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(ModelError, match=r"wants to run more than tensors: .*(posix|nt)\.mkdir.*nothing of it was run"):
        teacher(factories, path)
    assert not target.exists()
    torch.load(path, weights_only=False) if form != "plain" else pickle.loads(path.read_bytes())
    assert target.exists()  # so the refusal above was no accident


def test_a_whole_pickled_module_is_refused(factories: str, tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(ModelError, match=r"torch\.nn\.modules\.linear\.Linear.*torch\.save\(model\.state_dict"):
        teacher(factories, tmp_path / "module.pt")


@pytest.mark.parametrize(
    ("name", "contents", "message"),
    [
        ("w.pt", b"", r"w\.pt is an empty file, not a file of weights; copy it again$"),
        ("w.pt", b"hello world", "not a readable torch file"),
        ("w.safetensors", b"\x10\x00\x00\x00\x00\x00\x00\x00{", "not a readable safetensors file"),
        ("w.safetensors", b"\x10\x00", "not a readable safetensors file"),
        ("w.pth", b"\x08\x07\x12\x07pytorch", "is an ONNX network, not a file of weights; save the state dict alone"),
        ("w.pth", b"\n <html>404", "is a page of HTML or XML, not a file of weights; download the file itself$"),
        ("w.pth", b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS, .*: git lfs pull$"),
        ("w.h5", b"\x89HDF\r\n\x1a\n", r"is an HDF5 file \(Keras\), not"),
        ("w.tflite", b"\x1c\x00\x00\x00TFL3", "is a TensorFlow Lite network, not"),
        ("w.pth", b"\x1f\x8b\x08", "is a gzip archive, not a file of weights; unpack it"),
        ("w.pt", None, "weights file not found"),
    ],
)
def test_unreadable_files(factories: str, tmp_path: Path, name: str, contents: bytes | None, message: str) -> None:
    if contents is not None:
        (tmp_path / name).write_bytes(contents)
    with pytest.raises(ModelError, match=message) as caught:
        teacher(factories, tmp_path / name)
    assert "\n" not in str(caught.value)


def test_truncated_torch_file(factories: str, weights: Path) -> None:
    weights.write_bytes(weights.read_bytes()[:-200])
    with pytest.raises(ModelError, match="not a readable torch file"):
        teacher(factories, weights)


@pytest.mark.parametrize("contents", [{}, {"epoch": 1}, [torch.zeros(1)], {"state_dict": {"a": 1}}])
def test_files_without_a_state_dict(factories: str, weights: Path, contents: object) -> None:
    torch.save(contents, weights)
    with pytest.raises(ModelError, match="holds no state dict"):
        teacher(factories, weights)
