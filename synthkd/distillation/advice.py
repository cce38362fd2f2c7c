"""What the curves of a finished distillation advise: a longer run, a larger student, or another difficulty.

Nothing is said where the curves do not tell. `benchmarks/estimate.py` compares what is promised with what longer runs
brought.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LONGER = 3.0
"""Factor on the steps of a run that the advice is about. The curve over the last two thirds, in which the steps grew by
this factor, says what a further factor is worth."""
LEAST_DISAGREEMENT = 1 / 128
"""Smallest disagreement of a round, whose logarithm is taken."""
LEAST_POINTS = 8
"""Smallest number of points of a curve that is extrapolated."""
LEAST_GAIN = 0.01
"""Smallest gain of agreement that is worth a line."""
ERRORS = 2.0
"""Standard errors by which the exponent of a rising curve is above 0."""
MOST_LEFT = 0.05
"""Largest gain of agreement, two standard errors up, with which a curve counts as flat."""
GOOD = 0.9
"""Agreement from which on a student is not called too small."""
LEAST_ROUNDS = 8
"""Smallest number of rounds on the floor."""
FLOOR_SHARE = 0.5
"""Smallest part of the run that the difficulty ended on its floor."""


def gain_of_longer(steps: Sequence[float], agreements: Sequence[float], factor: float = LONGER) -> float | None:
    """What `factor` times the steps would add to the agreement, by a power law of the disagreement in the steps.

    `log(1 - a) = log c - p log(step)` is fitted to the points of the last two thirds, by least squares.

    Args:
        steps: of the student, rising.
        agreements: with the teacher on new images at those steps, in [0, 1].
        factor: on the steps.

    Returns:
        The gain in [0, 1]; None where there are too few points, or the curve does not rise beyond its noise.
    """
    law = _power_law(steps, agreements)
    if law is None or law.exponent <= ERRORS * law.error:
        return None
    return law.left * (1.0 - math.pow(factor, -law.exponent))


def still_rising(steps: Sequence[float], agreements: Sequence[float]) -> str | None:
    """The advice to run longer, with what that is worth; None where the curve has become flat.

    Args:
        steps: of the student, rising.
        agreements: with the teacher on new generated images at those steps, in [0, 1].
    """
    gain = gain_of_longer(steps, agreements)
    if gain is None or gain < LEAST_GAIN:
        return None
    points = round(100 * gain)
    return (
        f"the student is still rising: {LONGER:g} times the steps are worth about {points} "
        f"point{'' if points == 1 else 's'} of agreement on generated images"
    )


def too_small(steps: Sequence[float], agreements: Sequence[float]) -> str | None:
    """The advice to take a larger student: the curve neither rises nor falls, and the agreement is not good; else None.

    Args:
        steps: of the student, rising.
        agreements: with the teacher on new generated images at those steps, in [0, 1].
    """
    law = _power_law(steps, agreements)
    if law is None or 1.0 - law.left >= GOOD:
        return None
    most = law.left * (1.0 - math.pow(LONGER, -(law.exponent + ERRORS * law.error)))
    if not -LEAST_GAIN <= most <= MOST_LEFT:  # it rises, or falls
        return None
    return (
        f"the student has stopped rising, at an agreement of {1.0 - law.left:.2f} on new images: a wider or deeper one "
        "is worth more than further steps"
    )


@dataclass(frozen=True)
class _PowerLaw:
    """`left * (step / last step) ** -exponent`, the disagreement over the last two thirds; error: of the exponent."""

    left: float
    exponent: float
    error: float


def _power_law(steps: Sequence[float], agreements: Sequence[float]) -> _PowerLaw | None:
    """The fit; None with too few points."""
    last = max(steps, default=0.0)
    pairs = [(step, a) for step, a in zip(steps, agreements, strict=True) if step * LONGER >= last and step > 0]
    if len(pairs) < LEAST_POINTS:
        return None
    x = np.log([step for step, _ in pairs])
    # Half of one image of a round disagrees at least: the logarithm of no disagreement is infinite.
    y = np.log([max(1.0 - a, LEAST_DISAGREEMENT) for _, a in pairs])
    centred = x - x.mean()
    slope = float(centred @ y / (centred @ centred))
    rest = y - y.mean() - slope * centred
    error = math.sqrt(float(rest @ rest) / (len(x) - 2) / float(centred @ centred))
    left = math.exp(float(y.mean()) + slope * (math.log(last) - float(x.mean())))
    return _PowerLaw(left, -slope, error)


def on_floor(
    steps: Sequence[float], difficulties: Sequence[float], agreements: Sequence[float], low: float, key: str
) -> str | None:
    """The advice to lower the thresholds of a difficulty that ended on its floor; None where it did not.

    Args:
        steps: of the run, at which a round was made.
        difficulties: after each of these rounds.
        agreements: of student and teacher on the images of each.
        low: the floor.
        key: of the difficulty in the configuration.
    """
    above = [place for place, value in enumerate(difficulties) if value > low]
    first = above[-1] + 1 if above else 0
    count = len(difficulties) - first
    if count < max(LEAST_ROUNDS, FLOOR_SHARE * len(difficulties)):
        return None
    usual = float(np.median(agreements[first:]))
    # Steps of 0.05, a little below what the run reached, so that the difficulty can rise.
    higher = max(0.1, math.floor(20 * usual) / 20 - 0.05)
    longer = "" if usual > higher else ", and train longer: the student has not come that far"
    return (
        f"the difficulty sat on its floor ({low:g}) from step {steps[first]:,.0f} on, with an agreement of {usual:.2f} "
        f"on new images: to let it rise, lower {key}.raise_above (to {higher:.2f}) and {key}.lower_below "
        f"(to {higher - 0.1:.2f}){longer}"
    )
