"""A dataset that `synthkd generate` wrote, read back from any of its formats and verified.

`dataset.json` describes the images. Its `content` is a sha256 over decoded pixels, labels, logits and numbers, the same
in every format. The file has a checksum of its own. `SHA256SUMS` has the checksums of all files, for a check without
synthkd: `sha256sum -c`.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synthkd.data.read.decode import decode, in_a_line
from synthkd.data.read.decoding import channels_first
from synthkd.data.written.writers import Records, needed
from synthkd.errors import DataError
from synthkd.system.files import inside
from synthkd.system.sealed import unsealed
from synthkd.system.text import one_line, parse_json
from synthkd.types import ImageSpec, check_labels

ABOUT = "dataset.json"
FORMAT = 1
FOLDER = "dataset"
"""Name of the dataset inside its run."""


@dataclass(frozen=True)
class StoredDataset:
    """A generated dataset, enough to train a student without teacher or generator.

    Attributes:
        images: uint8 `[N, C, H, W]`.
        labels: int64 `[N]`, the labels that the images were generated for.
        logits: float32 `[N, K]`, the teacher's.
        class_names: one per class.
        mean: the teacher's normalisation of images in [0, 1], per channel.
        std: likewise.
        spec: sizes of the images, and number of classes.
        about: the content of `dataset.json`.
    """

    images: Tensor
    labels: Tensor
    logits: Tensor
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    spec: ImageSpec
    about: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.labels)


class Content:
    """The digest of a dataset, updated block by block; the borders of the blocks do not matter."""

    def __init__(self) -> None:
        # A hash for each column: one hash over all would depend on where a block ends.
        self._parts = [hashlib.sha256() for _ in range(4)]

    def add(self, block: Records) -> None:
        """Take in the next images."""
        tensors = (block.numbers, block.images, block.labels, block.logits)
        for part, values in zip(self._parts, tensors, strict=True):
            part.update(values.contiguous().numpy().tobytes())

    def hexdigest(self) -> str:
        """sha256 of all blocks so far, in hexadecimal."""
        return hashlib.sha256(b"".join(part.digest() for part in self._parts)).hexdigest()


def read_stored(path: str | Path) -> StoredDataset:
    """Read and verify a dataset.

    Args:
        path: its directory, or the run of `synthkd generate` that holds it.

    Raises:
        DataError: no such dataset, one of another version, a file that is missing or damaged, or content that differs
            from the digest.
        MissingExtraError: parquet without pyarrow.
    """
    top = Path(path).expanduser()
    top = top / FOLDER if (top / FOLDER / ABOUT).is_file() else top
    about = _read_about(top)
    try:
        spec = ImageSpec(**about["spec"])
        names, mean, std = (tuple(about[key]) for key in ("class_names", "mean", "std"))
        count, content, form = int(about["count"]), str(about["content"]), about["format"]
        reader = {"folder": _read_folder, "webdataset": _read_tars, "parquet": _read_parquet}[form]
        files = [inside(top, str(name)) for name in dict.fromkeys(about["files"])]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{top / ABOUT} is damaged ({in_a_line(error)}); generate the dataset again") from error
    # One row more than there should be is enough to know, however many a damaged file claims.
    rows = list(islice(reader(files, spec), count + 1))
    if len(rows) != count or not rows:
        number = f"more than {count}" if len(rows) > count else len(rows)
        raise DataError(f"{top} holds {number} images, but {count} were written; copy or generate it again")
    records = Records(
        torch.tensor([row.number for row in rows]),
        torch.stack([row.image for row in rows]),
        torch.tensor([row.label for row in rows]),
        torch.stack([row.logits for row in rows]),
    )
    check_labels(records.labels, spec.classes, str(top))
    digest = Content()
    digest.add(records)
    if digest.hexdigest() != content:
        raise DataError(
            f"{top}: images, labels or logits are not those that were written ({ABOUT} has their sha256); "
            "copy or generate it again"
        )
    return StoredDataset(records.images, records.labels, records.logits, names, mean, std, spec, about)


@dataclass(frozen=True)
class _Row:
    """One image uint8 `[C, H, W]` with its number, label and logits float32 `[K]`."""

    number: int
    image: Tensor
    label: int
    logits: Tensor


def _read_about(top: Path) -> dict[str, Any]:
    """The content of `dataset.json`, after its checksum and version were checked."""
    path = top / ABOUT
    if not path.is_file():
        raise DataError(f"{top} is no dataset of synthkd generate: it has no {ABOUT}; give the run or its {FOLDER}/")
    try:
        about = unsealed(path.read_bytes())
        version = about["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read ({in_a_line(error)}); generate the dataset again") from error
    if version != FORMAT:
        raise DataError(f"{path} has version {version}, this synthkd reads {FORMAT}; use the synthkd that wrote it")
    return dict(about)


@contextmanager
def _reading(file: Path, errors: tuple[type[Exception], ...] = (OSError, ValueError)) -> Iterator[None]:
    """Context manager in which errors of reading a file become a `DataError`."""
    try:
        yield
    except errors as error:
        raise DataError(f"{file} cannot be read ({in_a_line(error)}); copy or generate it again") from error


def _read_folder(files: list[Path], spec: ImageSpec) -> Iterator[_Row]:
    for file in files:
        with _reading(file):
            lines = file.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines, 1):
            about = _entry(line, f"{file}, line {number}")
            image = file.parent / str(about.get("file_name"))
            if not image.is_file():
                raise DataError(f"{image} is missing, though {file.name} lists it; copy or generate the dataset again")
            yield _row(image.read_bytes(), about, spec, str(image))


def _read_tars(files: list[Path], spec: ImageSpec) -> Iterator[_Row]:
    for file in files:
        samples: dict[str, dict[str, bytes]] = {}  # key -> suffix -> content
        # The headers of a damaged tar may claim any size, or nest without end.
        errors = (OSError, ValueError, MemoryError, RecursionError, tarfile.TarError)
        with _reading(file, errors), tarfile.open(file, "r:") as tar:
            for member in tar:
                # A sparse member of a few bytes may claim to be of any size.
                if not member.isreg() or member.issparse():
                    raise ValueError(f"{one_line(member.name)} is no plain file")
                key, _, suffix = member.name.partition(".")
                content = tar.extractfile(member)
                samples.setdefault(key, {})[suffix] = b"" if content is None else content.read()
        for key, sample in samples.items():
            where = f"{file}: {key}"
            yield _row(sample.get("png", b""), _entry(sample.get("json", b""), f"{where}.json"), spec, f"{where}.png")


def _read_parquet(files: list[Path], spec: ImageSpec) -> Iterator[_Row]:
    parquet = needed("pyarrow.parquet")
    for file in files:
        with _reading(file):  # the errors of pyarrow are subclasses of OSError and ValueError
            # Before any row is read, because compression lets a small file claim any number of equal rows.
            if parquet.read_metadata(file).num_rows > file.stat().st_size:
                raise ValueError("it claims more rows than it has bytes")
            rows = parquet.read_table(file).to_pylist()
        for row in rows:
            image = row.get("image")
            if not isinstance(image, dict) or not isinstance(image.get("bytes"), bytes):
                raise DataError(f"{file} has no images in a column `image`; copy or generate it again")
            yield _row(image["bytes"], row, spec, f"{file}: {image.get('path')}")


def _entry(text: str | bytes, where: str) -> dict[str, Any]:
    try:
        value = parse_json(text)
    except ValueError as error:
        raise DataError(f"{where} is not JSON ({in_a_line(error)}); copy or generate the dataset again") from error
    return value if isinstance(value, dict) else {}


def _row(file: bytes, about: Mapping[str, Any], spec: ImageSpec, where: str) -> _Row:
    """Decode an image file and check it and its entry; `where` names it in errors."""
    decoded = decode(file, spec.channels)
    if decoded.pixels is None:
        raise DataError(f"{where} is no readable image ({decoded.reason}); copy or generate the dataset again")
    image = channels_first(decoded.pixels)
    match about:
        case {"number": int(number), "label": int(label), "logits": list(logits)} if (
            tuple(image.shape) == spec.shape
            and max(abs(number), abs(label)) < 2**63  # they become int64
            and len(logits) == spec.classes
            and all(isinstance(one, int | float) for one in logits)
        ):
            # At once: a list of Python's floats takes eight times the memory.
            return _Row(number, image, label, torch.tensor(logits, dtype=torch.float32))
    raise DataError(f"{where}: image, label or logits are not of {spec}; copy or generate the dataset again")
