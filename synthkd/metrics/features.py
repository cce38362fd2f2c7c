"""Feature extractors: networks that turn images into features, and one pass of a network over images.

A score depends on the network with its weights, on the resizing and on the preprocessing. So an extractor has a name,
which is part of the names of scores (`FD-efflite0`), a digest of everything that decides its features, and its resizing
in words.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from synthkd.errors import ConfigError, DataError, ModelError, SynthkdError
from synthkd.metrics.efficientnet import efficientnet_lite0
from synthkd.metrics.inception import inception
from synthkd.metrics.resize import resize
from synthkd.models.channels_last import frozen_channels_last
from synthkd.models.classifier import Classifier
from synthkd.models.contract import finite_logits
from synthkd.models.factories import construct, is_library
from synthkd.models.files import is_model_directory
from synthkd.models.fitting import load_file
from synthkd.models.folding import fold_batch_norm
from synthkd.models.layout import head
from synthkd.models.sources import load_model
from synthkd.settings import (
    EfficientNetExtractor,
    ExtractorSettings,
    InceptionExtractor,
    LoadedExtractor,
    ResizeMode,
    TeacherExtractor,
)
from synthkd.system.files import sha256
from synthkd.system.sealed import tensor_digest
from synthkd.system.shares import ALONE, Shares
from synthkd.system.text import first_line
from synthkd.taps import INPUT, observe
from synthkd.types import ImageSpec

VERSION = 2
"""Version of the preprocessing and pooling below, part of the digests: a new number makes cached features stale."""

LIBRARIES = ("onnx2pytorch", "synthkd", "timm", "torch", "torch_fidelity", "torchvision", "transformers")
"""Packages whose networks are told apart by name and layers, whatever the version of the package."""

NAMES = ("teacher", "efflite0", "inception")
"""Names of the known extractors, which an extractor of kind `load` must not have."""


@dataclass(frozen=True)
class ExtractedFeatures:
    """Features of a batch, on the CPU.

    Attributes:
        features: float32 `[N, D]`.
        logits: float32 `[N, K]`, or None if the network is no classifier.
    """

    features: Tensor
    logits: Tensor | None


@dataclass(frozen=True)
class FeatureExtractor:
    """A network that turns images into features; see `build_extractor`.

    Attributes:
        name: last part of the names of its scores: "efflite0" makes FD-efflite0.
        digest: sha256, in hexadecimal, of weights, architecture, code of your own and preprocessing.
        resize: filter and size of its resizing, such as "antialias 64x64"; "none" if it does not resize.
        classes: number of logits; None if the network is no classifier, and its output is the features.
        network: in eval mode, on `device`.
        penultimate: tap of the features; None if `classes` is None.
        mode: filter of the resizing.
        device: where the network runs.
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
        """Features of uint8 images `[N, C, H, W]`.

        Raises:
            DataError: images that the network does not take.
            ModelError: logits that are not finite, or an output that is neither features, maps nor tokens.
        """
        prepared = resize(images.to(self.device), self.network.spec.shape, self.mode)
        # convolutions are faster with channels last
        prepared = prepared.contiguous(memory_format=torch.channels_last)
        if self.penultimate is None:
            return ExtractedFeatures(self._pooled(self.network(prepared)), None)
        outputs = observe(self.network, prepared, [self.penultimate])
        logits = finite_logits(outputs.logits.float().cpu(), f"the network {self.name}")
        return ExtractedFeatures(self._pooled(outputs.features[self.penultimate]), logits)

    def _pooled(self, values: object) -> Tensor:
        if not isinstance(values, Tensor) or not 2 <= values.dim() <= 4 or 0 in values.shape:
            got = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ModelError(f"{self.name} must give features [N, D], maps [N, D, H, W] or tokens [N, L, D], got {got}")
        positions = {2: (), 3: (1,), 4: (2, 3)}[values.dim()]
        # torch's mean over an empty tuple of dimensions is the mean over all of them
        return (values.mean(positions) if positions else values).float().cpu()


