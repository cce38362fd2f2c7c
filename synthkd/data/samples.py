"""Images to be scored, labelled or not, whatever they come from and of whatever sizes.

A set is opened once: every image is decoded, judged and fingerprinted before any score begins, and those that fit into
`KEPT` bytes stay decoded. The rest is decoded again when batches are read, so that memory stays bounded; an image that
has changed by then is an error. Arrays, banks and what a generator makes are held in memory as uint8.
"""

from __future__ import annotations

import hashlib
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from synthkd.data.archives import CLASSES, Entry, Listing, list_folder, list_tar, list_zip, read_arrays
from synthkd.data.decode import Decoded, decode_in_order, read_and_decode, refuse_bad, some, with_reasons
from synthkd.data.npz import _images as as_images
from synthkd.data.npz import _labels as as_labels
from synthkd.data.npz import _names as as_names
from synthkd.data.real import load_splits
from synthkd.errors import DataError
from synthkd.rng import Rows
from synthkd.settings import DataSettings, DigitsData, FolderData, NamedData, NpzData
from synthkd.training.checkpoint import CheckpointStore
from synthkd.types import SampleGenerator, check_labels

KEPT = 1 << 29
"""Bytes of decoded files that a set keeps in memory; what is beyond is decoded again when it is read."""

_GENERATED = 256  # images asked of a generator at once
_NAMED_IN_NOTE = 3
_RUN_FILES = ("result.json", "metrics.jsonl", "checkpoints")

Images = Tensor | NDArray[Any]
"""uint8, or float in [0, 1]; `[N, C, H, W]`, `[N, H, W, C]` with C 1 or 3, or `[N, H, W]`."""


@dataclass(frozen=True)
class Samples:
    """A set of images in a fixed order.

    Attributes:
        name: as shown in tables.
        count: how many there are, without the bad ones.
        labels: int64 `[count]`, index into `class_names`; None where the source has none.
        class_names: one per class; empty when unlabelled. Where a source only numbers its classes these are the
            numbers, up to the largest present.
        digest: sha256 in hex of pixels, sizes, order and labels: the same for a folder and an archive or array of the
            same images.
        notes: what was converted or left out, one line per kind.
        bad: `(file, reason)` of each that could not be read and was left out, as `skip_bad` allowed.
        batches: largest batch -> uint8 batches `[n, C, H, W]` in order, as often as wanted; a batch never mixes sizes
            or channel counts and ends where they change.
        images: rows -> those images, each uint8 `[C, H, W]`; for grids and pairs rather than for all.
    """

    name: str
    count: int
    labels: Tensor | None = field(repr=False)
    class_names: tuple[str, ...]
    digest: str
    notes: tuple[str, ...]
    bad: tuple[tuple[str, str], ...]
    batches: Callable[[int], Iterator[Tensor]] = field(repr=False)
    images: Callable[[Iterable[int]], list[Tensor]] = field(repr=False)


def open_samples(
    source: str | Path | DataSettings | Images | SampleGenerator | Iterable[Any],
    *,
    name: str | None = None,
    split: str | None = None,
    skip_bad: int = 0,
    labels: Images | Sequence[int] | None = None,
    class_names: Sequence[str] = (),
    seed: int = 0,
    difficulty: float = 0.3,
) -> Samples:
    """Open, check and fingerprint a set of images.

    Grey files give 1 channel, all others 3, each by what the file says it stores.

    Args:
        source: one of
            a path: an image folder (a directory per class, or flat), a .zip of one, a .npz (`images` or `arr_0`, and
            `labels` or `arr_1` where it has them), a WebDataset .tar (or a pattern of shards), or the directory of a
            run that is not finished, for the memory bank in its newest checkpoint;
            the settings of a real dataset;
            an array of images (what is uint8 `[N, C, H, W]` already is not copied: leave it as it is);
            an iterable of arrays `[n, C, H, W]` or `[n, H, W, C]`, or of `(images, labels)`, which is read once;
            a generator, which makes one image for each of `labels`.
        name: as shown in tables; None makes one from the source.
        split: a part of the source: `train`, `holdout` or `test` of settings, `train` or `test` of a .npz, a directory
            of that name in a folder or .zip. Needed where the source has parts.
        skip_bad: how many unreadable files may be left out; they are then listed in `bad`.
        labels: whole numbers `[N]` for an array, iterable or generator; files bring their own.
        class_names: names for those labels.
        seed: of a generator; image i is a function of (seed, i) and its label, whatever `labels` follow.
        difficulty: of a generator, in [0, 1]; the default is where a run's controller starts.

    Raises:
        DataError: nothing there, nothing readable, more bad files than allowed (all of them counted, ten named), a
            split that is not there, images or labels of a wrong kind, a run without images.
        CheckpointError: a run of which no checkpoint verifies.
    """
    if isinstance(source, str | Path | DigitsData | NamedData | FolderData | NpzData):
        if labels is not None or class_names:
            raise DataError(f"{source}: labels and class_names are for arrays and generators; files bring their own")
        if isinstance(source, str | Path):
            return _open_path(Path(source).expanduser(), name, split, skip_bad)
        return _open_settings(source, name, split)
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
    return _in_memory(where, blocks, *(checked or (None, ())))


