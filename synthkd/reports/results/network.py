"""The result of `evaluate` with a model: how good a network is."""

from __future__ import annotations

from dataclasses import dataclass, field

from synthkd.metrics.quality import Quality
from synthkd.metrics.utility import Proportion
from synthkd.reports.results.base import JobResult, RunCost
from synthkd.reports.results.evaluation import SetResult


@dataclass(frozen=True)
class EvaluatedNetwork:
    """A network that was evaluated.

    Attributes:
        name: its path.
        form: what the path holds, in words.
        spec: images and classes, in words.
        digest: sha256 of the file, or of the weights.
    """

    name: str
    form: str
    spec: str
    digest: str


@dataclass(frozen=True)
class Against:
    """Another network on the same images.

    Attributes:
        network: the other one.
        agreement: share of the images for which both give the same class.
        top1: share for which the other one is right; None without labels.
        only_model, only_other: number of images for which one of them alone is right; None without labels.
    """

    network: EvaluatedNetwork
    agreement: Proportion
    top1: Proportion | None = None
    only_model: int | None = None
    only_other: int | None = None


@dataclass(frozen=True, kw_only=True)
class NetworkResult(JobResult):
    """The result of `evaluate model=...`.

    Attributes:
        seconds: wall time.
        model: the network.
        images: the set as it was read.
        class_names: one per class of the network, or its numbers.
        quality: on the labels of the set; None for a set without labels, which is only compared with `against`.
        against: another network, or None.
        cost: what it took.
    """

    job: str = "evaluate_model"
    seconds: float
    model: EvaluatedNetwork
    images: SetResult
    class_names: tuple[str, ...] = ()
    quality: Quality | None = None
    against: Against | None = None
    cost: RunCost = field(default_factory=RunCost)
