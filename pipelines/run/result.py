"""The result of a job: what it returns, and `result.json` with the checksums of the files that it hands over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from synthkd import __version__
from synthkd.errors import CheckpointError
from synthkd.pipelines.config import JobConfig
from synthkd.pipelines.run.directory import RESULT
from synthkd.system.files import SUMS, file_names, inside, read_sums, sha256, write_atomically
from synthkd.system.hardware import describe, peak_memory_bytes
from synthkd.system.sealed import sealed, unsealed

HANDED_OVER = ("student", "teacher", "peers", "generator", "dataset", "export", "privacy_report.json")
"""Files and folders that a run is made for. The result has their sizes and sha256; everything else in the run directory
can be made again."""


@dataclass(frozen=True)
class Result:
    """The outcome of a job.

    Attributes:
        directory: the run directory.
        values: the content of result.json.
        summary: the lines to print.
    """

    directory: Path
    values: Mapping[str, Any]
    summary: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join(self.summary)


@dataclass(frozen=True)
class Plan:
    """What a job would do, in the lines that --dry-run prints."""

    lines: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.lines)


def complete_result(
    job: str, config: JobConfig, directory: Path, values: Mapping[str, Any], device: torch.device
) -> dict[str, Any]:
    """The content of `result.json`.

    Args:
        job: name of the job.
        config: of the job.
        directory: the run directory, with all files that the run hands over.
        values: numbers of the job.
        device: where the job ran.
    """
    complete = {
        "schema": 1,
        "job": job,
        "name": config.name,
        "version": __version__,
        "seed": config.seed,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        **values,
        "files": _inventory(directory),
        "hardware": describe(device),
    }
    complete.setdefault("cost", {})["peak_memory_bytes"] = peak_memory_bytes()
    return complete


def write_result(directory: Path, complete: Mapping[str, Any]) -> None:
    """Write `result.json` atomically. Raises `ValueError` for a number that is not finite."""
    write_atomically(directory / RESULT, sealed(complete))


def read_result(directory: Path) -> Mapping[str, Any] | None:
    """The content of `result.json`, or None where the run is not finished.

    Raises:
        CheckpointError: when it, or a file that the run hands over, is damaged or missing.
    """
    path = directory / RESULT
    if not path.exists():
        return None
    try:
        values = unsealed(path.read_bytes())
        if "job" not in values:
            raise ValueError("it is no result of a job")
        _verify(directory, values.get("files", {}))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); delete it to finish the run again") from error
    return values


def _inventory(directory: Path) -> dict[str, dict[str, Any]]:
    """Size and sha256 of every file that the run hands over.

    Of a folder with `SHA256SUMS` (a dataset) only that file is listed: it has the sums of the others.
    """
    names = [name for name in HANDED_OVER if (directory / name).is_file()]
    for folder in HANDED_OVER:
        files = [SUMS] if (directory / folder / SUMS).is_file() else file_names(directory / folder)
        names += [f"{folder}/{name}" for name in files]
    return {
        name: {"bytes": (directory / name).stat().st_size, "sha256": sha256(directory / name)} for name in sorted(names)
    }


def _verify(directory: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    for name, entry in files.items():
        path = inside(directory, name)
        _verify_file(directory, path, entry["sha256"])
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
