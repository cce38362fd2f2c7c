"""Every score of one set of generated images against real ones, from features that were extracted once.

A score names what its features came from (`FD-efflite0`), so that numbers of different extractors cannot be mistaken
for each other; what cannot be measured with what is at hand is listed with the reason, never left out silently.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from synthkd.errors import DataError
from synthkd.metrics.diversity import Modes, cluster_modes, mode_collapse, semantic_cosine, vendi_score
from synthkd.metrics.features import Features
from synthkd.metrics.frechet import frechet_distance_from_features, frechet_distance_infinity
from synthkd.metrics.inception_score import inception_score
from synthkd.metrics.kernel import kernel_distance, kernel_distance_subsets
from synthkd.metrics.manifold import precision_recall_density_coverage
from synthkd.metrics.memorization import copying
from synthkd.metrics.utility import accuracy, proportion
from synthkd.rng import stream

Found = TypeVar("Found")
Better = Literal["lower", "higher", "near"]

MODES = 20
"""Clusters that stand for modes where there is no teacher to name classes."""
FEWEST = 4
"""Images that the smallest estimators need."""


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


@dataclass(frozen=True)
class SuiteOptions:
    """Sizes of the estimators.

    Attributes:
        k: neighbours of precision, recall, density and coverage.
        subsets, subset_size: of the kernel distance's spread.
        splits: of the Inception score.
        seed: of every draw.
    """

    k: int = 5
    subsets: int = 100
    subset_size: int = 1000
    splits: int = 10
    seed: int = 0


@dataclass(frozen=True)
class PerClass:
    """Frechet distance of each class to the real images of that class; NaN-free: classes without enough images miss.

    Attributes:
        labels: the classes measured.
        distances: one per class.
        counts: generated images of each.
    """

    labels: tuple[int, ...]
    distances: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Measured:
    """What was found out about one generated set; `classes` is None where a set has no labels."""

    scores: tuple[Score, ...]
    classes: PerClass | None


def measure(
    generated: ScoredSet,
    real: ScoredSet,
    options: SuiteOptions,
    train: ScoredSet | None = None,
    holdout: ScoredSet | None = None,
) -> Measured:
    """Every score that the sets at hand allow.

    Args:
        generated: what is judged.
        real: what it is judged against.
        options: sizes and seed.
        train: real images that the generator, or its teacher, learned from; copying is looked for among them.
        holdout: real images that it did not learn from, the yardstick of copying.

    Raises:
        DataError: fewer than four images on a side, or features that do not compare.
    """
    for other in (real, train, holdout):
        if other is not None:
            generated.features.check_comparable(other.features)
    if min(len(generated), len(real)) < FEWEST:
        raise DataError(f"{generated.name} and {real.name}: scores need at least {FEWEST} images on each side")
    with _noted():
        classes = per_class(generated, real)
        scores = (
            *_distances(generated, real, classes, options),
            *_manifold(generated, real, options),
            *_answers(generated, options),
            *_diversity(generated, real, options),
            *_copying(generated, train, holdout, options),
        )
    return Measured(scores, classes)


@contextmanager
def _noted() -> Iterator[None]:
    """The distance warns of few images each time it is asked; here the scores carry that as a note."""
    logger = logging.getLogger("synthkd.metrics.frechet")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def per_class(generated: ScoredSet, real: ScoredSet) -> PerClass | None:
    """Frechet distance of each class that both sets have two images of; None where a set has no labels."""
    if generated.labels is None or real.labels is None:
        return None
    labels, distances, counts = [], [], []
    for label in real.labels.unique().tolist():
        ours, theirs = generated.labels == label, real.labels == label
        if int(ours.sum()) >= 2 and int(theirs.sum()) >= 2:
            labels.append(int(label))
            distances.append(
                frechet_distance_from_features(real.features.values[theirs], generated.features.values[ours])
            )
            counts.append(int(ours.sum()))
    return PerClass(tuple(labels), tuple(distances), tuple(counts))


def _distances(
    generated: ScoredSet, real: ScoredSet, classes: PerClass | None, options: SuiteOptions
) -> Iterator[Score]:
    ours, theirs = generated.features.values, real.features.values
    about = _About(generated, real)
    few = about.few()
    infinity = _tried(lambda: frechet_distance_infinity(theirs, ours, options.seed))
    yield about.score("FD", frechet_distance_from_features(theirs, ours), "lower", note=few)
    if isinstance(infinity, str):
        yield about.missing("FD_inf", "lower", infinity)
    else:
        yield about.score(
            "FD_inf", infinity.value, "lower", infinity.standard_error, "standard error of the line's intercept"
        )
    if classes is None:
        yield about.missing("FD per class", "lower", "a set has no labels")
    elif not classes.labels:
        yield about.missing("FD per class", "lower", "no class has two images in both sets")
    else:
        values = np.array(classes.distances)
        left_out = len(real.labels.unique()) - len(values) if real.labels is not None else 0
        yield about.score(
            "FD per class",
            float(values.mean()),
            "lower",
            float(values.std(ddof=1)) if len(values) > 1 else None,
            "standard deviation over classes",
            note="; ".join(filter(None, [f"{left_out} classes without two images left out" if left_out else "", few])),
        )
    size = min(options.subset_size, len(ours) // 2, len(theirs) // 2)  # of all images every subset would be the same
    subsets = kernel_distance_subsets(theirs, ours, options.subsets, size, options.seed)
    yield about.score(
        "KID" if about.extractor == "inception" else "KD",
        kernel_distance(theirs, ours),
        "lower",
        subsets.std,
        f"standard deviation over {subsets.subsets} subsets of {size}",
    )


def _answers(generated: ScoredSet, options: SuiteOptions) -> Iterator[Score]:
    """What a classifier says of the images: the teacher where there is one, else the extractor."""
    judge = generated.teacher or generated.features
    if judge.logits is None:
        yield Score("IS", None, "higher", (len(generated),), note=f"{judge.extractor} is no classifier")
    else:
        probabilities = judge.logits.double().softmax(1)
        order = torch.randperm(len(probabilities), generator=stream(options.seed, "inception score"))
        found = inception_score(probabilities[order], min(options.splits, len(probabilities)))
        yield Score(
            f"IS-{judge.extractor}", found.mean, "higher", (len(generated),), None, found.std,
            f"standard deviation over {found.splits} splits", None, judge.extractor, judge.resize,
        )  # fmt: skip
    if generated.teacher is None or generated.teacher.logits is None:
        yield Score("label fidelity", None, "higher", (len(generated),), note="needs a teacher")
    elif generated.labels is None:
        yield Score("label fidelity", None, "higher", (len(generated),), note="the generated images have no labels")
    else:
        share = accuracy(generated.teacher.logits.argmax(1), generated.labels)
        yield Score(
            "label fidelity", share.value, "higher", (share.n,), None, None, "", (share.low, share.high),
            generated.teacher.extractor, generated.teacher.resize,
        )  # fmt: skip


def _manifold(generated: ScoredSet, real: ScoredSet, options: SuiteOptions) -> Iterator[Score]:
    about = _About(generated, real)
    fewest = min(about.n)
    names = ("precision", "recall", "density", "coverage")
    if fewest <= options.k:
        yield from (about.missing(name, "higher", f"{fewest} images, too few for k={options.k}") for name in names)
        return
    found = precision_recall_density_coverage(real.features.values, generated.features.values, options.k)
    note = f"k={found.k}"
    for name, share in found.intervals.items():
        expected = f", {found.expected_coverage:.3f} expected of real images" if name == "coverage" else ""
        yield about.score(name, share.value, "higher", interval=(share.low, share.high), note=note + expected)
    yield about.score("density", found.density, "higher", found.density_error, "standard error", note=note)


def _diversity(generated: ScoredSet, real: ScoredSet, options: SuiteOptions) -> Iterator[Score]:
    about = _About(generated, real)
    ours, theirs = generated.features.values, real.features.values
    # the score grows with n, so both sides have equally many
    fewest = min(about.n)
    vendi = _tried(lambda: vendi_score(_subset(ours, fewest, options.seed)))
    of_real = _tried(lambda: vendi_score(_subset(theirs, fewest, options.seed)))
    if isinstance(vendi, str):
        yield about.missing("Vendi", "higher", vendi)
    else:
        note = "" if isinstance(of_real, str) else f"{of_real:.1f} of as many real images"
        yield about.score("Vendi", vendi, "higher", n=(fewest,), note=note)
    yield from _semantics(generated, real)
    yield from _collapse(generated, real, options)


def _semantics(generated: ScoredSet, real: ScoredSet) -> Iterator[Score]:
    about = _About(generated, real, teacher=True)
    if generated.labels is None or real.labels is None:
        yield about.missing("semantic cosine", "higher", "a set has no labels")
        return
    theirs = real.teacher or real.features
    ours = generated.teacher or generated.features
    asked, known = generated.labels, real.labels
    found = _tried(lambda: semantic_cosine(theirs.values, ours.values, known, asked))
    if isinstance(found, str):
        yield about.missing("semantic cosine", "higher", found)
        return
    values = np.array(list(found.per_class.values()))
    notes = [f"{found.across:.2f} between unlike classes" if found.across is not None else ""]
    notes.append(f"{len(found.missing_generated)} classes not generated" if found.missing_generated else "")
    yield about.score(
        "semantic cosine",
        found.value,
        "higher",
        float(values.std(ddof=1)) if len(values) > 1 else None,
        "standard deviation over classes",
        note="; ".join(filter(None, notes)),
    )


def _collapse(generated: ScoredSet, real: ScoredSet, options: SuiteOptions) -> Iterator[Score]:
    """Missed classes, as the teacher sees them; missed clusters where there is no teacher."""
    about = _About(generated, real, teacher=True)
    if generated.teacher is not None and generated.teacher.logits is not None and real.labels is not None:
        modes = Modes(real.labels, generated.teacher.logits.argmax(1))
        kind = "classes"
    else:
        order = torch.randperm(len(real), generator=stream(options.seed, "mode halves"))
        half = len(real) // 2
        if half < MODES:
            yield about.missing("mode collapse", "lower", f"{len(real)} real images, too few for {MODES} clusters")
            return
        theirs = real.features.values
        modes = cluster_modes(
            theirs[order[half:]], theirs[order[:half]], generated.features.values, MODES, options.seed
        )
        kind = "clusters"
    found = mode_collapse(modes.holdout, modes.generated)
    if not found.judged:
        yield about.missing("mode collapse", "lower", f"too few images to judge any of the {kind}")
        return
    share = proportion(len(found.missed), len(found.judged))
    rare = f", {len(found.too_rare)} too rare to judge" if found.too_rare else ""
    yield about.score(
        "mode collapse", share.value, "lower", interval=(share.low, share.high),
        note=f"{len(found.missed)} of {len(found.judged)} {kind} missed{rare}",
        n=(len(modes.generated), len(modes.holdout)),
    )  # fmt: skip


def _copying(
    generated: ScoredSet, train: ScoredSet | None, holdout: ScoredSet | None, options: SuiteOptions
) -> Iterator[Score]:
    if train is None or holdout is None:
        why = "needs train= and holdout=, real images learned from and not"
        for name in ("authenticity", "C_T", "nearer to train"):
            yield Score(name, None, "near", (len(generated),), note=why)
        return
    about = _About(generated, train)
    n = (len(generated), len(train), len(holdout))
    found = copying(train.features.values, holdout.features.values, generated.features.values, options.seed)
    share, honest, ratios = found.authenticity, found.authenticity_of_holdout, found.ratios
    yield about.score(
        "authenticity", share.value, "near", interval=(share.low, share.high), n=n, target=honest.value,
        note="lower: copies; higher: far from all training images; the target is that of the holdout",
    )  # fmt: skip
    yield about.score(
        "C_T", found.statistic, "near", 1.0, "its deviation without copying", n=n, target=0.0,
        note="below -3: copies; above 3: far from the training images",
    )  # fmt: skip
    share = ratios.nearer_to_train
    yield about.score(
        "nearer to train", share.value, "near", interval=(share.low, share.high), n=n, target=0.5,
        note=f"higher: copies; median distance ratio {ratios.median:.3f}, {ratios.n_each:,} images on each side",
    )  # fmt: skip


def _subset(values: Tensor, count: int, seed: int) -> Tensor:
    if count == len(values):
        return values
    return values[torch.randperm(len(values), generator=stream(seed, "suite subset"))[:count]]


def _tried(run: Callable[[], Found]) -> Found | str:
    """The result, or why the data at hand do not allow it."""
    try:
        return run()
    except DataError as error:
        return str(error)


class _About:
    """What all scores of one pair of sets share."""

    def __init__(self, generated: ScoredSet, real: ScoredSet, teacher: bool = False) -> None:
        features = generated.teacher if teacher and generated.teacher is not None else generated.features
        self.n = (len(generated), len(real))
        self.dimension = features.values.shape[1]
        self.extractor, self.resize = features.extractor, features.resize

    def few(self) -> str:
        """A warning where a covariance of so many dimensions rests on too few images."""
        fewest = min(self.n)
        if fewest >= 2 * self.dimension:
            return ""
        return f"{fewest:,} images are few for {self.dimension:,} dimensions: biased upwards, compare equal n only"

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
        full = self.name(name)
        return Score(
            full, value, better, n or self.n, self.dimension, uncertainty, kind if uncertainty is not None else "",
            interval, self.extractor, self.resize, note, target,
        )  # fmt: skip

    def missing(self, name: str, better: Better, why: str) -> Score:
        return Score(self.name(name), None, better, self.n, note=why)

    def name(self, name: str) -> str:
        """`FD` of the FID network is the FID; of anything else it carries the extractor's name."""
        if self.extractor == "inception":
            return {"FD": "FID", "FD_inf": "FID_inf", "FD per class": "FID per class"}.get(name, name)
        return f"{name}-{self.extractor}"
