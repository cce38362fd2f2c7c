"""One number about a generated set, with its uncertainty, and the sets of features that scores compare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from synthkd.metrics.arrays import rows
from synthkd.metrics.features import Features
from synthkd.metrics.statistics import FeatureStatistics, Whole
from synthkd.metrics.utility import Proportion
from synthkd.system.shares import ALONE, Shares

Better = Literal["lower", "higher", "near"]


@dataclass(frozen=True)
class ScoredSet:
    """A set of images, given by its features.

    Attributes:
        name: of the set in tables.
        features: features (and logits, if the network is a classifier) of the extractor that all sets share.
        labels: int64 `[N]`, the classes the images were generated for or annotated with; None if unknown.
        teacher: features and logits of the teacher; None without one.
        whole: the images of which these features are a uniform sample; None if these are all.
    """

    name: str
    features: Features
    labels: Tensor | None
    teacher: Features | None = None
    whole: Whole | None = None

    def __len__(self) -> int:
        return len(self.features.values)

    @property
    def count(self) -> int:
        """Number of images, also of those whose features are not here."""
        return len(self) if self.whole is None else self.whole.moments.n

    def moments(self, shares: Shares = ALONE) -> FeatureStatistics:
        """Of the features of all images.

        Args:
            shares: the processes, all of which have all features.
        """
        if self.whole is not None:
            return self.whole.moments
        return FeatureStatistics.shared(rows(self.features.values, self.name), shares)


@dataclass(frozen=True)
class Score:
    """One number about a generated set.

    Attributes:
        name: with the extractor of its features ("FD-efflite0").
        value: the number; None if it could not be measured, and `note` says why.
        better: which direction is better; "near" if `target` is best.
        n: numbers of images it is based on, generated first.
        dimension: of the features; None for shares of predictions.
        uncertainty: standard error or deviation; None if there is none, or an interval instead.
        kind: what the uncertainty is, in words.
        interval: 95 % interval, if there is one.
        extractor, resize: network and resizing of the features; empty if none were used.
        note: what a reader must know to use the number.
        target: value of perfect images, if it is known and neither end of the scale is best.
    """

    name: str
    value: float | None
    better: Better
    n: tuple[int, ...]
    dimension: int | None = None
    uncertainty: float | None = None
    kind: str = ""
    interval: tuple[float, float] | None = None
    extractor: str = ""
    resize: str = ""
    note: str = ""
    target: float | None = None


class Comparison:
    """Makes the scores of one pair of sets, which share the numbers of images and the extractor.

    Args:
        generated, real: the sets.
        teacher: make scores of the teacher's features, if the generated set has them.
    """

    def __init__(self, generated: ScoredSet, real: ScoredSet, teacher: bool = False) -> None:
        features = generated.teacher if teacher and generated.teacher is not None else generated.features
        self.n = (len(generated), len(real))
        self.dimension = features.values.shape[1]
        self.extractor, self.resize = features.extractor, features.resize

    def score(
        self,
        name: str,
        value: float | Proportion,
        better: Better,
        uncertainty: float | None = None,
        kind: str = "standard error",
        note: str = "",
        n: tuple[int, ...] | None = None,
        target: float | None = None,
    ) -> Score:
        """A score of the pair.

        Args:
            name: without the extractor.
            value: the number; of a proportion also the interval.
            n: other numbers of images than those of the pair.
            better, uncertainty, kind, note, target: as in `Score`; `kind` is left out without an uncertainty.
        """
        number, interval = (value.value, value.interval) if isinstance(value, Proportion) else (value, None)
        return Score(
            name=self.full_name(name),
            value=number,
            better=better,
            n=n or self.n,
            dimension=self.dimension,
            uncertainty=uncertainty,
            kind="" if uncertainty is None else kind,
            interval=interval,
            extractor=self.extractor,
            resize=self.resize,
            note=note,
            target=target,
        )

    def missing(self, name: str, better: Better, why: str) -> Score:
        """A score that could not be measured, with the reason."""
        return Score(self.full_name(name), None, better, self.n, note=why)

    def full_name(self, name: str) -> str:
        """The name with the extractor; the `FD` of the Inception network is called FID."""
        # Numbers of different networks cannot be compared, so their names must differ.
        if self.extractor == "inception":
            return {"FD": "FID", "FD_inf": "FID_inf", "FD per class": "FID per class"}.get(name, name)
        return f"{name}-{self.extractor}"
