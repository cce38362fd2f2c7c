"""Membership inference attacks: scores from a model's logits, higher where an image looks more like a training image.

All attacks use the log-odds of the label, log(p / (1 - p)), computed from logits. Probabilities would be rounded to 1
for most members, and the ties would hide the most exposed images.

References are models that the same pipeline trained without the audited images: they show how a model answers that was
not trained on an image. One reference is enough for every attack here; more are better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from synthkd.errors import ConfigError, DataError
from synthkd.metrics.arrays import Array
from synthkd.privacy.intervals import finite
from synthkd.privacy.rates import Attack
from synthkd.types import check_labels

POPULATION = 1000
"""Fewest images of a population for RMIA: images that are neither audited nor trained on."""

_PRIOR = 4.0  # degrees of freedom that the pooled variance of LiRA counts for


@dataclass(frozen=True)
class Answers:
    """Logits of the audited model and of the references for the same labelled images.

    Attributes:
        target: float `[N, K]`, of the audited model.
        references: float `[R, N, K]`, of models trained without these images; R may be 0.
        labels: int64 `[N]`, the label that each image was trained with, or would have been.
    """

    target: Array
    references: Array
    labels: Array


def attacks(answers: Answers, population: Answers | None = None) -> dict[str, Tensor]:
    """Scores of every attack that these logits allow. Which attack is strongest varies, so all are run.

    `log-odds` needs the audited model alone, `calibrated` and `LiRA` also references, `RMIA` also a population.

    Args:
        answers: logits for the audited images, members and non-members together.
        population: logits of the same models for images in no other role, at least `POPULATION` of them.

    Returns:
        Name of the attack -> float64 `[N]`; judge each by `attack` with `family` set to their number, and all by
        `headline`.

    Raises:
        ConfigError: as `rmia`.
        DataError: shapes that do not match, a logit that is not finite, or a label out of range.
    """
    target, references = _log_odds_of(answers, "audited images")
    scores = {"log-odds": target}
    if len(references) == 0:
        return scores
    scores |= {"calibrated": calibrated(target, references), "LiRA": lira(target, references)}
    if population is not None:
        others = _log_odds_of(population, "population")
        if len(others[1]) != len(references):
            raise DataError(
                f"the same references must answer for both, got {len(references)} for the audited images and "
                f"{len(others[1])} for the population"
            )
        scores["RMIA"] = rmia(target, references, *others)
    return scores


def headline(results: Sequence[Attack]) -> Attack:
    """The strongest attack: by its epsilon bound, then by its rate at the smallest error rate, then by its AUC.

    Raises:
        ConfigError: no attacks, or one whose `family` is smaller than their number: the largest of several bounds only
            holds if each was computed to hold together with the others.
    """
    if not results:
        raise ConfigError("a headline needs an attack, got none")
    if alone := [each.name for each in results if each.family < len(results)]:
        raise ConfigError(
            f"a headline of {len(results)} attacks needs bounds that hold together, got {', '.join(alone)} with a "
            f"smaller family; give attack(..., family={len(results)})"
        )

    # The bound first, since it is a claim about privacy. An average such as the AUC hides an attack that is certain of
    # few members, so the rate at few errors goes before it.
    def strength(result: Attack) -> tuple[float, float, float]:
        rates = [at.rate.value for at in result.tpr if at.rate is not None]
        return result.epsilon, rates[-1] if rates else 0.0, result.auc.value

    return max(results, key=strength)


def log_odds(logits: Array, labels: Array) -> Tensor:
    """log(p / (1 - p)) of the label's probability: its logit less the log-sum-exp of all others (Carlini et al. 2022).

    Args:
        logits: `[..., N, K]`, K at least 2, any real dtype.
        labels: int64 `[N]` in 0..K-1.

    Returns:
        float64 `[..., N]`, exact to rounding for gaps of any size.

    Raises:
        DataError: shapes that do not match, a logit that is not finite, or a label out of range.
    """
    values, index = _float64(logits, "logits"), torch.as_tensor(labels).cpu()
    if values.dim() < 2 or values.shape[-1] < 2 or index.shape != values.shape[-2:-1]:
        raise DataError(
            f"log-odds need logits [..., N, K] of at least 2 classes and labels [N], got {list(values.shape)} and "
            f"{list(index.shape)}"
        )
    check_labels(index, values.shape[-1], "log-odds")
    # log(p / (1 - p)) without p: the softmax's denominator cancels.
    own = index.long().expand(values.shape[:-1])[..., None]
    others = values.scatter(-1, own, -torch.inf)
    return values.gather(-1, own)[..., 0] - others.logsumexp(-1)


def calibrated(target: Array, references: Array) -> Tensor:
    """Log-odds less their mean over the references: how much easier the image is for the target (Watson et al. 2022).

    Args:
        target: `[N]` log-odds by the audited model.
        references: `[R, N]` by the references, R at least 1.

    Returns:
        float64 `[N]`.

    Raises:
        DataError: shapes that do not match, no reference, or a value that is not finite.
    """
    target, references = _pair(target, references)
    return target - references.mean(0)


def lira(target: Array, references: Array) -> Tensor:
    """The offline LiRA attack, as a z-score (Carlini et al. 2022): `calibrated` over a standard deviation.

    The standard deviation is that of the image's log-odds among models without it, averaged with the one pooled over
    all images. The paper pools all or nothing. For R = 1 the score equals `calibrated` up to scale. It is a z-score and
    no probability, which would be rounded to 1 from z = 8 on.

    Args:
        target: `[N]` log-odds by the audited model.
        references: `[R, N]` by the references, R at least 1.

    Returns:
        float64 `[N]`.

    Raises:
        DataError: shapes that do not match, no reference, or a value that is not finite.
    """
    target, references = _pair(target, references)
    gap, freedom = target - references.mean(0), len(references) - 1
    if freedom == 0:
        variance = gap.var(correction=0)
    else:
        # A few references cannot measure the variance of each image. So its own variance, with R - 1 degrees of
        # freedom, is averaged with the pooled one, which counts as 4: of 64 references the pooled one hardly matters.
        # One variance for all images would rank them as `calibrated` does, whatever R.
        own = references.var(0, correction=1)
        variance = (_PRIOR * own.mean() + freedom * own) / (_PRIOR + freedom)
    return gap / variance.sqrt().clamp_min(1e-12)


def rmia(
    target: Array,
    references: Array,
    population: Array,
    population_references: Array,
    offline_a: float = 0.3,
    gamma: float = 1.0,
) -> Tensor:
    """The offline RMIA attack (Zarifzadeh, Liu and Shokri 2024).

    With p the probability of the label, `R = p_target / Pr` and `Pr = ((1 + a) mean_k p_k + (1 - a)) / 2`. The score of
    an image is the share of the population with `R_image / R_other >= gamma`; images with the same share are ordered by
    their own R. R alone ranks the images of one model; the population makes the scores of models comparable.

    Args:
        target: `[N]` log-odds by the audited model.
        references: `[R, N]` by the references, R at least 1.
        population: `[Z]` log-odds by the audited model of images in no other role.
        population_references: `[R, Z]` by the references.
        offline_a: a, in [0, 1]: `a p + 1 - a` stands for the probability by models that were trained on the image, as
            the references were not; 0.3 suits a few references of images of ten classes.
        gamma: least ratio of an image's R to another's, above 0.

    Returns:
        float64 `[N]` in [0, 1 + 1 / Z].

    Raises:
        ConfigError: `offline_a` or `gamma` out of range.
        DataError: shapes that do not match, no reference, or a value that is not finite.
    """
    if not 0 <= offline_a <= 1 or gamma <= 0:
        raise ConfigError(f"RMIA needs 0 <= offline_a <= 1 and gamma > 0, got {offline_a} and {gamma}")
    own = _log_ratio(*_pair(target, references), offline_a)
    others = _log_ratio(*_pair(population, population_references), offline_a).sort().values
    share = torch.searchsorted(others, own - math.log(gamma), right=True).double() / len(others)
    # atan maps log R to (0, 1) in order: it breaks ties and never outweighs a step of the share.
    return share + (0.5 + own.atan() / math.pi) / len(others)


def _log_ratio(target: Tensor, references: Tensor, a: float) -> Tensor:
    """log R `[N]` of RMIA, from log-odds `[N]` and `[R, N]`."""
    # In log space, which keeps probabilities near 1 apart: log p and log (1 - p) both come from the log-odds.
    hit, miss = functional.logsigmoid(references), functional.logsigmoid(-references)
    count = torch.full_like(target, len(references))
    mean_hit, mean_miss = hit.logsumexp(0) - count.log(), miss.logsumexp(0) - count.log()
    rest = math.log((1 - a) / 2) if a < 1 else -math.inf
    from_hit = torch.logaddexp(math.log((1 + a) / 2) + mean_hit, torch.full_like(mean_hit, rest))
    # Pr = 1 - (1 + a) / 2 * mean_k (1 - p_k) is the same; near a probability of 1 rounding loses p, but not 1 - p.
    from_miss = torch.log1p(-(1 + a) / 2 * mean_miss.exp())
    return functional.logsigmoid(target) - torch.where(mean_miss.exp() < 0.5, from_miss, from_hit)


def _log_odds_of(answers: Answers, what: str) -> tuple[Tensor, Tensor]:
    """Log-odds `[N]` by the target and `[R, N]` by the references; errors call the images `what`."""
    shape, of_references = tuple(np.shape(answers.target)), tuple(np.shape(answers.references))
    if len(shape) != 2 or of_references[1:] != shape or len(of_references) != 3:
        raise DataError(
            f"{what}: need logits [N, K] of the target and [R, N, K] of the references, got {list(shape)} and "
            f"{list(of_references)}"
        )
    return log_odds(answers.target, answers.labels), log_odds(answers.references, answers.labels)


def _pair(target: Array, references: Array) -> tuple[Tensor, Tensor]:
    """Log-odds `[N]` and `[R, N]` as float64, checked."""
    own, others = _float64(target, "log-odds of the target"), _float64(references, "log-odds of the references")
    if own.dim() != 1 or others.dim() != 2 or others.shape[1:] != own.shape or len(others) == 0:
        raise DataError(
            f"need log-odds [N] of the target and [R, N] of a reference or more, got {list(own.shape)} and "
            f"{list(others.shape)}"
        )
    return own, others


def _float64(values: Array, name: str) -> Tensor:
    return torch.from_numpy(finite(values, name))
