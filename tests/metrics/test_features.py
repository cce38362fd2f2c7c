"""Extractors, the pass over images, and features as files."""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from urllib.error import URLError

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from synthkd.errors import ConfigError, DataError, MissingExtraError, ModelError
from synthkd.metrics import features as features_module
from synthkd.metrics.efficientnet import EfficientNetLite0
from synthkd.metrics.feature_cache import SavedSet, cached_extract, load_features, load_set, save_features, save_set
from synthkd.metrics.features import Features, build_extractor, extract
from synthkd.models import Classifier, build_model, save
from synthkd.settings import (
    EfficientNetExtractor,
    ExtractorSettings,
    InceptionExtractor,
    LoadedExtractor,
    TeacherExtractor,
    ZooModel,
)
from synthkd.types import ImageSpec, to_float

CPU = torch.device("cpu")
TEACHER = TeacherExtractor(kind="teacher")


@pytest.fixture(autouse=True)
def _seeded() -> Iterable[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def random_images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def lively(model: nn.Module) -> None:
    """BatchNorm layers as after training: without this folding them would change nothing."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)


@pytest.fixture
def teacher() -> Classifier:
    spec = ImageSpec(1, 12, 12, 4)
    model = build_model(ZooModel(arch="resnet", width=4, depth=8), spec, (0.3,), (0.2,))
    lively(model)
    return model


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
    with pytest.raises(DataError, match=r"takes 1 channels, the images have 3.*channels=1"):
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
    with pytest.raises(ConfigError, match="without weights knows nothing"):
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


# --- EfficientNet and Inception -------------------------------------------------------------------------------------


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


class TinyInception(nn.Module):
    """Stands in for torch-fidelity's network: the same way of being built, its children in the order they run in."""

    def __init__(self, name: str, features: list[str], feature_extractor_weights_path: str | None = None) -> None:
        super().__init__()
        assert feature_extractor_weights_path is not None  # else it would download
        self.Conv2d_1a_3x3 = nn.Conv2d(3, 6, 3, stride=8)
        self.AvgPool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(6, 1008)


@pytest.fixture
def tiny_inception(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = TinyInception  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, module.__name__, module)


def save_known(network: nn.Module, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write weights that count as those of the FID."""
    torch.save(network.state_dict(), path)
    monkeypatch.setattr(features_module, "INCEPTION_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.usefixtures("tiny_inception")
def test_inception_from_a_local_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "inception.pth"
    network = TinyInception("", [], "")
    save_known(network, path, monkeypatch)
    extractor = build_extractor(InceptionExtractor(kind="inception", weights=str(path), resize="tf1"), CPU)
    assert (extractor.name, extractor.classes, extractor.resize) == ("inception", 1008, "tf1 299x299")
    images = random_images(2, 3, 299, 299)
    found = extractor(images)
    with torch.no_grad():
        expected = network.AvgPool(network.Conv2d_1a_3x3((images.float() - 128) / 128)).flatten(1)
    torch.testing.assert_close(found.features, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.logits, expected @ network.fc.weight.T.detach(), atol=1e-5, rtol=1e-5)  # no bias
    assert extractor(random_images(1, 1, 28, 28)).features.shape == (1, 6)


@pytest.mark.usefixtures("tiny_inception")
def test_other_weights_are_not_the_fids(tmp_path: Path) -> None:
    path = tmp_path / "inception.pth"
    torch.save(TinyInception("", [], "").state_dict(), path)
    settings = InceptionExtractor(kind="inception", weights=str(path))
    with pytest.raises(ModelError, match=r"damaged or another file: sha256 .* instead of 6726825d.*fetch https"):
        build_extractor(settings, CPU)


@pytest.mark.usefixtures("tiny_inception")
def test_inception_downloads_only_when_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def offline(request: object, *_: object, **__: object) -> None:
        asked.append(request)
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "urlopen", offline)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ConfigError, match=r"set `weights` to a local copy of https.*or `download: true`"):
        build_extractor(InceptionExtractor(kind="inception"), CPU)
    assert asked == []
    with pytest.raises(ModelError, match=r"downloading https.* failed .*no route to host.*set `weights`"):
        build_extractor(InceptionExtractor(kind="inception", download=True), CPU)
    assert len(asked) == 1
    # What an earlier download left is used without asking.
    left = tmp_path / "checkpoints" / "pt_inception-2015-12-05-6726825d.pth"
    save_known(TinyInception("", [], ""), left, monkeypatch)
    assert build_extractor(InceptionExtractor(kind="inception"), CPU).classes == 1008
    assert len(asked) == 1


def test_inception_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(MissingExtraError, match=r"inception needs.*torch_fidelity.*synthkd\[inception\]"):
        build_extractor(InceptionExtractor(kind="inception"), CPU)


@pytest.mark.slow
def test_inception_is_torch_fidelitys_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    path = tmp_path / "inception.pth"
    torch.save({}, path)
    with monkeypatch.context() as patch:  # no weights, and none downloaded
        patch.setattr(library.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        theirs = library.FeatureExtractorInceptionV3("theirs", ["2048", "logits_unbiased"], str(path))
    lively(theirs)
    save_known(theirs, path, monkeypatch)
    extractor = build_extractor(InceptionExtractor(kind="inception", weights=str(path), resize="tf1"), CPU)
    images = random_images(2, 3, 40, 50)
    found = extractor(images)
    for mine, expected in zip((found.features, found.logits), theirs(images), strict=True):
        scale = expected.abs().max()
        torch.testing.assert_close(mine / scale, expected / scale, atol=1e-4, rtol=0)


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


# --- files and the cache --------------------------------------------------------------------------------------------


def some_features(logits: bool = True) -> Features:
    return Features(torch.rand(5, 3), torch.rand(5, 2) if logits else None, "teacher", "d" * 64, "antialias 12x12")


def equal(a: Features, b: Features) -> bool:
    same_logits = a.logits is b.logits if None in (a.logits, b.logits) else torch.equal(a.logits, b.logits)
    return (
        same_logits
        and torch.equal(a.values, b.values)
        and (a.extractor, a.digest, a.resize) == (b.extractor, b.digest, b.resize)
    )


@pytest.mark.parametrize("logits", [True, False])
def test_features_round_trip(tmp_path: Path, logits: bool) -> None:
    features = some_features(logits)
    save_features(features, tmp_path / "deep" / "f.safetensors")
    assert equal(load_features(tmp_path / "deep" / "f.safetensors"), features)


def test_a_set_round_trips_with_its_labels_and_the_teachers_features(tmp_path: Path) -> None:
    labels, teacher = torch.tensor([1, 0, 1, 1, 0]), Features(torch.rand(5, 4), torch.rand(5, 2), "t", "e" * 64, "none")
    path = tmp_path / "f.safetensors"
    features = some_features()
    save_set(SavedSet(features, "digest", "mine", labels, ("cat", "dog"), teacher), path)
    found = load_set(path)
    assert equal(found.features, features)
    assert found.teacher is not None
    assert equal(found.teacher, teacher)
    assert found.labels is not None
    assert torch.equal(found.labels, labels)
    assert (found.content, found.name, found.class_names) == ("digest", "mine", ("cat", "dog"))
    flip_last_byte(path)
    with pytest.raises(DataError, match="own checksum"):
        load_set(path)
    save_features(some_features(), path)
    assert (load_set(path).labels, load_set(path).class_names, load_set(path).teacher) == (None, (), None)


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def rename_extractor(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"teacher"', b'"Teacher"'))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def other_tensors(path: Path) -> None:
    save_file({"weights": torch.zeros(2)}, path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_last_byte, "own checksum"),
        (rename_extractor, "own checksum"),
        (cut, "not a readable features file"),
        (other_tensors, "holds no features"),
        (Path.unlink, "features file not found"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    path = tmp_path / "f.safetensors"
    save_features(some_features(), path)
    damage(path)
    with pytest.raises(DataError, match=message):
        load_features(path)


def test_the_cache_takes_features_once(teacher: Classifier, tmp_path: Path) -> None:
    images, calls = random_images(6, 1, 12, 12), []

    def batches() -> list[Tensor]:
        calls.append(1)
        return [images]

    plain = build_extractor(TEACHER, CPU, teacher)
    first = cached_extract("content", batches, plain, tmp_path / "cache")
    assert equal(first, extract([images], plain))
    assert equal(cached_extract("content", batches, plain, tmp_path / "cache"), first)
    assert len(calls) == 1
    cached_extract("other content", batches, plain, tmp_path / "cache")
    resizing = build_extractor(TeacherExtractor(kind="teacher", resize="pil"), CPU, teacher)
    assert cached_extract("content", batches, resizing, tmp_path / "cache").resize == "pil 12x12"
    assert len(calls) == 3
    with torch.no_grad():
        teacher.body.head.bias.add_(1)
    cached_extract("content", batches, build_extractor(TEACHER, CPU, teacher), tmp_path / "cache")
    assert len(calls) == len(list((tmp_path / "cache").iterdir())) == 4


@pytest.mark.parametrize("damage", [flip_last_byte, cut, other_tensors])
def test_a_damaged_cache_entry_is_made_anew(
    teacher: Classifier, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    extractor = build_extractor(TEACHER, CPU, teacher)
    images = random_images(6, 1, 12, 12)
    first = cached_extract("content", lambda: [images], extractor, tmp_path)
    (entry,) = tmp_path.iterdir()
    damage(entry)
    assert equal(cached_extract("content", lambda: [images], extractor, tmp_path), first)
    assert equal(load_features(entry), first)


def test_an_entry_under_another_images_name_is_made_anew(teacher: Classifier, tmp_path: Path) -> None:
    extractor = build_extractor(TEACHER, CPU, teacher)
    ours, theirs = random_images(3, 1, 12, 12), random_images(3, 1, 12, 12, seed=1)
    mine = cached_extract("ours", lambda: [ours], extractor, tmp_path)
    (entry,) = tmp_path.iterdir()
    cached_extract("theirs", lambda: [theirs], extractor, tmp_path)
    (other,) = set(tmp_path.iterdir()) - {entry}
    entry.write_bytes(other.read_bytes())
    assert equal(cached_extract("ours", lambda: [ours], extractor, tmp_path), mine)


def test_a_cache_that_cannot_be_written_is_found_out_first(teacher: Classifier, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"cache .* cannot be written; choose another folder"):
        cached_extract(
            "content", lambda: pytest.fail("too late"), build_extractor(TEACHER, CPU, teacher), tmp_path / "file"
        )
