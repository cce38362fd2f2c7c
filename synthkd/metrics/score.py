"""What a score is, and the sets it is about.

A score names what its features came from (`FD-efflite0`), so that numbers of different extractors cannot be mistaken
for each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from synthkd.metrics.features import Features

Better = Literal["lower", "higher", "near"]


@dataclass(frozen=True)
class ScoredSet:
    """A set of images as its features.

    Attributes:
        name: how the set is called.
        features: features (and, of a classifier, logits) of the extractor that all sets share.
        labels: int64 `[N]` asked for or annotated; None where unknown.
        teacher: features and logits of the teacher, where there is one.
    """

    name: str
    features: Features
    labels: Tensor | None
    teacher: Features | None = None

    def __len__(self) -> int:
        return len(self.features.values)


@dataclass(frozen=True)
class Score:
    """One number about a generated set.

    Attributes:
        name: with the extractor it rests on ("FD-efflite0").
        value: the number, or None where it could not be measured; `note` says why.
        better: which direction is better; "near" where `target` is best.
        n: images of each set it rests on, generated first.
        dimension: of the features; None for counts of answers.
        uncertainty: standard error or deviation; None where `interval` says it, or nothing does.
        kind: what the uncertainty is, in words.
        interval: 95 % interval, where there is one.
        extractor, resize: what made the features; empty where none were used.
        note: what a reader must know to use the number.
        target: what images without fault would have, where that is known and neither end is best.
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


class About:
    """What all scores of one pair of sets share; with `teacher`, of the teacher's features where there is one."""

    def __init__(self, generated: ScoredSet, real: ScoredSet, teacher: bool = False) -> None:
        features = generated.teacher if teacher and generated.teacher is not None else generated.features
        self.n = (len(generated), len(real))
        self.dimension = features.values.shape[1]
        self.extractor, self.resize = features.extractor, features.resize

    def score(
        self,
        name: str,
        value: float,
        better: Better,
        uncertainty: float | None = None,
        kind: str = "",
        interval: tuple[float, float] | None = None,
        note: str = "",
        n: tuple[int, ...] | None = None,
        target: float | None = None,
    ) -> Score:
        """A score of the pair under its full name; for the arguments see `Score`."""
        full = self.name(name)
        return Score(
            full,
            value,
            better,
            n or self.n,
            self.dimension,
            uncertainty,
            kind if uncertainty is not None else "",
            interval,
            self.extractor,
            self.resize,
            note,
            target,
        )

    def missing(self, name: str, better: Better, why: str) -> Score:
        """A score that could not be measured."""
        return Score(self.name(name), None, better, self.n, note=why)

    def name(self, name: str) -> str:
        """`FD` of the FID network is the FID; of anything else it carries the extractor's name."""
        if self.extractor == "inception":
            return {"FD": "FID", "FD_inf": "FID_inf", "FD per class": "FID per class"}.get(name, name)
        return f"{name}-{self.extractor}"
