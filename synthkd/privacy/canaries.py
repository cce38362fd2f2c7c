"""Canaries that a coin puts into the training data, and the bound of epsilon that one training run gives with them.

Half of the canaries are ordinary images, which tell of the average member; half carry a wrong label, which tells of the
worst: a model has to learn such an image by heart. Judge the two halves apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import binom
from torch import Tensor

from synthkd.errors import ConfigError, DataError
from synthkd.metrics.arrays import Array
from synthkd.privacy.intervals import Scores, check_level, numbers
from synthkd.rng import stream
from synthkd.types import check_labels


@dataclass(frozen=True)
class Canaries:
    """Images that are in the training data or not, each by a fair coin of its own.

    Attributes:
        rows: int64 `[m]`, rows of the candidates, ascending, each once.
        included: bool `[m]`, what the coins said: True goes into the training data.
        mislabelled: bool `[m]`, True for the half with a wrong label.
        labels: int64 `[m]`, the label each is trained with if it is included.
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
        m: canaries.
        guesses: how many of them were guessed.
        correct: how many guesses were right.
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

    The coins come from a stream that nothing else draws from: a training run must learn of them by its data alone.

    Args:
        labels: int64 `[P]` of the candidates, which are trained on only where the coin says so.
        classes: how many, at least 2.
        count: canaries, at least 2 and at most P; an odd one is an ordinary image.
        seed: of all draws. Whoever knows it knows who is included.

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
        included=torch.randint(2, (count,), generator=stream(seed, "canary coins")).bool(),
        mislabelled=mislabelled,
        labels=torch.where(mislabelled, (own + shift) % classes, own),
    )


def one_run_epsilon(
    scores: Array, included: Array, guesses: int | None = None, delta: float = 1e-5, confidence: float = 0.95
) -> OneRun:
    """Lower bound of epsilon from guesses about canaries of one run (Steinke, Nasr and Jagielski 2023).

    The highest scores are guessed to be included, as many of the lowest not to be, the rest not guessed at. Under
    (eps, delta)-differential privacy for adding or removing an image, v guesses or more are right with probability

        P[B >= v] + 2 m delta max_i (P[B >= v - i] - P[B >= v]) / i,   i = 1..v

    at most, for `B ~ Binomial(guesses, q)` and `q = e^eps / (1 + e^eps)` (their appendix D). The bound is the largest
    eps at which this is no more than 1 - confidence. It holds for whatever is computed from the run, so for a student
    of the trained model too, and for any score that was made without the coins. To judge several groups or scores and
    report the largest bound, share `1 - confidence` out among them.

    Among equal scores at the edge of the guesses those that would be wrong are guessed: the coins break the tie, but
    only ever against the bound, which is then no larger than by any rule that is blind to them.

    Args:
        scores: `[m]`, higher where a canary seems included.
        included: bool `[m]`, what the coins said.
        guesses: even, 2 to m, fixed before any score is seen; None takes a fifth of m, to the next even number below.
        delta: of the bound.
        confidence: of the bound.

    Raises:
        ConfigError: `guesses`, `delta` or `confidence` out of range, or too few canaries for guesses by default.
        DataError: a score that is not finite, or coins that do not match.
    """
    check_level(delta, confidence)
    values = numbers(scores, "scores of canaries")
    coins = np.asarray(included.cpu() if isinstance(included, Tensor) else included)
    if coins.shape != values.shape or coins.dtype != np.bool_:
        raise DataError(
            f"a true or false is needed for each of {len(values)} canaries, got {coins.dtype} {coins.shape}"
        )
    m = len(values)
    guesses = 2 * (m // 10) if guesses is None else guesses
    if guesses % 2 or not 2 <= guesses <= m:
        raise ConfigError(
            f"guesses must be an even number from 2 to the {m} canaries, got {guesses}; take about {m // 5}"
        )
    half = guesses // 2
    correct = _least_correct(values, coins, half) + _least_correct(-values, ~coins, half)
    most = 1 - confidence
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
    """How likely `correct` right guesses or more are under (epsilon, delta), at most; see `one_run_epsilon`."""
    q = 1 / (1 + math.exp(-epsilon))
    tail = float(binom.sf(correct - 1, guesses, q))
    if delta > 0 and correct > 0:
        below = binom.pmf(np.arange(correct - 1, -1, -1), guesses, q).cumsum()
        tail += 2 * m * delta * float((below / np.arange(1, correct + 1)).max())
    return min(1.0, tail)


def _bound(m: int, guesses: int, correct: int, delta: float, most: float) -> float:
    """The largest epsilon whose p-value is at most `most`, from below."""
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
    """How many of the `count` highest scores are included, with ties at the edge broken towards those that are not."""
    place = len(scores) - count
    edge = np.partition(scores, place)[place]
    above, level = scores > edge, scores == edge
    left = count - int(above.sum())
    return int(included[above].sum()) + max(0, left - int((~included[level]).sum()))
