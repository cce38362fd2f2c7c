"""Accuracy of classifiers, as a proportion with its confidence interval."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.stats import norm
from torch import Tensor

from synthkd.models.contract import finite_logits
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
    z = float(norm.ppf(0.5 + confidence / 2.0))
    share = hits / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    # Wilson's interval, unlike share +- z sqrt(share (1 - share) / n), stays within [0, 1] and has a width at 0 and n
    # hits too. There one end is the share itself, and rounding must not put that end beyond it.
    return Proportion(share, n, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)))


def predict(
    model: Predictor, images: InBlocks, device: torch.device, batch_size: int = 512, who: str = "the network"
) -> Tensor:
    """Predicted classes, int64 `[N]` on the CPU, computed batch by batch without gradient.

    Args:
        model: the classifier, on `device`.
        images: `[N, C, H, W]`, uint8, or float32 in `[0, 1]`; at least one.
        device: where the model runs.
        batch_size: images per forward pass.
        who: name of the model in messages.

    Raises:
        ModelError: a logit is not finite.
    """
    classes: list[Tensor] = []
    with torch.no_grad():
        for chunk in images.split(batch_size):
            chunk = to_float(chunk) if chunk.dtype == torch.uint8 else chunk
            logits = finite_logits(model(chunk.to(device)), who)
            classes.append(logits.argmax(dim=1).cpu())
    return torch.cat(classes)


def accuracy(predictions: Tensor, truth: Tensor) -> Proportion:
    """Share of predictions that are right; with another model's predictions as truth, the agreement of both.

    Args:
        predictions: int64 `[N]`.
        truth: int64 `[N]`.
    """
    return proportion(int((predictions == truth).sum()), len(truth))
