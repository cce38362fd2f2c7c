"""Run exported ONNX files by ONNX Runtime on the processor: logits, parity with the model, latency, image files.

A file describes its images and classes itself, so it runs without the model it was exported from.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from synthkd.compression.onnx_file import INPUT, Description, needed, read_onnx
from synthkd.data.read.decode import NOT_IMAGES, Decoded, decode, in_a_line, refuse_bad
from synthkd.errors import DataError, ModelError
from synthkd.metrics.utility import Proportion, accuracy
from synthkd.models.classifier import Classifier, require_images
from synthkd.models.contract import finite_logits
from synthkd.models.latency import Latency, random_images, time_calls
from synthkd.taps import evaluating
from synthkd.types import InBlocks, to_float

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
        runtime = needed("onnxruntime")
        path = Path(path)
        self._name = str(path)
        self.threads = threads or torch.get_num_threads()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1  # the layers run one after the other, so a second pool would only wait
        options.log_severity_level = 4  # fatal errors only; others are raised
        # ONNX Runtime would open any file that a model refers to; `read_onnx` refuses a model that refers to one.
        content = read_onnx(path)
        self.description = content.description
        try:
            self._session = runtime.InferenceSession(
                content.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's errors have no common parent
            raise ModelError(f"{path} is not an ONNX file, or a damaged one; export the model again") from error

    def __call__(self, images: Tensor) -> Tensor:
        """Logits float32 `[N, K]` of at least one image.

        Raises:
            ModelError: the images have another shape or are not floating point, or the logits are not finite.
        """
        require_images(images, self.description.spec.shape)
        batch = np.ascontiguousarray(images.detach().to("cpu", torch.float32).numpy())
        return finite_logits(torch.from_numpy(self._session.run(None, {INPUT: batch})[0]), self._name)


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
        MissingExtraError: onnxruntime is not installed.
        ModelError: a file that cannot be run.
    """
    model = OnnxModel(path, threads)
    images = random_images(model.description.spec, batch_size)
    return time_calls(lambda: model(images), batch_size, model.threads, "cpu", calls)


def predict_folder(
    path: Path | str, images: Path | str, threads: int | None = None, skip_bad: int = 0
) -> Iterator[Prediction]:
    """Class and probability of an image file, or of every image below a folder, in the order of their names.

    Images are decoded, cropped and resized as by `synthkd.data.read.folder`. Files that are clearly no images (hidden
    files, .txt, .json, ...) are skipped. Unreadable images raise one error at the end, after the predictions of all
    others.

    Args:
        path: a file of `export_onnx` or `quantize_int8`.
        images: a file or a folder; `~` is expanded.
        threads: of ONNX Runtime; None: as many as torch uses.
        skip_bad: number of unreadable images that are no error.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        ModelError: a file that cannot be run.
        DataError: no such file or folder, no images in it, or images that cannot be read.
    """
    model = OnnxModel(path, threads)
    top = Path(images).expanduser()
    files = _files(top)
    names = model.description.class_names or tuple(map(str, range(model.description.spec.classes)))
    # One window after the other bounds the memory. Unreadable files are collected, so that one error names them all,
    # and an hour of predictions is not lost to the first of them.
    bad: list[tuple[str, str]] = []
    for first in range(0, len(files), _BATCH):
        window = files[first : first + _BATCH]
        good: list[tuple[Path, Tensor]] = []
        for file, result in zip(window, _decode(window, model.description), strict=True):
            if result.pixels is None:
                bad.append((str(file.relative_to(top)) if file != top else file.name, result.reason))
            else:
                good.append((file, torch.from_numpy(result.pixels).permute(2, 0, 1)))
        if good:
            logits = model(to_float(torch.stack([pixels for _, pixels in good])))
            for (file, _), p in zip(good, logits.double().softmax(dim=1), strict=True):
                yield Prediction(file, names[int(p.argmax())], float(p.max()))
    refuse_bad(top, len(files), bad, skip_bad)


def _as_float(images: Tensor) -> Tensor:
    return to_float(images) if images.dtype == torch.uint8 else images


def _files(top: Path) -> list[Path]:
    """The image itself, or the files below a folder that may be images, sorted."""
    if top.is_file():
        return [top]
    if not top.is_dir():
        raise DataError(f"no such image or folder: {top}; give one that exists")
    try:
        paths = sorted(path for path in top.rglob("*") if path.is_file())
    except (OSError, RecursionError) as error:
        raise DataError(f"{top} cannot be listed ({in_a_line(error)}); check its permissions and depth") from error

    def is_hidden(path: Path) -> bool:
        return any(part.startswith(".") for part in path.relative_to(top).parts)

    files = [path for path in paths if not is_hidden(path) and not NOT_IMAGES.fullmatch(path.suffix)]
    if not files:
        raise DataError(f"{top} holds no image files; give an image, or a folder with some")
    return files


def _decode(files: Sequence[Path], description: Description) -> list[Decoded]:
    """Pixels of the size and channels of the model, or the reason why there are none, in the order of the files."""
    spec = description.spec
    if spec.channels not in (1, 3):
        raise ModelError(f"image files have 1 or 3 channels, and the model takes {spec.channels}; call it on tensors")
    # As the images were in training: those of folder datasets are cropped to squares, and a model of another shape was
    # trained without cropping.
    size = spec.height if spec.height == spec.width else None

    def decoded(file: Path) -> Decoded:
        result = decode(file, spec.channels, size)
        if result.pixels is not None and result.pixels.shape[:2] != (spec.height, spec.width):
            height, width = result.pixels.shape[:2]
            return Decoded(None, reason=f"{height}x{width} pixels, the model takes {spec.height}x{spec.width}")
        return result

    # Pillow warns on stderr about malformed files, which are reported here.
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("ignore")
        return list(pool.map(decoded, files))
