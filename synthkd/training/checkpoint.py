"""Atomic checkpoints: a step either exists whole and verified, or not at all.

What only ever grows, such as the images of a memory bank, is not copied each time: its rows go into files that are
never changed, named after their content, which later checkpoints refer to for as long as they hold those rows.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import Tensor

from synthkd.errors import CheckpointError
from synthkd.system.files import naming, sha256, write_atomically
from synthkd.system.resources import out_of_memory
from synthkd.system.sealed import sealed, unsealed

LOG = logging.getLogger(__name__)

MANIFEST = "manifest.json"
STATE = "state.pt"
ROWS = "rows"
"""Folder beside the checkpoints for the rows that they share."""
_SEGMENTS = "segments"
_SEGMENT = re.compile(r"(\d+)-(\d+)-([0-9a-f]{64})\.safetensors")  # number of the first row, one after the last, sha256


@dataclass(frozen=True)
class Block:
    """Rows with neighbouring numbers: the first of these, and a tensor `[N, ...]` for each column."""

    first: int
    columns: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))


@dataclass(frozen=True)
class Rows:
    """Numbered rows in a state: each is written once and never changed, and the oldest leave first.

    A checkpoint writes those alone that the one before it lacks, block by block, so blocks should be small.

    Attributes:
        first: number of the oldest row that is held.
        stop: the number that the next row will get.
        blocks: called with a number, gives the rows from that one on, in order.
    """

    first: int
    stop: int
    blocks: Callable[[int], Iterator[Block]]


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: the step after which it was taken and the state of every part by name."""

    step: int
    state: Mapping[str, Any]


