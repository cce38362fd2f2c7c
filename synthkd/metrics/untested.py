"""How good a student is on images that nobody has: an estimate from its agreement with the teacher on generated ones.

The agreement on generated images is a poor guide by itself: a generator that follows the student makes images that it
finds hard, and one that optimises images of a class makes easy ones. What is measured are four agreements: on new
images and on images that the student learned from, of each on all of them and on the half of which the teacher is
surest. How the agreement on images of the task follows from them depends on the generator. The rules and the width of
the interval come from runs with test data, see `benchmarks/estimate.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Logits = tuple[float, float]
"""Of the agreement on images and on the surer half of them, see `agreement_logits`."""


@dataclass(frozen=True)
class Calibration:
    """A rule, and how far its estimate was from the truth in runs with test data.

    Attributes:
        rule: takes the logits of the agreements on new images and on images that the student learned from, and gives
            the agreement on images of the task, in [0, 1].
        deviation: root mean square error of the agreement, in [0, 1].
        quantile: of the t distribution, for the interval.
        runs: number of runs.
        covered: of the runs, those whose true agreement is in the interval that the errors on the other datasets give;
            the rule itself was chosen with most of the runs known.
        covered_accuracy: likewise, by the accuracy and the interval of `estimated_accuracy`.
    """

    rule: Callable[[Logits, Logits], float]
    deviation: float
    quantile: float
    runs: int
    covered: int
    covered_accuracy: int


@dataclass(frozen=True)
class Range:
    """An estimate with its interval, all in [0, 1]."""

    value: float
    low: float
    high: float


def mean_of_four(fresh: Logits, learned: Logits) -> float:
    """The agreement whose logit is the mean of all four; for `inversion` and `pixels`."""
    return share((sum(fresh) + sum(learned)) / 4)


def from_learned(_: Logits, learned: Logits) -> float:
    """1 - (1 - a)^1.5, of the agreement a on the surer half of the images that the student learned from.

    For `noisy_label`: in runs with test data the student agreed less on these images than on those of the task.
    """
    missed: float = (1.0 - share(learned[1])) ** EXPONENT
    return 1.0 - missed


def share(logit: float) -> float:
    """The share, in [0, 1], of which it is the logit."""
    return 1.0 / (1.0 + math.exp(-logit))


def agreement_logits(teacher: Tensor, student: Tensor) -> Logits:
    """Logits of the agreement on all images, and on the half of which the teacher is surest.

    Half an image is added to the hits and one to the number of images, so that both are finite.

    Args:
        teacher: logits `[N, K]` of at least two images.
        student: logits `[N, K]`.
    """
    same = (teacher.argmax(1) == student.argmax(1)).double()
    confidence = teacher.double().softmax(1).amax(1)
    # By rank, not by a threshold: a teacher that is sure of everything, or of nothing, has a surer half too.
    surest = confidence.argsort(descending=True, stable=True)[: (len(same) + 1) // 2]
    return _logit(same), _logit(same[surest])


def _logit(same: Tensor) -> float:
    return float(torch.log((same.sum() + 0.5) / (len(same) - same.sum() + 0.5)))


def estimated_agreement(fresh: Logits, learned: Logits, calibration: Calibration) -> Range:
    """The estimated agreement of student and teacher on images of the task.

    Args:
        fresh: of the agreement on new images.
        learned: of that on images that the student learned from.
        calibration: the rule for their generator, with its errors.
    """
    value, half = calibration.rule(fresh, learned), calibration.quantile * calibration.deviation
    return Range(value, max(0.0, value - half), min(1.0, value + half))


def estimated_accuracy(agreement: Range, teacher: float) -> Range:
    """The accuracy of a student by its agreement with a teacher of known accuracy.

    Where both agree, the teacher is wrong about half as often as in general, since they agree on the easy images; where
    they differ, the student is hardly ever right. No student is taken to be better than its teacher.

    Args:
        agreement: with the teacher on images of the task.
        teacher: its accuracy there, in [0, 1].
    """
    right = 1.0 - AGREED_ERRORS * (1.0 - teacher)
    values = (min(teacher, share * right) for share in (agreement.value, agreement.low, agreement.high))
    return Range(*values)


AGREED_ERRORS = 0.5
"""Share of the teacher's errors, as a fraction of its usual one, where the student agrees with it."""
EXPONENT = 1.5
"""Of `from_learned`."""
BY_FOUR = Calibration(mean_of_four, deviation=0.076, quantile=2.92, runs=13, covered=13, covered_accuracy=12)
BY_LEARNED = Calibration(from_learned, deviation=0.035, quantile=2.92, runs=9, covered=9, covered_accuracy=9)
LEAST_STEPS = 100
"""By `python -m benchmarks.estimate`, whose shortest runs had so many steps. A student of 50 steps, which knew its 300
images by heart, was overrated by 19 points."""
