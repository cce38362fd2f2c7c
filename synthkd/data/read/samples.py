"""Sets of images for a score, labelled or not: from files, a run, a dataset, arrays, batches or a generator."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from synthkd.data.bank_rows import saved_rows
from synthkd.data.bank_sample import BANK_SAMPLE
from synthkd.data.read.entries import Listing
from synthkd.data.read.generated import find_generated
from synthkd.data.read.labels import CLASSES
from synthkd.data.read.listing import list_scored
from synthkd.data.read.npz import as_images, as_labels, as_names, is_arrays, read_arrays
from synthkd.data.read.on_disk import DiskImages
from synthkd.data.read.real import load_splits, load_test
from synthkd.data.read.sample_set import Samples, from_files, in_memory, on_disk
from synthkd.data.read.splits import RealData
from synthkd.errors import DataError
from synthkd.rng import Rows
from synthkd.settings import DataSettings, DigitsData, FolderData, FolderTest, NamedData, NpzData, NpzTest
from synthkd.system.shares import of_all
from synthkd.training.checkpoint import CheckpointStore
from synthkd.types import SampleGenerator, check_labels, in_channels

_GENERATED = 256  # images of one call of a generator
_RUN_FILES = ("result.json", "metrics.jsonl", "checkpoints")

Images = Tensor | NDArray[Any]
"""uint8, or float in [0, 1]; `[N, C, H, W]`, `[N, H, W, C]` with C 1 or 3, or `[N, H, W]`."""


def open_samples(
    source: str | Path | DataSettings | Images | SampleGenerator | Iterable[Any],
    *,
    name: str | None = None,
    split: str | None = None,
    skip_bad: int = 0,
    channels: int | None = None,
    labels: Images | Sequence[int] | None = None,
    class_names: Sequence[str] = (),
    seed: int = 0,
    difficulty: float = 0.3,
) -> Samples:
    """Open, check and hash a set of images.

    Grey files give 1 channel, all others 3: the mode of each file decides.

    Args:
        source: one of
            a path: an image folder (a directory per class, or flat), a .zip or .tar of one, a .npz (`images` or
            `arr_0`, and `labels` or `arr_1` if it has them), a WebDataset .tar (or a pattern of shards), a .csv, a
            .parquet, what `synthkd generate` wrote, or the directory of a run, for the images that it kept or, while it
            is not finished, the memory bank in its newest checkpoint;
            the settings of a real dataset;
            an array of images; uint8 `[N, C, H, W]` is not copied, so it must not change later;
            an iterable of arrays `[n, C, H, W]` or `[n, H, W, C]`, or of `(images, labels)`, which is read once;
            a generator, which generates one image for each of `labels`.
        name: in tables; None derives one from the source.
        split: a part of the source: `train`, `holdout` or `test` of settings, `train` or `test` of a .npz, a directory
            of that name in a folder or .zip. Needed if the source has parts.
        skip_bad: most unreadable files that may be left out; they are listed in `bad`.
        channels: 1 (grey) or 3 (RGB): images of files and datasets are converted; None keeps what they have.
        labels: whole numbers `[N]` for an array, iterable or generator; files have labels of their own.
        class_names: names for those labels.
        seed: of a generator; image i is a function of (seed, i) and its label alone.
        difficulty: of a generator, in [0, 1]; the default is the difficulty at which a run starts.

    Raises:
        DataError: no such source, nothing readable, more bad files than allowed (all of them counted, ten named), a
            split that is missing, images or labels of a wrong kind, a run without images.
        CheckpointError: a run without a checkpoint that verifies.
    """
    # Files and datasets have labels and parts of their own; all other sources take labels, and no part.
    if isinstance(source, str | Path | DigitsData | NamedData | FolderData | NpzData):
        if labels is not None or class_names:
            raise DataError(f"{source}: labels and class_names are for arrays and generators; files bring their own")
        if isinstance(source, str | Path):
            return _open_path(Path(source).expanduser(), name, split, skip_bad, channels)
        return _open_settings(source, name, split, channels)
    if split is not None:
        raise DataError(f"split={split} is for files and datasets; give the images of that part alone")
    if isinstance(source, Tensor | np.ndarray):
        where = name or "array"
        blocks = [_uint8(source, f"{where}: images")]
    elif callable(getattr(source, "sample", None)):
        where = name or type(source).__name__
        if labels is None or not len(labels):
            raise DataError(f"{where}: a generator needs labels, one for each image that it is to make")
        labels, class_names = _labelled(labels, class_names, len(labels), where)
        blocks = list(_generate(cast(SampleGenerator, source), labels, difficulty, seed, where))
    elif isinstance(source, Iterable):
        where = name or "batches"
        blocks, labels = _collect(source, labels, where)
    else:
        raise DataError(f"{type(source).__name__} gives no images; pass a path, an array, batches or a generator")
    if class_names and labels is None:
        raise DataError(f"{where}: class_names need labels; give both or neither")
    checked = None if labels is None else _labelled(labels, class_names, sum(map(len, blocks)), where)
    return in_memory(where, blocks, *(checked or (None, ())))


def is_run(path: Path) -> bool:
    """Whether the path is a run, which stands for the images of its generator; not one of `synthkd generate`."""
    has_files = (path / "config.yaml").is_file() and any((path / file).exists() for file in _RUN_FILES)
    return has_files and find_generated(path) is None


def _open_path(path: Path, name: str | None, split: str | None, skip_bad: int, channels: int | None) -> Samples:
    """The set at a path, by the kind of the path; `name` None: the last part of the path, and the split."""
    name = name or path.resolve().name + (f":{split}" if split else "")
    with of_all().agreed():
        if is_run(path):
            if split is not None:
                raise DataError(f"{path} has no parts; leave out split={split}")
            content: Listing | _Arrays = _of_run(path, channels)
        else:
            content = _of_npz(path, split, channels) if is_arrays(path) else list_scored(path, split)
    if isinstance(content, Listing):
        return from_files(name, path, content, skip_bad, channels)
    return in_memory(name, content.blocks, content.labels, content.class_names, content.notes)


@dataclass(frozen=True)
class _Arrays:
    """Images in memory; attributes as the arguments of `in_memory`."""

    blocks: Sequence[Tensor]
    labels: Tensor | None = None
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def _open_settings(settings: DataSettings, name: str | None, split: str | None, channels: int | None) -> Samples:
    """One part of a real dataset."""
    if split not in ("train", "holdout", "test"):
        raise DataError(f"{settings.kind}: choose a part of the dataset: split=train, split=holdout or split=test")
    # The reading of a folder is shared and agrees by itself.
    with nullcontext() if isinstance(settings, FolderData) else of_all().agreed():
        splits = load_splits(settings)
    part: RealData = getattr(splits, split)
    return _of_part(name or f"{part.name}:{split}", replace(part, notes=splits.notes), channels)


def open_test(settings: FolderTest | NpzTest, training: Iterable[DataSettings], channels: int | None) -> Samples:
    """The images of a dataset that is tested on, as `load_test` takes them.

    Args:
        settings, training: see `load_test`.
        channels: as of `open_samples`.

    Raises:
        DataError: as `load_test`; no image is left.
    """
    with nullcontext() if isinstance(settings, FolderTest) else of_all().agreed():
        part = load_test(settings, training)
    return _of_part(part.name, part, channels)


def _of_part(name: str, part: RealData, channels: int | None) -> Samples:
    """The set of real images."""
    if not len(part):
        raise DataError(f"{name} is empty; choose another split, or set its fraction above 0")
    if isinstance(part.images, DiskImages):
        return on_disk(name, part.images, part.labels, part.class_names, part.notes, channels)
    return in_memory(name, _in_channels([part.images], channels), part.labels, part.class_names, part.notes)


def _of_run(path: Path, channels: int | None) -> _Arrays:
    """The images that a finished run kept, or the memory bank in the newest checkpoint of another; oldest first."""
    if (path / "result.json").exists():
        if (path / BANK_SAMPLE).exists():
            return _of_npz(path / BANK_SAMPLE, None, channels)
        if inner := sorted(one.parent.parent.name for one in path.glob(f"seed-*/{BANK_SAMPLE}")):
            raise DataError(f"{path} is a run of several seeds; name that of one: {path / inner[0]}")
        raise DataError(
            f"{path} is a finished run without {BANK_SAMPLE}: it generated no images, or kept none (keep_images=0); "
            "score a folder or archive of images"
        )
    checkpoint = CheckpointStore(path / "checkpoints").latest()
    if checkpoint is None:
        raise DataError(f"{path} is a run without a checkpoint yet; let it get that far (checkpoint_every)")
    bank = checkpoint.state["parts"].get("bank")
    rows = None if bank is None else saved_rows(bank)
    if rows is None or rows.first == rows.stop:
        raise DataError(
            f"{path}: the checkpoint of step {checkpoint.step} holds no generated images; score a later one"
        )
    blocks = [block.columns for block in rows.blocks(rows.first)]
    names = tuple(str(label) for label in range(blocks[0]["logits"].shape[1]))
    notes = (f"memory bank after step {checkpoint.step}, oldest image first",)
    labels = torch.cat([block["labels"] for block in blocks])
    images = _in_channels([block["images"] for block in blocks], channels)
    return _Arrays(images, labels, names, notes)


def _in_channels(blocks: Sequence[Tensor], channels: int | None) -> list[Tensor]:
    """Blocks of images with that number of channels; None keeps what they have."""
    return [block if channels is None else in_channels(block, channels) for block in blocks]


def _of_npz(path: Path, split: str | None, channels: int | None) -> _Arrays:
    arrays = read_arrays(path, split)
    blocks = _in_channels([_uint8(arrays.images, f"{path}: images")], channels)
    if arrays.labels is None:
        return _Arrays(blocks)
    names = () if arrays.class_names is None else as_names(arrays.class_names, f"{path}: class_names")
    return _Arrays(blocks, *_labelled(arrays.labels, names, len(blocks[0]), str(path)))


def _collect(source: Iterable[Any], labels: Any, where: str) -> tuple[list[Tensor], Any]:
    """Every batch as uint8, and the labels: those in the batches, else the caller's."""
    blocks: list[Tensor] = []
    own: list[NDArray[Any]] = []
    for batch in source:
        images = batch
        if isinstance(batch, tuple | list) and len(batch) == 2:
            images = batch[0]
            own.append(_array(batch[1]))
        if getattr(images, "ndim", None) != 4:
            got = list(images.shape) if hasattr(images, "shape") else type(images).__name__
            raise DataError(f"{where}: each batch must be an array [n, C, H, W] or [n, H, W, C], got {got}")
        # A clone, since the source may write each batch into the memory of the one before.
        blocks.append(_uint8(images, f"{where}: images").clone())
    if not own:
        return blocks, labels
    if labels is not None or [len(part) for part in own] != [len(block) for block in blocks]:
        raise DataError(f"{where}: labels must come with every batch, one per image, or be given as labels=, not both")
    return blocks, np.concatenate(own)


