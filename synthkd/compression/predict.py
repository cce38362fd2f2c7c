"""Run exported ONNX files by ONNX Runtime on the processor: logits, parity with the model, latency, image files.

A file describes its images and classes itself, so it runs without the model it was exported from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from synthkd.compression.onnx_file import UndescribedError, read_onnx
from synthkd.data.read.decode import refuse_bad, some
from synthkd.data.read.fitted import batches, fitted
from synthkd.data.read.listing import list_every
from synthkd.errors import DataError, ModelError
from synthkd.metrics.utility import Proportion, accuracy
from synthkd.models.classifier import Classifier, require_images
from synthkd.models.contract import finite_logits
from synthkd.models.files import is_model_directory, load
from synthkd.models.latency import Latency, random_images, time_calls
from synthkd.models.onnx_session import OnnxSession
from synthkd.taps import evaluating
from synthkd.types import ImageSpec, InBlocks, to_float

_BATCH = 64


class OnnxModel:
    """An exported file, ready to run: float32 images `[N, C, H, W]` in `[0, 1]` to logits float32 `[N, K]`.

    Args:
        path: a file of `export_onnx` or `quantize_int8`.
        threads: of ONNX Runtime; None: as many as torch uses.

    Attributes:
        description: images, classes and precision, from the file.
        threads: number of threads in use.

    Raises:
        MissingExtraError: onnx or onnxruntime is not installed.
        ModelError: no such file, a damaged file, a file of another program, or one that refers to other files.
    """

    def __init__(self, path: Path | str, threads: int | None = None) -> None:
        path = Path(path)
        self._name = str(path)
        self.threads = threads or torch.get_num_threads()
        # ONNX Runtime would open any file that a model refers to; `read_onnx` refuses a model that refers to one.
        content = read_onnx(path)
        self.description = content.description
        self._session = OnnxSession(content.model.SerializeToString(), self._name, self.threads)

    def __call__(self, images: Tensor) -> Tensor:
        """Logits float32 `[N, K]` of at least one image.

        Raises:
            ModelError: the images have another shape or are not floating point, or the logits are not finite.
        """
        require_images(images, self.description.spec.shape)
        batch = np.ascontiguousarray(images.detach().to("cpu", torch.float32).numpy())
        return finite_logits(torch.from_numpy(self._session(batch)), self._name)


@dataclass(frozen=True)
class Parity:
    """Difference between an exported file and the model it was exported from.

    Attributes:
        max_abs_difference: largest absolute difference of a logit.
        agreement: share of images on which both predict the same class, with its interval.
    """

    max_abs_difference: float
    agreement: Proportion


@dataclass(frozen=True)
class Prediction:
    """The class of an image file.

    Attributes:
        file: the image.
        class_name: of the most probable class; its number if the classes have no names.
        probability: of that class, softmax of the logits, in [0, 1].
    """

    file: Path
    class_name: str
    probability: float


def run_onnx(path: Path | str, images: InBlocks, threads: int | None = None, batch_size: int = 256) -> Tensor:
    """Logits float32 `[N, K]` of images by an exported file, batch by batch.

    Args:
        path: a file of `export_onnx` or `quantize_int8`.
        images: `[N, C, H, W]`, uint8, or float in `[0, 1]`.
        threads: of ONNX Runtime; None: as many as torch uses.
        batch_size: images at once.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        ModelError: a file that cannot be run, or images of another shape.
    """
    model = OnnxModel(path, threads)
    return torch.cat([model(_as_float(chunk)) for chunk in images.split(batch_size)])


def parity(model: Classifier, path: Path | str, images: Tensor, threads: int | None = None) -> Parity:
    """Compare the logits of an exported file with those of its model in eval mode, on the same images.

    Args:
        model: in any mode, which is restored.
        path: a file of `export_onnx` or `quantize_int8`.
        images: `[N, C, H, W]`, uint8, or float in `[0, 1]`.
        threads: of ONNX Runtime; None: as many as torch uses.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        ModelError: a file that cannot be run, or images of another shape.
        DataError: no images.
    """
    if len(images) == 0:
        raise DataError("parity: at least 1 image is needed, got none")
    device = model.normalize.mean.device
    with evaluating(model), torch.no_grad():
        expected = torch.cat([model(_as_float(chunk).to(device)).cpu() for chunk in images.split(_BATCH)])
    exported = run_onnx(path, images, threads)
    difference = float((exported - expected).abs().max())
    return Parity(difference, accuracy(exported.argmax(dim=1), expected.argmax(dim=1)))


def onnx_latency(path: Path | str, batch_size: int = 1, threads: int | None = None, calls: int = 50) -> Latency:
    """Time of random images through an exported file, measured as `measure_latency` measures a model.

    Args:
        path: a file of `export_onnx` or `quantize_int8`.
        batch_size: images in one call.
        threads: of ONNX Runtime; None: as many as torch uses.
        calls: number of timed calls, at least 1.

    Raises:
        MissingExtraError: an exported file, and onnxruntime is not installed.
        ModelError: a file that cannot be run, or a damaged directory.
    """
    model = OnnxModel(path, threads)
    images = random_images(model.description.spec, batch_size)
    return time_calls(lambda: model(images), batch_size, model.threads, "cpu", calls)


def predict_files(
    path: Path | str, images: Path | str | Sequence[Path | str], threads: int | None = None, skip_bad: int = 0
) -> Iterator[Prediction]:
    """Class and probability of each image of one path or several, path by path and in the order of their names.

    Images are decoded, cropped and resized as those of a folder that a model is trained on; labels are left aside.
    Unreadable images raise one error at the end, after the predictions of all others.

    Args:
        path: a file of `export_onnx` or `quantize_int8`, or a directory that `synthkd.load` reads.
        images: image files, folders, archives, tables, .npz, and what else `open_samples` reads; `~` is expanded.
        threads: of ONNX Runtime; None: as many as torch uses.
        skip_bad: number of unreadable images that are no error, over all paths.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        ModelError: a file that cannot be run.
        DataError: a path that does not exist or has no images (before any prediction), or images that cannot be read.
    """
    model, spec, class_names = _opened(Path(path), threads)
    tops = [Path(one).expanduser() for one in ([images] if isinstance(images, Path | str) else images)]
    sources = [fitted(top, spec, list_every) for top in tops]
    names = class_names or tuple(map(str, range(spec.classes)))
    for source in sources:
        for window, pixels in batches(source.images()):
            for image, p in zip(window, model(to_float(pixels)).double().softmax(dim=1), strict=True):
                yield Prediction(image.file, names[int(p.argmax())], float(p.max()))
    # Unreadable files are collected, so that an hour of predictions is not lost to the first of them.
    bad = [(name if len(tops) == 1 else f"{source.top}: {name}", why) for source in sources for name, why in source.bad]
    refuse_bad(some([str(top) for top in tops]), sum(source.count for source in sources), bad, skip_bad)


def _opened(path: Path, threads: int | None) -> tuple[Callable[[Tensor], Tensor], ImageSpec, tuple[str, ...]]:
    """A network, what images it takes, and the names of its classes."""
    if is_model_directory(path):
        classifier = load(path)
        return torch.no_grad()(classifier), classifier.spec, tuple(classifier.class_names)
    try:
        onnx = OnnxModel(path, threads)
    except UndescribedError as error:
        raise ModelError(
            f"{error}; predict runs exported files and runs of synthkd, and `synthkd evaluate` measures files of other "
            f"programs: {error.section('model')}"
        ) from error
    return onnx, onnx.description.spec, tuple(onnx.description.class_names)


def _as_float(images: Tensor) -> Tensor:
    return to_float(images) if images.dtype == torch.uint8 else images