class CheckpointStore:
    """Checkpoints of one run under `directory/step_XXXXXXXX/`, the newest `keep` of them.

    A checkpoint is written into a temporary directory, its files and a manifest with their sha256 are flushed to
    disk, and one rename makes it visible; a kill at any moment leaves the earlier ones untouched. The files of rows
    that it shares with others are there before it is, and go when none that is kept refers to them.
    """

    def __init__(self, directory: Path, keep: int = 2) -> None:
        self.directory = directory
        self.keep = keep
        self._segments: dict[
            str, list[str]
        ] = {}  # files with the rows at each place of the state, as last saved or read

    def save(self, step: int, state: Mapping[str, Any]) -> Path:
        """Write the state (nested dicts and lists of tensors, numbers and strings, and dicts of `Rows`) of a step."""
        self.directory.mkdir(parents=True, exist_ok=True)
        final = self.directory / f"step_{step:08d}"
        partial = self.directory / f".partial_{step:08d}_{os.getpid()}"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            segments: dict[str, list[str]] = {}
            state = _replaced(dict(state), lambda place, value: self._write_rows(place, value, segments))
            partial.mkdir()
            # given a path torch would write by itself, and not say why it could not
            with naming(final / STATE), (partial / STATE).open("wb") as file:
                torch.save({"format": 2, "step": step, "state": state}, file)
            manifest = {
                "format": 2,
                "step": step,
                "sha256": {STATE: sha256(partial / STATE)},
                ROWS: [name for names in segments.values() for name in names],
            }
            with naming(final / MANIFEST):
                (partial / MANIFEST).write_bytes(sealed(manifest))
            for name in (STATE, MANIFEST):
                _flush(partial / name)
            _flush(partial)
            if final.exists():
                shutil.rmtree(final)
            os.replace(partial, final)
            _flush(self.directory)
            self._segments = segments
        finally:
            self._prune()
        return final

    def _write_rows(self, place: str, value: object, segments: dict[str, list[str]]) -> dict[str, Any] | None:
        """What stands in the state for rows, once all of them are on disk; None for anything else."""
        if not isinstance(value, Rows):
            return None
        names = [name for name in self._segments.get(place, ()) if _span(name)[1] > value.first]
        folder = self.directory / ROWS
        for block in value.blocks(_span(names[-1])[1] if names else value.first):
            data = serialise({name: column.contiguous() for name, column in block.columns.items()})
            digest = hashlib.sha256(data).hexdigest()
            names.append(f"{block.first}-{block.first + len(block)}-{digest}.safetensors")
            write_atomically(folder / names[-1], data)
        if folder.exists():
            _flush(folder)
        segments[place] = names
        return {_SEGMENTS: names, "first": value.first, "stop": value.stop}

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that verifies, or None when there is none; newer ones that do not are logged.

        Raises:
            CheckpointError: when checkpoints exist but not one of them verifies.
        """
        damaged: list[str] = []
        for path in self._newest_first():
            try:
                found = self._verified(path)
            except (OSError, ValueError, LookupError, TypeError, RuntimeError, pickle.UnpicklingError) as error:
                if out_of_memory(error):
                    raise
                damaged.append(f"{path.name} ({error})")
                continue
            if damaged:
                LOG.warning("%s: damaged: %s; going on from %s", self.directory, "; ".join(damaged), path.name)
            return found
        if damaged:
            raise CheckpointError(
                f"{self.directory}: no checkpoint verifies: {'; '.join(damaged)}; delete {self.directory} to train "
                "this part anew"
            )
        return None

    def _verified(self, path: Path) -> Checkpoint:
        manifest = unsealed((path / MANIFEST).read_bytes())
        if sha256(path / STATE) != manifest["sha256"][STATE]:
            raise ValueError("its sha256 differs from the manifest")
        content = torch.load(path / STATE, map_location="cpu", weights_only=True)
        if "format" not in content:  # of a version that copied everything
            return Checkpoint(int(manifest["step"]), content)
        if content["step"] != manifest["step"]:
            raise ValueError(f"its manifest says step {manifest['step']}, its state {content['step']}")
        segments: dict[str, list[str]] = {}
        state = _replaced(content["state"], lambda place, value: self._read_rows(place, value, segments))
        self._segments = segments
        return Checkpoint(content["step"], state)

    def _read_rows(self, place: str, value: object, segments: dict[str, list[str]]) -> Rows | None:
        if not isinstance(value, dict) or _SEGMENTS not in value:
            return None
        paths = [self.directory / ROWS / name for name in value[_SEGMENTS]]
        for name, path in zip(value[_SEGMENTS], paths, strict=True):
            match = _SEGMENT.fullmatch(name)
            if match is None or sha256(path) != match[3]:
                raise ValueError(f"{ROWS}/{name}: its sha256 differs from its name")
        segments[place] = value[_SEGMENTS]
        return Rows(value["first"], value["stop"], lambda first: _read_blocks(paths, max(first, value["first"])))

    def clear(self) -> None:
        """Remove every checkpoint (a finished run needs none)."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _newest_first(self) -> Iterator[Path]:
        yield from sorted(self.directory.glob("step_*"), reverse=True)

    def _prune(self) -> None:
        for path in self.directory.glob(".partial_*"):
            shutil.rmtree(path, ignore_errors=True)
        for path in list(self._newest_first())[self.keep :]:
            shutil.rmtree(path)
        wanted = {name for path in self._newest_first() for name in _shared(path)}
        for path in (self.directory / ROWS).glob("*"):
            if path.name not in wanted:
                path.unlink()


def _shared(checkpoint: Path) -> Sequence[str]:
    """Names of the files of rows that a checkpoint refers to; none where it is too damaged to be read again."""
    try:
        names = unsealed((checkpoint / MANIFEST).read_bytes()).get(ROWS, ())
    except (OSError, ValueError):
        return ()
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else ()


def _span(name: str) -> tuple[int, int]:
    """The number of the first row in a file, and the one after its last."""
    first, stop, _ = name.split("-")
    return int(first), int(stop)


def _read_blocks(paths: Sequence[Path], first: int) -> Iterator[Block]:
    for path in paths:
        begin, stop = _span(path.name)
        if stop <= first:
            continue
        try:
            columns = load_file(path)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path} went or changed while it was read ({error}); try again") from error
        start = max(first, begin)
        yield Block(start, {name: column[start - begin :] for name, column in columns.items()})


def _replaced(value: Any, change: Callable[[str, Any], Any | None], place: str = "") -> Any:
    """Nested dicts with what `change` gives, called with place and value, wherever that is not None."""
    if (changed := change(place, value)) is not None:
        return changed
    if type(value) is not dict:
        return value
    return {key: _replaced(inner, change, f"{place}/{key}") for key, inner in value.items()}


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
