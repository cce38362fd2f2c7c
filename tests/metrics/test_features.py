"""Extractors and the pass over images."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from synthkd.errors import ConfigError, DataError, ModelError
from synthkd.imports import allowing
from synthkd.metrics import features as features_module
from synthkd.metrics.efficientnet import EfficientNetLite0
from synthkd.metrics.features import build_extractor, extract
from synthkd.models import Classifier, save
from synthkd.settings import (
    EfficientNetExtractor,
    ExtractorSettings,
    LoadedExtractor,
    TeacherExtractor,
)
from synthkd.types import ImageSpec, to_float

CPU = torch.device("cpu")
TEACHER = TeacherExtractor(kind="teacher")
pytestmark = pytest.mark.usefixtures("seeded")


def random_images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


class MapsToLogits(nn.Module):
    """A head on maps: every position has its own logits, and they are averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Conv2d(3, 5, 3)
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.maps(x).flatten(2).transpose(1, 2)).mean(1)


# --- the teacher ----------------------------------------------------------------------------------------------------


def test_the_teachers_features_are_the_input_of_its_head(teacher: Classifier) -> None:
    images = random_images(5, 1, 12, 12)
    found = extract([images], build_extractor(TEACHER, CPU, teacher))
    assert teacher.training  # untouched
    teacher.eval()
    with torch.no_grad():
        expected = teacher.body[:-1](teacher.normalize(to_float(images)))
        torch.testing.assert_close(found.values, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.logits, teacher(to_float(images)), atol=1e-5, rtol=1e-5)
    assert (found.n, found.extractor, found.resize) == (5, "teacher", "none")
    assert not found.values.requires_grad


def test_training_mode_and_later_training_do_not_reach_an_extractor(teacher: Classifier) -> None:
    images = random_images(5, 1, 12, 12)
    extractor = build_extractor(TEACHER, CPU, teacher.train())
    before = extract([images], extractor).values
    with torch.no_grad():
        teacher.body.head.weight.zero_()
        teacher.body.stem[0].weight.zero_()
    assert torch.equal(extract([images], extractor).values, before)


def test_maps_and_tokens_are_averaged_over_positions() -> None:
    model = Classifier(MapsToLogits(), ImageSpec(3, 8, 8, 4))
    images = random_images(3, 3, 8, 8)
    found = build_extractor(TEACHER, CPU, model)(images)
    torch.testing.assert_close(found.features, model.body.maps(to_float(images)).mean((2, 3)).detach())


def test_the_teacher_refuses_other_images_until_it_may_resize(teacher: Classifier) -> None:
    images = random_images(2, 1, 20, 16)
    with pytest.raises(DataError, match=r"takes images of 12x12, got 20x16.*set the extractor's resize"):
        extract([images], build_extractor(TEACHER, CPU, teacher))
    with pytest.raises(DataError, match=r"takes 1 channels, the images have 3.*channels: 1"):
        extract([random_images(2, 3, 12, 12)], build_extractor(TEACHER, CPU, teacher))
    resizing = build_extractor(TeacherExtractor(kind="teacher", resize="antialias"), CPU, teacher)
    assert resizing.resize == "antialias 12x12"
    sizes = [images, random_images(1, 1, 9, 9), random_images(3, 1, 12, 12)]
    assert extract(sizes, resizing).values.shape == (6, 16)


def test_no_teacher() -> None:
    with pytest.raises(ConfigError, match=r"needs a teacher.*efficientnet_lite0"):
        build_extractor(TEACHER, CPU)


def test_a_network_without_a_linear_layer_has_no_features() -> None:
    model = Classifier(nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten()), ImageSpec(3, 8, 8, 4))
    with pytest.raises(ModelError, match="no linear layer"):
        build_extractor(TEACHER, CPU, model)


# --- digests --------------------------------------------------------------------------------------------------------


def test_a_digest_tells_weights_preprocessing_and_networks_apart(teacher: Classifier) -> None:
    first = build_extractor(TEACHER, CPU, teacher).digest
    assert build_extractor(TEACHER, CPU, teacher.eval()).digest == first
    assert len(first) == 64
    other_mean = Classifier(teacher.body, teacher.spec, (0.4,), (0.2,), teacher.recipe)
    assert build_extractor(TEACHER, CPU, other_mean).digest != first
    with torch.no_grad():
        teacher.body.head.bias[0] += 1e-6
    assert build_extractor(TEACHER, CPU, teacher).digest != first


