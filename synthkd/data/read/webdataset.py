"""WebDataset shards: uncompressed tars of `KEY.png` with its class in `KEY.cls` or `KEY.json`; nothing is unpickled."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from synthkd.data.read.decode import in_a_line, some
from synthkd.data.read.entries import Entry, Listing, check_size, objection, refused_entry
from synthkd.errors import DataError
from synthkd.system.text import parse_json

CLASSES = 100_000
"""Bound of the labels; a larger one is an identifier that somebody took for a label."""

_Reader = Callable[[], bytes]
_IMAGES = ("png", "jpg", "jpeg", "webp")


def list_tar(path: Path) -> Listing:
    """The samples of a WebDataset: `KEY.png` (jpg, jpeg, webp), its class in `KEY.cls` or as `label` in `KEY.json`.

    Args:
        path: an uncompressed tar, or a pattern (`shard-*.tar`) of several; shards and keys are taken in sorted order.

    Returns:
        The listing. The classes are named by their numbers, from 0 to the largest label.

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
        refused += [refused_entry(prefix + name, reason) for name, reason in objections]
        for key, files in _by_key(members):
            images = [suffix for suffix in files if suffix in _IMAGES]
            if not images:
                ignored += [f"{prefix}{key}.{suffix}" for suffix in files]
                continue
            name = f"{prefix}{key}.{images[0]}"
            try:
                if len(images) > 1:
                    raise ValueError(f"one of several images of {key}")
                entries.append(Entry(name, files[images[0]], _label(files)))
            except (OSError, ValueError) as error:
                refused.append(refused_entry(name, in_a_line(error)))
    if not entries and not refused:
        raise DataError(f"{path} holds no {some(_IMAGES)} images; check the path")
    labels = {entry.label for entry in entries if entry.label is not None}
    if labels:
        # A missing label among labelled samples is a mistake, so such samples count as bad files.
        refused += [refused_entry(e.name, "no label, though others have one") for e in entries if e.label is None]
        entries = [entry for entry in entries if entry.label is not None]
    names = tuple(map(str, range(max(labels, default=-1) + 1)))
    return Listing([*entries, *refused], names, ignored)


def _members(shard: Path) -> tuple[dict[str, _Reader], list[tuple[str, str]]]:
    """Every file of an uncompressed tar by name, and `(name, objection)` of each member that is refused."""
    files: dict[str, _Reader] = {}
    objections: list[tuple[str, str]] = []
    try:
        # Uncompressed only ("r:"), so that a member is read by a seek, by many threads at once.
        with shard.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                name = member.name.removeprefix("./")
                plain = member.isreg() and not member.issparse()
                reason = objection(name, files) or ("" if plain else "a link or device, not a file")
                if reason and not member.isdir():
                    objections.append((name, reason))
                elif plain:
                    files[name] = partial(_read_at, shard, member.offset_data, member.size)
            # tarfile silently takes a damaged header for the end; a whole tar ends in blocks of zeros.
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("it breaks off without an end mark")
    except (OSError, ValueError, EOFError, MemoryError, RecursionError, tarfile.TarError) as error:
        raise DataError(
            f"{shard} is not a whole, uncompressed .tar ({in_a_line(error)}); fetch or make it anew"
        ) from error
    return files, objections


def _by_key(members: Mapping[str, _Reader]) -> Iterator[tuple[str, dict[str, _Reader]]]:
    """Files of one sample by their lower-case suffix: WebDataset splits a name at the first dot of its last part."""
    keys: dict[str, dict[str, _Reader]] = {}
    for name, read in members.items():
        folder, slash, base = name.rpartition("/")
        stem, _, suffix = base.partition(".")
        if stem:  # not hidden
            keys.setdefault(folder + slash + stem, {})[suffix.lower()] = read
    return ((key, keys[key]) for key in sorted(keys))


def _label(files: Mapping[str, _Reader]) -> int | None:
    """The class of a sample; None if it has none. Raises `ValueError` for anything that is no label."""
    label: object = None
    if "cls" in files:
        text = files["cls"]().decode().strip()
        label = int(text) if text.isdecimal() else text
    elif "json" in files:
        value = parse_json(files["json"]().decode())
        label = value.get("label") if isinstance(value, dict) else None
    if label is None:
        return None
    if type(label) is not int or not 0 <= label < CLASSES:
        raise ValueError(f"label must be a whole number in 0..{CLASSES - 1}, got {str(label)[:20]!r}")
    return label


def _read_at(path: Path, offset: int, size: int) -> bytes:
    check_size(size)
    with path.open("rb") as file:
        file.seek(offset)
        content = file.read(size)
    if len(content) != size:
        raise ValueError(f"cut off: {len(content)} of {size} bytes")
    return content
