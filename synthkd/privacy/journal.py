"""What a run has seen of real images, on disk before it sees it: whose images they are, and every noisy look at them.

Two files inside the run, so that neither can be lost, cut or changed unnoticed:

- `privacy.jsonl` has a line for each look: an event of the ledger, and the SHA-256 of all lines up to it.
- `private.json` has the identity of the images, the end of the journal, and the runs inside that have looked. It is
  readable by its owner alone and stays in the run: a hash of private images has no noise.

A look follows both writes, so one that was cut short is charged, and a line that a kill tore stands for one that never
was; it is charged too.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from synthkd.errors import CheckpointError
from synthkd.privacy.accounting import MOST_STEPS, Event, Ledger, PoissonSteps, Release
from synthkd.settings import Settings
from synthkd.system.files import sha256, write_atomically
from synthkd.system.text import parse_json

JOURNAL, PRIVATE = "privacy.jsonl", "private.json"

_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_START = hashlib.sha256().hexdigest()
_SUM = b', "sha256": "'


class Part(Settings):
    """One part of a dataset: how many labelled images, and the SHA-256 of what they are, in their order."""

    images: Annotated[int, Field(ge=0)]
    content: _Digest


Identity = Mapping[str, Part]


class _Kept(Settings):
    """The contents of private.json: the images, and lines, checksum and release that the journal must have."""

    format: Literal[1] = 1
    data: dict[str, Part] | None = None
    looks: Annotated[int, Field(ge=0, le=MOST_STEPS)] = 0
    sum: _Digest = _START
    release: _Digest | None = None
    parts: tuple[str, ...] = ()


class Journal:
    """The looks of a run at private images, each on disk before it is taken.

    Attributes:
        ledger: all of them, those of interrupted starts included.
        data: identity of the images; None while it is unknown.

    Args:
        run: directory of the run; None counts in memory only, for a run that cannot be interrupted.

    Raises:
        CheckpointError: a journal that does not prove its looks.
    """

    def __init__(self, run: Path | None) -> None:
        self._run = run
        self._kept = _Kept()
        self._sums = [_START]
        self._whole, self._torn = 0, False
        self.ledger = Ledger()
        if run is not None:
            self._read(run)

    @property
    def data(self) -> Identity | None:
        return self._kept.data

    @property
    def steps(self) -> int:
        """Steps of DP-SGD in the ledger."""
        return sum(event.steps for event in self.ledger.events if isinstance(event, PoissonSteps))

    @property
    def releases(self) -> int:
        """Releases in the ledger."""
        return sum(isinstance(event, Release) for event in self.ledger.events)

    def bind(self, data: Identity) -> None:
        """Write down whose images they are."""
        self._keep(data=dict(data))

    def charge(self, event: Event) -> None:
        """Count a look, before it is taken."""
        for _ in range(1 + self._torn):
            self._append(event)
        self._torn = False

    def require(self, steps: int = 0, releases: int = 0) -> None:
        """Refuse to go on from what so many looks have made, where fewer are written down.

        Raises:
            CheckpointError: there are fewer.
        """
        for found, taken, what in ((self.steps, steps, "steps"), (self.releases, releases, "releases")):
            if found < taken:
                raise self.unproven(f"{what}: {taken} taken, {found} written down")

    def keep_part(self, name: str) -> None:
        """Write down that the run inside of this name has finished its looks."""
        if name not in self._kept.parts:
            self._keep(parts=(*self._kept.parts, name))

    def require_parts(self) -> None:
        """Refuse to go on where a run inside has finished its looks, and its journal is gone.

        Raises:
            CheckpointError: that is so.
        """
        for name in self._kept.parts:
            if self._run is not None and not (self._run / name / JOURNAL).is_file():
                raise self.unproven(f"{name}/{JOURNAL} is gone")

    def keep_release(self, path: Path) -> None:
        """Write down what was released, once it is on disk."""
        if self._kept.release is None:
            self._keep(release=sha256(path))

    def has_release(self, path: Path) -> bool:
        """Whether the one release of the run is on disk.

        Raises:
            CheckpointError: it was, and is lost or another one now; or there is one that was not charged.
        """
        there = path.is_file()
        if self._kept.release is not None and (not there or sha256(path) != self._kept.release):
            raise CheckpointError(
                f"{path} is {'damaged or another one' if there else 'gone'}; restore it from a copy, or choose another "
                "out=: another look at the private images costs its budget a second time"
            )
        if there:
            self.require(releases=1)
        return there

    def _read(self, run: Path) -> None:
        kept, lines = run / PRIVATE, run / JOURNAL
        try:
            known = kept.exists()
            if known:
                self._kept = _Kept.model_validate_json(kept.read_bytes(), strict=True)
            *whole, rest = lines.read_bytes().split(b"\n") if lines.exists() else [b""]
        except (OSError, ValidationError) as error:
            said = error.errors(include_url=False)[0]["msg"] if isinstance(error, ValidationError) else error.strerror
            raise self.unproven(f"{kept if isinstance(error, ValidationError) else error.filename}: {said}") from error
        if (whole or rest) and not known:
            raise self.unproven(f"{PRIVATE} is missing, or it is of an older version")
        for number, line in enumerate(whole, start=1):
            event, _, told = line.rpartition(_SUM)
            if told != f'{_next(self._sums[-1], event)}"}}'.encode():
                raise self.unproven(f"line {number} is damaged")
            self._sums.append(_next(self._sums[-1], event))
            try:
                self.ledger += Ledger.from_json([parse_json(event + b"}")])
            except ValueError as error:
                raise self.unproven(f"line {number} is no event: {str(error)[:100]}") from error
            self._whole += len(line) + 1
        # a kill between the two writes leaves one line more
        if not 0 <= len(whole) - self._kept.looks <= 1 or self._sums[self._kept.looks] != self._kept.sum:
            raise self.unproven(f"it has {len(whole)} lines of {self._kept.looks}, or those of another run")
        self._torn = bool(rest)

    def _append(self, event: Event) -> None:
        self.ledger += Ledger((event,))
        if self._run is None:
            return
        if self._kept.looks < len(self._sums) - 1 or not (self._run / PRIVATE).exists():
            self._keep_end()
        (entry,) = Ledger((event,)).to_json()
        text = json.dumps(entry)[:-1].encode()
        self._sums.append(_next(self._sums[-1], text))
        line = text + _SUM + f'{self._sums[-1]}"}}\n'.encode()
        with (self._run / JOURNAL).open("ab") as file:
            file.truncate(self._whole)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._whole += len(line)
        self._keep_end()

    def _keep_end(self) -> None:
        self._keep(looks=len(self._sums) - 1, sum=self._sums[-1])

    def _keep(self, **changes: object) -> None:
        self._kept = self._kept.model_copy(update=changes)
        if self._run is not None:
            text = self._kept.model_dump_json(indent=1).encode() + b"\n"
            write_atomically(self._run / PRIVATE, text, mode=0o600)

    def unproven(self, why: str) -> CheckpointError:
        """The error of a journal that does not prove its looks."""
        return CheckpointError(
            f"{self._run}: {JOURNAL} does not prove how often the private images were looked at ({why}); restore it "
            f"and {PRIVATE} from a copy, or choose another out=, which spends the budget anew"
        )


def _next(before: str, line: bytes) -> str:
    return hashlib.sha256(before.encode() + line).hexdigest()
