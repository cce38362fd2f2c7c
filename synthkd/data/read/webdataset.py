"""Tars: WebDataset shards, which have the class of `KEY.png` in `KEY.cls` or `KEY.json`, and class folders."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from synthkd.data.read.compressed import plain_tar
from synthkd.data.read.decode import in_a_line, some
from synthkd.data.read.entries import Entry, InFile, Listing, objection, refused_entry
from synthkd.data.read.folder_or_zip import Directory, tree_of
from synthkd.data.read.labels import Written
from synthkd.data.read.packed import WrittenImages, labelled
from synthkd.errors import DataError
from synthkd.system.patterns import matching
from synthkd.system.text import parse_json

_Reader = Callable[[], bytes]
IMAGES = ("png", "jpg", "jpeg", "webp", "avif", "bmp", "gif", "tif", "tiff", "jp2", "ppm", "pgm")
"""Suffixes of images."""
_SIDECARS = ("cls", "json")


def list_tar(path: Path) -> Listing | Directory:
    """The images of a tar: `KEY.png` with its class in `KEY.cls` or as `label` in `KEY.json`, or class folders.

    Args:
        path: a tar, or a pattern (`shard-*.tar`, `shard-{0000..0099}.tar`) of several; see `matching`. The keys of each
            are taken in sorted order.

    Returns:
        The listing of a WebDataset: labels that are numbers are indices of classes named by their numbers, from 0 to
        the largest; other labels are the names of the classes. Or the tree of a tar whose images lie in directories,
        without a label beside any.

    Raises:
        DataError: no such file, a tar that is damaged or cut off, or one without images.
    """
    shards = matching(path)
    if not shards:
        raise DataError(f"{path} does not exist; check the path")
    return list_shards(shards)


def list_shards(shards: Sequence[Path]) -> Listing | Directory:
    """The images of several tars; see `list_tar`."""
    written = WrittenImages()
    refused: list[Entry] = []  # members
    bad: list[Entry] = []  # samples
    ignored: list[str] = []
    in_directories = False
    trees: dict[Path, dict[str, _Reader]] = {}  # the files of shards that may be trees of directories
    for shard in shards:
        prefix = f"{shard.name}: " if len(shards) > 1 else ""
        members, objections = _members(shard)
        in_directories = in_directories or any("/" in name for name in members)
        refused += [refused_entry(prefix + name, reason) for name, reason in objections]
        for key, suffixes in _by_key(members):
            images = [suffix for suffix in suffixes if suffix in IMAGES]
            if not images:
                ignored += [f"{prefix}{key}.{suffix}" for suffix in suffixes]
                continue
            name = f"{prefix}{key}.{images[0]}"
            try:
                if len(images) > 1:
                    raise ValueError(f"one of several images of {key}")
                written.append(Written(name, suffixes[images[0]], _label(suffixes)))
            except (OSError, ValueError) as error:
                bad.append(refused_entry(name, in_a_line(error)))
        if in_directories and _are_unlabelled(written):
            trees[shard] = members
        else:
            trees.clear()
    if in_directories and _are_unlabelled(written):
        return tree_of(_files(shards, trees), refused)
    if not written and not refused and not bad:
        raise DataError(f"{shards[0]} holds no {some(IMAGES)} images; check the path")
    return labelled(written, [*refused, *bad], ignored)


def _are_unlabelled(written: WrittenImages) -> bool:
    return all(label is None for label in written.distinct)


def _files(shards: Sequence[Path], trees: Mapping[Path, dict[str, _Reader]]) -> dict[str, Entry]:
    """The files of all shards by different names; `trees` has those of shards that need not be listed again."""
    files: dict[str, Entry] = {}
    for shard in shards:
        prefix = f"{shard.name}: " if len(shards) > 1 else ""
        members = trees[shard] if shard in trees else _members(shard)[0]
        for name, read in members.items():
            folder, slash, base = name.rpartition("/")  # shards may have files of one name
            unique = name if name not in files else f"{folder}{slash}{shard.name}/{base}"
            files[unique] = Entry(prefix + name, read)
    return files


def _members(shard: Path) -> tuple[dict[str, _Reader], list[tuple[str, str]]]:
    """Every file of a tar by name, and `(name, objection)` of each member that is refused."""
    files: dict[str, _Reader] = {}
    objections: list[tuple[str, str]] = []
    try:
        # Uncompressed only ("r:"), so that a member is read by a seek, by many threads at once.
        place = plain_tar(shard)
        with place.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # else it keeps all that it knows of each
                name = member.name.removeprefix("./")
                plain = member.isreg() and not member.issparse()
                reason = objection(name, files) or ("" if plain else "a link or device, not a file")
                if reason and not member.isdir():
                    objections.append((name, reason))
                elif plain:
                    files[name] = InFile(place, member.offset_data, member.size)
            # tarfile silently takes a damaged header for the end; a whole tar ends in blocks of zeros.
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("it breaks off without an end mark")
    except (OSError, ValueError, EOFError, MemoryError, RecursionError, tarfile.TarError) as error:
        raise DataError(f"{shard} is not a whole .tar ({in_a_line(error)}); fetch or make it anew") from error
    return files, objections


def _by_key(members: Mapping[str, _Reader]) -> Iterator[tuple[str, dict[str, _Reader]]]:
    """Files of one sample by their lower-case suffix: WebDataset splits a name at the first dot of its last part.

    Names that give no image that way (`a.0.png` and `a.0.cls`) are split at the last dot.
    """
    keys = _grouped(members, str.partition)
    for key in [key for key, files in keys.items() if not {*files} & {*IMAGES}]:
        for other, files in _grouped(keys.pop(key).values(), str.rpartition).items():
            keys.setdefault(other, {}).update(files)
    for key in sorted(keys):
        yield key, {suffix: members[name] for suffix, name in keys[key].items()}


def _grouped(names: Iterable[str], split: Callable[[str, str], tuple[str, str, str]]) -> dict[str, dict[str, str]]:
    """Key of a sample -> lower-case suffix -> name, each name split at a dot; hidden files are left aside."""
    keys: dict[str, dict[str, str]] = {}
    for name in names:
        folder, slash, base = name.rpartition("/")
        stem, _, suffix = split(base, ".")
        if stem:
            keys.setdefault(folder + slash + stem, {})[suffix.lower()] = name
    return keys


def _label(files: Mapping[str, _Reader]) -> int | str | None:
    """The class of a sample, a number or a name; None if it has none. Raises `ValueError` for what is neither."""
    label: object = None
    if "cls" in files:
        label = files["cls"]().decode().strip()
    elif "json" in files:
        value = parse_json(files["json"]().decode())
        label = value.get("label") if isinstance(value, dict) else None
    if label is None or isinstance(label, str) or type(label) is int:
        return label
    raise ValueError(f"label must be a number or a name, got {str(label)[:20]!r}")
