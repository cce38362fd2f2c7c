"""ONNX files as teachers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from synthkd.compression.export import export_onnx
from synthkd.errors import MissingExtraError, ModelError
from synthkd.models import build, fold_batch_norm, head, load_model, probe
from synthkd.settings import LoadedModel, ZooModel
from synthkd.taps import observe
from synthkd.types import ImageSpec

SHAPE = (3, 8, 8)
IMAGES = torch.linspace(0, 1, 4 * 3 * 8 * 8).view(4, *SHAPE).sin()


def settings(path: Path) -> LoadedModel:
    return LoadedModel(kind="load", model=str(path), size=8, classes=5)


def network() -> nn.Sequential:
    layers = nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)
    made = nn.Sequential(*layers)
    made(torch.rand(8, *SHAPE))
    return made.eval()


def write(model: nn.Module, path: Path, *, norms: bool = False, count: int | None = None) -> None:
    mode = torch.onnx.TrainingMode.PRESERVE if norms else torch.onnx.TrainingMode.EVAL
    axes = {"images": {0: "n"}} if count is None else None
    images = IMAGES[:count]
    torch.onnx.export(
        model, (images,), str(path), dynamo=False, training=mode, do_constant_folding=not norms,
        input_names=["images"], dynamic_axes=axes,
    )  # fmt: skip


@pytest.fixture
def _converter() -> None:
    pytest.importorskip("onnx2pytorch")
    pytest.importorskip("onnxruntime")


@pytest.mark.usefixtures("_converter")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("norms", [False, True])
def test_an_onnx_file_becomes_the_network_that_it_was(norms: bool, tmp_path: Path) -> None:
    model = network()
    write(model, tmp_path / "net", norms=norms)  # the content decides, not the ending
    loaded = load_model(settings(tmp_path / "net"))
    images = IMAGES.clone().requires_grad_()
    assert torch.allclose(loaded(images), model(IMAGES), atol=1e-5)
    loaded(images).sum().backward()
    assert images.grad is not None
    statistics = observe(loaded, IMAGES, statistics=True).statistics
    assert probe(loaded, gradients=True).batch_norm_layers == len(statistics) == norms
    assert loaded.notes == (f"an ONNX network{'' if norms else ', without BatchNorm statistics'}",)
    for found in statistics.values():
        assert torch.equal(found.running_mean, model[1].running_mean)
    folded = fold_batch_norm(loaded)
    assert torch.allclose(folded(IMAGES), loaded(IMAGES), atol=1e-5)
    assert loaded.get_submodule(head(loaded)).out_features == 5


@pytest.mark.usefixtures("_converter")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("case", ["constant scale", "equal norms", "equal biases"])
def test_constants_and_shared_weights_reach_their_layers(case: str, norms: bool, tmp_path: Path) -> None:
    first, second = nn.Conv2d(3, 3, 3, 1, 1), nn.Conv2d(3, 3, 3, 1, 1)
    if case == "constant scale":  # the exporter writes nodes Constant
        second = nn.BatchNorm2d(3, affine=False)
    elif case == "equal norms":  # and of equal weights nodes Identity
        first, second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    else:
        second.load_state_dict(first.state_dict())
    model = nn.Sequential(nn.Sigmoid(), first, nn.ReLU(), second, nn.Flatten(), nn.Linear(192, 5))
    model(5 * IMAGES)
    write(model.eval(), tmp_path / "net.onnx", norms=norms)
    assert torch.allclose(load_model(settings(tmp_path / "net.onnx"))(IMAGES), model(IMAGES), atol=1e-5)


@pytest.mark.usefixtures("_converter")
@pytest.mark.filterwarnings("ignore")
def test_our_own_exports_are_read(tmp_path: Path) -> None:
    own = build(ZooModel(arch="convnet", width=4), ImageSpec(*SHAPE, 5), (0.5,) * 3, (0.2,) * 3).eval()
    export_onnx(own, tmp_path / "model.onnx")
    loaded = load_model(settings(tmp_path / "model.onnx"))
    assert torch.allclose(loaded(IMAGES), own(IMAGES), atol=1e-5)


@pytest.mark.usefixtures("_converter")
@pytest.mark.filterwarnings("ignore")
def test_refused_files(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(4, -1)[:, :5]

    write(Fixed(), tmp_path / "fixed.onnx", count=4)
    with pytest.raises(ModelError, match=r"fixed\.onnx takes 4 images at once and no other number; export it with"):
        load_model(settings(tmp_path / "fixed.onnx"))

    class Computed(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight.abs(), self.bias)

    norm = Computed(3)
    nn.init.ones_(norm.bias)
    write(nn.Sequential(norm, nn.Flatten(), nn.Linear(192, 5)), tmp_path / "computed.onnx", norms=True)
    with pytest.raises(ModelError, match=r"turned into PyTorch layers \(they give other values than ONNX Runtime\)"):
        load_model(settings(tmp_path / "computed.onnx"))
    torch.onnx.export(
        network().train(), (IMAGES,), str(tmp_path / "train.onnx"), dynamo=False,
        training=torch.onnx.TrainingMode.TRAINING, do_constant_folding=False,
    )  # fmt: skip
    with pytest.raises(ModelError, match="its BatchNorm is in training mode"):
        load_model(settings(tmp_path / "train.onnx"))
    data = (tmp_path / "fixed.onnx").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match=r"cut\.onnx is not a readable ONNX file") as caught:
        load_model(settings(tmp_path / "cut.onnx"))
    assert "\n" not in str(caught.value)


def test_the_converter_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnx")
    (tmp_path / "net.onnx").write_bytes(b"\x08\x07\x12\x07pytorch")
    monkeypatch.setitem(sys.modules, "onnx2pytorch", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'synthkd\[onnx\]'"):
        load_model(settings(tmp_path / "net.onnx"))
