"""The outcome of a job: what it returns, and its result with the checksums of the files that it hands over."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from synthkd import __version__
from synthkd.errors import CheckpointError
from synthkd.pipelines.config import JobConfig
from synthkd.pipelines.run.device import mixed_precision
from synthkd.pipelines.run.timing import PlannedTime
from synthkd.privacy.journal import JOURNAL
from synthkd.reports.results import RESULT, FileEntry, Hardware, JobResult, from_json, result_values
from synthkd.reports.results import read_result as read_content
from synthkd.system.files import SUMS, file_names, inside, read_sums, sha256
from synthkd.system.hardware import describe, peak_memory_bytes

HANDED_OVER = ("student", "teacher", "peers", "generator", "dataset", "export", "privacy_report.json")
"""Files and folders that a run is made for. The result has their sizes and sha256; everything else in the run directory
can be made again."""

RESTORE = "restore it from a copy: the privacy budget of this run is spent, and to make it again may spend it twice"
"""The remedy for a damaged file of a run with a privacy budget."""

Content = TypeVar("Content", bound=JobResult)


@dataclass(frozen=True)
class Result(Generic[Content]):
    """The outcome of a job.

    Attributes:
        directory: the run directory.
        content: the content of result.json.
        summary: the lines to print.
    """

    directory: Path
    content: Content
    summary: tuple[str, ...] = ()

    @functools.cached_property
    def values(self) -> Mapping[str, Any]:
        """The content as it stands in result.json: `result.values["student"]["accuracy"]`."""
        return result_values(self.content)

    def __str__(self) -> str:
        return "\n".join(self.summary)


@dataclass(frozen=True)
class Plan:
    """What a job would do.

    Attributes:
        lines: that --dry-run prints.
        time: that it needs; None if it was not measured.
    """

    lines: tuple[str, ...]
    time: PlannedTime | None = None

    def __str__(self) -> str:
        return "\n".join(self.lines)


def finished_result(content: Content, config: JobConfig, directory: Path, device: torch.device) -> Content:
    """A result with what every job says of its run: name, version, seed, time, files, hardware and memory.

    Args:
        content: what the job measured.
        config: of the job.
        directory: the run directory, with all files that the run hands over.
        device: where the job ran.
    """
    return replace(
        content,
        name=config.name,
        version=__version__,
        seed=config.seed,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        files=_inventory(directory),
        hardware=from_json(Hardware, describe(device) | _in_precision(config)),
        cost=replace(content.cost, peak_memory_bytes=peak_memory_bytes()),
    )


def _in_precision(config: JobConfig) -> dict[str, str]:
    """The mixed precision of a job under its key; nothing in full precision."""
    precision = mixed_precision(config)
    return {} if precision == "no" else {"precision": precision}


def read_result(directory: Path, kind: type[Content]) -> Content | None:
    """The content of `result.json`, or None where the run is not finished.

    Args:
        directory: of the run.
        kind: the class of the job's results.

    Raises:
        CheckpointError: when it, or a file that the run hands over, is damaged or missing.
    """
    try:
        content = read_content(directory)
        if content is None:
            return None
        if not isinstance(content, kind):
            raise ValueError(f"it is the result of {content.job}")
        _verify(directory, content.files)
    except ValueError as error:
        remedy = RESTORE if has_budget(directory) else "delete it to finish the run again"
        raise CheckpointError(f"{directory / RESULT} is damaged ({error}); {remedy}") from error
    return content


def _inventory(directory: Path) -> dict[str, FileEntry]:
    """Size and sha256 of every file that the run hands over.

    Of a folder with `SHA256SUMS` (a dataset) only that file is listed: it has the sums of the others.
    """
    names = [name for name in HANDED_OVER if (directory / name).is_file()]
    for folder in HANDED_OVER:
        files = [SUMS] if (directory / folder / SUMS).is_file() else file_names(directory / folder)
        names += [f"{folder}/{name}" for name in files]
    return {name: FileEntry((directory / name).stat().st_size, sha256(directory / name)) for name in sorted(names)}


def _verify(directory: Path, files: Mapping[str, FileEntry]) -> None:
    for name, entry in files.items():
        path = inside(directory, name)
        _verify_file(directory, path, entry.sha256)
        if path.name == SUMS:
            for file, digest in read_sums(path.parent).items():
                _verify_file(directory, inside(path.parent, file), digest)


def _verify_file(directory: Path, path: Path, digest: str) -> None:
    if path.is_file() and sha256(path) == digest:
        return
    state = "damaged or changed" if path.is_file() else "missing"
    again = f"copy it back, or delete {directory / RESULT} and run the same command to make it again"
    raise CheckpointError(
        f"{path} is {state}, though {directory} is finished; {RESTORE if has_budget(directory) else again}"
    )


def has_budget(directory: Path) -> bool:
    """Whether a run has charged queries of private images; without its result it would charge them once more."""
    return (directory / JOURNAL).exists()
