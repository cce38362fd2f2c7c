"""What the result.json of every job says of its run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from synthkd.reports.results.codec import OMITTED


@dataclass(frozen=True)
class FileEntry:
    """A file that the run hands over.

    Attributes:
        bytes: its size.
        sha256: of its content, in hexadecimal.
    """

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Hardware:
    """What a run was made on, as `synthkd.system.hardware.describe` has it, and its mixed precision.

    `gpu` is None on a processor, and `precision` in full precision.
    """

    cpu: str | None = None
    cores: int | None = None
    threads: int | None = None
    gpu: str | None = None
    torch: str | None = None
    python: str | None = None
    platform: str | None = None
    precision: str | None = field(default=None, metadata=OMITTED)


@dataclass(frozen=True)
class RunCost:
    """What a run took.

    Attributes:
        seconds: stage -> seconds of wall time.
        steps: optimizer steps of the model that is trained.
        images_generated: images that entered the memory bank.
        images_made_now: images that the last start of `generate` sampled, rejected ones included.
        dataset_bytes: size of all files of the dataset.
        rounds: training rounds of a private generator.
        batch_size: images of each of these steps, over all processes.
        peak_memory_bytes: largest resident memory of the process.
    """

    seconds: Mapping[str, float] = field(default_factory=dict)
    steps: int | None = field(default=None, metadata=OMITTED)
    images_generated: int | None = field(default=None, metadata=OMITTED)
    images_made_now: int | None = field(default=None, metadata=OMITTED)
    dataset_bytes: int | None = field(default=None, metadata=OMITTED)
    rounds: int | None = field(default=None, metadata=OMITTED)
    batch_size: int | None = field(default=None, metadata=OMITTED)
    peak_memory_bytes: int | None = field(default=None, metadata=OMITTED)


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """The content of a result.json. A job fills in the fields of its own class, the end of its run those of this one.

    Attributes:
        schema: version of the format.
        job: name of the job.
        name: of the run.
        version: of synthkd.
        seed: of the run.
        finished: time of the end, ISO 8601 in UTC.
        interrupted: how often a training run was resumed; None for the other jobs.
        files: path inside the run -> size and sha256 of each file that it hands over; of a dataset only its SHA256SUMS.
        hardware: what the run was made on.
    """

    schema: int = 1
    job: str
    name: str | None = None
    version: str | None = None
    seed: int | None = None
    finished: str | None = None
    interrupted: int | None = field(default=None, metadata=OMITTED)
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    hardware: Hardware | None = None

    if TYPE_CHECKING:  # the class of each job declares it at its own place among the keys
        cost: RunCost


LAST = ("interrupted", "files", "hardware")
"""Keys that follow those of the job in the file."""
