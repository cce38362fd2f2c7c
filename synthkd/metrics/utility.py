"""How useful a model is: shares of right answers, with their intervals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.stats import norm
from torch import Tensor

from synthkd.models.contract import finite_logits
from synthkd.types import to_float

Predictor = Callable[[Tensor], Tensor]
"""Images `[N, C, H, W]` -> logits `[N, K]`."""


@dataclass(frozen=True)
class Proportion:
    """`hits` of `n`, with the Wilson score interval.

    Attributes:
        value: share of hits in [0, 1].
        n: number of trials.
        low: lower end of the interval.
        high: upper end of the interval.
    """

    value: float
    n: int
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2%} [{self.low:.2%}, {self.high:.2%}] of {self.n:,}"


def proportion(hits: int, n: int, confidence: float = 0.95) -> Proportion:
    """The share of hits with its Wilson score interval (Wilson 1927).

    Raises:
        ValueError: when n is not positive or hits are not in 0..n.
    """
    if n <= 0 or not 0 <= hits <= n:
        raise ValueError(f"need 0 <= hits <= n and n > 0, got {hits} of {n}")
    z = float(norm.ppf(0.5 + confidence / 2.0))
    share = hits / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    # at 0 and n the formula gives the bound itself up to rounding
    return Proportion(share, n, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)))


def predict(
    model: Predictor, images: Tensor, device: torch.device, batch_size: int = 512, who: str = "the network"
) -> Tensor:
    """Predicted classes, int64 `[N]` on the CPU, of uint8 or float images, batch by batch without gradient.

    Raises:
        ModelError: logits that are not finite, of which nobody can say what they predict.
    """
    answers: list[Tensor] = []
    with torch.no_grad():
        for chunk in images.split(batch_size):
            chunk = to_float(chunk) if chunk.dtype == torch.uint8 else chunk
            logits = finite_logits(model(chunk.to(device)), who)
            answers.append(logits.argmax(dim=1).cpu())
    return torch.cat(answers)


def accuracy(predictions: Tensor, truth: Tensor) -> Proportion:
    """Share of predictions int64 `[N]` that equal the truth int64 `[N]`; also the agreement of two models."""
    return proportion(int((predictions == truth).sum()), len(truth))
