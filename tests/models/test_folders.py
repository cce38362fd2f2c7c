"""Folders of timm and transformers as models: what their files say, and what the recipe says beside them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from synthkd.errors import ConfigError, MissingExtraError, ModelError
from synthkd.models import build_model, load, load_model, save
from synthkd.models.files import is_model_directory
from synthkd.models.folders import completed, is_foreign
from synthkd.settings import LoadedModel, ZooModel
from synthkd.types import ImageSpec

NET = "test_resnet"


def settings(model: Path | str, **more: Any) -> LoadedModel:
    return LoadedModel(kind="load", model=str(model), **more)


@pytest.fixture
def timm_folder(tmp_path: Path) -> Path:
    timm = pytest.importorskip("timm")
    network = timm.create_model(NET, num_classes=3, in_chans=1)
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    shown = {"input_size": [1, 32, 24], "mean": [0.4], "std": [0.2], "num_classes": 3}
    config = {"architecture": NET, "num_classes": 3, "label_names": ["a", "b", "c"], "pretrained_cfg": shown}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def changed(folder: Path, **keys: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **keys}))


def test_a_folder_of_timm_needs_nothing_else(timm_folder: Path) -> None:
    for name in (timm_folder, f"timm:local-dir:{timm_folder}"):
        model = load_model(settings(name))
        assert model.spec == ImageSpec(1, 32, 24, 3)
        assert model.normalize.mean.flatten().tolist() == pytest.approx([0.4])
        assert model.normalize.std.flatten().tolist() == pytest.approx([0.2])
        assert model.class_names == ("a", "b", "c")
        assert model.notes == (f"the folder of timm:{NET}",)
        assert not model.training
    assert is_foreign(timm_folder)
    assert not is_model_directory(timm_folder)


def test_a_student_from_a_folder_is_saved_without_it(timm_folder: Path, tmp_path: Path) -> None:
    student = build_model(settings(timm_folder))
    assert student.training
    save(student, tmp_path / "saved")
    (timm_folder / "model.safetensors").unlink()
    assert torch.equal(load(tmp_path / "saved").body.fc.weight, student.body.fc.weight)
    assert not is_foreign(tmp_path / "saved")


def test_what_the_recipe_says_agrees_or_goes_first_with_a_note(timm_folder: Path) -> None:
    same = load_model(settings(timm_folder, classes=3, channels=1, size=(32, 24), mean=(0.4,), std=(0.2,)))
    assert same.notes == (f"the folder of timm:{NET}",)
    other = load_model(settings(timm_folder, size=32, mean=(0.5,), std=(0.2,), class_names=("x", "y", "z")))
    assert other.notes == (
        f"the folder of timm:{NET}",
        "size 32 of the recipe, where its files say 32x24",
        "mean [0.5] of the recipe, where its files say [0.4]",
    )
    assert other.spec == ImageSpec(1, 32, 32, 3)
    assert other.normalize.mean.flatten().tolist() == [0.5]
    assert other.class_names == ("x", "y", "z")
    with pytest.raises(ConfigError, match=r"classes: .* has 3, but the config says 4; leave classes out"):
        load_model(settings(timm_folder, classes=4))
    with pytest.raises(ConfigError, match=r"channels: .* has 1, but the config says 3"):
        load_model(settings(timm_folder, channels=3))


def test_what_is_missing_or_wrong_ends_in_one_line(timm_folder: Path) -> None:
    changed(timm_folder, architecture="test_resnt")
    with pytest.raises(ConfigError, match=r"timm has no model 'test_resnt'; did you mean test_resnet"):
        load_model(settings(timm_folder))
    changed(timm_folder, architecture=NET, num_classes=4)
    with pytest.raises(ModelError, match="do not fit the model: 2 of another shape"):
        load_model(settings(timm_folder))
    changed(timm_folder, num_classes=3, pretrained_cfg={})
    with pytest.raises(ConfigError, match="needs `size` and `classes`, got size=None, classes=3"):
        load_model(settings(timm_folder))
    (timm_folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has no model\.safetensors or pytorch_model\.bin; copy the whole folder"):
        load_model(settings(timm_folder))
    with pytest.raises(ConfigError, match="no folder with timm's config"):
        load_model(settings("timm:local-dir:nowhere"))


def test_a_damaged_folder_of_our_own_stays_our_own(tmp_path: Path) -> None:
    save(build_model(ZooModel(arch="mlp", width=4), ImageSpec(1, 8, 8, 3)), tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert is_model_directory(tmp_path)
    with pytest.raises(ModelError, match="damaged"):
        load_model(settings(tmp_path))


class Classified(nn.Module):
    """A stand-in for a classifier of transformers."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        self.norm = nn.BatchNorm2d(config["num_channels"])
        self.classifier = nn.Linear(config["num_channels"], config["num_labels"])

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.classifier(self.norm(pixel_values).mean((2, 3))))


