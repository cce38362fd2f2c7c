"""Writers of a labelled dataset in three common formats: image folder, WebDataset shards, parquet.

The bytes are a function of the images and the layout. Each image has its number, its label, the teacher's logits and
soft labels (their softmax), the difficulty, and the mark that it is synthetic. The directories of the image folder,
`0003_name`, sort in the order of the classes, so that torchvision numbers the classes alike. Hugging Face datasets
reads the labels of a folder from its metadata, and the names of the classes from the front matter of the card.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from synthkd.data.written.unfinished import Part
from synthkd.errors import ConfigError
from synthkd.imports import optional
from synthkd.system.files import naming, write_atomically
from synthkd.types import ImageSpec

Format = Literal["folder", "webdataset", "parquet"]

SPLIT = "train"
"""Name of the only split."""
METADATA = "metadata.jsonl"
"""Name of the file with the labels and logits of an image folder."""
GROUP_ROWS, GROUP_PIXELS = 100, 1 << 20
"""Most images of a row group of parquet, and most bytes of their pixels: who wants one image reads its row group."""
_TAR_BLOCK = 512  # bytes; a tar pads every file to whole blocks and puts one before it
_DISK_BLOCK = 4096  # bytes; a file system gives a file whole blocks
_SUM = 150  # bytes of a line of SHA256SUMS


@dataclass(frozen=True)
class Records:
    """Images to write, in the order of their numbers.

    Attributes:
        numbers: int64 `[N]`, the number of each image.
        images: uint8 `[N, C, H, W]`, C 1 or 3.
        labels: int64 `[N]`.
        logits: float32 `[N, K]`.
    """

    numbers: Tensor
    images: Tensor
    labels: Tensor
    logits: Tensor

    @classmethod
    def of(cls, part: Part, stays: Tensor) -> Records:
        """The images of a part for which `stays`, bool `[N]`, is True."""
        numbers = torch.arange(part.first, part.first + len(part))
        return cls(numbers[stays], part.images[stays], part.labels[stays], part.logits[stays])

    @classmethod
    def joined(cls, blocks: Sequence[Records]) -> Records:
        """Several blocks in one."""
        return cls(*(torch.cat([getattr(block, field.name) for block in blocks]) for field in fields(cls)))

    def __len__(self) -> int:
        return len(self.labels)

    def cut(self, first: int, stop: int | None = None) -> Records:
        """The rows `first` to `stop`."""
        return Records(*(getattr(self, field.name)[first:stop] for field in fields(self)))


@dataclass(frozen=True)
class Layout:
    """The files of a dataset.

    Attributes:
        format: of the images.
        class_names: one per class.
        difficulty: of the images, in [0, 1].
        shard_size: images of a shard (WebDataset, parquet).
        count: number of all images.
    """

    format: Format
    class_names: tuple[str, ...]
    difficulty: float
    shard_size: int
    count: int

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.count // self.shard_size)

    def directory(self, label: int) -> str:
        """Name of a class's directory in the image folder."""
        # The number makes the name unique and sorts it; of the class name only what every file system takes remains.
        width = max(4, len(str(len(self.class_names) - 1)))
        name = re.sub(r"[^A-Za-z0-9]+", "-", self.class_names[label]).strip("-").lower()
        return f"{label:0{width}d}_{name or 'class'}"

    def shard(self, number: int) -> str:
        """Path of a shard inside the dataset."""
        if self.format == "webdataset":
            return f"{SPLIT}-{number:06d}.tar"
        return f"data/{SPLIT}-{number:05d}-of-{self.shards:05d}.parquet"


def check_format(layout: Layout, spec: ImageSpec, counts: Sequence[int]) -> None:
    """Refuse a dataset that its format cannot hold.

    Raises:
        ConfigError: neither 1 nor 3 channels; a folder with an empty class.
        MissingExtraError: parquet without pyarrow.
    """
    if spec.channels not in (1, 3):
        raise ConfigError(f"format: image files have 1 or 3 channels, the teacher's images {spec.channels}")
    empty = [layout.class_names[label] for label, count in enumerate(counts) if count == 0]
    if layout.format == "folder" and empty:
        raise ConfigError(
            f"per_class: class {empty[0]!r} gets no image, and readers of an image folder number the classes by their "
            "directories; ask for at least one of each class, or set format to webdataset or parquet"
        )
    if layout.format == "parquet":
        needed("pyarrow")


