"""Folders that the real package transformers wrote, where it is installed; the stand-in is in test_folders.py."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from synthkd.errors import ModelError
from synthkd.models import load, load_model, save
from synthkd.settings import LoadedModel
from synthkd.types import ImageSpec

transformers: Any = pytest.importorskip("transformers")

NAMES = ("cat", "dog", "eel")
SIZE = 32
SMALL = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": SIZE, "patch_size": 8}
MLP = {**SMALL, "intermediate_size": 8}
STAGES = {"hidden_sizes": [8, 8], "depths": [1, 1]}
WINDOWS = {"image_size": SIZE, "patch_size": 2, "embed_dim": 8, "depths": [1, 1]}
KINDS: dict[str, dict[str, Any]] = {
    "Beit": {**MLP, "out_indices": [0, 1]},
    "Bit": {"embedding_size": 8, "hidden_sizes": [32, 32], "depths": [1, 1], "num_groups": 4},
    "CLIP": {"vision_config": MLP},
    "ConvNext": {**STAGES, "num_stages": 2, "patch_size": 2},
    "ConvNextV2": {**STAGES, "num_stages": 2, "patch_size": 2},
    "DeiT": MLP,
    "Dinov2": SMALL,
    "EfficientNet": {"image_size": SIZE, "width_coefficient": 0.25, "depth_coefficient": 0.2, "hidden_dim": 320},
    "FocalNet": {**WINDOWS, "focal_levels": [1, 1], "focal_windows": [3, 3]},
    "MobileNetV1": {"image_size": SIZE, "depth_multiplier": 0.1},
    "MobileNetV2": {"image_size": SIZE, "depth_multiplier": 0.1},
    "PoolFormer": {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1]},
    "RegNet": {**STAGES, "embedding_size": 8, "groups_width": 8},
    "ResNet": {**STAGES, "embedding_size": 8, "layer_type": "basic"},
    "Siglip": {"vision_config": MLP},
    "Swin": {**WINDOWS, "num_heads": [2, 2], "window_size": 4},
    "Swinv2": {**WINDOWS, "num_heads": [2, 2], "window_size": 4},
    "ViT": MLP,
}


def saved(kind: str, folder: Path, suffix: str = "ForImageClassification") -> Any:
    """A tiny network with random weights and its preprocessor, both written by transformers."""
    names = {"id2label": dict(enumerate(NAMES)), "label2id": {name: label for label, name in enumerate(NAMES)}}
    config = getattr(transformers, f"{kind}Config")(**KINDS[kind], **names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = getattr(transformers, f"{kind}{suffix}")(config).eval()
    network.save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    return network


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_gives_the_logits_of_its_network(kind: str, tmp_path: Path) -> None:
    network = saved(kind, tmp_path / "folder")
    state, bars = torch.get_rng_state(), transformers.utils.logging.is_progress_bar_enabled()
    model = load_model(LoadedModel(kind="load", model=str(tmp_path / "folder")))
    assert torch.equal(torch.get_rng_state(), state)
    assert transformers.utils.logging.is_progress_bar_enabled() == bars
    assert (model.spec, model.class_names) == (ImageSpec(3, SIZE, SIZE, 3), NAMES)
    images = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = network(2 * images - 1).logits  # its preprocessor has mean and std 0.5
        torch.testing.assert_close(model(images), expected, rtol=0, atol=1e-6)
        save(model, tmp_path / "own")
        assert torch.equal(load(tmp_path / "own")(images), model(images))


def test_of_two_classifiers_of_a_type_the_folder_says_which(tmp_path: Path) -> None:
    network = saved("DeiT", tmp_path, "ForImageClassificationWithTeacher")
    model = load_model(LoadedModel(kind="load", model=str(tmp_path)))
    assert type(model.body) is type(network)


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    saved("ViT", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({**weights, "classifier.weight": torch.zeros(4, 8)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"model: 1 of another shape: classifier\.weight \(\[4, 8\] in the file"):
        load_model(LoadedModel(kind="load", model=str(tmp_path)))
    del weights["classifier.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"model: 1 missing: classifier\.weight;"):
        load_model(LoadedModel(kind="load", model=str(tmp_path)))