@pytest.fixture
def transformers_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    library: Any = ModuleType("transformers")
    library.__version__ = "5"
    library.CONFIG_MAPPING = {"resnet": None}
    library.AutoConfig = SimpleNamespace(for_model=lambda kind, **keys: {"model_type": kind, **keys})
    library.AutoModelForImageClassification = SimpleNamespace(from_config=Classified)
    monkeypatch.setitem(sys.modules, "transformers", library)
    config = {
        "architectures": ["ResNetForImageClassification"], "model_type": "resnet", "num_channels": 3, "depths": [1],
        "id2label": {"0": "cat", "10": "eel", "2": "dog"}, "label2id": {}, "auto_map": {"AutoModel": "evil.Model"},
        "_attn_implementation": "somebody/kernel", "backbone_config": {"auto_map": {}, "layers": 2},
    }  # fmt: skip
    shown = {
        "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.1], "do_rescale": True, "rescale_factor": 1 / 255,
        "size": {"shortest_edge": 36}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32},
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(shown))
    save_file(Classified({"num_channels": 3, "num_labels": 3}).state_dict(), tmp_path / "model.safetensors")
    return tmp_path


def test_a_folder_of_transformers(transformers_folder: Path, tmp_path: Path) -> None:
    model = load_model(settings(transformers_folder))
    assert model.spec == ImageSpec(3, 32, 32, 3)
    assert model.class_names == ("cat", "dog", "eel")
    assert model.normalize.mean.flatten().tolist() == pytest.approx([0.5, 0.4, 0.3])
    assert model.notes == ("the folder of transformers:resnet",)
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 3)
    # nothing that names code reaches the library
    network = model.body
    assert isinstance(network, Classified)
    kept = {
        "architectures": ["ResNetForImageClassification"], "model_type": "resnet", "depths": [1], "num_labels": 3,
        "num_channels": 3, "backbone_config": {"layers": 2},
    }  # fmt: skip
    assert network.config == kept
    save(model, tmp_path / "saved")
    assert torch.equal(load(tmp_path / "saved").body.classifier.weight, network.classifier.weight)


@pytest.mark.parametrize(
    ("keys", "size", "mean", "std"),
    [
        ({"do_center_crop": False}, (36, 36), [0.5, 0.4, 0.3], [0.2, 0.2, 0.1]),
        ({"do_center_crop": False, "size": {"height": 8, "width": 9}}, (8, 9), [0.5, 0.4, 0.3], [0.2, 0.2, 0.1]),
        ({"do_center_crop": False, "size": 7}, (7, 7), [0.5, 0.4, 0.3], [0.2, 0.2, 0.1]),
        ({"do_normalize": False}, (32, 32), None, None),
        ({"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [51] * 3}, (32, 32), [0.5] * 3, [0.2] * 3),
        ({"rescale_factor": 2 / 255, "image_mean": [1] * 3, "image_std": [1] * 3}, (32, 32), [0.5] * 3, [0.5] * 3),
        ({"do_rescale": False, "do_normalize": False}, (32, 32), [0] * 3, [1 / 255] * 3),
        ({"include_top": True}, (32, 32), [0.5, 0.4, 0.3], [0.04, 0.04, 0.01]),
        ({"include_top": True, "do_normalize": False}, (32, 32), [0] * 3, [0.2, 0.2, 0.1]),
        ({"rescale_offset": True, "rescale_factor": 2 / 255, "do_normalize": False}, (32, 32), [0.5] * 3, [0.5] * 3),
        ({"rescale_offset": True, "rescale_factor": 2 / 255}, (32, 32), [0.75, 0.7, 0.65], [0.1, 0.1, 0.05]),
    ],
)
def test_preprocessors_of_transformers(
    transformers_folder: Path, keys: dict[str, Any], size: Any, mean: Any, std: Any
) -> None:
    path = transformers_folder / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))
    found, _ = completed(settings(transformers_folder))
    assert found.size == size
    for own, expected in ((found.mean, mean), (found.std, std)):
        assert own is None if expected is None else own == pytest.approx(expected)


@pytest.mark.parametrize("key", ["do_flip_channel_order", "do_flip_channels"])
def test_flipped_channels_are_refused(transformers_folder: Path, key: str) -> None:
    path = transformers_folder / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: True}))
    with pytest.raises(ModelError, match=rf"takes images as blue, green and red \(preprocessor_config.json: {key}\)"):
        load_model(settings(transformers_folder))


def test_without_a_preprocessor_the_recipe_says_mean_and_std(transformers_folder: Path) -> None:
    (transformers_folder / "preprocessor_config.json").unlink()
    with pytest.raises(
        ConfigError, match=r"has no readable preprocessor_config\.json; copy it, too, or set mean and std"
    ):
        load_model(settings(transformers_folder, size=32))
    stated = settings(transformers_folder, size=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1))
    assert load_model(stated).normalize.mean.flatten().tolist() == pytest.approx([0.5, 0.4, 0.3])
    assert load_model(settings(transformers_folder, size=32, untrained=True)).spec == ImageSpec(3, 32, 32, 3)


def test_networks_of_transformers_that_are_refused(transformers_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed(transformers_folder, model_type="resnot")
    with pytest.raises(ConfigError, match="transformers 5 has no model type 'resnot'"):
        load_model(settings(transformers_folder))
    changed(transformers_folder, architectures=["BertModel"])
    with pytest.raises(ModelError, match="holds BertModel, not an image classifier of transformers"):
        load_model(settings(transformers_folder))
    changed(transformers_folder, architectures=["ResNetForImageClassification"])
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'synthkd\[transformers\]'"):
        load_model(settings(transformers_folder))
