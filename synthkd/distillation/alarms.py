"""Signs of a failing distillation that need no real data.

Each test is a number with a threshold; the thresholds are rules of thumb that separate runs that worked from runs
that were broken on purpose, and are stated beside the number wherever it is shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from synthkd.types import BatchNormStatistics

ONE_CLASS = "one class"
"""The alarm about a model that gives hardly more than one answer, which the headline of a report repeats."""
IMBALANCE = 0.25
"""Least share of a class, as a fraction of an equal share."""
COLLAPSE = 0.9
"""Largest mean cosine similarity of centred teacher features within a class."""
STATISTICS_GAP = 0.5
"""Largest mean distance of BatchNorm means, in stored standard deviations."""
STALE = 0.05
"""Largest fall of the agreement on fresh samples from its best, and half of what counts as learning at all."""


OTHERS = 0.05
"""Least answers other than the most frequent one, as a fraction of how many there should be."""
LEAST_OTHERS = 20
"""Images of other classes that it takes to judge by."""


@dataclass(frozen=True)
class Alarm:
    """One test that failed.

    Attributes:
        name: short name of the test.
        message: what was seen, what it means, what to do.
        value: the measured number.
        threshold: the bound that it broke.
    """

    name: str
    message: str
    value: float
    threshold: float


def class_imbalance(teacher_logits: Tensor) -> Alarm | None:
    """Whether a class is much rarer than an equal share among the teacher's answers `[N, K]`."""
    classes = teacher_logits.shape[1]
    shares = torch.bincount(teacher_logits.argmax(1), minlength=classes).float() / len(teacher_logits)
    rarest = float(shares.min()) * classes
    if rarest >= IMBALANCE or len(teacher_logits) < 20 * classes:  # fewer images would miss classes by chance
        return None
    return Alarm(
        "class imbalance",
        f"class {int(shares.argmin())} has {rarest:.0%} of an equal share of the generated images: raise "
        "generator.one_hot, or use bank.policy=class_balanced",
        rarest,
        IMBALANCE,
    )


def one_class(
    answers: Tensor, asked: Tensor, who: str, on: str, class_names: Sequence[str] = (), name: str = ONE_CLASS
) -> Alarm | None:
    """Whether a model gives hardly any other answer than one.

    Args:
        answers: its classes, int64 `[N]`.
        asked: what they should be, int64 `[N]`.
        who: the model, for the message.
        on: what the images are, for the message.
        class_names: one per class, or empty.
        name: of the alarm.
    """
    counts = torch.bincount(answers)
    most = int(counts.argmax())
    others, should = len(answers) - int(counts[most]), int((asked != most).sum())
    if should < LEAST_OTHERS or others >= OTHERS * should:
        return None
    return Alarm(
        name,
        f"{who} answers class {class_names[most] if class_names else most} to {int(counts[most]):,} of "
        f"{len(answers):,} {on}, whatever they show: lower the learning rate, train longer, or look at the images that "
        "it learns from",
        others / should,
        OTHERS,
    )


def collapse(features: Tensor, labels: Tensor) -> Alarm | None:
    """Whether the images of a class are copies of each other in the teacher's eyes.

    Args:
        features: penultimate teacher features `[N, D]`.
        labels: int64 `[N]`.
    """
    centred = torch.nn.functional.normalize(features.double() - features.double().mean(0), dim=1)
    similar: list[float] = []
    for label in labels.unique():
        rows = centred[labels == label]
        if len(rows) > 1:  # mean over distinct pairs of the class, from the norm of its sum
            similar.append(float((rows.sum(0).square().sum() - len(rows)) / (len(rows) * (len(rows) - 1))))
    worst = max(similar, default=0.0)
    if worst <= COLLAPSE:
        return None
    return Alarm(
        "collapse",
        f"the teacher sees the images of one class as near copies (cosine similarity {worst:.2f}): give the "
        "generator more rounds, or a larger adversarial weight",
        worst,
        COLLAPSE,
    )


def statistics_gap(statistics: Mapping[str, BatchNormStatistics]) -> Alarm | None:
    """Whether the images' BatchNorm means are far from those the teacher stored; None without BatchNorm."""
    if not statistics:
        return None
    gaps = [((s.mean - s.running_mean).abs() / (s.running_var + 1e-5).sqrt()).mean() for s in statistics.values()]
    gap = float(torch.stack(gaps).mean())
    if gap <= STATISTICS_GAP:
        return None
    return Alarm(
        "statistics gap",
        f"the generated images sit {gap:.2f} standard deviations from the teacher's BatchNorm statistics: raise "
        "generator.batch_norm or the number of rounds",
        gap,
        STATISTICS_GAP,
    )


def stale_student(agreements: Sequence[float]) -> Alarm | None:
    """Whether the student stopped learning: agreement on fresh samples fell from its best, or never rose.

    Args:
        agreements: agreement with the teacher on fresh samples, in order of time.
    """
    if len(agreements) < 8:
        return None
    window = max(4, len(agreements) // 10)
    means = [sum(agreements[i : i + window]) / window for i in range(len(agreements) - window + 1)]
    fall, rise = max(means) - means[-1], means[-1] - means[0]
    if rise < 2 * STALE and (fall > STALE or means[-1] < 0.5):
        return Alarm(
            "stale student",
            f"agreement with the teacher on fresh samples ended {fall:.2f} below its best and {rise:.2f} above its "
            "start: lower distill.optimizer.lr, or the difficulty",
            fall,
            STALE,
        )
    return None
