"""Canaries that a coin puts into the training data, and the lower bound of epsilon from one training run with them.

Half of the canaries are ordinary images, which show the average case. Half carry a wrong label and show the worst case,
since a model can only fit such an image by memorising it. Judge the two halves separately.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from synthkd.errors import ConfigError, DataError
from synthkd.metrics.arrays import Array
from synthkd.privacy.intervals import Scores, check_level, numbers
from synthkd.rng import stream
from synthkd.types import check_labels


@dataclass(frozen=True)
class Canaries:
    """Images that are in the training data or not, each by its own fair coin.

    Attributes:
        rows: int64 `[m]`, rows of the candidates, ascending, each once.
        included: bool `[m]`, the coins: True goes into the training data.
        mislabelled: bool `[m]`, True for the half with a wrong label.
        labels: int64 `[m]`, the label each canary is trained with if it is included.
    """

    rows: Tensor
    included: Tensor
    mislabelled: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class OneRun:
    """Lower bound of epsilon from one training run.

    Attributes:
        epsilon: lower bound at `delta` for adding or removing one image, 0 where nothing is shown.
        m: number of canaries.
        guesses: number of canaries that were guessed.
        correct: number of right guesses.
        delta, confidence: of the bound.
        ceiling: the bound if all guesses had been right.
    """

    epsilon: float
    m: int
    guesses: int
    correct: int
    delta: float
    confidence: float
    ceiling: float


def choose(labels: Tensor, classes: int, count: int, seed: int) -> Canaries:
    """Draw canaries from candidates, wrong labels for half of them, and a coin for each.

    Args:
        labels: int64 `[P]` of the candidates, in 0..classes-1; they are trained on only where the coin includes them.
        classes: number of classes, at least 2.
        count: number of canaries, in 2..P; where it is odd, there is one more ordinary image.
        seed: of all draws; it reveals which canaries are included.

    Raises:
        ConfigError: `count` or `classes` out of range.
        DataError: a label out of range.
    """
    if classes < 2 or not 2 <= count <= len(labels):
        raise ConfigError(
            f"canaries need 2 classes or more and a count of 2 to {len(labels)}, the candidates; got {classes} classes "
            f"and a count of {count}"
        )
    check_labels(labels, classes, "canaries")
    rng = stream(seed, "canaries")
    rows = torch.randperm(len(labels), generator=rng)[:count].sort().values
    mislabelled = torch.randperm(count, generator=rng) < count // 2
    shift = torch.randint(1, classes, (count,), generator=rng)
    own = labels.cpu().long()[rows]
    return Canaries(
        rows=rows,
        # The bound assumes that a run depends on the coins by its data alone, so they have a stream of their own.
        included=torch.randint(2, (count,), generator=stream(seed, "canary coins")).bool(),
        mislabelled=mislabelled,
        labels=torch.where(mislabelled, (own + shift) % classes, own),
    )


def one_run_epsilon(
    scores: Array, included: Array, guesses: int | None = None, delta: float = 1e-5, confidence: float = 0.95
) -> OneRun:
    """Lower bound of epsilon from guesses about canaries of one run (Steinke, Nasr and Jagielski 2023).

    The canaries with the highest scores are guessed to be included, as many with the lowest scores not to be, and the
    rest are not guessed. Under (eps, delta)-differential privacy for adding or removing an image, the probability of v
    right guesses or more is at most

        P[B >= v] + 2 m delta max_i (P[B >= v - i] - P[B >= v]) / i,   i = 1..v

    for `B ~ Binomial(guesses, q)` and `q = e^eps / (1 + e^eps)` (their appendix D). The bound is the largest eps at
    which this is at most 1 - confidence. It holds for everything that is computed from the run, so also for a student
    of the trained model, and for any score that does not depend on the coins. To report the largest bound of several
    groups or scores, divide `1 - confidence` among them.

    Args:
        scores: `[m]`, higher where a canary seems included.
        included: bool `[m]`, the coins.
        guesses: even, in 2..m, fixed before any score is computed; None takes a fifth of m, rounded down to even.
        delta: of the bound, in [0, 1).
        confidence: of the bound, in (0, 1).

    Raises:
        ConfigError: `guesses`, `delta` or `confidence` out of range, or fewer than 10 canaries and no `guesses`.
        DataError: a score that is not finite, or coins that do not match the scores.
    """
    check_level(delta, confidence)
    values = numbers(scores, "scores of canaries")
    coins = np.asarray(included.cpu() if isinstance(included, Tensor) else included)
    if coins.shape != values.shape or coins.dtype != np.bool_:
        raise DataError(
            f"a true or false is needed for each of {len(values)} canaries, got {coins.dtype} {coins.shape}"
        )
    m, most = len(values), 1 - confidence
    guesses = 2 * (m // 10) if guesses is None else guesses
    if guesses % 2 or not 2 <= guesses <= m:
        raise ConfigError(
            f"guesses must be an even number from 2 to the {m} canaries, got {guesses}; take about {m // 5}"
        )
    half = guesses // 2
    correct = _least_correct(values, coins, half) + _least_correct(-values, ~coins, half)
    return OneRun(
        epsilon=_bound(m, guesses, correct, delta, most),
        m=m,
        guesses=guesses,
        correct=correct,
        delta=delta,
        confidence=confidence,
        ceiling=_bound(m, guesses, guesses, delta, most),
    )


def p_value(m: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Largest probability of `correct` right guesses or more under (epsilon, delta); see `one_run_epsilon`."""
    from scipy.stats import binom

    q = 1 / (1 + math.exp(-epsilon))
    tail = float(binom.sf(correct - 1, guesses, q))  # P[B >= v]
    if delta > 0 and correct > 0:
        # P[v - i <= B < v] for i = 1..v, the difference of the two tails in the formula
        below = binom.pmf(np.arange(correct - 1, -1, -1), guesses, q).cumsum()
        tail += 2 * m * delta * float((below / np.arange(1, correct + 1)).max())
    return min(1.0, tail)


def _bound(m: int, guesses: int, correct: int, delta: float, most: float) -> float:
    """The largest epsilon whose p-value is at most `most`, rounded down by 1e-9 at most."""
    # The p-value rises with epsilon, so bisection finds it; `low` always passed, so the bound is never too large.
    if p_value(m, guesses, correct, 0.0, delta) > most:
        return 0.0
    low, high = 0.0, 1.0
    while p_value(m, guesses, correct, high, delta) <= most:
        low, high = high, 2 * high
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if p_value(m, guesses, correct, middle, delta) <= most else (low, middle)
    return low


def _least_correct(scores: Scores, included: np.ndarray[tuple[int, ...], np.dtype[np.bool_]], count: int) -> int:
    """How many of the `count` highest scores are included; of ties at the edge, those not included are taken first."""
    # The ties are broken by the coins, but always against the attack, so the bound is at most that of any rule that
    # does not see the coins.
    place = len(scores) - count
    edge = np.partition(scores, place)[place]
    above, tied = scores > edge, scores == edge
    from_ties = count - int(above.sum())
    return int(included[above].sum()) + max(0, from_ties - int((~included[tied]).sum()))
