"""How good a student is on images that nobody has: an estimate from its agreement with the teacher on generated ones.

The agreement on generated images is a poor guide by itself: a generator that follows the student makes images that it
finds hard, and one that optimises images of a class makes easy ones. Four agreements together are a better one: on new
images and on images that it learned from, of each on all of them and on the half of which the teacher is surest. The
mean of their logits estimates the logit of the agreement on images of the task. The width of the interval comes from
runs with test data, see `benchmarks/estimate.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Calibration:
    """How far the estimate was from the truth in runs with test data.

    Attributes:
        deviation: root mean square error of the agreement, in [0, 1].
        quantile: of the t distribution, for the interval.
        runs: number of runs.
        covered: of the runs, those whose true agreement is in the interval that the other datasets give.
    """

    deviation: float
    quantile: float
    runs: int
    covered: int


@dataclass(frozen=True)
class Range:
    """An estimate with its interval, all in [0, 1]."""

    value: float
    low: float
    high: float


def agreement_logits(teacher: Tensor, student: Tensor) -> tuple[float, float]:
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


def estimated_agreement(logits: Sequence[float], calibration: Calibration) -> Range:
    """The estimated agreement of student and teacher on images of the task.

    Args:
        logits: those of `agreement_logits`, of new images and of images that the student learned from.
        calibration: what runs with test data gave.
    """
    value = 1.0 / (1.0 + math.exp(-sum(logits) / len(logits)))
    half = calibration.quantile * calibration.deviation
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
CALIBRATION = Calibration(deviation=0.076, quantile=2.92, runs=13, covered=13)
"""By `python -m benchmarks.estimate`."""