def _open_path(path: Path, name: str | None, split: str | None, skip_bad: int) -> Samples:
    shown = name or path.resolve().name + (f":{split}" if split else "")
    kind = path.suffix.lower()
    is_run = (path / "config.yaml").is_file() and any((path / file).exists() for file in _RUN_FILES)
    if split is not None and (is_run or kind == ".tar"):
        raise DataError(f"{path} has no parts; leave out split={split}")
    if is_run:
        return _open_run(path, shown)
    if path.is_dir():
        return _from_files(shown, path, list_folder(path, split), skip_bad)
    if kind == ".tar":
        return _from_files(shown, path, list_tar(path), skip_bad)
    if not path.exists():
        raise DataError(f"{path} does not exist; check the path")
    if kind == ".zip":
        return _from_files(shown, path, list_zip(path, split), skip_bad)
    if kind == ".npz":
        return _open_npz(path, shown, split)
    raise DataError(f"{path} is no set of images; give an image folder, a .zip, .npz or .tar, or a run directory")


def _open_settings(settings: DataSettings, name: str | None, split: str | None) -> Samples:
    if split not in ("train", "holdout", "test"):
        raise DataError(f"{settings.kind}: choose a part of the dataset: split=train, split=holdout or split=test")
    splits = load_splits(settings)
    part = {"train": splits.train, "holdout": splits.holdout, "test": splits.test}[split]
    shown = name or f"{part.name}:{split}"
    if not len(part):
        raise DataError(f"{shown} is empty; choose another split, or set its fraction above 0")
    return _in_memory(shown, [part.images], part.labels, part.class_names, splits.notes)


def _open_run(path: Path, name: str) -> Samples:
    """The memory bank in the newest checkpoint of a run, oldest image first."""
    if (path / "result.json").exists():
        raise DataError(
            f"{path} is a finished run and holds no images: its memory bank was dropped with its checkpoints; score a "
            "run that is not finished, or a folder or archive of images"
        )
    checkpoint = CheckpointStore(path / "checkpoints").latest()
    if checkpoint is None:
        raise DataError(f"{path} is a run without a checkpoint yet; let it get that far (checkpoint_every)")
    bank = checkpoint.state["parts"].get("bank")
    if bank is None or not len(bank["images"]):
        raise DataError(
            f"{path}: the checkpoint of step {checkpoint.step} holds no generated images; score a later one"
        )
    order = bank["births"].argsort()
    names = tuple(str(label) for label in range(bank["logits"].shape[1]))
    notes = (f"memory bank after step {checkpoint.step}, oldest image first",)
    return _in_memory(name, [bank["images"][order]], bank["labels"][order], names, notes)


def _open_npz(path: Path, name: str, split: str | None) -> Samples:
    found = read_arrays(path, split)
    blocks = [_uint8(found.images, f"{path}: images")]
    if found.labels is None:
        return _in_memory(name, blocks)
    names = () if found.class_names is None else as_names(found.class_names, f"{path}: class_names")
    return _in_memory(name, blocks, *_labelled(found.labels, names, len(blocks[0]), str(path)))


def _collect(source: Iterable[Any], labels: Any, where: str) -> tuple[list[Tensor], Any]:
    """Every batch as uint8, and the labels: those that came with the batches, else those given."""
    blocks: list[Tensor] = []
    brought: list[NDArray[Any]] = []
    for batch in source:
        images = batch
        if isinstance(batch, tuple | list) and len(batch) == 2:
            images = batch[0]
            brought.append(_array(batch[1]))
        if getattr(images, "ndim", None) != 4:
            got = list(images.shape) if hasattr(images, "shape") else type(images).__name__
            raise DataError(f"{where}: each batch must be an array [n, C, H, W] or [n, H, W, C], got {got}")
        # whoever gives the batches may write each into the memory of the one before
        blocks.append(_uint8(images, f"{where}: images").clone())
    if not brought:
        return blocks, labels
    if labels is not None or [len(part) for part in brought] != [len(block) for block in blocks]:
        raise DataError(f"{where}: labels must come with every batch, one per image, or be given as labels=, not both")
    return blocks, np.concatenate(brought)


def _generate(generator: SampleGenerator, labels: Tensor, difficulty: float, seed: int, where: str) -> Iterator[Tensor]:
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
    """uint8 `[N, C, H, W]`, contiguous; shares memory with the images where they are that already."""
    array = as_images(_array(images), where)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _labelled(labels: Any, names: Sequence[str], count: int, where: str) -> tuple[Tensor, tuple[str, ...]]:
    """Labels int64 `[count]` and a name for each class."""
    checked = torch.from_numpy(as_labels(_array(labels), count, f"{where}: labels"))
    if names:
        check_labels(checked, len(names), where)
        return checked, tuple(names)
    check_labels(checked, CLASSES, where)
    return checked, tuple(str(label) for label in range(int(checked.max()) + 1))


