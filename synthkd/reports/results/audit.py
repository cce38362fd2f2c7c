"""The result of `audit`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from synthkd.privacy.copies import NearCopies
from synthkd.privacy.rates import AttackSummary
from synthkd.privacy.verdict import Check, Verdict
from synthkd.reports.results.base import JobResult, RunCost
from synthkd.reports.results.evaluation import SetName


@dataclass(frozen=True)
class AuditedModel:
    """A model that was attacked: its size, the number of its reference models, and the attack that shows most."""

    parameters: int
    references: int
    headline: AttackSummary


@dataclass(frozen=True)
class RatioResult:
    """A `synthkd.privacy.rates.RateRatio` whose infinite upper end is None."""

    value: float | None
    low: float
    high: float | None
    error: float
    method: str


@dataclass(frozen=True)
class CopyResult:
    """A `synthkd.privacy.copies.CopyTest` without the rows of private images.

    Attributes:
        note: what the test is no evidence of.
        space: what was compared, in words.
    """

    note: str
    space: str
    nearer_to_train: float
    p_value: float
    permutations: int
    n_generated: int
    n_each: int
    near_copies: NearCopies
    closest_distances: tuple[float, ...]


@dataclass(frozen=True)
class AuditedSet(SetName):
    """A list of images: what was converted or assumed, and the number of unreadable files that were left out."""

    notes: tuple[str, ...]
    skipped: int


@dataclass(frozen=True, kw_only=True)
class AuditResult(JobResult):
    """The result of `audit`.

    Attributes:
        seconds: wall time of all stages.
        verdict: of the privacy report.
        label: what kind of evidence it is.
        checks: without which the attacks say nothing.
        models: teacher, student -> what was found.
        ratio: true positives of the student over those of the teacher, or None.
        copies: of members among synthetic images; empty where none were given.
        sets: members, nonmembers and so on -> the list.
        digests: key of the configuration -> sha256 of the weights, or of images and labels.
        cost: what it took.
    """

    job: str = "audit"
    seconds: float
    verdict: Verdict
    label: str
    checks: tuple[Check, ...]
    models: Mapping[str, AuditedModel]
    ratio: RatioResult | None = None
    copies: tuple[CopyResult, ...]
    sets: Mapping[str, AuditedSet]
    digests: Mapping[str, str]
    cost: RunCost
