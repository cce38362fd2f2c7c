"""Files of features, each with the digest of its images, and a cache of such files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from synthkd.errors import ConfigError, DataError
from synthkd.metrics.features import FeatureExtractor, Features, extract
from synthkd.metrics.statistics import FeatureStatistics, Whole
from synthkd.system.files import write_atomically
from synthkd.system.sealed import sealed_tensors, unsealed_tensors
from synthkd.system.shares import ALONE, Shares
from synthkd.system.text import parse_json

FORMAT = "synthkd features 1"
"""Value of `format` in the metadata of a features file."""
STATISTICS = "synthkd statistics 1"
"""The same of a file with the moments of many images, and the features of a sample of them."""
FEATURES = ".safetensors"
"""Suffix of a features file."""
TEACHER = "teacher."
"""Prefix of the keys of the teacher's features in a file."""


@dataclass(frozen=True)
class SavedSet:
    """Features of a set of images with all that scores need, so that they can be computed without the images.

    Attributes:
        features: features of the extractor that scores are named after.
        content: digest of the images and labels; empty if it is not known.
        name: name of the set.
        labels: int64 `[N]`, indices into `class_names`; None if the set has no labels.
        class_names: one per class; empty without labels.
        teacher: features of the teacher, if it is another network than the extractor.
        whole: the images of which these are a sample; None if these are all.
    """

    features: Features
    content: str = ""
    name: str = ""
    labels: Tensor | None = None
    class_names: tuple[str, ...] = ()
    teacher: Features | None = None
    whole: Whole | None = None


def save_set(saved: SavedSet, path: Path | str) -> None:
    """Write a set of features to one safetensors file, atomically.

    Args:
        saved: what to write.
        path: the file; missing folders are made, an old file is replaced.
    """
    # n is for people who read the metadata; `load_set` takes it from the tensors.
    tensors = _tensors(saved.features)
    about = {"format": FORMAT, **_about(saved.features), "content": saved.content, "n": str(saved.features.n)}
    if saved.name:
        about["name"] = saved.name
    if saved.labels is not None:
        tensors["labels"] = saved.labels.contiguous()
        about["class_names"] = json.dumps(saved.class_names)
    if saved.teacher is not None:
        tensors |= {f"{TEACHER}{name}": tensor for name, tensor in _tensors(saved.teacher).items()}
        about |= {f"{TEACHER}{key}": value for key, value in _about(saved.teacher).items()}
    if saved.whole is not None:
        moments = saved.whole.moments
        tensors |= {"keys": saved.whole.keys, "mean": moments.mean, "scatter": moments.scatter}
        about |= {"format": STATISTICS, "count": str(moments.n), "parts": json.dumps(saved.whole.parts)}
    write_atomically(Path(path), sealed_tensors(tensors, about))


def require_replaceable(path: Path, key: str = "save_features") -> None:
    """Check that features may be written to a path.

    Args:
        path: the file.
        key: the setting that names it, for messages.

    Raises:
        ConfigError: another suffix, a folder that cannot be written, or an existing file that holds no features.
    """
    if path.suffix != FEATURES:
        raise ConfigError(f"{key}: features are kept in {FEATURES} files, got {path}; name it so")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ConfigError(f"{key}: {folder} is no folder that can be written; choose another file")
    if not path.is_symlink() and not path.exists():
        return
    # A typo in the path must not replace a file of the user: only an earlier file of features may be overwritten.
    try:
        if path.is_symlink() or not path.is_file():
            raise ValueError("no plain file")
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("format") not in (FORMAT, STATISTICS):
                raise ValueError("another kind of file")
    except (SafetensorError, OSError, ValueError) as error:
        raise ConfigError(
            f"{key}: {path} exists and holds no features that an evaluation saved; it is left as it is, choose "
            "another file"
        ) from error


