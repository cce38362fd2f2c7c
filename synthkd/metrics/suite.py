"""Every score of one set of generated images against real ones, from features that were extracted once.

What cannot be measured with what is at hand is listed with the reason, never left out silently.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
    frechet_distance_from_features,
    frechet_distance_infinity,
    frechet_standard_error,
)
from synthkd.metrics.inception_score import inception_score
from synthkd.metrics.kernel import kernel_distances
from synthkd.metrics.manifold import precision_recall_density_coverage
from synthkd.metrics.memorization import copying
from synthkd.metrics.score import About, Score, ScoredSet
from synthkd.metrics.utility import accuracy, proportion
from synthkd.rng import stream

Found = TypeVar("Found")

MODES = 20
"""Clusters that stand for modes where there is no teacher to name classes."""
FEWEST = 4
"""Images that the smallest estimators need."""
TOLERANCE = 1e-5
"""Relative rounding that distances may have: far below their uncertainty, and three times as fast as none."""


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
    classes = per_class(generated, real)
    scores = (
        *_distances(generated, real, classes, options),
        *_manifold(generated, real, options),
        *_answers(generated, options),
        *_diversity(generated, real, options),
        *_copying(generated, train, holdout, options),
    )
    return Measured(scores, classes)


def per_class(generated: ScoredSet, real: ScoredSet) -> PerClass | None:
    """Frechet distance of each class that both sets have two images of; None where a set has no labels."""
    if generated.labels is None or real.labels is None:
        return None
    labels, distances, counts = [], [], []
    for label in real.labels.unique().tolist():
        ours, theirs = generated.labels == label, real.labels == label
        if int(ours.sum()) >= 2 and int(theirs.sum()) >= 2:
            labels.append(int(label))
            pair = real.features.values[theirs], generated.features.values[ours]
            distances.append(frechet_distance_from_features(*pair, tolerance=TOLERANCE, warn=False))
            counts.append(int(ours.sum()))
    return PerClass(tuple(labels), tuple(distances), tuple(counts))


def _distances(
    generated: ScoredSet, real: ScoredSet, classes: PerClass | None, options: SuiteOptions
) -> Iterator[Score]:
    ours, theirs = generated.features.values, real.features.values
    about = About(generated, real)
    few = few_samples(min(about.n), about.dimension)
    infinity = _tried(lambda: frechet_distance_infinity(theirs, ours, options.seed, warn=False))
    distance = frechet_distance_from_features(theirs, ours, tolerance=TOLERANCE, warn=False)
    yield about.score("FD", distance, "lower", frechet_standard_error(theirs, ours), "standard error", note=few)
    if isinstance(infinity, str):
        yield about.missing("FD_inf", "lower", infinity)
    else:
        yield about.score(
            "FD_inf", infinity.value, "lower", infinity.standard_error, "standard error of the line's intercept",
            note=f"not to be trusted with fewer than {2 * about.dimension:,} samples" if few else "",
        )  # fmt: skip
    if classes is None:
        yield about.missing("FD per class", "lower", "a set has no labels")
    elif not classes.labels:
        yield about.missing("FD per class", "lower", "no class has two images in both sets")
    else:
        values = np.array(classes.distances)
        left_out = len(real.labels.unique()) - len(values) if real.labels is not None else 0
        lacking = f"classes without two images, left out: {left_out}" if left_out else ""
        yield about.score(
            "FD per class",
            float(values.mean()),
            "lower",
            float(values.std(ddof=1)) if len(values) > 1 else None,
            "standard deviation over classes",
            note="; ".join(filter(None, [lacking, few])),
        )
    size = min(options.subset_size, len(ours) // 2, len(theirs) // 2)  # of all images every subset would be the same
    found = kernel_distances(theirs, ours, options.subsets, size, options.seed)
    spread = found.spread
    yield about.score(
        "KID" if about.extractor == "inception" else "KD",
        found.value,
        "lower",
        found.standard_error,
        "standard error",
        note=f"{spread.subsets} subsets of {size}: {spread.mean:.4g} \N{PLUS-MINUS SIGN} {spread.std:.2g}",
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
            f"IS-{judge.extractor}",
            found.mean,
            "higher",
            (len(generated),),
            uncertainty=found.std,
            kind=f"standard deviation over {found.splits} splits",
            extractor=judge.extractor,
            resize=judge.resize,
        )
    if generated.teacher is None or generated.teacher.logits is None:
        yield Score("label fidelity", None, "higher", (len(generated),), note="needs a teacher")
    elif generated.labels is None:
        yield Score("label fidelity", None, "higher", (len(generated),), note="the generated images have no labels")
    else:
        share = accuracy(generated.teacher.logits.argmax(1), generated.labels)
        yield Score(
            "label fidelity",
            share.value,
            "higher",
            (share.n,),
            interval=(share.low, share.high),
            extractor=generated.teacher.extractor,
            resize=generated.teacher.resize,
        )


def _manifold(generated: ScoredSet, real: ScoredSet, options: SuiteOptions) -> Iterator[Score]:
    about = About(generated, real)
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
    about = About(generated, real)
    ours, theirs = generated.features.values, real.features.values
    # the score grows with n, so both sides have equally many
    fewest = min(about.n)
    some, others = (subsample(x, fewest, stream(options.seed, "suite subset")) for x in (ours, theirs))
    vendi, of_real = _tried(lambda: vendi_with_error(some)), _tried(lambda: vendi_score(others))
    if isinstance(vendi, str):
        yield about.missing("Vendi", "higher", vendi)
    else:
        note = "" if isinstance(of_real, str) else f"{of_real:.1f} of as many real images"
        value, error = vendi.value, vendi.standard_error
        yield about.score("Vendi", value, "higher", error, "standard error", note=note, n=(fewest,))
    yield from _semantics(generated, real)
    yield from _collapse(generated, real, options)


def _semantics(generated: ScoredSet, real: ScoredSet) -> Iterator[Score]:
    about = About(generated, real, teacher=True)
    if generated.labels is None or real.labels is None:
        yield about.missing("semantic cosine", "higher", "a set has no labels")
        return
    if (generated.teacher is None) != (real.teacher is None):
        yield about.missing("semantic cosine", "higher", "needs the teacher's features of both sets")
        return
    theirs = real.teacher or real.features
    ours = generated.teacher or generated.features
    asked, known = generated.labels, real.labels
    found = _tried(lambda: semantic_cosine(theirs.values, ours.values, known, asked))
    if isinstance(found, str):
        yield about.missing("semantic cosine", "higher", found)
        return
    notes = [f"{found.across:.2f} between unlike classes" if found.across is not None else ""]
    notes.append(f"classes not generated: {len(found.missing_generated)}" if found.missing_generated else "")
    note = "; ".join(filter(None, notes))
    yield about.score("semantic cosine", found.value, "higher", found.standard_error, "standard error", note=note)


def _collapse(generated: ScoredSet, real: ScoredSet, options: SuiteOptions) -> Iterator[Score]:
    """Missed classes, as the teacher sees them; missed clusters where there is no teacher."""
    about = About(generated, real, teacher=True)
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
    about = About(generated, train)
    n = (len(generated), len(train), len(holdout))
    found = copying(train.features.values, holdout.features.values, generated.features.values, options.seed)
    share, honest, ratios = found.authenticity, found.authenticity_of_holdout, found.ratios
    yield about.score(
        "authenticity", share.value, "near", interval=(share.low, share.high), n=n, target=honest.value,
        note="lower: copies; higher: far from all training images; the target is that of the holdout",
    )  # fmt: skip
    yield about.score(
        "C_T", found.statistic, "near", 1.0, "its deviation without copying", n=n, target=0.0,
        note="below -3: copies, or bland images where authenticity is high; above 3: far from the training images",
    )  # fmt: skip
    share = ratios.nearer_to_train
    yield about.score(
        "nearer to train", share.value, "near", interval=(share.low, share.high), n=n, target=0.5,
        note=f"higher: copies; median distance ratio {ratios.median:.3f}, {ratios.n_each:,} images on each side",
    )  # fmt: skip


def _tried(run: Callable[[], Found]) -> Found | str:
    """The result, or why the data at hand do not allow it."""
    try:
        return run()
    except DataError as error:
        return str(error)
