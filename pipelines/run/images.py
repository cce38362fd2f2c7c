"""The real images of a run: a run goes on with the images that it began with, and they are those of its teacher."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from synthkd.data.read.classes import align_labels
from synthkd.data.read.splits import RealData, Splits
from synthkd.data.written.stored import StoredDataset
from synthkd.errors import ConfigError
from synthkd.pipelines.run.directory import CONFIG, has_work
from synthkd.privacy.journal import PRIVATE, Identity, Journal, Part
from synthkd.system.sealed import tensor_digest
from synthkd.training.monitor import FILE_NAME as METRICS
from synthkd.types import ImageSpec, alike_in_channels

LOG = logging.getLogger(__name__)


def keep_data(directory: Path, real: Splits | RealData, accelerator: Accelerator, private: bool = False) -> None:
    """Bind a run to its real images, or check them if it is bound already; only the main process does anything.

    Args:
        directory: the run directory, locked.
        real: the images.
        accelerator: says which process this is.
        private: whether the run charges its accesses to the images to a privacy budget.

    Raises:
        ConfigError: the run, or a run inside it, has worked with other images.
        CheckpointError: the record of the images, or of the accesses to them, is damaged or missing.
    """
    if not accelerator.is_main_process:
        return
    parts = (
        {"train": real.train, "holdout": real.holdout, "test": real.test}
        if isinstance(real, Splits)
        else {"train": real}
    )
    identity = {name: Part(images=len(part), content=_content(part)) for name, part in parts.items()}
    journal = Journal(directory)
    if journal.data == identity:
        return
    # Without its record a private run that has begun might spend the budget of these images twice.
    if private and journal.data is None and (directory / METRICS).exists():
        raise journal.unproven(f"{PRIVATE} is gone, though the run has begun")
    # A run without work may be corrected in place, its images included; runs inside count as its work.
    runs = [directory, *(path.parent for path in directory.rglob(CONFIG))]
    if journal.data is not None and any(map(has_work, runs)):
        raise ConfigError(
            f"{directory} has worked with other images ({_difference(journal.data, identity)}); choose another out=, "
            "or run with the old images"
        )
    journal.bind(identity)


def fitted(
    key: str, data: RealData, spec: ImageSpec, class_names: tuple[str, ...], lacks_classes: bool = False
) -> RealData:
    """Real data with its labels as numbers of the teacher's classes, which are found by their names.

    Args:
        key: of the configuration, for the error.
        data: the images.
        spec: images of the teacher.
        class_names: of the teacher; empty if it has none, and then its classes are those of the data in their order, if
            there are as many, else numbers.
        lacks_classes: there may be fewer classes than the teacher has, since the images are only tested on.

    Raises:
        ConfigError: another size or number of channels, or fewer classes.
        DataError: classes that the teacher does not have.
    """
    data, notes = _fitted(key, data, spec, class_names, lacks_classes)
    _warn(notes)
    return data


def _warn(notes: Iterable[str]) -> None:
    for note in dict.fromkeys(notes):
        LOG.warning("%s", note)


def _fitted(
    key: str, data: RealData, spec: ImageSpec, class_names: tuple[str, ...], lacks_classes: bool = False
) -> tuple[RealData, list[str]]:
    """As `fitted`, with a line for each assumption that was made."""
    images, notes = data.images, list[str]()
    if isinstance(images, Tensor):  # others are read whole by nobody, and have the channels that the settings say
        images = alike_in_channels(images, spec.channels)
    if images is not data.images:
        notes.append(f"{key}: grey images of {data.name} taken in {spec.channels} channels")
        data = replace(data, images=images, spec=replace(data.spec, channels=spec.channels))
    if data.spec.shape != spec.shape or (data.spec.classes < spec.classes and not lacks_classes):
        remedy = ""
        if spec.channels not in (1, 3):
            remedy = "; images as data have 1 or 3 channels, so take another teacher"
        elif data.spec.channels != spec.channels:
            remedy = f"; set {key}.channels to {spec.channels}"
        raise ConfigError(
            f"{key}: {data.name} has {data.spec}, the teacher takes {spec}; they must be the same{remedy}"
        )
    if data.class_names == class_names:
        return data, notes
    targets = class_names or tuple(map(str, range(spec.classes)))
    where = f"{key} ({data.name})"
    aligned = align_labels(data.labels, data.class_names, targets, where, "the teacher", unnamed=not class_names)
    notes += [aligned.note] if aligned.note else []
    if not class_names and not aligned.note and data.spec.classes < spec.classes:
        notes.append(f"{where}: classes taken by number, of which the teacher's first is 0, since it names none")
    return replace(data, labels=aligned.labels, spec=spec, class_names=class_names or aligned.class_names), notes


def fitted_splits(key: str, splits: Splits, spec: ImageSpec, class_names: tuple[str, ...]) -> Splits:
    """The parts of a dataset as `fitted` gives them."""
    parts = (splits.train, splits.holdout, splits.test)
    (train, of_train), (holdout, of_holdout), (test, of_test) = (
        _fitted(key, part, spec, class_names) for part in parts
    )
    _warn([*of_train, *of_holdout, *of_test])
    return replace(splits, train=train, holdout=holdout, test=test)


def fitted_dataset(key: str, stored: StoredDataset, class_names: tuple[str, ...]) -> StoredDataset:
    """A stored dataset with labels and logits in the order of the teacher's classes.

    Raises:
        DataError: classes that the teacher does not have.
    """
    if not class_names or stored.class_names == class_names:
        return stored
    every = torch.arange(len(stored.class_names))
    places = align_labels(every, stored.class_names, class_names, key, "the teacher").labels
    logits = torch.empty_like(stored.logits)
    logits[:, places] = stored.logits
    return replace(stored, labels=places[stored.labels], logits=logits, class_names=class_names)


def _content(part: RealData) -> str:
    """A digest of images, labels, their order, shape and class names."""
    about = json.dumps([str(part.spec), *part.class_names])
    if isinstance(part.images, Tensor):
        return tensor_digest(about, {"images": part.images, "labels": part.labels})
    return tensor_digest(about + part.images.digest(), {"labels": part.labels})


def _difference(before: Identity, now: Identity) -> str:
    """What changed, part by part. It quotes no digest: a hash of private images has no noise."""
    changes = []
    for name in sorted({*before, *now}):
        counts = [parts[name].images if name in parts else 0 for parts in (before, now)]
        if counts[0] != counts[1]:
            changes.append(f"{name}: {counts[0]:,} then, {counts[1]:,} now")
        elif before.get(name) != now.get(name):
            changes.append(f"{name}: as many, with other content, labels or order")
    return "; ".join(changes)
