"""Atomic checkpoints: a step either exists whole and verified, or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from synthkd.errors import CheckpointError
from synthkd.json_text import parse_json

MANIFEST = "manifest.json"
STATE = "state.pt"


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: the step after which it was taken and the state of every part by name."""

    step: int
    state: Mapping[str, Any]


class CheckpointStore:
    """Checkpoints of one run under `directory/step_XXXXXXXX/`, the newest `keep` of them.

    A checkpoint is written into a temporary directory, its files and a manifest with their sha256 are flushed to
    disk, and one rename makes it visible; a kill at any moment leaves the earlier ones untouched.
    """

    def __init__(self, directory: Path, keep: int = 2) -> None:
        self.directory = directory
        self.keep = keep

    def save(self, step: int, state: Mapping[str, Any]) -> Path:
        """Write the state (nested dicts and lists of tensors, numbers and strings) of a step."""
        self.directory.mkdir(parents=True, exist_ok=True)
        final = self.directory / f"step_{step:08d}"
        partial = self.directory / f".partial_{step:08d}_{os.getpid()}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        torch.save(dict(state), partial / STATE)
        manifest = {"format": 1, "step": step, "sha256": {STATE: _sha256(partial / STATE)}}
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1))
        for name in (STATE, MANIFEST):
            _flush(partial / name)
        _flush(partial)
        if final.exists():
            shutil.rmtree(final)
        os.replace(partial, final)
        _flush(self.directory)
        self._prune()
        return final

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that verifies, or None when there is none.

        Raises:
            CheckpointError: when checkpoints exist but not one of them verifies.
        """
        damaged: list[str] = []
        for path in self._newest_first():
            try:
                manifest = parse_json((path / MANIFEST).read_text())
                if _sha256(path / STATE) != manifest["sha256"][STATE]:
                    raise ValueError("its sha256 differs from the manifest")
                state = torch.load(path / STATE, map_location="cpu", weights_only=True)
                return Checkpoint(int(manifest["step"]), state)
            except (OSError, ValueError, KeyError, RuntimeError) as error:
                damaged.append(f"{path.name} ({error})")
        if damaged:
            raise CheckpointError(
                f"{self.directory}: no checkpoint verifies: {'; '.join(damaged)}; delete the run to start anew"
            )
        return None

    def clear(self) -> None:
        """Remove every checkpoint (a finished run needs none)."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _newest_first(self) -> Iterator[Path]:
        yield from sorted(self.directory.glob("step_*"), reverse=True)

    def _prune(self) -> None:
        for path in list(self._newest_first())[self.keep :]:
            shutil.rmtree(path)
        for path in self.directory.glob(".partial_*"):
            shutil.rmtree(path, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