def load_set(path: Path | str) -> SavedSet:
    """Read a file of `save_set`, after a check of its checksum and format.

    Raises:
        DataError: no such file, another kind of file, or damaged contents.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"features file not found: {path}")
    try:
        tensors, metadata = unsealed_tensors(path)
    except ValueError as error:
        raise DataError(f"{path} is not a readable features file ({error}); take the features again") from error
    try:
        if metadata["format"] not in (FORMAT, STATISTICS):
            raise ValueError("another format")
        return SavedSet(
            features=_features(metadata, tensors, prefix=""),
            content=metadata["content"],
            name=metadata.get("name", ""),
            labels=tensors.get("labels"),
            class_names=tuple(parse_json(metadata.get("class_names", "[]"))),
            teacher=_features(metadata, tensors, prefix=TEACHER) if f"{TEACHER}values" in tensors else None,
            whole=_whole(metadata, tensors) if metadata["format"] == STATISTICS else None,
        )
    except (KeyError, ValueError) as error:
        raise DataError(f"{path} holds no features that this version saved; take the features again") from error


def cached_file(content_digest: str, extractor: FeatureExtractor, cache_dir: Path | str) -> Path:
    """The file in which the cache keeps the features of a set of images, whether it is there or not."""
    key = hashlib.sha256("\n".join([FORMAT, content_digest, extractor.digest, extractor.resize]).encode()).hexdigest()
    return Path(cache_dir).expanduser() / f"{key}{FEATURES}"


def cached_extract(
    content_digest: str,
    make_batches: Callable[[], Iterable[Tensor]],
    extractor: FeatureExtractor,
    cache_dir: Path | str,
    batch_size: int = 128,
    shares: Shares = ALONE,
) -> Features:
    """Features of a set of images, from the cache if it has them; a damaged entry is computed again.

    Args:
        content_digest: digest of the images; equal digests must mean equal images in equal order.
        make_batches: returns what `extract` takes; called only if the cache has no entry.
        extractor: the network; each extractor and each resizing has its own entries.
        cache_dir: made if it does not exist. Several runs may share it, and it may be deleted at any time.
        batch_size: as for `extract`.
        shares: as for `extract`; the first process reads and writes the cache.

    Raises:
        DataError: as `extract`, or the cache cannot be written.
    """
    path = cached_file(content_digest, extractor, cache_dir)
    cached = _cached(path, content_digest, extractor) if shares.is_first else None
    values = shares.whole(None if cached is None else cached.values)
    if values is not None:
        logits = shares.whole(None if cached is None else cached.logits)
        return Features(values, logits, extractor.name, extractor.digest, extractor.resize)
    # Checked before the network runs, which may take minutes that would be lost.
    with shares.agreed():
        if shares.is_first and not _writable(path.parent):
            raise DataError(f"the feature cache {path.parent} cannot be written; choose another folder")
    features = extract(make_batches(), extractor, batch_size, shares)
    with shares.agreed():
        if shares.is_first:
            save_set(SavedSet(features, content_digest), path)
    return features


def _cached(path: Path, content_digest: str, extractor: FeatureExtractor) -> Features | None:
    """The features of an entry; None if it is absent, damaged or of something else."""
    try:
        saved = load_set(path)
    except DataError:
        return None
    # The name of an entry is a hash of all this, but files can be renamed.
    entry = (saved.content, saved.features.digest, saved.features.resize)
    return saved.features if entry == (content_digest, extractor.digest, extractor.resize) else None


def _tensors(features: Features) -> dict[str, Tensor]:
    tensors = {"values": features.values.contiguous()}
    if features.logits is not None:
        tensors["logits"] = features.logits.contiguous()
    return tensors


def _about(features: Features) -> dict[str, str]:
    return {"extractor": features.extractor, "digest": features.digest, "resize": features.resize}


def _features(metadata: Mapping[str, str], tensors: Mapping[str, Tensor], prefix: str) -> Features:
    return Features(
        values=tensors[f"{prefix}values"],
        logits=tensors.get(f"{prefix}logits"),
        extractor=metadata[f"{prefix}extractor"],
        digest=metadata[f"{prefix}digest"],
        resize=metadata[f"{prefix}resize"],
    )


def _whole(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> Whole:
    moments = FeatureStatistics.of_moments(int(metadata["count"]), tensors["mean"], tensors["scatter"])
    return Whole(moments, tensors["keys"], tuple(parse_json(metadata["parts"])))


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)
