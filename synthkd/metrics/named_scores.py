"""Each score of a generated set as a function of features, with its uncertainty and a note on what it rests on.

A score that the sets do not allow has no value; its note has the reason. Every function takes the processes that share
the work, all of which have all features, and returns the same in each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

import numpy as np
import torch

from synthkd.errors import DataError
from synthkd.metrics.arrays import subsample
from synthkd.metrics.diversity import (
    Modes,
    cluster_modes,
    mode_collapse,
    semantic_cosine,
    vendi_score,
    vendi_with_error,
)
from synthkd.metrics.frechet import (
    few_samples,
    frechet_distance,
    frechet_distance_from_features,
    frechet_distance_infinity,
    frechet_standard_error,
)
from synthkd.metrics.inception_score import inception_score
from synthkd.metrics.kernel import kernel_distances
from synthkd.metrics.manifold import precision_recall_density_coverage
from synthkd.metrics.memorization import copying
from synthkd.metrics.score import Comparison, Score, ScoredSet
from synthkd.metrics.utility import accuracy, proportion
from synthkd.rng import stream
from synthkd.system.shares import ALONE, Shares

T = TypeVar("T")

MODES = 20
"""Number of clusters that stand for modes where no teacher predicts classes."""
COPIES = ("authenticity", "C_T", "nearer to train")
"""Names of the scores of copying."""
TOLERANCE = 1e-5
"""Relative rounding error of distances: far below their uncertainty, in a third of the default's time."""


@dataclass(frozen=True)
class SuiteOptions:
    """Sizes of the estimators.

    Attributes:
        k: neighbours for precision, recall, density and coverage.
        subsets, subset_size: of the kernel distance's spread.
        splits: of the Inception score.
        seed: of every random choice.
    """

    k: int = 5
    subsets: int = 100
    subset_size: int = 1000
    splits: int = 10
    seed: int = 0


@dataclass(frozen=True)
class PerClass:
    """Frechet distance between the generated and the real images of each class with two images on each side.

    Attributes:
        labels: the classes.
        distances: one per class.
        counts: generated images of each class.
    """

    labels: tuple[int, ...]
    distances: tuple[float, ...]
    counts: tuple[int, ...]


def per_class(generated: ScoredSet, real: ScoredSet, shares: Shares = ALONE) -> PerClass | None:
    """Frechet distance of each class that has two images in both sets; None if a set has no labels."""
    if generated.labels is None or real.labels is None:
        return None
    mine = []
    for label in shares.turns(real.labels.unique().tolist()):
        ours, theirs = generated.labels == label, real.labels == label
        if int(ours.sum()) >= 2 and int(theirs.sum()) >= 2:
            pair = real.features.values[theirs], generated.features.values[ours]
            distance = frechet_distance_from_features(*pair, tolerance=TOLERANCE, warn=False)
            mine.append((int(label), distance, int(ours.sum())))
    rows = sorted(chain.from_iterable(shares.values(mine)))
    labels, distances, counts = zip(*rows, strict=True) if rows else ((), (), ())
    return PerClass(labels, distances, counts)


def distance(generated: ScoredSet, real: ScoredSet, shares: Shares = ALONE) -> Score:
    """FD, the Frechet distance, with the standard error of its first order. It is of all images, also of a sample's."""
    pair, ours, theirs = Comparison(generated, real), generated.features.values, real.features.values
    n = (generated.count, real.count)
    few = few_samples(min(n), pair.dimension)
    if n != pair.n:
        one, other = real.moments(shares), generated.moments(shares)
        value = frechet_distance(one.mean, one.covariance, other.mean, other.covariance, tolerance=TOLERANCE)
        error = frechet_standard_error(theirs, ours, shares, n[::-1]) if min(pair.n) >= 2 else None
        return pair.score("FD", value, "lower", error, note=few, n=n)
    distance = frechet_distance_from_features(theirs, ours, tolerance=TOLERANCE, warn=False, shares=shares)
    return pair.score("FD", distance, "lower", frechet_standard_error(theirs, ours, shares), note=few)


def extrapolated_distance(
    generated: ScoredSet, real: ScoredSet, options: SuiteOptions, shares: Shares = ALONE
) -> Score:
    """FD_inf, the Frechet distance extrapolated to infinitely many images."""
    pair, ours, theirs = Comparison(generated, real), generated.features.values, real.features.values
    few = few_samples(min(pair.n), pair.dimension)
    infinity = _attempt(lambda: frechet_distance_infinity(theirs, ours, options.seed, warn=False, shares=shares))
    if isinstance(infinity, str):
        return pair.missing("FD_inf", "lower", infinity)
    kind = "standard error of the line's intercept"
    note = f"not to be trusted with fewer than {2 * pair.dimension:,} samples" if few else ""
    return pair.score("FD_inf", infinity.value, "lower", infinity.standard_error, kind, note)


