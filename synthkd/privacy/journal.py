"""The record on disk of a run's use of private images: the identity of the images, and each noisy query of them.

A run directory has two files, so that the loss, the truncation or a change of either is noticed:

- `privacy.jsonl`, the journal, has one line per query: an event of the ledger, and the SHA-256 of all lines up to it.
- `private.json` has the identity of the images, the length and checksum of the journal, and the runs inside this one
  that have finished their queries. It is readable by its owner alone and stays in the run: a hash of private images has
  no noise.

Both files are written before the query, so a query that a kill cuts short is charged. A line that a kill cuts short
belongs to a query that was never made; it is charged too, since a line that was damaged later looks the same.
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
from synthkd.privacy.ledger import MOST_STEPS, Event, Ledger, PoissonSteps, Release
from synthkd.settings import Settings
from synthkd.system.files import sha256, write_atomically
from synthkd.system.text import parse_json

JOURNAL, PRIVATE = "privacy.jsonl", "private.json"

_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_START = hashlib.sha256().hexdigest()
_SUM = b', "sha256": "'


class Part(Settings):
    """Identity of one part of a dataset: the number of labelled images, and the SHA-256 of them in their order."""

    images: Annotated[int, Field(ge=0)]
    content: _Digest


Identity = Mapping[str, Part]
"""Name of a part, such as "train" -> its identity."""


class _PrivateFile(Settings):
    """The contents of private.json.

    `looks` is the number of lines of the journal (the name is that of earlier versions) and `sum` the SHA-256 of them;
    `release` is the SHA-256 of the file with the release, `parts` the names of the runs inside that have finished their
    queries.
    """

    format: Literal[1] = 1
    data: dict[str, Part] | None = None
    looks: Annotated[int, Field(ge=0, le=MOST_STEPS)] = 0
    sum: _Digest = _START
    release: _Digest | None = None
    parts: tuple[str, ...] = ()


class Journal:
    """The noisy queries of a run, each on disk before it is made.

    Attributes:
        ledger: all queries, those of interrupted starts included.

    Args:
        run: directory of the run; None counts in memory only, for a run that cannot be interrupted.

    Raises:
        CheckpointError: the files do not prove which queries were made.
    """

    def __init__(self, run: Path | None) -> None:
        self._run = run
        self._private = _PrivateFile()
        self._sums = [_START]  # the checksum after each line
        self._bytes = 0  # length of the whole lines
        self._torn = False  # whether a line without its end follows them
        self.ledger = Ledger()
        if run is not None:
            self._read(run)

    @property
    def data(self) -> Identity | None:
        """Identity of the images; None while it is unknown."""
        return self._private.data

    @property
    def steps(self) -> int:
        """Number of steps of DP-SGD in the ledger."""
        return sum(event.steps for event in self.ledger.events if isinstance(event, PoissonSteps))

    @property
    def releases(self) -> int:
        """Number of releases in the ledger."""
        return sum(isinstance(event, Release) for event in self.ledger.events)

    def bind(self, data: Identity) -> None:
        """Record the identity of the images."""
        self._update(data=dict(data))

    def charge(self, event: Event) -> None:
        """Record a query before it is made."""
        # Where the last line was torn, this query is charged once more in its place.
        for _ in range(1 + self._torn):
            self._append(event)
        self._torn = False

    def require(self, steps: int = 0, releases: int = 0) -> None:
        """Check that at least so many queries are recorded.

        Raises:
            CheckpointError: fewer are recorded than a checkpoint or a release was made from.
        """
        for count, least, what in ((self.steps, steps, "steps"), (self.releases, releases, "releases")):
            if count < least:
                raise self.unproven(f"{what}: {least} taken, {count} written down")

    def keep_part(self, name: str) -> None:
        """Record that the run `name` inside this one has finished its queries."""
        if name not in self._private.parts:
            self._update(parts=(*self._private.parts, name))

    def require_parts(self) -> None:
        """Check that each run inside that has finished its queries still has its journal.

        Raises:
            CheckpointError: a journal is gone.
        """
        for name in self._private.parts:
            if self._run is not None and not (self._run / name / JOURNAL).is_file():
                raise self.unproven(f"{name}/{JOURNAL} is gone")

    def keep_release(self, path: Path) -> None:
        """Record the checksum of a release, once it is on disk."""
        if self._private.release is None:
            self._update(release=sha256(path))

    def has_release(self, path: Path) -> bool:
        """Whether the release of the run is on disk.

        Raises:
            CheckpointError: a recorded release is gone or is another one now, or one on disk was not charged.
        """
        there = path.is_file()
        if self._private.release is not None and (not there or sha256(path) != self._private.release):
            raise CheckpointError(
                f"{path} is {'damaged or another one' if there else 'gone'}; restore it from a copy, or choose another "
                "out=: another release of the private images costs its budget a second time"
            )
        # A release without a line in the journal would be free.
        if there:
            self.require(releases=1)
        return there

    def unproven(self, reason: str) -> CheckpointError:
        """The error of a journal that does not prove its queries, with this reason."""
        return CheckpointError(
            f"{self._run}: {JOURNAL} does not prove how often the private images were used ({reason}); restore it "
            f"and {PRIVATE} from a copy, or choose another out=, which spends the budget anew"
        )

    def _read(self, run: Path) -> None:
        """Read both files and check one against the other."""
        private, journal = run / PRIVATE, run / JOURNAL
        try:
            has_private = private.exists()
            if has_private:
                self._private = _PrivateFile.model_validate_json(private.read_bytes(), strict=True)
            *lines, rest = journal.read_bytes().split(b"\n") if journal.exists() else [b""]
        except ValidationError as error:
            raise self.unproven(f"{private}: {error.errors(include_url=False)[0]['msg']}") from error
        except OSError as error:
            raise self.unproven(f"{error.filename}: {error.strerror}") from error
        if (lines or rest) and not has_private:
            raise self.unproven(f"{PRIVATE} is missing, or it is of an older version")
        for number, line in enumerate(lines, start=1):
            self._read_line(number, line)
        # private.json is written after the journal, so a kill between the two leaves one line more.
        if not 0 <= len(lines) - self._private.looks <= 1 or self._sums[self._private.looks] != self._private.sum:
            raise self.unproven(f"it has {len(lines)} lines of {self._private.looks}, or those of another run")
        self._torn = bool(rest)

    def _read_line(self, number: int, line: bytes) -> None:
        """Add the event of a line to the ledger, if the checksum in the line is that of all lines so far."""
        event, _, end = line.rpartition(_SUM)
        checksum = _checksum(self._sums[-1], event)
        if end != f'{checksum}"}}'.encode():
            raise self.unproven(f"line {number} is damaged")
        self._sums.append(checksum)
        try:
            self.ledger += Ledger.from_json([parse_json(event + b"}")])
        except ValueError as error:
            raise self.unproven(f"line {number} is no event: {str(error)[:100]}") from error
        self._bytes += len(line) + 1

    def _append(self, event: Event) -> None:
        self.ledger += Ledger((event,))
        if self._run is None:
            return
        # A kill after the last line may have left private.json one line behind. Two lines would not be accepted, so it
        # catches up before the next line.
        if self._private.looks < len(self._sums) - 1 or not (self._run / PRIVATE).exists():
            self._update_end()
        (entry,) = Ledger((event,)).to_json()
        text = json.dumps(entry)[:-1].encode()
        self._sums.append(_checksum(self._sums[-1], text))
        line = text + _SUM + f'{self._sums[-1]}"}}\n'.encode()
        with (self._run / JOURNAL).open("ab") as file:
            file.truncate(self._bytes)  # removes a torn line
            file.write(line)
            # The query follows at once: even a power failure must not lose its line.
            file.flush()
            os.fsync(file.fileno())
        self._bytes += len(line)
        self._update_end()

    def _update_end(self) -> None:
        self._update(looks=len(self._sums) - 1, sum=self._sums[-1])

    def _update(self, **changes: object) -> None:
        self._private = self._private.model_copy(update=changes)
        if self._run is not None:
            text = self._private.model_dump_json(indent=1).encode() + b"\n"
            write_atomically(self._run / PRIVATE, text, mode=0o600)


def _checksum(before: str, line: bytes) -> str:
    """SHA-256 of the checksum of all lines before, and a line."""
    # A chain: a line that is changed, removed or moved changes every checksum after it.
    return hashlib.sha256(before.encode() + line).hexdigest()