def test_a_digest_tells_architectures_apart_that_share_their_weights() -> None:
    def digest(stride: int) -> str:
        layer = nn.Conv2d(3, 5, 2, stride)
        nn.init.ones_(layer.weight)
        nn.init.ones_(layer.bias)
        head = nn.Linear(5, 4)
        nn.init.ones_(head.weight)
        nn.init.ones_(head.bias)
        body = nn.Sequential(layer, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
        return build_extractor(TEACHER, CPU, Classifier(body, ImageSpec(3, 8, 8, 4))).digest

    assert digest(1) == digest(1)
    assert digest(1) != digest(2)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("model", ["own_network:network", "network.pt"])
def test_a_digest_tells_apart_what_code_of_ones_own_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # two files of one second would be taken for one

    def digest(computed: str) -> str:
        monkeypatch.delitem(sys.modules, "own_network", raising=False)
        importlib.invalidate_caches()
        (tmp_path / "own_network.py").write_text(
            "import torch\n"
            "class Network(torch.nn.Linear):\n"
            "    def forward(self, images):\n"
            f"        return super().forward({computed}.flatten(1))\n"
            "def network():\n"
            "    torch.manual_seed(0)\n"
            "    return torch.nn.Sequential(Network(12, 2))\n"
        )
        network = importlib.import_module("own_network").network()
        torch.jit.trace(network.eval(), torch.rand(2, 3, 2, 2)).save("network.pt")
        with allowing(folders=[tmp_path]):
            return build_extractor(LoadedExtractor(kind="load", model=model, size=2, classes=2), CPU).digest

    first = digest("images")
    assert digest("images.sqrt()") != first
    assert model == "network.pt" or digest("images") == first  # a file that is saved again has other bytes


def test_a_digest_survives_saving(teacher: Classifier, tmp_path: Path) -> None:
    save(teacher, tmp_path / "model")
    loaded = build_extractor(LoadedExtractor(kind="load", model=str(tmp_path / "model")), CPU)
    assert loaded.digest == build_extractor(TEACHER, CPU, teacher).digest
    assert loaded.resize == "antialias 12x12"
    assert loaded.classes == 4


def test_only_features_of_one_extractor_are_comparable(teacher: Classifier) -> None:
    images = random_images(3, 1, 12, 12)
    plain = extract([images], build_extractor(TEACHER, CPU, teacher))
    resized = extract([images], build_extractor(TeacherExtractor(kind="teacher", resize="pil"), CPU, teacher))
    plain.check_comparable(plain)
    with pytest.raises(DataError, match=r"teacher .*, resize none and of teacher .*, resize pil 12x12 cannot"):
        plain.check_comparable(resized)


def test_scores_are_called_by_the_last_part_of_a_models_place(teacher: Classifier, tmp_path: Path) -> None:
    for folder, name in (("nets/mine", "mine"), ("inception", "loaded_inception"), ("run/teacher", "loaded_teacher")):
        save(teacher, tmp_path / folder)
        assert build_extractor(LoadedExtractor(kind="load", model=str(tmp_path / folder)), CPU).name == name
    assert build_extractor(LoadedExtractor(kind="load", model=str(tmp_path / "run")), CPU).name == "run"


# --- the pass -------------------------------------------------------------------------------------------------------


def test_batches_may_be_of_any_length(teacher: Classifier) -> None:
    images = random_images(11, 1, 12, 12)
    extractor = build_extractor(TEACHER, CPU, teacher)
    whole = extract([images], extractor)
    parts = extract(iter([images[:0], images[:7], images[7:8], images[8:]]), extractor, batch_size=3)
    torch.testing.assert_close(parts.values, whole.values, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(parts.logits, whole.logits, atol=1e-6, rtol=1e-6)


def test_no_image_at_all(teacher: Classifier) -> None:
    with pytest.raises(DataError, match="no images"):
        extract([random_images(0, 1, 12, 12)], build_extractor(TEACHER, CPU, teacher))


# --- networks from elsewhere ----------------------------------------------------------------------------------------

SOURCE = """
from torch import nn

def classifier():
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))

def maps():
    return nn.Conv2d(3, 6, 3)

def nothing():
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.Flatten(0))
"""


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "networks_of_a_user.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "networks_of_a_user", raising=False)
    return "networks_of_a_user"


def loaded(model: str, **more: object) -> LoadedExtractor:
    return LoadedExtractor.model_validate({"kind": "load", "model": model, **more})


def test_a_function_that_gives_a_classifier(functions: str, tmp_path: Path) -> None:
    name = f"{functions}:classifier"
    with pytest.raises(ConfigError, match="size"):
        build_extractor(loaded(name, classes=5), CPU)
    weights = importlib.import_module(functions).classifier().state_dict()
    save_file(weights, tmp_path / "w.safetensors")
    extractor = build_extractor(loaded(name, classes=5, size=16, weights=str(tmp_path / "w.safetensors")), CPU)
    found = extractor(random_images(2, 1, 28, 28))
    assert (extractor.name, extractor.classes, extractor.resize) == ("classifier", 5, "antialias 16x16")
    expected = found.features @ weights["4.weight"].T + weights["4.bias"]
    torch.testing.assert_close(found.logits, expected)


def test_a_function_whose_output_are_the_features(functions: str) -> None:
    extractor = build_extractor(loaded(f"{functions}:maps", size=[16, 20]), CPU)
    found = extract([random_images(2, 3, 28, 28)], extractor)
    assert found.values.shape == (2, 6)
    assert found.logits is None
    assert extractor.classes is None
    with pytest.raises(ConfigError, match="needs `size`"):
        build_extractor(loaded(f"{functions}:maps"), CPU)
    with pytest.raises(ModelError, match=r"nothing must give features .*, got \[2352\]"):
        build_extractor(loaded(f"{functions}:nothing", size=16), CPU)
    with pytest.raises(ModelError, match=r"maps cannot take 1x16x16 images: .*check `size`, `channels`"):
        build_extractor(loaded(f"{functions}:maps", size=16, channels=1), CPU)


def test_timm_leaves_its_head_off_without_classes(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    body = timm.create_model("resnet10t", num_classes=7).eval()
    save_file(body.state_dict(), tmp_path / "w.safetensors")
    headless = {k: v for k, v in body.state_dict().items() if not k.startswith("fc.")}
    save_file(headless, tmp_path / "headless.safetensors")
    name, images = "timm:resnet10t", random_images(2, 3, 32, 32)
    with pytest.raises(ConfigError, match="without weights is untrained"):
        build_extractor(loaded(name, size=32), CPU)
    whole = build_extractor(loaded(name, size=32, classes=7, weights=str(tmp_path / "w.safetensors")), CPU)
    bare = build_extractor(loaded(name, size=32, weights=str(tmp_path / "headless.safetensors")), CPU)
    with torch.no_grad():
        expected = body.forward_head(body.forward_features(to_float(images)), pre_logits=True)
        logits = body(to_float(images))
    for extractor in (whole, bare):
        assert extractor.name == "resnet10t"
        torch.testing.assert_close(extractor(images).features, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(whole(images).logits, logits, atol=1e-5, rtol=1e-5)


# --- EfficientNet ---------------------------------------------------------------------------------------------------


def test_efficientnet_gives_1280_features_of_any_images(monkeypatch: pytest.MonkeyPatch) -> None:
    def random_weights(weights: str | None, size: int) -> Classifier:
        assert weights is None
        return Classifier(EfficientNetLite0(), ImageSpec(3, size, size, 1000))

    monkeypatch.setattr(features_module, "efficientnet_lite0", random_weights)
    extractor = build_extractor(EfficientNetExtractor(kind="efficientnet_lite0", size=48), CPU)
    assert (extractor.name, extractor.classes, extractor.resize) == ("efflite0", 1000, "antialias 48x48")
    found = extract([random_images(2, 1, 28, 28), random_images(1, 3, 50, 70)], extractor)
    assert found.values.shape == (3, 1280)
    assert found.logits is not None
    assert found.logits.shape == (3, 1000)


# --- settings -------------------------------------------------------------------------------------------------------


def test_settings_by_kind() -> None:
    adapter: TypeAdapter[ExtractorSettings] = TypeAdapter(ExtractorSettings)
    assert adapter.validate_python({"kind": "efficientnet_lite0"}) == EfficientNetExtractor(kind="efficientnet_lite0")
    assert isinstance(adapter.validate_python({"kind": "load", "model": "timm:vit", "size": 224}), LoadedExtractor)
    for wrong in (
        {"kind": "efficientnet_lite0", "resize": "none"},
        {"kind": "efficientnet_lite0", "size": 32},
        {"kind": "inception", "weights": "a.pth", "download": True},
        {"kind": "inception", "size": 64},
        {"kind": "clip"},
    ):
        with pytest.raises(ValidationError):
            adapter.validate_python(wrong)
