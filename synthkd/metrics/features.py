"""From images to features: a network in one fixed state behind a call, and one pass of it over images.

A score holds for one network with its weights, its resizing and its preprocessing. An extractor therefore has a name by
which scores are called (`FD-efflite0`), a digest of all that decides its features, and its resizing in words.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from synthkd.errors import ConfigError, DataError, ModelError, SynthkdError
from synthkd.imports import optional
from synthkd.metrics.efficientnet import efficientnet_lite0, read_known_weights
from synthkd.metrics.resize import resize
from synthkd.models.classifier import Classifier
from synthkd.models.contract import finite_logits
from synthkd.models.factories import construct, is_library
from synthkd.models.files import is_model_directory
from synthkd.models.folding import fold_batch_norm
from synthkd.models.layout import head
from synthkd.models.sources import load_model
from synthkd.models.weights import load_strictly, read_weights
from synthkd.settings import (
    EfficientNetExtractor,
    ExtractorSettings,
    InceptionExtractor,
    LoadedExtractor,
    ResizeMode,
    TeacherExtractor,
)
from synthkd.system.sealed import tensor_digest
from synthkd.taps import INPUT, observe
from synthkd.types import ImageSpec

VERSION = 1
"""Of the preprocessing and pooling below; raised when they change, so that old and new features never meet."""

NAMES = ("teacher", "efflite0", "inception")
"""Of the extractors that no `load` may be called by."""

INCEPTION_URL = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
)
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
INCEPTION_CLASSES = 1008
INCEPTION_SIZE = 299


@dataclass(frozen=True)
class ExtractedFeatures:
    """What an extractor sees in a batch, on the CPU.

    Attributes:
        features: float32 `[N, D]`.
        logits: float32 `[N, K]`, or None where the network is no classifier.
    """

    features: Tensor
    logits: Tensor | None


class FeatureExtractor(Protocol):
    """A network that turns uint8 images `[N, C, H, W]` into features, always the same for the same image."""

    @property
    def name(self) -> str:
        """What scores of its features are called by: "efflite0" makes FD-efflite0."""

    @property
    def digest(self) -> str:
        """sha256, in hexadecimal, of weights, architecture and preprocessing."""

    @property
    def resize(self) -> str:
        """How it resizes images and to what size: "antialias 64x64", or "none"."""

    @property
    def classes(self) -> int | None:
        """Number of logits, or None where the network is no classifier."""

    def __call__(self, images: Tensor, /) -> ExtractedFeatures: ...


@dataclass(frozen=True)
class Features:
    """The features of a set of images, in its order.

    Attributes:
        values: float32 `[N, D]`.
        logits: float32 `[N, K]`, or None.
        extractor: name of the extractor.
        digest: its digest.
        resize: its resizing.
    """

    values: Tensor
    logits: Tensor | None
    extractor: str
    digest: str
    resize: str

    @property
    def n(self) -> int:
        """Number of images."""
        return len(self.values)

    def check_comparable(self, other: Features) -> None:
        """Raise `DataError` unless both were taken by one extractor with one resizing."""
        mine, theirs = (f"{f.extractor} {f.digest[:8]}, resize {f.resize}" for f in (self, other))
        if (self.digest, self.resize) != (other.digest, other.resize):
            raise DataError(f"features of {mine} and of {theirs} cannot be compared; take both with the same settings")


def extract(batches: Iterable[Tensor], extractor: FeatureExtractor, batch_size: int = 128) -> Features:
    """The features of all images, in one pass.

    Args:
        batches: uint8 `[n, C, H, W]` each; of any length, and of different sizes where the extractor resizes.
        extractor: see `build_extractor`.
        batch_size: most images that the network takes at once; longer batches are split.

    Raises:
        DataError: no images, or images that the extractor does not take.
    """
    found = [extractor(chunk) for batch in batches for chunk in batch.split(batch_size) if len(chunk)]
    if not found:
        raise DataError("no images to take features of; check the folder or the filter they come from")
    logits = [seen.logits for seen in found if seen.logits is not None]
    return Features(
        values=torch.cat([seen.features for seen in found]),
        logits=torch.cat(logits) if logits else None,
        extractor=extractor.name,
        digest=extractor.digest,
        resize=extractor.resize,
    )


def build_extractor(
    settings: ExtractorSettings, device: torch.device, teacher: Classifier | None = None
) -> FeatureExtractor:
    """A feature network from its settings, on a device.

    The features are the penultimate layer: what enters the last linear layer, maps and tokens averaged over positions.

    Args:
        settings: which network.
        device: where it runs; its results are on the CPU.
        teacher: the network of kind `teacher`; copied, never changed.

    Raises:
        ConfigError: kind `teacher` without one; no weights; settings that `synthkd.models` refuses.
        ModelError: weights that cannot be read, do not fit, are not the known file or cannot be downloaded; a network
            without a linear layer, or that fails on two black images.
        MissingExtraError: the package with the weights (efficientnet_lite0), torch-fidelity (inception) or timm is not
            installed.
    """
    match settings:
        case TeacherExtractor():
            if teacher is None:
                raise ConfigError("the extractor teacher needs a teacher; give one, or take kind efficientnet_lite0")
            return _extractor("teacher", teacher, settings.resize, device)
        case EfficientNetExtractor():
            network = efficientnet_lite0(settings.weights, settings.size)
            return _extractor("efflite0", network, settings.resize, device)
        case InceptionExtractor():
            return _extractor("inception", _inception(settings), settings.resize, device)
        case LoadedExtractor():
            known = settings.classes is not None or is_model_directory(settings.model)
            network = load_model(settings) if known else _without_classes(settings)
            return _tried(_extractor(_short(settings.model), network, settings.resize, device))


@dataclass(frozen=True)
class _NetworkExtractor:
    """The extractor that all kinds come down to.

    Attributes:
        classes: None where what the network returns are the features.
        network: in eval mode, frozen, on `device`.
        penultimate: the tap of the features, or None as for `classes`.
    """

    name: str
    digest: str
    resize: str
    classes: int | None
    network: Classifier
    penultimate: str | None
    mode: ResizeMode
    device: torch.device

    @torch.no_grad()
    def __call__(self, images: Tensor) -> ExtractedFeatures:
        prepared = resize(images.to(self.device), self.network.spec.shape, self.mode)
        prepared = prepared.contiguous(memory_format=torch.channels_last)
        if self.penultimate is None:
            return ExtractedFeatures(self._pooled(self.network(prepared)), None)
        seen = observe(self.network, prepared, [self.penultimate])
        logits = finite_logits(seen.logits.float().cpu(), f"the network {self.name}")
        return ExtractedFeatures(self._pooled(seen.features[self.penultimate]), logits)

    def _pooled(self, values: object) -> Tensor:
        if not isinstance(values, Tensor) or not 2 <= values.dim() <= 4 or 0 in values.shape:
            got = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ModelError(f"{self.name} must give features [N, D], maps [N, D, H, W] or tokens [N, L, D], got {got}")
        over = {2: (), 3: (1,), 4: (2, 3)}[values.dim()]
        return (values.mean(over) if over else values).float().cpu()


def _extractor(name: str, model: Classifier, mode: ResizeMode, device: torch.device) -> _NetworkExtractor:
    spec = model.spec
    penultimate = head(model) + INPUT if spec.classes else None
    about = {
        "version": VERSION,
        "architecture": model.recipe or repr(model.body),
        "spec": vars(spec),
        "mean": model.normalize.mean.flatten().tolist(),
        "std": model.normalize.std.flatten().tolist(),
        "features": penultimate,
    }
    return _NetworkExtractor(
        name=name,
        digest=tensor_digest(json.dumps(about, sort_keys=True, default=str), model.state_dict()),
        resize="none" if mode == "none" else f"{mode} {spec.height}x{spec.width}",
        classes=spec.classes or None,
        network=fold_batch_norm(model).to(device).to(memory_format=torch.channels_last),
        penultimate=penultimate,
        mode=mode,
        device=device,
    )


def _tried(extractor: _NetworkExtractor) -> _NetworkExtractor:
    """The extractor, once two black images have gone through it."""
    spec = extractor.network.spec
    try:
        extractor(torch.zeros((2, *spec.shape), dtype=torch.uint8))
    except SynthkdError:
        raise
    except Exception as error:  # other people's code may fail in any way; the line must say on what
        message = (str(error).splitlines() or [repr(error)])[0]
        shape = "x".join(map(str, spec.shape))
        raise ModelError(f"{extractor.name} cannot take {shape} images: {message}; check `size`, `channels`") from error
    return extractor


def _short(model: str) -> str:
    """A name for scores: the last part of a path, of `timm:NAME` or of `package.module:function`."""
    path = Path(model)
    name = path.resolve().name if is_model_directory(path) else model.rpartition(":")[2]
    return f"loaded_{name}" if name in NAMES else name  # a stranger's inception must not make a FID


def _without_classes(settings: LoadedExtractor) -> Classifier:
    """A network whose output are features; timm leaves its head off for 0 classes."""
    if settings.size is None:
        raise ConfigError(f"the extractor {settings.model} needs `size`, the height and width of its images")
    if settings.weights is None and is_library(settings.model):
        raise ConfigError(f"{settings.model} without weights knows nothing; set `weights` to a local file")
    height, width = (settings.size, settings.size) if isinstance(settings.size, int) else settings.size
    with torch.random.fork_rng(devices=[]):
        spec = ImageSpec(settings.channels or 3, height, width, 0)
        model = construct(settings, spec, settings.mean, settings.std)
    if settings.weights is not None:
        load_strictly(model.body, read_weights(Path(settings.weights)), settings.weights)
    return model.eval()


def _inception(settings: InceptionExtractor) -> Classifier:
    """The network of the FID (Heusel et al. 2017): torch-fidelity's layers in their order, with the known weights.

    Its logits leave the bias out, as the Inception score of Salimans et al. (2016) is computed.
    """
    library = optional("torch_fidelity.feature_extractor_inceptionv3", "inception", "the feature network inception")
    path = _inception_weights(settings)
    state = read_known_weights(path, INCEPTION_SHA256, f"fetch {INCEPTION_URL}")
    with torch.random.fork_rng(devices=[]):
        whole = library.FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(path))
    layers = dict(whole.named_children())
    last = layers.pop("fc")
    body = nn.Sequential()
    for name, layer in {**layers, "flatten": nn.Flatten(), "fc": last}.items():
        body.add_module(name, layer)
    load_strictly(body, state, str(path))
    with torch.no_grad():
        last.bias.zero_()
    # It takes (x - 128) / 128 of 8-bit values x; a Classifier is given x / 255.
    spec = ImageSpec(3, INCEPTION_SIZE, INCEPTION_SIZE, INCEPTION_CLASSES)
    return Classifier(body, spec, (128 / 255,) * 3, (128 / 255,) * 3, {"network": "inception"}).eval()


def _inception_weights(settings: InceptionExtractor) -> Path:
    if settings.weights is not None:
        return Path(settings.weights).expanduser()
    path = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_URL.rpartition("/")[2]
    if path.is_file():
        return path
    if not settings.download:
        raise ConfigError(
            f"the extractor inception needs its weights: set `weights` to a local copy of {INCEPTION_URL}, or "
            "`download: true` to fetch it"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(INCEPTION_URL, str(path), hash_prefix=INCEPTION_SHA256)
    except (OSError, RuntimeError, HTTPException) as error:  # no network, another file, a broken connection
        raise ModelError(
            f"downloading {INCEPTION_URL} failed ({error}); fetch it elsewhere and set `weights` to the local file"
        ) from error
    return path
