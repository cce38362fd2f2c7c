"""Images and labels in a .npz or in .npy files: plain arrays, read without pickle and checked one by one."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from synthkd.data.read.decode import in_a_line, some
from synthkd.data.read.labels import CLASSES
from synthkd.data.read.splits import Source
from synthkd.errors import DataError
from synthkd.types import check_labels

LARGEST = 1 << 36
"""Most bytes of all arrays of a file, unpacked."""

_TEST = {"test_images", "test_labels"}
_NAMES = ("images", "labels", "test_images", "test_labels", "class_names", "logits")


@dataclass(frozen=True)
class NpyFiles:
    """Arrays in .npy files, which are mapped into memory when they are read.

    Attributes:
        paths: name of an array -> its file.
    """

    paths: Mapping[str, Path]

    @property
    def files(self) -> list[str]:
        """The names of the arrays."""
        return [*self.paths]

    def read(self, key: str) -> NDArray[Any]:
        """An array; pages of the file are read when they are needed, and never written."""
        array: NDArray[Any] = np.load(self.paths[key], mmap_mode="c", allow_pickle=False)
        return array


def is_arrays(path: Path) -> bool:
    """Whether the path is one of arrays: a .npz, a .npy, or a folder with `images.npy`."""
    return (path / "images.npy").is_file() if path.is_dir() else path.suffix.lower() in (".npz", ".npy")


@dataclass(frozen=True)
class Arrays:
    """The arrays of a .npz, not yet checked.

    Attributes:
        images: of any type and layout; `as_images` checks them.
        labels: of any type and shape, or None if the file has none; `as_labels` checks them.
        class_names: of any type and shape, or None if the file has none; `as_names` checks them.
    """

    images: NDArray[Any]
    labels: NDArray[Any] | None
    class_names: NDArray[Any] | None


def read_npz(path: str | Path, lacks_classes: bool = False) -> Source:
    """Read `images` and `labels`, and `test_images`, `test_labels` and `class_names` if the file has them.

    Args:
        path: the .npz; or `images.npy` or its folder, with the other arrays beside it in files of their names.
        lacks_classes: a class may have no image.

    Raises:
        DataError: a file that is missing, corrupt or holds pickled objects; a missing array; images that are neither
            uint8 nor float in [0, 1], or of no known layout; labels that are not integers from 0 without gaps.
    """
    path = Path(path).expanduser()
    with _opened(path) as archive:
        present = set(archive.files)
        # One array of the test part demands the other.
        needed = {"images", "labels"} | (_TEST if _TEST & present else set())
        if missing := sorted(needed - present):
            raise DataError(f"{path}: has no array {missing}, only {sorted(present)}; {_add(path)}")
        arrays = _read(archive, sorted((needed | {"class_names"}) & present))
    parts = ["", "test_"] if "test_images" in arrays else [""]
    images = [as_images(arrays[f"{part}images"], f"{path}: {part}images") for part in parts]
    labels = [
        as_labels(arrays[f"{part}labels"], len(own), f"{path}: {part}labels")
        for part, own in zip(parts, images, strict=True)
    ]
    if len(parts) == 2 and images[0].shape[1:] != images[1].shape[1:]:
        shapes = " and ".join("x".join(map(str, array.shape[1:])) for array in images)
        raise DataError(f"{path}: images and test_images must have one size, got {shapes}")
    numbers = np.unique(labels[0])
    if "class_names" in arrays:
        names = as_names(arrays["class_names"], f"{path}: class_names")
    elif lacks_classes:
        check_labels(torch.from_numpy(labels[0]), CLASSES, str(path))  # a huge label would make as many names
        names = tuple(map(str, range(numbers[-1] + 1)))
    elif len(numbers) != numbers[-1] + 1:
        # Bounded: a single label of 2,000,000,000 must not make an array of that length.
        absent = np.setdiff1d(np.arange(min(numbers[-1], len(numbers) + 10)), numbers)[:10].tolist()
        raise DataError(
            f"{path}: labels must be 0, 1, ... without gaps, got up to {numbers[-1]} but none of {absent}; renumber "
            "them or give class_names"
        )
    else:
        names = tuple(str(label) for label in numbers)
    # One part is not copied, since it may be a file mapped into memory.
    pixels = images[0] if len(images) == 1 else np.concatenate(images)
    joined = torch.from_numpy(pixels), torch.from_numpy(np.concatenate(labels))
    return Source(*joined, names, len(images[0]) if len(parts) == 2 else None)


def read_arrays(path: Path, split: str | None = None) -> Arrays:
    """Read `images` and `labels` of a .npz, or `arr_0` and `arr_1` if it was saved without names.

    Args:
        path: the file.
        split: `train`, or `test` for `test_images` and `test_labels`; None if the file has only one part.

    Raises:
        DataError: no readable .npz, one with pickled objects or too many bytes, no images, a split that is missing, or
            none although the file has parts.
    """
    with _opened(path) as archive:
        images, labels = _keys(path, archive.files, split)
        arrays = _read(archive, [key for key in (images, labels, "class_names") if key in archive.files])
    return Arrays(arrays[images], arrays.get(labels), arrays.get("class_names"))


def read_keys(path: Path, needed: Set[str], optional: Set[str] = frozenset()) -> dict[str, NDArray[Any]]:
    """Arrays of a .npz by their names; the optional ones if the file has them.

    Raises:
        DataError: a missing array; else as `read_arrays`.
    """
    with _opened(path) as archive:
        if missing := sorted(needed - {*archive.files}):
            raise DataError(f"{path}: has no array {missing}, only {sorted(archive.files)}; {_add(path)}")
        return _read(archive, sorted((needed | optional) & {*archive.files}))


def read_images(path: Path) -> NDArray[np.uint8]:
    """The images of a .npz alone, those of its training part if it has two: uint8 `[N, C, H, W]`.

    Raises:
        DataError: as `read_arrays` and `as_images`.
    """
    with _opened(path) as archive:
        key, _ = _keys(path, archive.files, "train" if "test_images" in archive.files else None)
        images = _read(archive, [key])[key]
    return as_images(images, f"{path}: {key}")


def _add(path: Path) -> str:
    """How a missing array is added."""
    if path.suffix.lower() == ".npz":
        return "add it with np.savez"
    return "put it beside images.npy in a file of its name, such as labels.npy"


def _keys(path: Path, names: Sequence[str], split: str | None) -> tuple[str, str]:
    """Names of the arrays with the images and the labels of a part."""
    if "test_images" in names and split not in ("train", "test"):
        raise DataError(f"{path} is divided into parts; choose one of them as its split: train or test")
    if "test_images" not in names and split is not None:
        raise DataError(f"{path} has no parts; leave out split={split}")
    part = "test_" if split == "test" else ""
    for images, labels in ((f"{part}images", f"{part}labels"), ("arr_0", "arr_1")):
        if images in names:
            return images, labels
    raise DataError(f"{path} has no array images or arr_0, only {some(names)}; save it with np.savez(path, images=...)")


@contextmanager
def _opened(path: Path) -> Iterator[NpzFile | NpyFiles]:
    """Context manager: the open file or files. Errors of opening and of reading them become a `DataError`."""
    try:
        if path.is_dir() or path.suffix.lower() == ".npy":
            yield _npy_files(path)
            return
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, NpzFile):
                raise ValueError("a single array; save it with np.savez(path, images=..., labels=...)")
            yield archive
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist; check the path") from error
    except (OSError, ValueError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
        kind = ".npz" if path.suffix.lower() == ".npz" else ".npy"
        raise DataError(
            f"{path} is not a readable {kind} of plain arrays ({in_a_line(error)}); save it anew"
        ) from error


def _npy_files(path: Path) -> NpyFiles:
    """The arrays of a folder, or those beside `images.npy`; a .npy of another name has images alone."""
    if not path.exists():
        raise FileNotFoundError(path)
    if not path.is_dir() and path.name != "images.npy":
        return NpyFiles({"images": path})
    top = path if path.is_dir() else path.parent
    return NpyFiles({name: top / f"{name}.npy" for name in _NAMES if (top / f"{name}.npy").is_file()})


def _read(archive: NpzFile | NpyFiles, keys: Sequence[str]) -> dict[str, NDArray[Any]]:
    """The arrays with these names.

    Raises:
        ValueError: an array has fewer bytes than its header claims, or together they have more than `LARGEST`.
    """
    if isinstance(archive, NpyFiles):
        return {key: archive.read(key) for key in keys}
    assert archive.zip is not None
    # All headers first: numpy allocates what a header claims before it reads the first byte of the array.
    members, total = {info.filename.removesuffix(".npy"): info for info in archive.zip.infolist()}, 0
    for key in keys:
        with archive.zip.open(members[key]) as member:
            # Version 3 is for names of fields beyond latin-1, and a plain array has no fields.
            read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
            version = np.lib.format.read_magic(member)[0]
            if version not in read:
                raise ValueError(f"{key} is of version {version} of the format, which no plain array needs")
            shape, _, dtype = read[version](member)
            claim, size = math.prod(shape) * dtype.itemsize, members[key].file_size - member.tell()
        if claim > size:
            raise ValueError(f"{key} {list(shape)} needs {claim:,} bytes, and the file has {size:,}")
        total += size
    if total > LARGEST:
        raise ValueError(f"too large: {total >> 30} GiB unpacked, at most {LARGEST >> 30} are allowed")
    return {key: archive[key] for key in keys}


def as_images(array: NDArray[Any], where: str) -> NDArray[np.uint8]:
    """Images as uint8 `[N, C, H, W]`, C 1 or 3.

    Args:
        array: uint8, or float in [0, 1]; `[N, H, W]`, or with 1 or 3 channels first or last.
        where: its name in messages.

    Raises:
        DataError: another type, range or layout, or no images.
    """
    if array.dtype != np.uint8:
        if array.dtype.kind != "f":
            raise DataError(f"{where} must be uint8, or float in [0, 1], got {array.dtype}; use .astype(np.uint8)")
        if array.size and not (array.min() >= 0.0 and array.max() <= 1.0):  # NaN fails both comparisons
            kind = "NaN" if np.isnan(array).any() else f"{array.min():g}..{array.max():g}"
            raise DataError(f"{where} are float and must be in [0, 1], got {kind}; clean or rescale them")
        array = np.rint(array.astype(np.float32) * 255.0).astype(np.uint8)
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4:
        first, last = array.shape[1] in (1, 3), array.shape[3] in (1, 3)
        if first == last:  # neither, or both: then the layout is ambiguous
            raise DataError(f"{where} must be NHW, or have 1 or 3 channels either first or last, got {array.shape}")
        array = array.transpose(0, 3, 1, 2) if last else array
    if array.ndim != 4 or array.size == 0:
        raise DataError(f"{where} must be NHW, NHWC or NCHW and not empty, got {array.shape}")
    return np.ascontiguousarray(array)


def as_labels(array: NDArray[Any], count: int, where: str) -> NDArray[np.int64]:
    """Labels as int64 `[count]`; `DataError` unless they are as many integers from 0."""
    if array.dtype.kind not in "iu":
        raise DataError(f"{where} must be integers from 0, got {array.dtype}; use .astype(np.int64)")
    if array.shape != (count,):
        raise DataError(f"{where} must be one per image, [{count}], got {list(array.shape)}")
    # A label of 64 bits is an identifier or damage; as a class count it would be an allocation of that size.
    if array.min() < 0 or array.max() > np.iinfo(np.int32).max:
        raise DataError(f"{where} must be integers from 0, got {array.min()}..{array.max()}; renumber them")
    return array.astype(np.int64)


def as_names(array: NDArray[Any], where: str) -> tuple[str, ...]:
    """Class names from an array of different strings; `DataError` for anything else."""
    if array.ndim != 1 or array.dtype.kind != "U" or len(set(array.tolist())) != len(array):
        raise DataError(f"{where} must be a list of different strings, got {array.dtype} {list(array.shape)}")
    return tuple(array.tolist())
