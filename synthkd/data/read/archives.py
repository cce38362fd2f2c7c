"""What a folder, a zip or a WebDataset tar holds: image files found, named, labelled and in order; and arrays of a npz.

No image is decoded here, nothing is unpickled, and nothing is ever extracted to disk. An image file that must not or
cannot be read stays in the listing, and reading it raises, so that all that is wrong with a set is reported at once.
"""

from __future__ import annotations

import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from synthkd.data.read.decode import NOT_IMAGES, Reader, in_a_line, some
from synthkd.data.read.npz import check_claims
from synthkd.errors import DataError
from synthkd.system.text import parse_json

LARGEST_FILE = 1 << 28
"""Most bytes that a file in an archive may have unpacked; an uncompressed image of `decode.LARGEST` pixels has less."""

MOST_PACKED, FREELY_PACKED = 200, 1 << 26
"""How many times larger a zip may become unpacked, unless it stays below so many bytes; image files hardly shrink."""

DEEPEST = 100
"""Levels of directories in a folder of images."""

CLASSES = 100_000
"""Labels are below this; a larger one is an identifier that was taken for a label."""

_SPLITS = ("train", "test", "val", "valid", "validation", "holdout")
_IMAGES_IN_TAR = ("png", "jpg", "jpeg", "webp")

_Place = tuple[list[str], str]  # what is left of a path by its parts, and the whole of it


@dataclass(frozen=True)
class Entry:
    """One image file: what messages call it, how it is read, and its index into the class names."""

    name: str
    read: Reader
    label: int | None = None


@dataclass(frozen=True)
class Listing:
    """Image files in order.

    Attributes:
        entries: the files; where there are class names, those that can be read have a label.
        class_names: one per class; empty where the files have no labels.
        ignored: names of what was passed over.
    """

    entries: tuple[Entry, ...]
    class_names: tuple[str, ...]
    ignored: tuple[str, ...]


@dataclass(frozen=True)
class Arrays:
    """The arrays of a .npz as they stand there, not yet checked: images, labels `[N]` and names, where it has them."""

    images: NDArray[Any]
    labels: NDArray[Any] | None
    class_names: NDArray[Any] | None


def list_folder(root: Path, split: str | None = None) -> Listing:
    """The images below a folder, with a directory per class or all in one place; links are followed.

    Args:
        root: the folder.
        split: which of the directories `train`, `test`, ... inside is meant; None where there are none.

    Raises:
        DataError: a directory that cannot be listed, no images, images beside class directories, or a split that is
            not there or has to be chosen.
    """
    paths = _walk(root, {root.resolve()})
    return _arrange(root, {str(path.relative_to(root)): partial(Path, path) for path in paths}, split)


