"""What is saved comes back bit for bit; what is damaged does not come back at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import synthkd
from synthkd.errors import ModelError
from synthkd.models import Classifier, as_classifier, build, fold_batch_norm, load, save
from synthkd.settings import ZooModel
from synthkd.system.sealed import unsealed
from synthkd.types import ImageSpec

SPEC = ImageSpec(1, 8, 8, 3)
ARCHITECTURES = ["mlp", "lenet5", "convnet", "resnet", "wide_resnet", "slim", "vit"]


def trained(arch: str = "convnet") -> Classifier:
    model = build(ZooModel(arch=arch, width=4 if arch != "wide_resnet" else 1), SPEC, (0.1,), (0.3,), ("a", "b", "c"))
    model.train()(torch.rand(4, 1, 8, 8))  # moves the running statistics away from their start
    return model


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    save(trained(), tmp_path / "model", {"seed": 1})
    return tmp_path / "model"


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_saving_and_loading_is_exact(arch: str, tmp_path: Path) -> None:
    model = trained(arch)
    save(model, tmp_path)
    back = load(tmp_path)
    assert model.training
    assert not any(m.training for m in back.modules())
    assert (back.spec, back.recipe, back.class_names) == (model.spec, model.recipe, model.class_names)
    assert torch.equal(back.normalize.mean, model.normalize.mean)
    assert torch.equal(back.normalize.std, model.normalize.std)
    state, other = model.state_dict(), back.state_dict()
    assert list(state) == list(other)
    assert all(torch.equal(state[k], other[k]) for k in state)
    images = torch.rand(3, 1, 8, 8)
    assert torch.equal(model.eval()(images), back(images))


def test_the_same_model_gives_the_same_bytes_and_saving_again_leaves_other_files(directory: Path) -> None:
    (directory / "notes.txt").write_text("mine")
    before = (directory / "model.safetensors").read_bytes()
    save(load(directory), directory)
    assert (directory / "model.safetensors").read_bytes() == before
    assert sorted(p.name for p in directory.iterdir()) == ["config.json", "model.safetensors", "notes.txt"]


def test_config_is_readable_by_people(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    assert config["recipe"] == {
        "kind": "zoo",
        "arch": "convnet",
        "width": 4,
        "depth": None,
        "norm": "batch",
        "activation": "relu",
        "shortcut": "projection",
    }
    assert config["spec"] == {"channels": 1, "height": 8, "width": 8, "classes": 3}
    assert config["class_names"] == ["a", "b", "c"]
    assert config["extra"] == {"seed": 1}


def test_tied_and_channels_last_weights_are_saved(tmp_path: Path) -> None:
    model = trained("resnet").to(memory_format=torch.channels_last)
    model.body.stage1[0].branch[0].weight = model.body.stage1[0].branch[3].weight
    save(model, tmp_path)
    images = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(load(tmp_path)(images), model.eval()(images))


def test_weights_are_read_into_a_network_of_the_caller(directory: Path) -> None:
    saved, own = load(directory), build(ZooModel(arch="convnet", width=4), SPEC).body
    read = load(directory, network=own)
    assert read.body is own
    assert not read.training
    assert (read.spec, read.class_names, read.recipe) == (saved.spec, saved.class_names, saved.recipe)
    images = torch.rand(3, 1, 8, 8)
    assert torch.equal(read(images), saved(images))
    assert load(directory, network=build(ZooModel(arch="convnet", width=4), SPEC)).spec == SPEC
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        load(directory, network=nn.Linear(2, 2))


def test_a_plain_network_becomes_a_classifier_and_stays_as_it_is() -> None:
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 3))
    network[1].eval()
    classifier = as_classifier(network, SPEC)
    assert [module.training for module in network] == [True, False, True]
    assert torch.equal(as_classifier(network.eval(), SPEC)(images := torch.rand(2, 1, 8, 8)), network(images))
    assert as_classifier(classifier, None) is as_classifier(classifier, SPEC) is classifier
    with pytest.raises(ModelError, match="the network is a Sequential, which does not tell its images: give spec="):
        as_classifier(network, None, "the network")


def test_a_run_directory_gives_its_student_before_its_teacher(tmp_path: Path) -> None:
    save(trained("mlp"), tmp_path / "teacher")
    assert synthkd.load(tmp_path).recipe["arch"] == "mlp"
    save(trained("slim"), tmp_path / "student")
    assert synthkd.load(tmp_path).recipe["arch"] == "slim"


def test_loading_leaves_the_random_state_alone(directory: Path) -> None:
    before = torch.random.get_rng_state()
    load(directory)
    assert torch.equal(torch.random.get_rng_state(), before)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _changed(old: str, new: str) -> Callable[[Path], None]:
    """Another word, in a file of a version without checksums."""

    def change(path: Path) -> None:
        values = unsealed(path.read_bytes())
        path.write_text(json.dumps(values).replace(old, new))

    return change


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("model.safetensors", _truncate, "checksum"),
        ("model.safetensors", _flip, "checksum"),
        ("model.safetensors", Path.unlink, "has no model.safetensors"),
        ("config.json", _truncate, "config.json is damaged"),
        ("config.json", Path.unlink, "has no config.json"),
        ("config.json", _changed('"format": 1', '"format": 2'), "format"),
        ("config.json", _changed('"convnet"', '"convent"'), "recipe"),
        ("config.json", _changed('"height": 8', '"height": 4'), "at least 8x8"),
        ("config.json", lambda p: p.write_bytes(b"\xff\xfe"), "config.json"),
    ],
)
def test_damage_is_named(directory: Path, name: str, damage, message: str) -> None:
    damage(directory / name)
    with pytest.raises(ModelError, match=message) as caught:
        load(directory)
    assert "\n" not in str(caught.value)


def test_weights_of_another_model_are_named(directory: Path) -> None:
    _changed('"width": 4', '"width": 8')(directory / "config.json")
    with pytest.raises(ModelError, match=r"shape: body\.stage1\.0\.weight \(\[4, 1, 3, 3\].*12 more"):
        load(directory)


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such directory"):
        load(tmp_path / "nothing")


def test_what_cannot_be_rebuilt_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no recipe"):
        save(fold_batch_norm(trained()), tmp_path)
    foreign = Classifier(nn.Flatten(), SPEC, recipe={"kind": "load", "model": "a:b", "options": {"size": {1, 2}}})
    with pytest.raises(ModelError, match="plain JSON only"):
        save(foreign, tmp_path)
    with pytest.raises(ModelError, match="plain JSON only"):
        save(trained(), tmp_path, {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []
