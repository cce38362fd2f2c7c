"""Accuracy of classifiers, as a proportion with its confidence interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from synthkd.models.contract import finite_logits
from synthkd.passes import Tick, go_on, in_chunks
from synthkd.types import InBlocks, to_float

Predictor = Callable[[Tensor], Tensor]
"""Images `[N, C, H, W]` -> logits `[N, K]`."""


@dataclass(frozen=True)
class Proportion:
    """A share of n trials with its confidence interval.

    Attributes:
        value: the share, in [0, 1].
        n: number of trials.
        low: lower end of the interval, in [0, 1].
        high: upper end of the interval, in [0, 1].
    """

    value: float
    n: int
    low: float
    high: float

    @property
    def interval(self) -> tuple[float, float]:
        """Both ends of the interval."""
        return self.low, self.high

    def __str__(self) -> str:
        """For example "93.10% [91.40%, 94.50%] of 1,000"."""
        return f"{self.value:.2%} [{self.low:.2%}, {self.high:.2%}] of {self.n:,}"


def proportion(hits: int, n: int, confidence: float = 0.95) -> Proportion:
    """`hits / n` with its Wilson score interval (Wilson 1927).

    Args:
        hits: 0 to n.
        n: number of trials, at least 1.
        confidence: coverage of the interval, in (0, 1).

    Raises:
        ValueError: n is not positive, or hits are not in 0..n.
    """
    if n <= 0 or not 0 <= hits <= n:
        raise ValueError(f"need 0 <= hits <= n and n > 0, got {hits} of {n}")
    z = NormalDist().inv_cdf(0.5 + confidence / 2.0)
    share = hits / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    # Wilson's interval, unlike share +- z sqrt(share (1 - share) / n), stays within [0, 1] and has a width at 0 and n
    # hits too. There one end is the share itself, and rounding must not put that end beyond it.
    return Proportion(share, n, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)))


def extremes(values: Sequence[float | None], most: int = 20) -> list[int]:
    """Places of the values that a table of many shows: half of `most` lowest ones, then as many highest, by value.

    Args:
        values: None for one that was not measured.
        most: an even number. If there are no more values, all places are returned in order; if no more are measured,
            the places of those.
    """
    if len(values) <= most:
        return list(range(len(values)))
    ranked = sorted((value, place) for place, value in enumerate(values) if value is not None)
    if len(ranked) <= most:
        return sorted(place for _, place in ranked)
    return [place for _, place in (*ranked[: most // 2], *ranked[-(most // 2) :])]


def predict(
    model: Predictor,
    images: InBlocks,
    device: torch.device,
    batch_size: int = 512,
    who: str = "the network",
    tick: Tick = go_on,
) -> Tensor:
    """Predicted classes, int64 `[N]` on the CPU, computed batch by batch without gradient.

    Args:
        model: the classifier, on `device`.
        images: `[N, C, H, W]`, uint8, or float32 in `[0, 1]`; at least one.
        device: where the model runs.
        batch_size: images per forward pass.
        who: name of the model in messages.
        tick: called after each batch, see `in_chunks`.

    Raises:
        ModelError: a logit is not finite.
    """

    def answers(chunk: Tensor) -> Tensor:
        chunk = to_float(chunk) if chunk.dtype == torch.uint8 else chunk
        return finite_logits(model(chunk.to(device)), who).argmax(dim=1).cpu()

    with torch.no_grad():
        return in_chunks(answers, batch_size, images, tick=tick)


def accuracy(predictions: Tensor, truth: Tensor) -> Proportion:
    """Share of predictions that are right; with another model's predictions as truth, the agreement of both.

    Args:
        predictions: int64 `[N]`.
        truth: int64 `[N]`.
    """
    return proportion(int((predictions == truth).sum()), len(truth))
