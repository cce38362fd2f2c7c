"""What an audit of one model comes to, and the checks without which it says nothing.

Canaries, whom a coin put in or left out, give every attack on both halves of them and the rigorous bound of each half.
Lists of members and non-members, which is all that is known of a finished model, give attacks on images as they come:
the average case, and no bound.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from synthkd.models.contract import finite_logits
from synthkd.privacy.blind import blind_baseline
from synthkd.privacy.canaries import Canaries, OneRun, one_run_epsilon
from synthkd.privacy.intervals import auc, lower_limit
from synthkd.privacy.membership import Answers, attacks, headline, log_odds
from synthkd.privacy.rates import Attack, attack
from synthkd.privacy.verdict import Check
from synthkd.rng import numpy_stream

NATURAL, MISLABELLED = "natural", "mislabelled"
GROUPS = (NATURAL, MISLABELLED)
"""The halves of the canaries: average images, and the worst case."""
PIPELINE, GIVEN = "pipeline", "given lists"
"""The kinds of audit. That of given lists has one group of images, which is called as the kind is."""
AVERAGE_CASE = "average-case, heuristic: not a bound"
"""What stands beside every number of an audit of given lists."""
CONFIDENCE = 0.95
"""Of each interval, and of all one-run bounds of an audit together."""
SURE = 0.99
"""Confidence of the controls; a sound audit fails one of them in 1 of 100 runs."""
DRAWS = 2000


@dataclass(frozen=True)
class GroupAudit:
    """One half of the canaries, or the lists as they were given.

    Attributes:
        attacks: all of them, each bound holding together with the others.
        headline: the name of the one that shows most.
        one_run: the rigorous lower bound, from one score that was chosen beforehand; None for lists, of which
            no coin decided.
    """

    attacks: tuple[Attack, ...]
    headline: str
    one_run: OneRun | None


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
        half = {name: values[member] for name, values in scores.items()}
        judged = _judged(half, canaries.labels[member], coins, delta)
        together = 1 - (1 - CONFIDENCE) / (len(GROUPS) * models)
        bound = one_run_epsilon(declared[member], coins, guesses, delta, together)
        found[group] = GroupAudit(judged, headline(judged).name, bound)
    return found


def audit_lists(audited: Answers, members: Tensor, population: Answers | None, delta: float) -> GroupAudit:
    """Attack one model by what it answers about images that are known to be members, or known not to be.

    Args:
        audited: answers about both lists together.
        members: bool `[N]`, True for members.
        population: answers about images in no other role, or None.
        delta: of the estimates of epsilon.

    Returns:
        What was found, without a bound of one run: see `AVERAGE_CASE`.
    """
    judged = _judged(attacks(audited, population), torch.as_tensor(audited.labels), members, delta)
    return GroupAudit(judged, headline(judged).name, None)


def duplicated(audited: Tensor, others: Mapping[str, Tensor]) -> dict[str, int]:
    """How many audited images are there again in a set of another role, pixel by pixel.

    Args:
        audited: uint8 `[N, C, H, W]`.
        others: role -> uint8 `[M, C, H, W]`.
    """
    ours = {image.numpy().tobytes() for image in audited.cpu()}
    return {role: sum(image.numpy().tobytes() in ours for image in images.cpu()) for role, images in others.items()}


def roles_check(sets: Mapping[str, Tensor]) -> Check:
    """No image, pixel by pixel, stands in two of these sets.

    Args:
        sets: role -> uint8 `[N, C, H, W]`.
    """
    found = {(one, other): duplicated(sets[one], {other: sets[other]})[other] for one, other in combinations(sets, 2)}
    again = [f"{count} of the {other} are among the {one}" for (one, other), count in found.items() if count]
    said = f"{', '.join(again)}, pixel by pixel" if again else "each image stands on one list only"
    return Check("no image in two roles", not again, said)


def blind_check(inside: Tensor, outside: Tensor, seed: int = 0) -> Check:
    """Members cannot be told from non-members by their pixels; see `blind_baseline`."""
    found = blind_baseline(inside, outside, seed)
    said = f"without any model members are told from non-members with an AUC of {found.auc}"
    return Check("blind baseline", not found.leaks, said)


def classes_check(inside: Tensor, outside: Tensor, seed: int = 0) -> Check:
    """Members cannot be told from non-members by their labels: a model is surer of some classes than of others.

    The chi-square statistic of the class counts is compared with those of lists that are drawn from both at random.

    Args:
        inside: int64 `[N]`, labels of members.
        outside: int64 `[M]`, labels of non-members.
        seed: of the draws.
    """
    both = torch.cat([inside, outside]).bincount()
    expected = (both * len(inside) / (len(inside) + len(outside))).clamp_min(1e-12).numpy()
    drawn = numpy_stream(seed, "classes of lists").multivariate_hypergeometric(both.numpy(), len(inside), DRAWS)
    seen = inside.bincount(minlength=len(both)).numpy()
    far, away = (((counts - expected) ** 2 / expected).sum(-1) for counts in (drawn, seen))
    p_value = (1 + int((far >= away - 1e-9).sum())) / (1 + DRAWS)
    said = f"lists drawn from both at random are as unlike in their classes in {p_value:.2%} of cases"
    return Check("blind baseline of labels", p_value >= 1 - SURE, said)


def labels_check(answers: Mapping[str, Tensor], labels: Tensor) -> Check:
    """An audited model gives members the label that they carry more often than a guess would.

    Else these are not the labels it was trained with, as when classes are numbered otherwise; and attacks, which ask
    how sure it is of the label, would find nothing whatever it remembers.

    Args:
        answers: teacher, student -> logits `[N, K]` about the members.
        labels: int64 `[N]`.
    """
    right = {who: int((logits.argmax(1) == labels).sum()) for who, logits in answers.items()}
    classes = next(iter(answers.values())).shape[1]
    least = lower_limit(max(right.values()), len(labels), 1 - SURE)
    told = " and ".join(f"{count / len(labels):.1%} by the {who}" for who, count in right.items())
    said = f"members are given the label they carry: {told}"
    return Check("labels", least > 1 / classes, said if least > 1 / classes else f"{said}, as guesses would be")


def negative_check(references: Sequence[Tensor], labels: Tensor, members: Tensor) -> Check:
    """No model that saw neither list tells them apart: else one did see them, or one list is easier by itself.

    Args:
        references: logits `[N, K]` of each, one or more, about both lists together.
        labels: int64 `[N]`.
        members: bool `[N]`.
    """
    level = 1 - (1 - SURE) / len(references)
    areas = [auc(*_sides(log_odds(logits, labels), members), level) for logits in references]
    most = max(areas, key=lambda area: abs(area.value - 0.5))
    said = f"references that saw neither list tell members from non-members with an AUC of {most} at most"
    return Check("negative control", all(area.low <= 0.5 <= area.high for area in areas), said)


def logits_of(
    model: torch.nn.Module, images: Tensor, device: torch.device, batch_size: int = 512, who: str = "the model"
) -> Tensor:
    """Logits float32 `[N, K]` on the CPU of uint8 images, batch by batch, of a model in eval mode.

    Raises:
        ModelError: they are not finite; `who` is what the error calls the model.
    """
    with torch.no_grad():
        said = [model(chunk.to(device).float() / 255.0).float().cpu() for chunk in images.split(batch_size)]
    return finite_logits(torch.cat(said), who)


def _judged(scores: Mapping[str, Tensor], labels: Tensor, members: Tensor, delta: float) -> tuple[Attack, ...]:
    return tuple(
        attack(name, *_sides(values, members), *_sides(labels, members), delta, CONFIDENCE, len(scores))
        for name, values in scores.items()
    )


def _sides(values: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
    return values[members], values[~members]