def distance_per_class(generated: ScoredSet, real: ScoredSet, classes: PerClass | None) -> Score:
    """Mean over classes of the Frechet distance of each class."""
    pair, name = Comparison(generated, real), "FD per class"
    if classes is None or real.labels is None:
        return pair.missing(name, "lower", "a set has no labels")
    if not classes.labels:
        return pair.missing(name, "lower", "no class has two images in both sets")
    distances = np.array(classes.distances)
    fewest = min(*classes.counts, int(real.labels.bincount()[list(classes.labels)].min()))
    left_out = len(real.labels.unique()) - len(distances)
    notes = [
        f"classes without two images, left out: {left_out}" if left_out else "",
        few_samples(fewest, pair.dimension),
    ]
    deviation = float(distances.std(ddof=1)) if len(distances) > 1 else None
    return pair.score(
        name, float(distances.mean()), "lower", deviation, "standard deviation over classes", _joined(notes)
    )


def kernel_distance(generated: ScoredSet, real: ScoredSet, options: SuiteOptions, shares: Shares = ALONE) -> Score:
    """KD, the kernel distance; KID for Inception's features."""
    pair, ours, theirs = Comparison(generated, real), generated.features.values, real.features.values
    # Half of the images at most: subsets of all images would be equal, and have no spread.
    size = min(options.subset_size, len(ours) // 2, len(theirs) // 2)
    distances = kernel_distances(theirs, ours, options.subsets, size, options.seed, shares)
    spread = distances.spread
    note = f"{spread.subsets} subsets of {size}: {spread.mean:.4g} \N{PLUS-MINUS SIGN} {spread.std:.2g}"
    name = "KID" if pair.extractor == "inception" else "KD"
    return pair.score(name, distances.value, "lower", distances.standard_error, note=note)


def precision_and_recall(
    generated: ScoredSet, real: ScoredSet, options: SuiteOptions, shares: Shares = ALONE
) -> Iterator[Score]:
    """Precision, recall, density and coverage."""
    pair = Comparison(generated, real)
    fewest = min(pair.n)
    # Missing scores are listed too, so that all sets have the same rows in a table.
    if fewest <= options.k:
        for name in ("precision", "recall", "coverage", "density"):  # the order in which they are measured
            yield pair.missing(name, "higher", f"{fewest} images, too few for k={options.k}")
        return
    manifold = precision_recall_density_coverage(real.features.values, generated.features.values, options.k, shares)
    note = f"k={manifold.k}"
    for name, share in manifold.intervals.items():
        expected = f", {manifold.expected_coverage:.3f} expected of real images" if name == "coverage" else ""
        yield pair.score(name, share, "higher", note=note + expected)
    yield pair.score("density", manifold.density, "higher", manifold.density_error, note=note)


def inception(generated: ScoredSet, options: SuiteOptions) -> Score:
    """Inception score of the teacher's predictions, or of the extractor's without a teacher."""
    judge, n = generated.teacher or generated.features, len(generated)
    if judge.logits is None:
        return Score("IS", None, "higher", (n,), note=f"{judge.extractor} is no classifier")
    # Generated sets are often sorted by class, and each split needs all classes.
    order = torch.randperm(n, generator=stream(options.seed, "inception score"))
    score = inception_score(judge.logits.double().softmax(1)[order], min(options.splits, n))
    return Score(
        f"IS-{judge.extractor}",
        score.mean,
        "higher",
        (n,),
        uncertainty=score.std,
        kind=f"standard deviation over {score.splits} splits",
        extractor=judge.extractor,
        resize=judge.resize,
    )


def label_fidelity(generated: ScoredSet) -> Score:
    """Share of generated images that the teacher assigns to the class they were generated for."""
    name, n, teacher = "label fidelity", (len(generated),), generated.teacher
    if teacher is None or teacher.logits is None:
        return Score(name, None, "higher", n, note="needs a teacher")
    if generated.labels is None:
        return Score(name, None, "higher", n, note="the generated images have no labels")
    share = accuracy(teacher.logits.argmax(1), generated.labels)
    return Score(
        name, share.value, "higher", n, interval=share.interval, extractor=teacher.extractor, resize=teacher.resize
    )


def vendi(generated: ScoredSet, real: ScoredSet, options: SuiteOptions, shares: Shares = ALONE) -> Score:
    """Vendi score of the generated images; that of as many real ones is in the note."""
    pair = Comparison(generated, real)
    # The Vendi score grows with n, so both sides are compared at equal n.
    fewest = min(pair.n)
    ours, theirs = (
        subsample(side.features.values, fewest, stream(options.seed, "suite subset")) for side in (generated, real)
    )
    vendi = _attempt(lambda: vendi_with_error(ours, shares))
    real_vendi = _attempt(lambda: vendi_score(theirs, shares))
    if isinstance(vendi, str):
        return pair.missing("Vendi", "higher", vendi)
    note = "" if isinstance(real_vendi, str) else f"{real_vendi:.1f} of as many real images"
    return pair.score("Vendi", vendi.value, "higher", vendi.standard_error, note=note, n=(fewest,))


def semantics(generated: ScoredSet, real: ScoredSet) -> Score:
    """Mean over classes of the cosine between the mean features, generated and real."""
    pair, name = Comparison(generated, real, teacher=True), "semantic cosine"
    labels, real_labels = generated.labels, real.labels
    if labels is None or real_labels is None:
        return pair.missing(name, "higher", "a set has no labels")
    # Features of the teacher on one side and of the extractor on the other are not comparable.
    if (generated.teacher is None) != (real.teacher is None):
        return pair.missing(name, "higher", "needs the teacher's features of both sets")
    ours, theirs = ((side.teacher or side.features).values for side in (generated, real))
    cosine = _attempt(lambda: semantic_cosine(theirs, ours, real_labels, labels))
    if isinstance(cosine, str):
        return pair.missing(name, "higher", cosine)
    notes = [
        f"{cosine.across:.2f} between unlike classes" if cosine.across is not None else "",
        f"classes not generated: {len(cosine.missing_generated)}" if cosine.missing_generated else "",
    ]
    return pair.score(name, cosine.value, "higher", cosine.standard_error, note=_joined(notes))


def collapse(generated: ScoredSet, real: ScoredSet, options: SuiteOptions, shares: Shares = ALONE) -> Score:
    """Share of missed classes, as the teacher predicts them; of missed clusters without a teacher."""
    pair, name = Comparison(generated, real, teacher=True), "mode collapse"
    # The classes that the teacher predicts and not those that were asked for: a generator that draws cats for every
    # label must not pass.
    if generated.teacher is not None and generated.teacher.logits is not None and real.labels is not None:
        kind, modes = "classes", Modes(real.labels, generated.teacher.logits.argmax(1))
    else:
        # k-means gets one half of the real images and the other half is the holdout set: on the images that the centres
        # were fitted to, modes would look more frequent than they are.
        half = len(real) // 2
        if half < MODES:
            return pair.missing(name, "lower", f"{len(real)} real images, too few for {MODES} clusters")
        order = torch.randperm(len(real), generator=stream(options.seed, "mode halves"))
        theirs = real.features.values
        holdout, rest = theirs[order[:half]], theirs[order[half:]]
        kind, modes = "clusters", cluster_modes(rest, holdout, generated.features.values, MODES, options.seed, shares)
    collapse = mode_collapse(modes.holdout, modes.generated)
    missed, judged, too_rare = len(collapse.missed), len(collapse.judged), len(collapse.too_rare)
    if not judged:
        return pair.missing(name, "lower", f"too few images to judge any of the {kind}")
    note = f"{missed} of {judged} {kind} missed" + (f", {too_rare} too rare to judge" if too_rare else "")
    n = (len(modes.generated), len(modes.holdout))
    return pair.score(name, proportion(missed, judged), "lower", note=note, n=n)


def copies(
    generated: ScoredSet,
    train: ScoredSet | None,
    holdout: ScoredSet | None,
    options: SuiteOptions,
    shares: Shares = ALONE,
) -> Iterator[Score]:
    """Authenticity, C_T and the share nearer to a training image than to a held-out one."""
    if train is None or holdout is None:
        for name in COPIES:
            why = "needs train= and holdout=, real images learned from and not"
            yield Score(name, None, "near", (len(generated),), note=why)
        return
    pair, n = Comparison(generated, train), (len(generated), len(train), len(holdout))
    copies = copying(train.features.values, holdout.features.values, generated.features.values, options.seed, shares)
    # Even fresh real images do not reach an authenticity of 1, so the holdout set says what is best.
    note = "lower: copies; higher: far from all training images; the target is that of the holdout"
    target = copies.authenticity_of_holdout.value
    yield pair.score("authenticity", copies.authenticity, "near", note=note, n=n, target=target)
    note = "below -3: copies, or bland images where authenticity is high; above 3: far from the training images"
    yield pair.score("C_T", copies.statistic, "near", 1.0, "its deviation without copying", note, n, 0.0)
    ratios = copies.ratios
    note = f"higher: copies; median distance ratio {ratios.median:.3f}, {ratios.n_each:,} images on each side"
    yield pair.score("nearer to train", ratios.nearer_to_train, "near", note=note, n=n, target=0.5)


def _joined(notes: list[str]) -> str:
    return "; ".join(filter(None, notes))


def _attempt(run: Callable[[], T]) -> T | str:
    """The result, or the reason why the data do not allow it."""
    try:
        return run()
    except DataError as error:
        return str(error)
