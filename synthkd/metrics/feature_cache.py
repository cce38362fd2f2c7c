"""Features as files: saved with what they are features of, and kept in a cache so that no image is looked at twice."""

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
from synthkd.system.files import write_atomically
from synthkd.system.sealed import sealed_tensors, unsealed_tensors
from synthkd.system.text import parse_json

FORMAT = "synthkd features 1"
FEATURES = ".safetensors"
TEACHER = "teacher."
"""Before the names of what is the teacher's in a file."""


@dataclass(frozen=True)
class SavedSet:
    """The features of a set of images with all that scores need beside them, so that they can stand for the images.

    Attributes:
        features: of the network that the scores are called by.
        content: digest of the images and labels; empty where it is not known.
        name: of the set.
        labels: int64 `[N]`, indices into `class_names`; None where the set has none.
        class_names: one for each class; empty without labels.
        teacher: features of the teacher, where it is another network than that of `features`.
    """

    features: Features
    content: str = ""
    name: str = ""
    labels: Tensor | None = None
    class_names: tuple[str, ...] = ()
    teacher: Features | None = None


def save_features(features: Features, path: Path | str, content_digest: str = "") -> None:
    """Write features alone to one safetensors file, atomically; see `save_set`.

    Args:
        features: what to write.
        path: the file; missing folders are made, an old file is replaced.
        content_digest: of the images they are features of, where it is known.
    """
    save_set(SavedSet(features, content_digest), path)


def save_set(saved: SavedSet, path: Path | str) -> None:
    """Write a set of features to one safetensors file, atomically; missing folders are made, an old file is replaced.

    Nothing that can be read off the tensors is in the metadata but n, for people.
    """
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
    write_atomically(Path(path), sealed_tensors(tensors, about))


def require_replaceable(path: Path) -> None:
    """Refuse to write features to a place that holds anything but features, that is no plain file, or out of reach.

    Raises:
        ConfigError: the reason.
    """
    if path.suffix != FEATURES:
        raise ConfigError(f"save_features: features are kept in {FEATURES} files, got {path}; name it so")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ConfigError(f"save_features: {folder} is no folder that can be written; choose another file")
    if not path.is_symlink() and not path.exists():
        return
    try:
        if path.is_symlink() or not path.is_file():
            raise ValueError("no plain file")
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("format") != FORMAT:
                raise ValueError("another kind of file")
    except (SafetensorError, OSError, ValueError) as error:
        raise ConfigError(
            f"save_features: {path} exists and holds no features that an evaluation saved; it is left as it is, choose "
            "another file"
        ) from error


def load_features(path: Path | str, content_digest: str | None = None) -> Features:
    """The features alone of what `save_features` or `save_set` wrote, verified.

    Args:
        path: the file.
        content_digest: what it must have been saved with; None takes any.

    Raises:
        DataError: no such file, another kind of file, damaged contents, or features of other images.
    """
    saved = load_set(path)
    if content_digest is not None and saved.content != content_digest:
        raise DataError(f"{path} holds the features of other images; take the features again")
    return saved.features


def load_set(path: Path | str) -> SavedSet:
    """Read and verify what `save_set` wrote.

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
        if metadata["format"] != FORMAT:
            raise ValueError("another format")
        return SavedSet(
            features=_features(metadata, tensors, ""),
            content=metadata["content"],
            name=metadata.get("name", ""),
            labels=tensors.get("labels"),
            class_names=tuple(parse_json(metadata.get("class_names", "[]"))),
            teacher=_features(metadata, tensors, TEACHER) if f"{TEACHER}values" in tensors else None,
        )
    except (KeyError, ValueError) as error:
        raise DataError(f"{path} holds no features that this version saved; take the features again") from error


def cached_extract(
    content_digest: str,
    make_batches: Callable[[], Iterable[Tensor]],
    extractor: FeatureExtractor,
    cache_dir: Path | str,
    batch_size: int = 128,
) -> Features:
    """The features of a set of images, from the cache where it has them; a damaged entry is made anew.

    Args:
        content_digest: of the images; equal digests must mean equal images in equal order.
        make_batches: gives them as `extract` takes them; called only where the cache has nothing.
        extractor: whose features; another one, or another resizing, is another entry.
        cache_dir: created if need be; safe to delete, and to share between runs.
        batch_size: as for `extract`.

    Raises:
        DataError: as `extract`, or the cache cannot be written.
    """
    key = hashlib.sha256("\n".join([FORMAT, content_digest, extractor.digest, extractor.resize]).encode()).hexdigest()
    path = Path(cache_dir).expanduser() / f"{key}.safetensors"
    try:
        found = load_features(path, content_digest)
        if (found.digest, found.resize) == (extractor.digest, extractor.resize):
            return found
    except DataError:
        pass  # absent or damaged
    if not _writable(path.parent):  # found out before the expensive part
        raise DataError(f"the feature cache {path.parent} cannot be written; choose another folder")
    features = extract(make_batches(), extractor, batch_size)
    save_features(features, path, content_digest)
    return features


def _tensors(features: Features) -> dict[str, Tensor]:
    tensors = {"values": features.values.contiguous()}
    if features.logits is not None:
        tensors["logits"] = features.logits.contiguous()
    return tensors


def _about(features: Features) -> dict[str, str]:
    return {"extractor": features.extractor, "digest": features.digest, "resize": features.resize}


def _features(metadata: Mapping[str, str], tensors: Mapping[str, Tensor], of: str) -> Features:
    return Features(
        values=tensors[f"{of}values"],
        logits=tensors.get(f"{of}logits"),
        extractor=metadata[f"{of}extractor"],
        digest=metadata[f"{of}digest"],
        resize=metadata[f"{of}resize"],
    )


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)
