"""Tars: WebDataset shards, which have the class of `KEY.png` in `KEY.cls` or `KEY.json`, and class folders."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from synthkd.data.read.compressed import plain_tar
from synthkd.data.read.decode import in_a_line, some
from synthkd.data.read.entries import Entry, InFile, Listing, objection, refused_entry
from synthkd.data.read.folder_or_zip import Directory, tree_of
from synthkd.data.read.labels import Written, as_label
from synthkd.data.read.packed import WrittenImages, labelled
from synthkd.data.read.shard_index import Shard, remembered
from synthkd.errors import DataError
from synthkd.system.patterns import matching
from synthkd.system.text import parse_json

IMAGES = ("png", "jpg", "jpeg", "webp", "avif", "bmp", "gif", "tif", "tiff", "jp2", "ppm", "pgm")
"""Suffixes of images."""
_SIDECARS = ("cls", "json")


def list_tar(path: Path, cache: Path | None = None) -> Listing | Directory:
    """The images of a tar: `KEY.png` with its class in `KEY.cls` or as `label` in `KEY.json`, or class folders.

    Args:
        path: a tar, or a pattern (`shard-*.tar`, `shard-{0000..0099}.tar`) of several; see `matching`. The keys of each
            are taken in sorted order.
        cache: folder that keeps what the tars hold, see `remembered`; None: they are read.

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
    return list_shards(shards, cache)


def list_shards(shards: Sequence[Path], cache: Path | None = None) -> Listing | Directory:
    """The images of several tars; see `list_tar`."""
    written = WrittenImages()
    refused: list[Entry] = []  # members
    bad: list[Entry] = []  # samples
    ignored: list[str] = []
    in_directories = False
    trees: dict[Path, Mapping[str, InFile]] = {}  # the files of shards that may be trees of directories
    for path in shards:
        prefix = f"{path.name}: " if len(shards) > 1 else ""
        shard = _remembered(path, cache)
        in_directories = in_directories or any("/" in name for name in shard.files)
        refused += [refused_entry(prefix + name, reason) for name, reason in shard.refused]
        bad += [refused_entry(prefix + name, reason) for name, reason in shard.bad]
        ignored += [prefix + name for name in shard.ignored]
        for one in shard.images:
            written.append(replace(one, name=prefix + one.name))
        if in_directories and _are_unlabelled(written):
            trees[path] = shard.files
        else:
            trees.clear()
    if in_directories and _are_unlabelled(written):
        return tree_of(_files(shards, trees, cache), refused)
    if not written and not refused and not bad:
        raise DataError(f"{shards[0]} holds no {some(IMAGES)} images; check the path")
    return labelled(written, [*refused, *bad], ignored)


def _remembered(path: Path, cache: Path | None) -> Shard:
    try:
        return remembered(path, cache, _read)
    except OSError as error:
        raise _unreadable(path, error) from error


def _read(path: Path) -> Shard:
    """What a tar holds, by going through it."""
    members, refused = _members(path)
    images = WrittenImages()
    bad: list[tuple[str, str]] = []
    ignored: list[str] = []
    lasts = all(file.path == path for file in members.values())  # a compressed one is unpacked at every start
    for key, suffixes in _by_key(members):
        pictures = [suffix for suffix in suffixes if suffix in IMAGES]
        if not pictures:
            ignored += [f"{key}.{suffix}" for suffix in suffixes]
            continue
        name = f"{key}.{pictures[0]}"
        try:
            if len(pictures) > 1:
                raise ValueError(f"one of several images of {key}")
            images.append(Written(name, suffixes[pictures[0]], _label(suffixes)))
        except (OSError, ValueError) as error:
            bad.append((name, in_a_line(error)))
            lasts = lasts and not isinstance(error, OSError)
    return Shard(images, refused, bad, ignored, members if _are_unlabelled(images) else {}, lasts)


def _are_unlabelled(written: WrittenImages) -> bool:
    return all(label is None for label in written.distinct)


def _files(shards: Sequence[Path], trees: Mapping[Path, Mapping[str, InFile]], cache: Path | None) -> dict[str, Entry]:
    """The files of all shards by different names; `trees` has those of shards that need not be listed again."""
    files: dict[str, Entry] = {}
    for shard in shards:
        prefix = f"{shard.name}: " if len(shards) > 1 else ""
        members = trees[shard] if shard in trees else _remembered(shard, cache).files
        for name, read in members.items():
            folder, slash, base = name.rpartition("/")  # shards may have files of one name
            unique = name if name not in files else f"{folder}{slash}{shard.name}/{base}"
            files[unique] = Entry(prefix + name, read)
    return files


def _members(shard: Path) -> tuple[dict[str, InFile], list[tuple[str, str]]]:
    """Every file of a tar by name, and `(name, objection)` of each member that is refused."""
    files: dict[str, InFile] = {}
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
        raise _unreadable(shard, error) from error
    return files, objections


def _unreadable(tar: Path, error: Exception) -> DataError:
    return DataError(f"{tar} is not a whole .tar ({in_a_line(error)}); fetch or make it anew")


def _by_key(members: Mapping[str, InFile]) -> Iterator[tuple[str, dict[str, InFile]]]:
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


def _label(files: Mapping[str, InFile]) -> int | str | None:
    """The class of a sample, a number or a name; None if it has none. Raises `ValueError` for what is neither."""
    label: object = None
    if "cls" in files:
        label = files["cls"]().decode().strip()
    elif "json" in files:
        value = parse_json(files["json"]().decode())
        label = value.get("label") if isinstance(value, dict) else None
    return as_label(label)
