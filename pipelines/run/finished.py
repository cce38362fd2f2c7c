"""The end of a run: its result, with the files that it hands over, and their check when it is read again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import torch

from synthkd import __version__
from synthkd.errors import CheckpointError
from synthkd.pipelines.config import JobConfig
from synthkd.reports.results import RESULT, FileEntry, Hardware, JobResult
from synthkd.reports.results import read_result as read_content
from synthkd.system.files import SUMS, file_names, inside, read_sums, sha256
from synthkd.system.hardware import describe, peak_memory_bytes

HANDED_OVER = ("student", "teacher", "peers", "generator", "dataset", "export", "privacy_report.json")
"""What a run hands over. result.json has size and sha256 of each of these files; all others can be made from them."""

Content = TypeVar("Content", bound=JobResult)


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
        raise CheckpointError(
            f"{directory / RESULT} is damaged ({error}); delete it to finish the run again"
        ) from error
    return content


def _inventory(directory: Path) -> dict[str, FileEntry]:
    """Size and sha256 of every file that the run hands over; of a dataset only the file that has those of the rest."""
    names = [name for name in HANDED_OVER if (directory / name).is_file()]
    for folder in HANDED_OVER:
        inside = [SUMS] if (directory / folder / SUMS).is_file() else file_names(directory / folder)
        names += [f"{folder}/{name}" for name in inside]
    return {name: FileEntry((directory / name).stat().st_size, sha256(directory / name)) for name in sorted(names)}


def _verify(directory: Path, files: Mapping[str, FileEntry]) -> None:
    for name, listed in files.items():
        path = inside(directory, name)
        _verify_file(directory, path, listed.sha256)
        if path.name == SUMS:
            for file, digest in read_sums(path.parent).items():
                _verify_file(directory, inside(path.parent, file), digest)


def _verify_file(directory: Path, path: Path, digest: str) -> None:
    if path.is_file() and sha256(path) == digest:
        return
    state = "damaged or changed" if path.is_file() else "missing"
    raise CheckpointError(
        f"{path} is {state}, though {directory} is finished; copy it back, or delete {directory / RESULT} and run the "
        "same command to make it again"
    )


def finished_result(content: Content, config: JobConfig, directory: Path, device: torch.device) -> Content:
    """What a job measured, with the files of its run, and by whom, when and on what they were made."""
    return replace(
        content,
        name=config.name,
        version=__version__,
        seed=config.seed,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        files=_inventory(directory),
        hardware=Hardware(**describe(device)),
        cost=replace(content.cost, peak_memory_bytes=peak_memory_bytes()),
    )
