"""Every score of one set of generated images against real ones, from features that were extracted once.

A score that the available sets do not allow is listed with the reason; none is left out silently.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from synthkd.errors import DataError
from synthkd.metrics import named_scores as scores
from synthkd.metrics.named_scores import PerClass, SuiteOptions
from synthkd.metrics.score import Better, Comparison, Score, ScoredSet
from synthkd.system.shares import ALONE, Shares

FEWEST = 4
"""Smallest number of images on each side."""


@dataclass(frozen=True)
class SuiteResult:
    """All scores of one generated set.

    Attributes:
        scores: measured and missing ones, in the order of the tables.
        classes: Frechet distances by class; None if a set has no labels.
    """

    scores: tuple[Score, ...]
    classes: PerClass | None


def measure(
    generated: ScoredSet,
    real: ScoredSet,
    options: SuiteOptions,
    train: ScoredSet | None = None,
    holdout: ScoredSet | None = None,
    shares: Shares = ALONE,
) -> SuiteResult:
    """Every score that the sets allow.

    Args:
        generated: the set to judge.
        real: the set it is compared with.
        options: sizes and seed.
        train: real images that the generator or its teacher was trained on; copies of them are searched for.
        holdout: real images that neither was trained on, the yardstick for copies.
        shares: the processes, all of which have all features and get all scores.

    Raises:
        DataError: fewer than four images on a side that has no moments of more, or features of different extractors.
    """
    if _has_few_features(generated) or _has_few_features(real):
        return _of_moments(generated, real, options, shares)
    _require_comparable(generated, real, train, holdout)
    classes = scores.per_class(generated, real, shares)
    every = (
        scores.distance(generated, real, shares),
        scores.extrapolated_distance(generated, real, options, shares),
        scores.distance_per_class(generated, real, classes),
        scores.kernel_distance(generated, real, options, shares),
        *scores.precision_and_recall(generated, real, options, shares),
        scores.inception(generated, options),
        scores.label_fidelity(generated),
        scores.vendi(generated, real, options, shares),
        scores.semantics(generated, real),
        scores.collapse(generated, real, options, shares),
        *scores.copies(generated, train, holdout, options, shares),
    )
    samples = _samples(generated, real)
    return SuiteResult((every[0], *(_noted(score, samples) for score in every[1:])), classes)


def _has_few_features(one: ScoredSet) -> bool:
    """Whether a set has the moments of all features, and too few features themselves for any other score."""
    return one.whole is not None and len(one) < FEWEST


def _of_moments(generated: ScoredSet, real: ScoredSet, options: SuiteOptions, shares: Shares) -> SuiteResult:
    """FD, and every score that needs features as missing; those of the generated set alone if it has enough."""
    generated.features.check_comparable(real.features)
    pair, judge = Comparison(generated, real), (generated.teacher or generated.features).extractor
    few = [one for one in (real, generated) if _has_few_features(one)]
    has = " and ".join(f"{one.name} has {f'those of {len(one)}' if len(one) else 'moments'} only" for one in few)
    why = f"needs features of at least {FEWEST} images, and the file {has}"
    kernel = "KID" if pair.extractor == "inception" else "KD"
    names: tuple[tuple[str, Better], ...] = (
        ("FD_inf", "lower"), ("FD per class", "lower"), (kernel, "lower"), ("precision", "higher"),
        ("recall", "higher"), ("coverage", "higher"), ("density", "higher"), ("Vendi", "higher"),
        ("semantic cosine", "higher"), ("mode collapse", "lower"),
    )  # fmt: skip
    missing = [pair.missing(name, better, why) for name, better in names]
    alone = [Score(name, None, "higher", (generated.count,), note=why) for name in (f"IS-{judge}", "label fidelity")]
    if not _has_few_features(generated):
        alone = [scores.inception(generated, options), scores.label_fidelity(generated)]
    copies = [Score(name, None, "near", (generated.count,), note=why) for name in scores.COPIES]
    first = scores.distance(generated, real, shares)
    return SuiteResult((first, *missing[:7], *alone, *missing[7:], *copies), None)


def _samples(generated: ScoredSet, real: ScoredSet) -> str:
    """What of the sets is a sample, in words."""
    sides = (("generated", generated), ("real", real))
    parts = [f"{len(one):,} of {one.count:,} {side} images" for side, one in sides if len(one) < one.count]
    return f"of a uniform sample: {' and '.join(parts)}" if parts else ""


def _noted(score: Score, note: str) -> Score:
    if not note or score.value is None:
        return score
    return replace(score, note=f"{score.note}; {note}" if score.note else note)


def quick_scores(generated: ScoredSet, real: ScoredSet | None, options: SuiteOptions) -> tuple[Score, ...]:
    """The scores that are quick enough to be measured many times while a generator learns.

    Args:
        generated: the set to judge.
        real: the set it is compared with; None: only the scores that need no real images are measured.
        options: sizes and seed.

    Raises:
        DataError: fewer than four images on a side, or features of different extractors.
    """
    alone = (scores.inception(generated, options), scores.label_fidelity(generated))
    if real is None:
        return alone
    _require_comparable(generated, real)
    return (
        scores.distance(generated, real),
        scores.kernel_distance(generated, real, options),
        *scores.precision_and_recall(generated, real, options),
        *alone,
        scores.semantics(generated, real),
        scores.collapse(generated, real, options),
    )


def _require_comparable(generated: ScoredSet, real: ScoredSet, *others: ScoredSet | None) -> None:
    """Raise `DataError` for features of different extractors, or fewer than `FEWEST` images on a side."""
    # Features of different networks would give numbers that look right, so this is checked first.
    for other in (real, *others):
        if other is not None:
            generated.features.check_comparable(other.features)
    if min(len(generated), len(real)) < FEWEST:
        raise DataError(f"{generated.name} and {real.name}: scores need at least {FEWEST} images on each side")
