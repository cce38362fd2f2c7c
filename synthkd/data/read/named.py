"""Datasets by name: scikit-learn's digits, and MNIST, Fashion-MNIST and CIFAR in torchvision's files.

Only with `download: true` does torchvision fetch files. The idx files of the MNIST family are read and checked here,
gzipped or not, so the folder of Debian's package dataset-fashion-mnist can be used directly. CIFAR-10 may also be in
its binary version, which needs no pickle.
"""

from __future__ import annotations

import gzip
import os
import tarfile
import tempfile
import zlib
from http.client import HTTPException
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from synthkd.data.read.decode import in_a_line
from synthkd.data.read.splits import Source
from synthkd.errors import DataError
from synthkd.settings import NamedData

CIFAR10_BINARY = "cifar-10-batches-bin"
"""Folder of CIFAR-10's binary version."""
LARGEST_IDX = 1 << 30
"""Most bytes of an idx file, unpacked; the largest of this family, EMNIST's, has 550 MB."""

_DIGIT_NAMES = tuple("0123456789")
_FASHION_NAMES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_CIFAR10_NAMES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
_IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_TORCHVISION = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100"}
_FOLDERS = {
    "mnist": "MNIST/raw",
    "fashion_mnist": "FashionMNIST/raw",
    "cifar10": "cifar-10-batches-py",
    "cifar100": "cifar-100-python",
}
_BINARY_BATCHES = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")
_BINARY_IMAGES = 10_000
_BINARY_RECORD = 1 + 3 * 32 * 32  # a label, then the red, green and blue values


def read_digits() -> Source:
    """scikit-learn's digits uint8 `[1797, 1, 8, 8]`, their levels 0..16 scaled to 0..255; no test part."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255.0 / 16.0)).astype(np.uint8)[:, None]
    return Source(torch.from_numpy(images), torch.from_numpy(digits.target.astype(np.int64)), _DIGIT_NAMES, None)


def read_named(settings: NamedData) -> Source:
    """Read MNIST, Fashion-MNIST, CIFAR-10 or CIFAR-100, after a download if it is missing and the settings allow that.

    Raises:
        DataError: files that are missing, truncated or corrupt, or a failed download.
    """
    kind, root = settings.kind, Path(settings.root).expanduser()
    read = _cifar if kind.startswith("cifar") else _idx
    source = read(kind, root)
    if source is None and settings.download:
        _download(kind, root)
        source = read(kind, root)
    if source is not None:
        return source
    folder, remedy = root / _FOLDERS[kind], "set download: true to fetch them"
    if kind.startswith("cifar"):
        raise DataError(f"{kind}: the files in {folder} are missing, unreadable or fail their checksums; {remedy}")
    if kind == "fashion_mnist":
        remedy += ", or install Debian's package dataset-fashion-mnist and set root to its folder"
    raise DataError(
        f"{kind}: {_IDX_FILES[0]}(.gz) and its three companions are neither in {root} nor in {folder}; {remedy}"
    )


def _idx(kind: str, root: Path) -> Source | None:
    """MNIST or Fashion-MNIST from its idx files, in `root` itself or in torchvision's folder; None without them."""
    files = _find_idx(kind, root)
    if files is None:
        return None
    train, train_labels, test, test_labels = (read_idx(path) for path in files)
    for path, images, labels in ((files[0], train, train_labels), (files[2], test, test_labels)):
        if images.ndim != 3 or labels.shape != images.shape[:1] or images.shape[1:] != train.shape[1:]:
            raise DataError(
                f"{path}: images {list(images.shape)} do not fit labels {list(labels.shape)} and training images "
                f"{list(train.shape)}; replace the files"
            )
    names = _FASHION_NAMES if kind == "fashion_mnist" else _DIGIT_NAMES
    images, labels = torch.cat([train, test])[:, None], torch.cat([train_labels, test_labels]).long()
    return Source(images, labels, names, len(train))


def _find_idx(kind: str, root: Path) -> list[Path] | None:
    """The four files in the order of `_IDX_FILES`, from the first folder that has all; None if no folder has."""
    # All from one folder: files of two downloads need not belong together.
    for folder in (root, root / _FOLDERS[kind]):
        candidates = ([folder / name, folder / f"{name}.gz"] for name in _IDX_FILES)
        files = [next((path for path in pair if path.is_file()), None) for pair in candidates]
        if None not in files:
            return [path for path in files if path is not None]
    return None