def list_zip(path: Path, split: str | None = None) -> Listing:
    """The images in a zip laid out like a folder; one directory around everything is the zipped folder itself.

    Raises:
        DataError: as `list_folder`, or no readable zip.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is not a readable .zip ({in_a_line(error)}); make it anew") from error
    unpacked, packed = sum(info.file_size for info in archive.infolist()), path.stat().st_size
    if unpacked > max(MOST_PACKED * packed, FREELY_PACKED):
        raise DataError(
            f"{path} has {packed >> 10} KiB and would unpack to {unpacked >> 20} MiB, more than {MOST_PACKED} times as "
            "much, as no images do; make it anew"
        )
    lock = Lock()  # the members share one file; unpacking is cheap beside the decoding that runs in parallel

    def member(info: zipfile.ZipInfo) -> bytes:
        _check_size(info.file_size)
        with lock:
            return archive.read(info)

    files: dict[str, Reader] = {}
    refused: list[Entry] = []
    for info in archive.infolist():
        if reason := _objection(info.filename, files):
            refused.append(_refused(info.filename, reason))
        elif not info.is_dir():
            files[info.filename] = partial(member, info)
    return _arrange(path, files, split, refused, unwrap=True)


def list_tar(path: Path) -> Listing:
    """The samples of a WebDataset: `KEY.png` (jpg, jpeg, webp), its class in `KEY.cls` or as `label` in `KEY.json`.

    Args:
        path: an uncompressed tar, or a pattern (`shard-*.tar`) of several; shards and keys are taken in sorted order.

    Raises:
        DataError: no such file, a tar that is compressed, damaged or cut off, or one without images.
    """
    shards = [path] if path.exists() else sorted(path.parent.glob(path.name))
    if not shards:
        raise DataError(f"{path} does not exist; check the path")
    entries: list[Entry] = []
    refused: list[Entry] = []
    ignored: list[str] = []
    for shard in shards:
        prefix = f"{shard.name}: " if len(shards) > 1 else ""
        members, objections = _members(shard)
        refused += [_refused(prefix + name, reason) for name, reason in objections]
        for key, files in _by_key(members):
            images = [suffix for suffix in files if suffix in _IMAGES_IN_TAR]
            if not images:
                ignored += [f"{prefix}{key}.{suffix}" for suffix in files]
                continue
            name = f"{prefix}{key}.{images[0]}"
            try:
                if len(images) > 1:
                    raise ValueError(f"one of several images of {key}")
                entries.append(Entry(name, files[images[0]], _label(files)))
            except (OSError, ValueError) as error:
                refused.append(_refused(name, in_a_line(error)))
    if not entries and not refused:
        raise DataError(f"{path} holds no {some(_IMAGES_IN_TAR)} images; check the path")
    labels = {entry.label for entry in entries if entry.label is not None}
    if labels:
        missing = [_refused(entry.name, "no label, though others have one") for entry in entries if entry.label is None]
        entries, refused = [entry for entry in entries if entry.label is not None], refused + missing
    names = tuple(str(label) for label in range(max(labels, default=-1) + 1))
    return Listing((*entries, *refused), names, tuple(ignored))


def read_arrays(path: Path, split: str | None = None) -> Arrays:
    """Read `images` and `labels` of a .npz, or `arr_0` and `arr_1` of one that was saved without names.

    Args:
        path: the file.
        split: `train`, or `test` for `test_images` and `test_labels`; None where the file has only one part.

    Raises:
        DataError: no readable .npz, one that holds pickled objects or too much, no images, a split that is not there
            or has to be chosen.
    """
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("a single array; save it with np.savez(path, images=...)")
            found = archive.files
            images, labels = _keys(path, found, split)
            wanted = [key for key in (images, labels, "class_names") if key in found]
            check_claims(archive, wanted)
            arrays = {key: archive[key] for key in wanted}
    except (OSError, ValueError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is not a readable .npz of plain arrays ({in_a_line(error)}); save it anew") from error
    return Arrays(arrays[images], arrays.get(labels), arrays.get("class_names"))


def _keys(path: Path, found: Sequence[str], split: str | None) -> tuple[str, str]:
    if "test_images" in found and split not in ("train", "test"):
        raise DataError(f"{path} is divided into parts; choose one of them: split=train or split=test")
    if "test_images" not in found and split is not None:
        raise DataError(f"{path} has no parts; leave out split={split}")
    part = "test_" if split == "test" else ""
    for images, labels in ((f"{part}images", f"{part}labels"), ("arr_0", "arr_1")):
        if images in found:
            return images, labels
    raise DataError(f"{path} has no array images or arr_0, only {some(found)}; save it with np.savez(path, images=...)")


def _arrange(
    where: Path, files: Mapping[str, Reader], split: str | None, refused: Sequence[Entry] = (), unwrap: bool = False
) -> Listing:
    """Sort files by their path, choose the split and read the classes off the first directory."""
    ignored = sorted(name for name in files if _passed_over(name))
    found = sorted((name.split("/"), name) for name in files.keys() - set(ignored))
    while unwrap and len(tops := {_top(parts) for parts, _ in found}) == 1 and not tops & {"", split}:
        found = [(parts[1:], name) for parts, name in found]

    directories = _directories(found)
    if split is not None:
        if split not in directories:
            raise DataError(f"{where} has no images in {split}/; its directories with images: {some(directories)}")
        found = [(parts[1:], name) for parts, name in found if _top(parts) == split]
        directories = _directories(found)
    elif splits := _splits(found):
        raise DataError(f"{where} is divided into parts; choose one of them: split={' or split='.join(splits)}")
    if not found and not refused:
        raise DataError(f"{where} holds no images; check the path")
    beside = [name for parts, name in found if not _top(parts)]
    if directories and beside:
        raise DataError(
            f"{where}: {len(beside)} images ({some(beside, 3)}) lie beside directories of images "
            f"({some(directories, 3)}); move them into a directory, or away"
        )
    index = {name: label for label, name in enumerate(directories)}
    entries = [Entry(name, files[name], index.get(_top(parts))) for parts, name in found]
    return Listing((*entries, *refused), tuple(directories), tuple(ignored))


def _splits(found: Iterable[_Place]) -> list[str]:
    """The parts that a set is divided into; none where `train` is a class (cars, planes, trains)."""
    directories = _directories(found)
    splits = [name for name in directories if name in _SPLITS]
    hold_classes = any(_top(parts) in splits and len(parts) > 2 for parts, _ in found)
    return splits if splits == directories or hold_classes else []


def _directories(found: Iterable[_Place]) -> list[str]:
    return sorted({_top(parts) for parts, _ in found} - {""})


def _top(parts: Sequence[str]) -> str:
    """The first directory of a path, empty where it has none."""
    return parts[0] if len(parts) > 1 else ""


def _passed_over(name: str) -> bool:
    hidden = any(part.startswith((".", "__")) for part in name.split("/"))
    return hidden or NOT_IMAGES.fullmatch(os.path.splitext(name)[1]) is not None


def _walk(directory: Path, entered: set[Path], level: int = 0) -> Iterator[Path]:
    """Files at any depth; links are followed, but below each of the root's directories none is entered twice."""
    if level > DEEPEST:
        raise DataError(f"{directory} lies below more than {DEEPEST} directories; is this a folder of images?")
    try:
        paths = sorted(directory.iterdir())
    except OSError as error:
        raise DataError(f"{directory} cannot be listed ({error.strerror}); check its permissions") from error
    for path in paths:
        if not path.is_dir():
            yield path
        elif not path.name.startswith((".", "__")) and (real := path.resolve()) not in entered:
            inside = entered if level else set(entered)
            inside.add(real)
            yield from _walk(path, inside, level + 1)


