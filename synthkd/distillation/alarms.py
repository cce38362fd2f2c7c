"""Signs of a failing distillation that need no real data.

Each test compares a number with a threshold. The thresholds are rules of thumb: they separated runs that worked from
runs that were broken on purpose. Every alarm therefore reports its threshold beside the number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from synthkd.metrics.utility import Proportion
from synthkd.types import BatchNormStatistics

ONE_CLASS = "one class"
"""Name of the alarm about a model that predicts hardly more than one class; the headline of a report repeats it."""
NEAR_CHANCE = "broken teacher"
"""Name of the alarm about a teacher that is right hardly more often than by chance; a headline says nothing else."""
LEAST_SKILL = 0.5
"""Smallest accuracy of a teacher above chance, as a fraction of chance times the rest: 1.45 / K of ten classes."""
IMBALANCE = 0.25
"""Smallest share of a class, as a fraction of an equal share."""
MOST_NAMED = 10
"""Largest number of rare classes that a message names."""
LEAST_PER_CLASS = 20
"""Smallest mean number of images per class for a judgement of a class; with fewer, one may be missing by chance."""
LEAST_FOR_ALL = 100
"""Smallest number of images for a judgement of how many classes there are."""
LEAST_ALIKE = 5
"""Smallest number of images of a class for a judgement of it alone: of many single pairs one is alike by chance."""
COLLAPSE = 0.9
"""Largest mean cosine similarity of centred teacher features within a class."""
STATISTICS_GAP = 0.5
"""Largest mean distance of BatchNorm means, in stored standard deviations."""
STALE = 0.05
"""Largest fall of the agreement on fresh samples below its best. A rise of less than twice this is no learning."""
DIVERGED, FALLING = 1.5, 0.9
"""A loss that fell ends below the first times its lowest, and below the second times its start."""
LEAST_ROUNDS = 8
"""Smallest number of rounds with a measured agreement for a judgement."""
OTHERS = 0.05
"""Smallest number of predictions of other classes than the most frequent one, as a fraction of the correct number."""
LEAST_OTHERS = 20
"""Smallest number of images of other classes, and of test images of a teacher, for a judgement."""


@dataclass(frozen=True)
class Alarm:
    """One test that failed.

    Attributes:
        name: short name of the test.
        message: what was measured, what it means and what to do, in one line.
        value: the measured number.
        threshold: the bound that it broke.
    """

    name: str
    message: str
    value: float
    threshold: float


def class_imbalance(teacher_logits: Tensor, remedy: str) -> Alarm | None:
    """The alarm if a class is predicted much less often than an equal share, else None.

    Of too few images per class for that, the alarm is about the number of classes that are predicted: an equal share of
    N images and K classes has `K (1 - (1 - 1/K)^N)` of them on average.

    Args:
        teacher_logits: the teacher's logits of the images, `[N, K]`.
        remedy: what to do, for the message.
    """
    classes = teacher_logits.shape[1]
    counts, n = torch.bincount(teacher_logits.argmax(1), minlength=classes), len(teacher_logits)
    if n < LEAST_PER_CLASS * classes:
        present, expected = int((counts > 0).sum()), classes * (1 - (1 - 1 / classes) ** n)
        if n < LEAST_FOR_ALL or present >= IMBALANCE * expected:
            return None
        return Alarm(
            "class imbalance",
            f"the teacher sees {present:,} of {classes:,} classes in {n:,} images, of which an equal share "
            f"would have about {expected:,.0f}: {remedy}",
            present / expected,
            IMBALANCE,
        )
    shares = (counts.double() * classes / n).tolist()
    rare = sorted((share, label) for label, share in enumerate(shares) if share < IMBALANCE)
    if not rare:
        return None
    return Alarm(
        "class imbalance", f"{_lacking(rare)} of an equal share of the images: {remedy}", rare[0][0], IMBALANCE
    )


def _lacking(rare: Sequence[tuple[float, int]]) -> str:
    """Rare classes, the rarest first, in words: at most `MOST_NAMED` of them."""
    if len(rare) == 1:
        return f"class {rare[0][1]} has {rare[0][0]:.0%}"
    labels, left = [str(label) for _, label in rare[:MOST_NAMED]], len(rare) - MOST_NAMED
    last = labels.pop() if left <= 0 else f"{left:,} more"
    return f"classes {', '.join(labels)} and {last} have {rare[0][0]:.0%} to {rare[-1][0]:.0%}"


def one_class(
    predictions: Tensor, labels: Tensor, who: str, on: str, class_names: Sequence[str] = (), name: str = ONE_CLASS
) -> Alarm | None:
    """The alarm if a model predicts one class for nearly all images, else None.

    Args:
        predictions: classes that the model predicts, int64 `[N]`.
        labels: classes of the images, int64 `[N]`.
        who: the model, for the message.
        on: the images in words, for the message.
        class_names: one per class, or empty.
        name: of the alarm.
    """
    counts = torch.bincount(predictions)
    most = int(counts.argmax())
    # Relative to the labels: on images that really are of one class, predicting that class is right.
    others, expected = len(predictions) - int(counts[most]), int((labels != most).sum())
    if expected < LEAST_OTHERS or others >= OTHERS * expected:
        return None
    return Alarm(
        name,
        f"{who} answers class {class_names[most] if class_names else most} to {int(counts[most]):,} of "
        f"{len(predictions):,} {on}, whatever they show: lower the learning rate, train longer, or check the images "
        "that it learns from",
        others / expected,
        OTHERS,
    )


def near_chance(score: Proportion, classes: int, who: str, remedy: str) -> Alarm | None:
    """The alarm if a teacher is right hardly more often than by chance, else None.

    Its interval contains `1 / K`, or its accuracy is below `1 / K + LEAST_SKILL / K * (1 - 1 / K)`.

    Args:
        score: accuracy on test images.
        classes: number of classes K.
        who: the teacher and "is", for the message.
        remedy: what to do, for the message.
    """
    chance = 1 / classes
    threshold = chance + LEAST_SKILL * chance * (1 - chance)
    if score.n < LEAST_OTHERS or (score.value >= threshold and score.low > chance):
        return None
    return Alarm(
        NEAR_CHANCE,
        f"{who} right on {score.value:.1%} of {score.n:,} test images, where chance is {chance:.1%}: {remedy}",
        score.value,
        max(threshold, chance),
    )


def similarity_within_classes(features: Tensor, labels: Tensor) -> list[float]:
    """Mean cosine between the centred features of two images of a class, for each class with two images.

    Args:
        features: penultimate features of the teacher, `[N, D]`.
        labels: int64 `[N]`.
    """
    # Centred, because features after a ReLU are all >= 0, so that their cosines are high for any images. In float64,
    # because n is subtracted below from a sum that may be nearly as large.
    directions = torch.nn.functional.normalize(features.double() - features.double().mean(0), dim=1)
    similarities: list[float] = []
    for label in labels.unique():
        rows = directions[labels == label]
        if (n := len(rows)) > 1:
            # The squared norm of the sum of n unit vectors is n plus the cosines of all n (n - 1) ordered pairs.
            similarities.append(float((rows.sum(0).square().sum() - n) / (n * (n - 1))))
    return similarities


def largest_similarity(features: Tensor, labels: Tensor) -> float | None:
    """The largest of `similarity_within_classes` over the classes with `LEAST_ALIKE` images.

    If there are none, the mean over the classes with two images; None without such a class.
    """
    large = labels.bincount()[labels] >= LEAST_ALIKE
    if bool(large.any()):
        # All images stay for the centre; the labels of small classes become classes of one image.
        alone = labels.max() + 1 + torch.arange(len(labels), device=labels.device)
        return max(similarity_within_classes(features, torch.where(large, labels, alone)))
    similarities = similarity_within_classes(features, labels)
    return sum(similarities) / len(similarities) if similarities else None


def collapse(features: Tensor, labels: Tensor, remedy: str, real: float | None = None) -> Alarm | None:
    """The alarm if the teacher's features of one class are nearly equal, else None.

    Args:
        features: penultimate features of the teacher, `[N, D]`.
        labels: int64 `[N]`.
        remedy: what to do, for the message.
        real: the `largest_similarity` of real images, if there are any. A good teacher sees real images of
            a class as alike too, so the threshold lies half-way between that and 1 where that is higher.
    """
    worst = largest_similarity(features, labels) or 0.0
    threshold = COLLAPSE if real is None else max(COLLAPSE, (1.0 + real) / 2.0)
    if worst <= threshold:
        return None
    beside = "" if real is None else f"; {real:.2f} of real images"
    return Alarm(
        "collapse",
        f"the teacher sees the images of one class as near copies (cosine similarity {worst:.2f}{beside}): {remedy}",
        worst,
        threshold,
    )


def statistics_distance(statistics: Mapping[str, BatchNormStatistics]) -> float | None:
    """Mean distance of the images' BatchNorm means from the stored ones, in stored standard deviations.

    Args:
        statistics: module path -> moments of the images in a BatchNorm layer of the teacher; empty gives None.
    """
    if not statistics:
        return None
    # 1e-5 is the default eps of BatchNorm, which divides by the same root.
    gaps = [((s.mean - s.running_mean).abs() / (s.running_var + 1e-5).sqrt()).mean() for s in statistics.values()]
    return float(torch.stack(gaps).mean())


def statistics_gap(statistics: Mapping[str, BatchNormStatistics], remedy: str) -> Alarm | None:
    """The alarm if the images' BatchNorm means are far from the stored ones, else None.

    Args:
        statistics: module path -> moments of the images in a BatchNorm layer of the teacher; may be empty.
        remedy: what to do, for the message.
    """
    gap = statistics_distance(statistics)
    if gap is None or gap <= STATISTICS_GAP:
        return None
    return Alarm(
        "statistics gap",
        f"the generated images lie {gap:.2f} standard deviations from the teacher's BatchNorm statistics: {remedy}",
        gap,
        STATISTICS_GAP,
    )


def stale_student(agreements: Sequence[float], losses: Sequence[float] = ()) -> Alarm | None:
    """The alarm if the student has not learned, else None: the agreement with the teacher fell, or never rose.

    Args:
        agreements: agreement on fresh samples in [0, 1], in order of time.
        losses: of the student, in order of time; they say which way the learning rate should go.
    """
    if len(agreements) < LEAST_ROUNDS:
        return None
    # Moving means, because the agreement of a single round is noisy.
    means = _moving_means(agreements)
    fall, rise = max(means) - means[-1], means[-1] - means[0]
    # A student that rose enough may end below its best: the samples get harder while it agrees with the teacher.
    if rise < 2 * STALE and (fall > STALE or means[-1] < 0.5):
        return Alarm(
            "stale student",
            f"agreement with the teacher on fresh samples ended {fall:.2f} below its best and {abs(rise):.2f} "
            f"{'above' if rise >= 0 else 'below'} its start: {_stale_remedy(losses)}",
            fall,
            STALE,
        )
    return None


def _moving_means(values: Sequence[float]) -> list[float]:
    window = max(4, len(values) // 10)
    return [sum(values[i : i + window]) / window for i in range(len(values) - window + 1)]


def _stale_remedy(losses: Sequence[float]) -> str:
    """A lower learning rate only for a loss that did not fall, or rose again; else the contrary."""
    if len(losses) < LEAST_ROUNDS:
        return "change distill.optimizer.lr, or lower the difficulty"
    means = _moving_means(losses)
    if means[-1] < min(DIVERGED * min(means), FALLING * means[0]):
        return "train longer or raise distill.optimizer.lr, since the loss fell to the end, or lower the difficulty"
    return "lower distill.optimizer.lr, since the loss did not fall, or the difficulty"