def estimate(layout: Layout, spec: ImageSpec) -> int:
    """An upper bound of the bytes of the dataset on disk, for images that cannot be compressed."""
    pixels = spec.channels * spec.height * spec.width
    png = pixels + spec.height + 100  # a PNG has a filter byte for each row, and some headers
    text = 250 + len(layout.class_names) * 24  # the entry of an image: a soft label and a logit for each class
    if layout.format == "folder":
        return layout.count * (-(-png // _DISK_BLOCK) * _DISK_BLOCK + text + _SUM)
    if layout.format == "webdataset":
        return layout.count * sum(_TAR_BLOCK + -(-size // _TAR_BLOCK) * _TAR_BLOCK for size in (png, 8, text))
    return layout.count * (png + 8 * len(layout.class_names) + 64)


def write_records(blocks: Iterable[Records], directory: Path, layout: Layout, done: Callable[[int], None]) -> None:
    """Write a dataset into a directory.

    Args:
        blocks: the images, in the order of their numbers, in blocks of any size.
        directory: of the dataset; created if it is missing.
        layout: of the files.
        done: called with the number of images written so far.
    """
    if layout.format == "folder":
        # A write that fails names no file; the directory is what somebody has to look at.
        with naming(directory):
            _write_folder(blocks, directory / SPLIT, layout, done)
        return
    written = 0
    for number, block in enumerate(_shards(blocks, layout.shard_size)):
        write_atomically(directory / layout.shard(number), encoded(block, layout))
        written += len(block)
        done(written)


def encoded(block: Records, layout: Layout) -> bytes:
    """Images as the bytes of a shard; those of a folder as a WebDataset shard, which has the same PNG files."""
    return _parquet(block, layout) if layout.format == "parquet" else _tar(block, layout)


def png(image: Tensor) -> bytes:
    """A uint8 image `[C, H, W]`, C 1 or 3, as a PNG file."""
    array = image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).contiguous().numpy()
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()


def needed(module: str) -> Any:
    """pyarrow or a module of it, imported.

    Raises:
        MissingExtraError: it is not installed.
    """
    return optional(module, "data", "the parquet format")


def soft_labels(logits: Tensor) -> Tensor:
    """The teacher's probabilities, float32 `[N, K]`, computed in float64."""
    return logits.double().softmax(1).float()


def _write_folder(blocks: Iterable[Records], top: Path, layout: Layout, done: Callable[[int], None]) -> None:
    """Write the files of an image folder, none of them atomically, since the whole folder is renamed at the end."""
    lines: list[str] = []
    for label in range(len(layout.class_names)):
        (top / layout.directory(label)).mkdir(parents=True, exist_ok=True)
    for block in blocks:
        for number, image, label, about in _each(block, layout):
            name = f"{layout.directory(label)}/{number:08d}.png"
            (top / name).write_bytes(png(image))
            lines.append(json.dumps({"file_name": name, **about}) + "\n")
        done(len(lines))
    (top / METADATA).write_text("".join(lines), encoding="utf-8")


def _each(block: Records, layout: Layout) -> Iterator[tuple[int, Tensor, int, dict[str, Any]]]:
    """`(number, image, label, entry)` of each image, where the entry is a line of the metadata."""
    soft = soft_labels(block.logits)
    rows = zip(block.numbers.tolist(), block.images, block.labels.tolist(), block.logits, soft, strict=True)
    for number, image, label, logits, probabilities in rows:
        entry = {
            "number": number,
            "label": label,
            "class_name": layout.class_names[label],
            "soft_labels": _shortest(probabilities),
            "logits": _shortest(logits),
            "difficulty": layout.difficulty,
            "synthetic": True,
        }
        yield number, image, label, entry


def _shortest(values: Tensor) -> list[float]:
    """float32 numbers with the fewest digits that identify them; as float64 they would have many more."""
    return [float(str(value)) for value in values.numpy()]


def _shards(blocks: Iterable[Records], size: int) -> Iterator[Records]:
    """Cut blocks of any size into shards of `size` images; the last may be smaller."""
    waiting: list[Records] = []
    for block in blocks:
        waiting.append(block)
        while sum(map(len, waiting)) >= size:
            joined = Records.joined(waiting)
            yield joined.cut(0, size)
            waiting = [joined.cut(size)]
    if sum(map(len, waiting)):
        yield Records.joined(waiting)


def _tar(block: Records, layout: Layout) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for number, image, label, about in _each(block, layout):
            members = (("png", png(image)), ("cls", str(label).encode()), ("json", json.dumps(about).encode()))
            for suffix, content in members:
                # Owner 0 and time 0, so that the bytes are the same whoever writes them, and when.
                member = tarfile.TarInfo(f"{number:08d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _parquet(block: Records, layout: Layout) -> bytes:
    arrow, parquet = needed("pyarrow"), needed("pyarrow.parquet")
    files = [
        {"bytes": png(image), "path": f"{number:08d}.png"}
        for number, image in zip(block.numbers.tolist(), block.images, strict=True)
    ]
    numbers = arrow.list_(arrow.float32())
    columns: Mapping[str, tuple[Any, Any, dict[str, Any]]] = {
        "image": (files, arrow.struct({"bytes": arrow.binary(), "path": arrow.string()}), {"_type": "Image"}),
        "label": (block.labels.tolist(), arrow.int64(), {"names": list(layout.class_names), "_type": "ClassLabel"}),
        "soft_labels": (soft_labels(block.logits).tolist(), numbers, _list_of_floats()),
        "logits": (block.logits.tolist(), numbers, _list_of_floats()),
        "difficulty": ([layout.difficulty] * len(files), arrow.float64(), _value("float64")),
        "synthetic": ([True] * len(files), arrow.bool_(), _value("bool")),
        "number": (block.numbers.tolist(), arrow.int64(), _value("int64")),
    }
    # Hugging Face datasets reads the types of the columns, such as the class names, from this entry of the schema.
    features = {name: feature for name, (_, _, feature) in columns.items()}
    schema = arrow.schema(
        [(name, kind) for name, (_, kind, _) in columns.items()],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    table = arrow.table({name: arrow.array(values, kind) for name, (values, kind, _) in columns.items()}, schema=schema)
    buffer = io.BytesIO()
    rows = min(GROUP_ROWS, max(1, GROUP_PIXELS // block.images[0].numel()))
    # Without statistics, which are whole images: the smallest and the largest of each row group, by their bytes.
    parquet.write_table(table, buffer, row_group_size=rows, write_statistics=False)
    return buffer.getvalue()


def _value(dtype: str) -> dict[str, Any]:
    return {"dtype": dtype, "_type": "Value"}


def _list_of_floats() -> dict[str, Any]:
    # "List" is the name since datasets 4, which reads the old one as well; datasets 3 refuses the new one.
    return {"feature": _value("float32"), "_type": "Sequence"}