def _generate(generator: SampleGenerator, labels: Tensor, difficulty: float, seed: int, where: str) -> Iterator[Tensor]:
    """Images of a generator for the labels, uint8, in chunks that do not depend on the number of labels."""
    # Fixed chunks, because the last bits of a network's output may depend on the size of its batch.
    for first in range(0, len(labels), _GENERATED):
        chunk = labels[first : first + _GENERATED]
        with torch.no_grad():
            images = generator.sample(chunk, difficulty, Rows(seed, "samples", first))
        if images.dim() != 4 or len(images) != len(chunk):
            raise DataError(
                f"{where}: asked for {len(chunk)} images [N, C, H, W], the generator gave {list(images.shape)}"
            )
        yield _uint8(images, f"{where}: images")


def _array(values: Any) -> NDArray[Any]:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return cast(NDArray[Any], (values.float() if values.is_floating_point() else values).numpy())
    return np.asarray(values)


def _uint8(images: Any, where: str) -> Tensor:
    """uint8 `[N, C, H, W]`, contiguous; not copied if the images are that already."""
    array = as_images(_array(images), where)
    # torch has no read-only tensors, and a write to a read-only array is undefined.
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _labelled(labels: Any, names: Sequence[str], count: int, where: str) -> tuple[Tensor, tuple[str, ...]]:
    """Labels int64 `[count]` and a name for each class."""
    checked = torch.from_numpy(as_labels(_array(labels), count, f"{where}: labels"))
    if names:
        check_labels(checked, len(names), where)
        return checked, tuple(names)
    # Without names there is a class for each number, so a huge label would make as many names.
    check_labels(checked, CLASSES, where)
    return checked, tuple(str(label) for label in range(int(checked.max()) + 1))
