"""Atomic checkpoints: a step is on disk completely, or not at all; a reader verifies every file."""

from __future__ import annotations

import logging
import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from synthkd.errors import CheckpointError
from synthkd.system.files import naming, sha256
from synthkd.system.resources import out_of_memory
from synthkd.system.sealed import sealed, unsealed
from synthkd.training.shared_rows import SEGMENTS, Rows, flush, open_rows, save_rows

LOG = logging.getLogger(__name__)

MANIFEST = "manifest.json"
STATE = "state.pt"
ROWS = "rows"
"""Name of the folder beside the checkpoints with the rows that they share; key of the manifest that lists its files."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: the number of finished steps, and the state of every part by name."""

    step: int
    state: Mapping[str, Any]


class CheckpointStore:
    """Checkpoints of one run under `directory/step_XXXXXXXX/`, the newest `keep` of them.

    A checkpoint is written into a temporary directory. Its files and a manifest with their sha256 are flushed to the
    disk, and one rename makes it visible, so that a kill at any moment leaves the earlier checkpoints untouched. The
    row files that it shares with others are written before it, and removed once no remaining checkpoint refers to them.

    Args:
        directory: of the checkpoints; the first save creates it.
        keep: number of checkpoints that stay. With two, a run can resume although the newest is damaged.
        remedy: what to do if all are damaged; None: to train anew.
    """

    def __init__(self, directory: Path, keep: int = 2, remedy: str | None = None) -> None:
        self.directory = directory
        self.keep = keep
        self.remedy = remedy or f"delete {directory} to train this part anew"
        self._row_files: dict[str, list[str]] = {}  # place in the state -> row files of the last saved or read state

    def save(self, step: int, state: Mapping[str, Any]) -> Path:
        """Write the state after `step` steps and return the directory of the checkpoint.

        Args:
            step: number of finished steps.
            state: nested dicts and lists of tensors, numbers and strings, and dicts of `Rows`.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        final = self.directory / f"step_{step:08d}"
        partial = self.directory / f".partial_{step:08d}_{os.getpid()}"
        # An attempt that failed may have left it.
        shutil.rmtree(partial, ignore_errors=True)
        row_files: dict[str, list[str]] = {}

        def save_in_files(place: str, value: object) -> dict[str, Any] | None:
            if not isinstance(value, Rows):
                return None
            reference = save_rows(self.directory / ROWS, value, self._row_files.get(place, ()))
            row_files[place] = reference[SEGMENTS]
            return reference

        try:
            # The rows come first: a checkpoint must not be visible before the files that it refers to.
            state = _replaced(dict(state), save_in_files)
            partial.mkdir()
            # torch writes into an open file: given a path, its error would not have the reason (a full disk).
            with naming(final / STATE), (partial / STATE).open("wb") as file:
                torch.save({"format": 2, "step": step, "state": state}, file)
            manifest = {
                "format": 2,
                "step": step,
                "sha256": {STATE: sha256(partial / STATE)},
                ROWS: [name for names in row_files.values() for name in names],
            }
            with naming(final / MANIFEST):
                (partial / MANIFEST).write_bytes(sealed(manifest))
            # Content before names: a rename that survives a power cut must not show empty files.
            for path in (partial / STATE, partial / MANIFEST, partial):
                flush(path)
            # A run that resumed from an older checkpoint reaches the step again, and a rename cannot replace a folder.
            if final.exists():
                shutil.rmtree(final)
            os.replace(partial, final)
            flush(self.directory)
            # Only now: after a failed save, the next one must not rely on row files that are pruned below.
            self._row_files = row_files
        finally:
            # Also after a failure, such as a full disk, which needs the space of the partial files most.
            self._prune()
        return final

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that verifies, or None if there is none; newer damaged ones are logged.

        Raises:
            CheckpointError: checkpoints exist, but none of them verifies.
        """
        damaged: list[str] = []
        for path in self._newest_first():
            try:
                checkpoint = self._verified(path)
            except (OSError, ValueError, LookupError, TypeError, RuntimeError, pickle.UnpicklingError) as error:
                # A lack of memory says nothing about the file, and an older checkpoint would not fit either.
                if out_of_memory(error):
                    raise
                damaged.append(f"{path.name} ({error})")
                continue
            if damaged:
                LOG.warning("%s: damaged: %s; going on from %s", self.directory, "; ".join(damaged), path.name)
            return checkpoint
        if damaged:
            raise CheckpointError(f"{self.directory}: no checkpoint verifies: {'; '.join(damaged)}; {self.remedy}")
        return None

    def _verified(self, path: Path) -> Checkpoint:
        # From the outside in: the manifest has its own checksum, and the state is read only if it fits the manifest.
        manifest = unsealed((path / MANIFEST).read_bytes())
        if sha256(path / STATE) != manifest["sha256"][STATE]:
            raise ValueError("its sha256 differs from the manifest")
        # On the CPU, so that a run can resume on another device; each part moves its own state.
        content = torch.load(path / STATE, map_location="cpu", weights_only=True)
        if "format" not in content:  # format 1 had no shared rows, and no step beside the state
            return Checkpoint(int(manifest["step"]), content)
        if content["step"] != manifest["step"]:
            raise ValueError(f"its manifest says step {manifest['step']}, its state {content['step']}")
        row_files: dict[str, list[str]] = {}

        def open_files(place: str, value: object) -> Rows | None:
            if not isinstance(value, dict) or SEGMENTS not in value:
                return None
            row_files[place] = value[SEGMENTS]
            return open_rows(self.directory / ROWS, value)

        state = _replaced(content["state"], open_files)
        # The next save appends to these files instead of writing all rows again.
        self._row_files = row_files
        return Checkpoint(content["step"], state)

    def clear(self, keep: int = 0) -> None:
        """Remove every checkpoint but the newest `keep`; a finished run needs one at most."""
        if not keep:
            shutil.rmtree(self.directory, ignore_errors=True)
        elif self.directory.is_dir():
            self._prune(keep)

    def _newest_first(self) -> list[Path]:
        # The length first, since a step may have more digits than a name has zeros for.
        return sorted(self.directory.glob("step_*"), key=lambda path: (len(path.name), path.name), reverse=True)

    def _prune(self, keep: int | None = None) -> None:
        """Remove partial and surplus checkpoints, and the row files that no remaining checkpoint refers to."""
        keep = self.keep if keep is None else keep
        for path in self.directory.glob(".partial_*"):
            shutil.rmtree(path, ignore_errors=True)
        checkpoints = self._newest_first()
        for path in checkpoints[keep:]:
            shutil.rmtree(path)
        needed = {name for path in checkpoints[:keep] for name in _row_files_of(path)}
        for path in (self.directory / ROWS).glob("*"):
            if path.name not in needed:
                path.unlink()


def _row_files_of(checkpoint: Path) -> list[str]:
    """Names of the row files that a checkpoint refers to; none if its manifest is too damaged to be read."""
    try:
        names = unsealed((checkpoint / MANIFEST).read_bytes()).get(ROWS, ())
    except (OSError, ValueError):
        return []
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _replaced(value: Any, change: Callable[[str, Any], Any | None], place: str = "") -> Any:
    """Nested dicts in which `change(place, value)` replaces each value, except where it returns None."""
    if (changed := change(place, value)) is not None:
        return changed
    if type(value) is not dict:
        return value
    return {key: _replaced(inner, change, f"{place}/{key}") for key, inner in value.items()}
