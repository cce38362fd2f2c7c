"""The result of `evaluate`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from synthkd.metrics.named_scores import PerClass
from synthkd.metrics.score import Score
from synthkd.reports.results.base import JobResult, RunCost


@dataclass(frozen=True)
class SetName:
    """A set of images: its name and the number of its images."""

    name: str
    n: int


@dataclass(frozen=True)
class SetResult(SetName):
    """A set as it was read.

    Attributes:
        digest: sha256 of images and labels; empty or None where it is not known.
        notes: what was converted, left out or assumed.
        skipped: (file, reason) of each unreadable file that was left out.
    """

    digest: str | None = None
    notes: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class NetworkName:
    """A feature network: its name, the sha256 of its weights, and how it resizes images."""

    name: str
    digest: str
    resize: str


@dataclass(frozen=True)
class GeneratedSet(SetName):
    """A generated set and its scores.

    Attributes:
        scores: in the same order for every set.
        per_class: Frechet distance of each class; None without labels.
    """

    scores: tuple[Score, ...]
    per_class: PerClass | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluateResult(JobResult):
    """The result of `evaluate`.

    Attributes:
        seconds: wall time of all stages.
        real: the real set.
        sets: key -> every set that was read.
        extractor: the network whose features are compared.
        teacher: the network that judges labels, or None.
        class_names: one per class; empty where they are not known.
        generated: the generated sets with their scores.
        cost: what it took.
    """

    job: str = "evaluate"
    seconds: float
    real: SetName
    sets: Mapping[str, SetResult]
    extractor: NetworkName
    teacher: NetworkName | None = None
    class_names: tuple[str, ...] = ()
    generated: tuple[GeneratedSet, ...]
    cost: RunCost
