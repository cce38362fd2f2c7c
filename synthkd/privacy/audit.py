"""What an audit of one model comes to: every attack on both halves of the canaries, and the bound of each half."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from synthkd.privacy.canaries import Canaries, OneRun, one_run_epsilon
from synthkd.privacy.membership import Answers, attacks, headline
from synthkd.privacy.rates import Attack, attack

NATURAL, MISLABELLED = "natural", "mislabelled"
GROUPS = (NATURAL, MISLABELLED)
"""The halves of the canaries: average images, and the worst case."""
CONFIDENCE = 0.95
"""Of each interval, and of all one-run bounds of an audit together."""


@dataclass(frozen=True)
class GroupAudit:
    """One half of the canaries.

    Attributes:
        attacks: all of them, each bound holding together with the others.
        headline: the name of the one that shows most.
        one_run: the rigorous lower bound, from one score that was chosen beforehand.
    """

    attacks: tuple[Attack, ...]
    headline: str
    one_run: OneRun


def audit_model(
    canaries: Canaries,
    audited: Answers,
    population: Answers | None,
    guesses: int | None,
    delta: float,
    models: int = 1,
) -> dict[str, GroupAudit]:
    """Attack one model by what it answers about the canaries.

    Args:
        canaries: who is in, and with which label.
        audited: answers about the canaries, in their order; the label is the one each is trained with.
        population: answers about images in no other role, or None.
        guesses: of the one-run bound, in each half; None: a fifth.
        delta: of all bounds.
        models: how many are audited; the one-run bounds of all their halves hold together.

    Returns:
        Half -> what was found. The one-run bound judges LiRA's score, or the plain log-odds without references.
    """
    scores = attacks(audited, population)
    declared = scores.get("LiRA", scores["log-odds"])
    found = {}
    for group, member in zip(GROUPS, (~canaries.mislabelled, canaries.mislabelled), strict=True):
        coins = canaries.included[member]
        labels = canaries.labels[member]
        judged = tuple(
            attack(name, *_sides(values[member], coins), *_sides(labels, coins), delta, CONFIDENCE, len(scores))
            for name, values in scores.items()
        )
        together = 1 - (1 - CONFIDENCE) / (len(GROUPS) * models)
        bound = one_run_epsilon(declared[member], coins, guesses, delta, together)
        found[group] = GroupAudit(judged, headline(judged).name, bound)
    return found


def duplicated(audited: Tensor, others: Mapping[str, Tensor]) -> dict[str, int]:
    """How many audited images are there again in a set of another role, pixel by pixel.

    Args:
        audited: uint8 `[N, C, H, W]`.
        others: role -> uint8 `[M, C, H, W]`.
    """
    ours = {image.numpy().tobytes() for image in audited.cpu()}
    return {role: sum(image.numpy().tobytes() in ours for image in images.cpu()) for role, images in others.items()}


def _sides(values: Tensor, coins: Tensor) -> tuple[Tensor, Tensor]:
    return values[coins], values[~coins]


def logits_of(model: torch.nn.Module, images: Tensor, device: torch.device, batch_size: int = 512) -> Tensor:
    """Logits float32 `[N, K]` on the CPU of uint8 images, batch by batch, of a model in eval mode."""
    with torch.no_grad():
        return torch.cat([model(chunk.to(device).float() / 255.0).float().cpu() for chunk in images.split(batch_size)])
