"""The real images of a run: a run goes on with the images that it began with, and they are those of its teacher."""

from __future__ import annotations

import json
from pathlib import Path

from accelerate import Accelerator

from synthkd.data.read.splits import RealData, Splits
from synthkd.errors import ConfigError
from synthkd.pipelines.run.directory import CONFIG, has_work
from synthkd.privacy.journal import PRIVATE, Identity, Journal, Part
from synthkd.system.sealed import tensor_digest
from synthkd.training.monitor import FILE_NAME as METRICS
from synthkd.types import ImageSpec


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


def require_fit(key: str, data: RealData | None, spec: ImageSpec, class_names: tuple[str, ...]) -> None:
    """Check that real data has the teacher's image size and its classes in its order.

    Args:
        key: of the configuration, for the error.
        data: the images; None is accepted.
        spec: images of the teacher.
        class_names: of the teacher; empty if it has none.

    Raises:
        ConfigError: another size, other classes or another order.
    """
    if data is None:
        return
    if data.spec != spec:
        raise ConfigError(f"{key}: {data.name} has {data.spec}, the teacher takes {spec}; they must be the same")
    ours, theirs = data.class_names, class_names
    if ours != theirs and sorted(ours) == sorted(theirs):
        place = next(number for number, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
        raise ConfigError(
            f"{key}: class {place} of {data.name} is {ours[place]!r}, the teacher's is {theirs[place]!r}; number the "
            "classes alike"
        )


def _content(part: RealData) -> str:
    """A digest of images, labels, their order, shape and class names."""
    about = json.dumps([str(part.spec), *part.class_names])
    return tensor_digest(about, {"images": part.images, "labels": part.labels})


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