def _in_memory(
    name: str,
    blocks: Sequence[Tensor],
    labels: Tensor | None = None,
    class_names: tuple[str, ...] = (),
    notes: Sequence[str] = (),
) -> Samples:
    """Samples of uint8 blocks `[n, C, H, W]`, one after the other."""
    ends = list(accumulate(map(len, blocks)))
    if not ends or ends[-1] == 0:
        raise DataError(f"{name}: there are no images; look at what should have made them")

    def stream() -> Iterator[Tensor]:
        return chain.from_iterable(blocks)

    def image(row: int) -> Tensor:
        block = bisect(ends, row)
        return blocks[block][row - ends[block]]  # counted from the end of its block

    return _samples(name, stream, image, [_Print.of(image) for image in stream()], labels, class_names, notes)


def _from_files(name: str, where: Path, listing: Listing, skip_bad: int) -> Samples:
    """Decode every file once, keep what fits into memory, and say all that is wrong."""
    entries: list[Entry] = []
    prints: list[_Print] = []
    kept: list[Tensor] = []  # of the first entries
    bad: list[tuple[str, str]] = []
    kinds: dict[str, list[str]] = {}
    room = KEPT
    results = decode_in_order([entry.read for entry in listing.entries])
    for entry, result in zip(listing.entries, results, strict=True):
        if result.pixels is None:
            bad.append((entry.name, result.reason))
            continue
        image = _channels_first(result.pixels)
        entries.append(entry)
        prints.append(_Print.of(image))
        for kind in result.kinds:
            kinds.setdefault(kind, []).append(entry.name)
        room -= image.nbytes
        if room >= 0:
            kept.append(image)
    refuse_bad(where, len(listing.entries), bad, skip_bad)

    def again(row: int, result: Decoded) -> Tensor:
        image = None if result.pixels is None else _channels_first(result.pixels)
        if image is None or _Print.of(image) != prints[row]:
            raise DataError(f"{where}: {entries[row].name} has changed since it was checked; start again")
        return image

    def stream() -> Iterator[Tensor]:
        results = decode_in_order([entry.read for entry in entries[len(kept) :]])
        return chain(kept, map(again, range(len(kept), len(entries)), results))

    def image_at(row: int) -> Tensor:
        return kept[row] if row < len(kept) else again(row, read_and_decode(entries[row].read))

    labels = torch.tensor([entry.label for entry in entries], dtype=torch.int64) if listing.class_names else None
    notes = [f"{len(kinds[kind])} images {kind}: {some(kinds[kind], _NAMED_IN_NOTE)}" for kind in sorted(kinds)]
    if listing.ignored:
        notes.append(f"{len(listing.ignored)} files ignored, no images: {some(listing.ignored, _NAMED_IN_NOTE)}")
    if bad:
        notes.append(f"{len(bad)} unreadable files left out: {with_reasons(bad)}")
    return _samples(name, stream, image_at, prints, labels, listing.class_names, notes, bad)


def _channels_first(pixels: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


@dataclass(frozen=True)
class _Print:
    """By what an image is recognised: its shape `(C, H, W)` and the sha256 of its pixels."""

    shape: tuple[int, ...]
    pixels: bytes

    @classmethod
    def of(cls, image: Tensor) -> _Print:
        return cls(tuple(image.shape), hashlib.sha256(image.numpy().reshape(-1).data).digest())


def _samples(
    name: str,
    stream: Callable[[], Iterator[Tensor]],
    image: Callable[[int], Tensor],
    prints: Sequence[_Print],
    labels: Tensor | None,
    class_names: tuple[str, ...],
    notes: Sequence[str],
    bad: Sequence[tuple[str, str]] = (),
) -> Samples:
    """Put together what is common to every source, given all its images in order and any one by its row."""
    digest = hashlib.sha256(b"no labels" if labels is None else labels.numpy().astype("<i8").tobytes())
    for seen in prints:
        digest.update(repr(seen.shape).encode() + seen.pixels)
    shapes = Counter(seen.shape for seen in prints)
    if len(shapes) > 1:
        shown = ["x".join(map(str, shape)) + f" ({number})" for shape, number in shapes.most_common()]
        notes = [*notes, f"{len(shapes)} different shapes, channels x height x width: {some(shown)}"]

    def batches(size: int) -> Iterator[Tensor]:
        if size < 1:
            raise DataError(f"{name}: a batch needs at least 1 image, got {size}")
        return _stacked(stream(), size)

    def images(rows: Iterable[int]) -> list[Tensor]:
        asked = [int(row) for row in rows]
        if asked and not 0 <= min(asked) <= max(asked) < len(prints):
            raise DataError(f"{name}: rows must be in 0..{len(prints) - 1}, got {min(asked)}..{max(asked)}")
        return [image(row) for row in asked]

    return Samples(
        name, len(prints), labels, class_names, digest.hexdigest(), tuple(notes), tuple(bad), batches, images
    )


def _stacked(images: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """Batches of at most `size` neighbours of one shape."""
    batch: list[Tensor] = []
    for image in images:
        if batch and (len(batch) == size or batch[0].shape != image.shape):
            yield torch.stack(batch)
            batch = []
        batch.append(image)
    if batch:
        yield torch.stack(batch)
