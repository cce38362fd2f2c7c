"""The network of the FID: its weights, its package and its numbers."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from urllib.error import URLError

import pytest
import torch
from torch import Tensor, nn

from synthkd.errors import ConfigError, MissingExtraError, ModelError
from synthkd.metrics import inception
from synthkd.metrics.features import build_extractor
from synthkd.settings import InceptionExtractor

CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("seeded")


def random_images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


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
    monkeypatch.setattr(inception, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())


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
def test_inception_is_torch_fidelitys_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train_norms: Callable[[nn.Module], None]
) -> None:
    library = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    path = tmp_path / "inception.pth"
    torch.save({}, path)
    with monkeypatch.context() as patch:  # no weights, and none downloaded
        patch.setattr(library.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        theirs = library.FeatureExtractorInceptionV3("theirs", ["2048", "logits_unbiased"], str(path))
    train_norms(theirs)
    save_known(theirs, path, monkeypatch)
    extractor = build_extractor(InceptionExtractor(kind="inception", weights=str(path), resize="tf1"), CPU)
    images = random_images(2, 3, 40, 50)
    found = extractor(images)
    for mine, expected in zip((found.features, found.logits), theirs(images), strict=True):
        scale = expected.abs().max()
        torch.testing.assert_close(mine / scale, expected / scale, atol=1e-4, rtol=0)