@dataclass(frozen=True)
class Features:
    """Features of a set of images, in its order.

    Attributes:
        values: float32 `[N, D]`.
        logits: float32 `[N, K]`, or None if the network is no classifier.
        extractor, digest, resize: of the `FeatureExtractor`.
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
        """Check that both come from one extractor with one resizing.

        Raises:
            DataError: they do not.
        """
        mine, theirs = (f"{f.extractor} {f.digest[:8]}, resize {f.resize}" for f in (self, other))
        if (self.digest, self.resize) != (other.digest, other.resize):
            raise DataError(f"features of {mine} and of {theirs} cannot be compared; take both with the same settings")


def extract(
    batches: Iterable[Tensor], extractor: FeatureExtractor, batch_size: int = 128, shares: Shares = ALONE
) -> Features:
    """Features of all images, in one pass.

    Args:
        batches: uint8 `[n, C, H, W]` each, of any length; of different sizes if the extractor resizes.
        extractor: see `build_extractor`.
        batch_size: largest number of images that the network gets at once; longer batches are split.
        shares: the processes. Each gives its own batches, those of one process after those of another, and gets the
            features of all.

    Raises:
        DataError: no images, or images that the extractor does not take.
    """
    with shares.agreed():
        mine = [extractor(chunk) for batch in batches for chunk in batch.split(batch_size) if len(chunk)]
    values = _of_all([one.features for one in mine], shares)
    if values is None:
        raise DataError("no images to take features of; check the folder or the filter they come from")
    return Features(
        values=values,
        logits=_of_all([one.logits for one in mine if one.logits is not None], shares),
        extractor=extractor.name,
        digest=extractor.digest,
        resize=extractor.resize,
    )


def _of_all(mine: Sequence[Tensor], shares: Shares) -> Tensor | None:
    """The rows of all processes; None if none of them has any."""
    parts = [rows for rows in shares.gather(torch.cat([*mine]) if mine else torch.zeros(0)) if len(rows)]
    return torch.cat(parts) if parts else None


def build_extractor(
    settings: ExtractorSettings, device: torch.device, teacher: Classifier | None = None
) -> FeatureExtractor:
    """Build a feature extractor from its settings.

    The features are the input of the last linear layer, averaged over positions if it consists of maps or tokens.

    Args:
        settings: which network.
        device: where the network runs; results are on the CPU.
        teacher: the network of kind `teacher`; it is copied, never changed.

    Raises:
        ConfigError: kind `teacher` without a teacher; no weights; settings that `synthkd.models` refuses.
        ModelError: weights that cannot be read, do not fit, have other content than the known file or cannot be
            downloaded; a network without a linear layer, or that fails on two black images.
        MissingExtraError: the package with the weights (efficientnet_lite0), torch-fidelity (inception) or timm is not
            installed.
    """
    match settings:
        case TeacherExtractor():
            if teacher is None:
                raise ConfigError("the extractor teacher needs a teacher; give one, or take kind efficientnet_lite0")
            name, network = "teacher", teacher
        case EfficientNetExtractor():
            name, network = "efflite0", efficientnet_lite0(settings.weights, settings.size)
        case InceptionExtractor():
            name, network = "inception", inception(settings.weights, settings.download)
        case LoadedExtractor():
            is_classifier = settings.classes is not None or is_model_directory(settings.model)
            name = _short_name(settings.model)
            network = load_model(settings) if is_classifier else _without_classes(settings)
    extractor = _extractor(name, network, settings.resize, device)
    # A network of the user may fail on its first batch; better now than after the images were read.
    if isinstance(settings, LoadedExtractor):
        _try_out(extractor)
    return extractor


def _extractor(name: str, model: Classifier, mode: ResizeMode, device: torch.device) -> FeatureExtractor:
    spec = model.spec
    penultimate = head(model) + INPUT if spec.classes else None
    # Whatever decides the features besides the weights belongs here: cached features of another network would be taken
    # for those of this one if their digests were equal.
    about = {
        "version": VERSION,
        "architecture": model.recipe or str(model.body),
        "spec": vars(spec),
        "mean": model.normalize.mean.flatten().tolist(),
        "std": model.normalize.std.flatten().tolist(),
        "features": penultimate,
    }
    if code := _code(model):
        about["code"] = code
    return FeatureExtractor(
        name=name,
        digest=tensor_digest(json.dumps(about, sort_keys=True, default=str), model.state_dict()),
        resize="none" if mode == "none" else f"{mode} {spec.height}x{spec.width}",
        classes=spec.classes or None,
        network=frozen_channels_last(fold_batch_norm(model).to(device)),
        penultimate=penultimate,
        mode=mode,
        device=device,
    )


def _code(model: Classifier) -> list[str]:
    """sha256 of the files of code that is no library's, since it may compute something else under the same names.

    They are the file of the network (ONNX, TorchScript, torch.export), and those with the classes of its layers and the
    function that builds it.
    """
    name = str(model.recipe.get("model", ""))
    modules = {name.partition(":")[0], *(type(layer).__module__ for layer in model.body.modules())}
    own = [sys.modules.get(module) for module in modules if module.partition(".")[0] not in LIBRARIES]
    files = [Path(name), *(Path(file) for module in own if (file := getattr(module, "__file__", None)))]
    return sorted({sha256(file) for file in files if file.is_file()})


def _try_out(extractor: FeatureExtractor) -> None:
    """Run the extractor on two black images; raises `ModelError` where the network cannot take them."""
    spec = extractor.network.spec
    try:
        extractor(torch.zeros((2, *spec.shape), dtype=torch.uint8))
    except SynthkdError:
        raise
    except Exception as error:  # the user's code may raise anything, without a word on the images
        message = first_line(error)
        shape = "x".join(map(str, spec.shape))
        raise ModelError(f"{extractor.name} cannot take {shape} images: {message}; check `size`, `channels`") from error


def _short_name(model: str) -> str:
    """Name for scores: the last part of a path, of `timm:NAME` or of `package.module:function`."""
    path = Path(model)
    name = path.resolve().name if is_model_directory(path) else model.rpartition(":")[2]
    # the distance of another network that is named "inception" must not be called FID
    return f"loaded_{name}" if name in NAMES else name


def _without_classes(settings: LoadedExtractor) -> Classifier:
    """A network whose output is features; for 0 classes timm builds it without a head."""
    if settings.size is None:
        raise ConfigError(f"the extractor {settings.model} needs `size`, the height and width of its images")
    if settings.weights is None and is_library(settings.model):
        raise ConfigError(f"{settings.model} without weights is untrained; set `weights` to a local file")
    height, width = (settings.size, settings.size) if isinstance(settings.size, int) else settings.size
    # Building a network draws initial weights, which must not advance the random numbers of the caller.
    with torch.random.fork_rng(devices=[]):
        spec = ImageSpec(settings.channels or 3, height, width, 0)
        model = construct(settings, spec, settings.mean, settings.std)
    if settings.weights is not None:
        load_file(model.body, settings.weights, settings.weights_key)
    return model.eval()