def read_idx(path: Path) -> Tensor:
    """Read an idx file of unsigned bytes (the format of MNIST), gzipped or not.

    Returns:
        uint8, of the shape in the file's header.

    Raises:
        DataError: unreadable, truncated, not idx, or longer or shorter than its header says.
    """
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as file:
            # Bounded, because a small gzip file may unpack to any size.
            data = file.read(LARGEST_IDX + 1)
        if len(data) > LARGEST_IDX:
            raise OSError(f"more than {LARGEST_IDX >> 30} GiB unpacked")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: truncated or unreadable ({error}); fetch it again") from error
    # Two zero bytes, the type (8: unsigned byte), the number of axes, their lengths in 4 bytes each, then the data.
    if len(data) < 4 or data[:3] != b"\x00\x00\x08" or not 1 <= data[3] <= 4 or len(data) < 4 + 4 * data[3]:
        raise DataError(f"{path}: not an idx file of bytes, it begins with '{data[:4].hex(' ')}'; fetch it again")
    shape = [int.from_bytes(data[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(data[3])]
    payload = np.frombuffer(data, dtype=np.uint8, offset=4 + 4 * data[3])
    expected = int(np.prod(shape, dtype=object))  # Python integers, since lengths in a damaged header may overflow
    if len(payload) != expected:
        raise DataError(f"{path}: {shape} needs {expected} bytes of data, got {len(payload)}; fetch it again")
    return torch.from_numpy(payload.copy()).view(shape)


def _cifar(kind: str, root: Path) -> Source | None:
    """CIFAR by torchvision, which verifies the checksums of the files before it unpickles them; None if that fails.

    Without those files, CIFAR-10 from its binary version.
    """
    from torchvision import datasets

    dataset = getattr(datasets, _TORCHVISION[kind])
    try:
        train, test = dataset(root, train=True), dataset(root, train=False)
    except (RuntimeError, OSError):  # torchvision's RuntimeError: files are missing or fail their checksum
        return _cifar10_binary(root / CIFAR10_BINARY) if kind == "cifar10" else None
    images = torch.from_numpy(np.concatenate([train.data, test.data])).permute(0, 3, 1, 2).contiguous()
    labels = torch.tensor([*train.targets, *test.targets], dtype=torch.int64)
    return Source(images, labels, tuple(train.classes), len(train.data))


def _cifar10_binary(folder: Path) -> Source | None:
    """CIFAR-10 from its binary version, in the order of the other; None without the folder."""
    if not folder.is_dir():
        return None
    count = _BINARY_IMAGES * len(_BINARY_BATCHES)
    images, labels = torch.empty(count, 3, 32, 32, dtype=torch.uint8), torch.empty(count, dtype=torch.int64)
    for number, path in enumerate(folder / name for name in _BINARY_BATCHES):
        try:
            data = np.fromfile(path, dtype=np.uint8)
        except OSError as error:
            raise DataError(f"{path}: unreadable ({error.strerror}); put the six batches there again") from error
        if len(data) != _BINARY_IMAGES * _BINARY_RECORD or (data[::_BINARY_RECORD] > 9).any():
            raise DataError(
                f"{path}: not {_BINARY_IMAGES:,} images of CIFAR-10's binary version, it has {len(data):,} bytes; put "
                "the six batches there again"
            )
        records, rows = torch.from_numpy(data).view(_BINARY_IMAGES, _BINARY_RECORD), number * _BINARY_IMAGES
        labels[rows : rows + _BINARY_IMAGES] = records[:, 0]
        images[rows : rows + _BINARY_IMAGES] = records[:, 1:].view(-1, 3, 32, 32)
    return Source(images, labels, _CIFAR10_NAMES, count - _BINARY_IMAGES)


def _download(kind: str, root: Path) -> None:
    """Download by torchvision into a temporary directory inside `root`, and move the files once all are complete."""
    from torchvision import datasets

    target = root / _FOLDERS[kind]
    try:
        root.mkdir(parents=True, exist_ok=True)
        # Inside `root`, since files can be moved in one step only within a file system.
        with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as scratch:
            getattr(datasets, _TORCHVISION[kind])(scratch, download=True)
            target.mkdir(parents=True, exist_ok=True)
            for path in Path(scratch, _FOLDERS[kind]).iterdir():
                os.replace(path, target / path.name)
    except (OSError, RuntimeError, HTTPException, EOFError, zlib.error, tarfile.TarError) as error:
        raise DataError(
            f"{kind}: the download to {root} failed ({in_a_line(error)}); check the network and the folder, or put the "
            f"files into {target} yourself"
        ) from error