def _members(shard: Path) -> tuple[dict[str, Reader], list[tuple[str, str]]]:
    """Every file of an uncompressed tar by name, and `(name, objection)` of what is not read."""
    files: dict[str, Reader] = {}
    objections: list[tuple[str, str]] = []
    try:
        with shard.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                name = member.name.removeprefix("./")
                plain = member.isreg() and not member.issparse()
                reason = _objection(name, files) or ("" if plain else "a link or device, not a file")
                if reason and not member.isdir():
                    objections.append((name, reason))
                elif plain:
                    files[name] = partial(_read_at, shard, member.offset_data, member.size)
            file.seek(tar.offset)  # tarfile takes a damaged header for the end, and says nothing
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("it breaks off without an end mark")
    except (OSError, ValueError, EOFError, MemoryError, RecursionError, tarfile.TarError) as error:
        raise DataError(
            f"{shard} is not a whole, uncompressed .tar ({in_a_line(error)}); fetch or make it anew"
        ) from error
    return files, objections


def _by_key(members: Mapping[str, Reader]) -> Iterator[tuple[str, dict[str, Reader]]]:
    """Files of one sample by their lower-case suffix: WebDataset splits a name at the first dot of its last part."""
    keys: dict[str, dict[str, Reader]] = {}
    for name, read in members.items():
        folder, slash, base = name.rpartition("/")
        stem, _, suffix = base.partition(".")
        if stem:  # not hidden
            keys.setdefault(folder + slash + stem, {})[suffix.lower()] = read
    return ((key, keys[key]) for key in sorted(keys))


def _label(files: Mapping[str, Reader]) -> int | None:
    label: object = None
    if "cls" in files:
        text = _text(files["cls"]).strip()
        label = int(text) if text.isdecimal() else text
    elif "json" in files:
        value = parse_json(_text(files["json"]))
        label = value.get("label") if isinstance(value, dict) else None
    if label is None:
        return None
    if type(label) is not int or not 0 <= label < CLASSES:
        raise ValueError(f"label must be a whole number in 0..{CLASSES - 1}, got {str(label)[:20]!r}")
    return label


def _text(read: Reader) -> str:
    content = read()
    assert isinstance(content, bytes)
    return content.decode()


def _read_at(path: Path, offset: int, size: int) -> bytes:
    _check_size(size)
    with path.open("rb") as file:
        file.seek(offset)
        content = file.read(size)
    if len(content) != size:
        raise ValueError(f"cut off: {len(content)} of {size} bytes")
    return content


def _check_size(size: int) -> None:
    if size > LARGEST_FILE:
        raise ValueError(f"too large: {size / 2**20:.0f} MiB unpacked, at most {LARGEST_FILE >> 20} are allowed")


def _objection(name: str, others: Mapping[str, Reader]) -> str:
    """What speaks against a name in an archive; empty when nothing does."""
    if name.startswith("/") or "\\" in name or ".." in name.split("/"):
        return "unsafe name, it leads out of the archive"
    return "the archive holds this name twice" if name in others else ""


def _refused(name: str, reason: str) -> Entry:
    def refuse() -> NoReturn:
        raise ValueError(reason)

    return Entry(name, refuse)
