"""Membership attacks: scores from the answers of a model, higher where an image looks more like one it was trained on.

The number behind all of them is the log-odds of the label, log(p / (1 - p)), computed from logits without
probabilities: these are rounded to 1 for most members, and their ties would hide the very images that are most exposed.

Reference models come from the whole pipeline run again without the audited images: they say how an image is answered by
a model that never saw it. One reference is enough for every attack here; more are better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn import functional

from synthkd.errors import ConfigError, DataError
from synthkd.metrics.arrays import Array
from synthkd.privacy.intervals import Area, auc
from synthkd.privacy.rates import Attack
from synthkd.rng import derive
from synthkd.types import check_labels, to_float

POPULATION = 1000
"""Images in no other role that RMIA is to have."""

_PRIOR = 4.0  # how many degrees of freedom the pooled variance of LiRA counts for
_FOLDS = 5
_FEWEST = 4 * _FOLDS  # images of a side for a blind baseline
_SIDE = 16  # pixels: images are averaged down to this before a linear model sees them


@dataclass(frozen=True)
class Answers:
    """Logits that the audited model and the references give the same labelled images.

    Attributes:
        target: float `[N, K]`, of the audited model.
        references: float `[R, N, K]`, of models trained without these images; R may be 0.
        labels: int64 `[N]`, the label that each image was trained with, or would have been.
    """

    target: Array
    references: Array
    labels: Array


@dataclass(frozen=True)
class BlindBaseline:
    """How well members are told from non-members without any model.

    Attributes:
        auc: of a linear model of the pixels, out of fold, with a 95 % interval.
        n_in, n_out: members and non-members.
    """

    auc: Area
    n_in: int
    n_out: int

    @property
    def leaks(self) -> bool:
        """True where the interval excludes 0.5: the two sides differ by themselves, so attacks on them say nothing."""
        return not self.auc.low <= 0.5 <= self.auc.high


def attacks(
    audited: Answers, population: Answers | None = None, offline_a: float = 0.3, gamma: float = 1.0
) -> dict[str, Tensor]:
    """Scores of every attack that the answers allow, by name; which of them finds most varies, so all are run.

    `log-odds` needs the audited model alone, `calibrated` and `LiRA` references too, `RMIA` also a population.

    Args:
        audited: answers about the audited images, members and non-members together.
        population: answers of the same models about images in no other role, `POPULATION` or more.
        offline_a: of `rmia`; see `tune_offline_a`.
        gamma: of `rmia`.

    Returns:
        Name -> float64 `[N]`; judge each by `attack` with `family` set to their number, and all by `headline`.

    Raises:
        ConfigError: as `rmia`.
        DataError: answers that do not match, a logit that is not finite, or a label out of range.
    """
    target, references = _answered(audited, "audited images")
    scores = {"log-odds": target}
    if len(references) == 0:
        return scores
    scores |= {"calibrated": calibrated(target, references), "LiRA": lira(target, references)}
    if population is not None:
        others = _answered(population, "population")
        if len(others[1]) != len(references):
            raise DataError(
                f"the same references must answer for both, got {len(references)} for the audited images and "
                f"{len(others[1])} for the population"
            )
        scores["RMIA"] = rmia(target, references, *others, offline_a, gamma)
    return scores


def headline(results: Sequence[Attack]) -> Attack:
    """The attack that shows most: by its epsilon bound, then by what it finds at the fewest errors, then by its AUC.

    Raises:
        ConfigError: no attacks, or one whose `family` is less than their number: the largest of bounds that were each
            made to hold alone does not hold.
    """
    if not results:
        raise ConfigError("a headline needs an attack, got none")
    if alone := [each.name for each in results if each.family < len(results)]:
        raise ConfigError(
            f"a headline of {len(results)} attacks needs bounds that hold together, got {', '.join(alone)} with a "
            f"smaller family; give attack(..., family={len(results)})"
        )

    def found(result: Attack) -> float:
        rates = [at.rate.value for at in result.tpr if at.rate is not None]
        return rates[-1] if rates else 0.0

    return max(results, key=lambda result: (result.epsilon, found(result), result.auc.value))


def log_odds(logits: Array, labels: Array) -> Tensor:
    """log(p / (1 - p)) of the label's probability: its logit less the log-sum-exp of all others (Carlini et al. 2022).

    Args:
        logits: `[..., N, K]`, K at least 2, any real dtype.
        labels: int64 `[N]` in 0..K-1.

    Returns:
        float64 `[..., N]`, exact to rounding at gaps of any size.

    Raises:
        DataError: shapes that do not match, a logit that is not finite, or a label out of range.
    """
    values, index = _tensor(logits, "logits"), torch.as_tensor(labels).cpu()
    if values.dim() < 2 or values.shape[-1] < 2 or index.shape != values.shape[-2:-1]:
        raise DataError(
            f"log-odds need logits [..., N, K] of at least 2 classes and labels [N], got {list(values.shape)} and "
            f"{list(index.shape)}"
        )
    check_labels(index, values.shape[-1], "log-odds")
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
    """LiRA with references that saw none of the images, as a z-score (Carlini et al. 2022, offline attack).

    The z-score is `calibrated` over the standard deviation of the image's log-odds among models without it. A few
    references cannot say that of each image, so its variance is pooled over images as 4 degrees of freedom and joined
    by the image's own R - 1: with one reference all of it is pooled, with 64 hardly any. (The paper pools all or
    nothing; a variance that is one number for all images would order them as `calibrated` does, whatever R.) With
    R = 1 the pooled variance is that of `calibrated` over the images, so the score is the same up to scale.

    No probability is taken of the z-score: that of a normal is rounded to 1 from z = 8 on.

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
    """RMIA with references that saw none of the images (Zarifzadeh, Liu and Shokri 2024, offline attack).

    With p the probability of the label, `R = p_target / Pr` and `Pr = ((1 + a) mean_k p_k + (1 - a)) / 2`. The score of
    an image is the share of the population with `R_image / R_other >= gamma`; images with the same share are ordered by
    their own R. (Both rise with R, which alone orders the images of one model; the population gives a scale that
    models share.) All of it in log space, where probabilities that differ by less than rounding near 1 stay apart.

    Args:
        target: `[N]` log-odds by the audited model.
        references: `[R, N]` by the references, R at least 1.
        population: `[Z]` log-odds by the audited model of images in no other role.
        population_references: `[R, Z]` by the references.
        offline_a: a, in [0, 1]: how much of what a model that saw the image would answer is inferred from those that
            did not; 0.3 suits a few references of images of ten classes, `tune_offline_a` measures it.
        gamma: how much more likely, more than 0.

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
    return share + (0.5 + own.atan() / math.pi) / len(others)


def tune_offline_a(references: Array, members: Array) -> float:
    """The `offline_a` of `rmia` that attacks the references best, each by the others; the target has no say.

    Each reference is attacked with the others that did not see the image. The population is not needed: it changes the
    score of an image, not which of two images scores higher.

    Args:
        references: `[R, N]` log-odds of the references, R at least 2, of images that are not audited.
        members: bool `[R, N]`, which of them each reference was trained on.

    Returns:
        0, 0.1, ... 1, by the mean AUC over references; the least of equals.

    Raises:
        DataError: fewer than two references, shapes that do not match, or a reference without two members and two
            non-members that another reference has not seen.
    """
    answers, seen = _tensor(references, "references"), torch.as_tensor(members).cpu().bool()
    if answers.dim() != 2 or answers.shape != seen.shape or len(answers) < 2:
        raise DataError(
            "tuning RMIA needs [R, N] log-odds of two references or more and their members [R, N], got "
            f"{list(answers.shape)} and {list(seen.shape)}; with one reference take the default"
        )

    def found(a: float) -> float:
        areas = []
        for target in range(len(answers)):
            others = torch.arange(len(answers)) != target
            usable = (~seen[others]).any(0)
            attacked = seen[target, usable]
            ratio = _log_ratio(answers[target, usable], answers[others][:, usable], a, seen[others][:, usable])
            areas.append(auc(ratio[attacked], ratio[~attacked]).value)
        return float(np.mean(areas))

    return max((step / 10 for step in range(11)), key=found)


def blind_baseline(images_in: Tensor, images_out: Tensor, seed: int = 0) -> BlindBaseline:
    """Can members be told from non-members by their pixels, without a model (Das, Zhang and Tramèr 2024)?

    A logistic regression is fitted to four fifths of the images and judges the rest, five times over. Images of more
    than 16 pixels a side are averaged down to that first. Scores become ranks within their fold, since those of
    different models cannot be compared. The folds share what the models were fitted to, which DeLong's error does not
    know of: without a correction one interval in five would exclude 0.5 for sides that are alike.

    Args:
        images_in: uint8 `[N, C, H, W]`, members, at least 20.
        images_out: uint8 `[M, C, H, W]`, non-members, at least 20.
        seed: of the folds.

    Raises:
        DataError: too few images, not uint8, or of different shapes.
    """
    for images, what in ((images_in, "members"), (images_out, "non-members")):
        if images.dtype != torch.uint8 or images.dim() != 4 or len(images) < _FEWEST:
            raise DataError(
                f"a blind baseline needs {_FEWEST} {what} or more, uint8 [N, C, H, W], got {images.dtype} "
                f"{list(images.shape)}"
            )
    if images_in.shape[1:] != images_out.shape[1:]:
        raise DataError(
            f"members are {list(images_in.shape[1:])} and non-members {list(images_out.shape[1:])}; take both from "
            "one dataset"
        )
    small = [_reduced(images) for images in (images_in, images_out)]
    pixels = torch.cat(small).flatten(1).double().numpy()
    member = np.arange(len(pixels)) < len(images_in)
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=derive(seed, "blind baseline") % 2**32)
    scores = np.empty(len(pixels))
    for fitted, judged in folds.split(pixels, member):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300))
        answers = model.fit(pixels[fitted], member[fitted]).decision_function(pixels[judged])
        scores[judged] = rankdata(answers) / (len(judged) + 1)
    area = auc(scores[member], scores[~member])
    if area.standard_error > 0:
        # Nadeau and Bengio 2003: the variance of a mean over folds grows by the share of judged to fitted images
        error = area.standard_error * math.sqrt(1 + _FOLDS / (_FOLDS - 1))
        low, high = area.value - 1.96 * error, area.value + 1.96 * error
        area = Area(area.value, error, max(0.0, low), min(1.0, high))
    return BlindBaseline(area, len(images_in), len(images_out))


def _reduced(images: Tensor) -> Tensor:
    height, width = (min(_SIDE, side) for side in images.shape[2:])
    chunks = [functional.adaptive_avg_pool2d(to_float(chunk), (height, width)) for chunk in images.split(512)]
    return torch.cat(chunks)


def _log_ratio(target: Tensor, references: Tensor, a: float, seen: Tensor | None = None) -> Tensor:
    """log R `[N]` of RMIA, from log-odds; `seen` bool `[R, N]` marks references that are left out for an image."""
    hit, miss = functional.logsigmoid(references), functional.logsigmoid(-references)
    count = torch.full_like(target, len(references))
    if seen is not None:
        hit, miss = hit.masked_fill(seen, -torch.inf), miss.masked_fill(seen, -torch.inf)
        count = (~seen).sum(0).double()
    mean_hit, mean_miss = hit.logsumexp(0) - count.log(), miss.logsumexp(0) - count.log()
    rest = math.log((1 - a) / 2) if a < 1 else -math.inf
    unsure = torch.logaddexp(math.log((1 + a) / 2) + mean_hit, torch.full_like(mean_hit, rest))
    # near a probability of 1 only what it lacks can be told from rounding
    sure = torch.log1p(-(1 + a) / 2 * mean_miss.exp())
    return functional.logsigmoid(target) - torch.where(mean_miss.exp() < 0.5, sure, unsure)


def _answered(answers: Answers, what: str) -> tuple[Tensor, Tensor]:
    """Log-odds `[N]` of the target and `[R, N]` of the references."""
    shape, of_references = tuple(np.shape(answers.target)), tuple(np.shape(answers.references))
    if len(shape) != 2 or of_references[1:] != shape or len(of_references) != 3:
        raise DataError(
            f"{what}: need logits [N, K] of the target and [R, N, K] of the references, got {list(shape)} and "
            f"{list(of_references)}"
        )
    return log_odds(answers.target, answers.labels), log_odds(answers.references, answers.labels)


def _pair(target: Array, references: Array) -> tuple[Tensor, Tensor]:
    own, others = _tensor(target, "log-odds of the target"), _tensor(references, "log-odds of the references")
    if own.dim() != 1 or others.dim() != 2 or others.shape[1:] != own.shape or len(others) == 0:
        raise DataError(
            f"need log-odds [N] of the target and [R, N] of a reference or more, got {list(own.shape)} and "
            f"{list(others.shape)}"
        )
    return own, others


def _tensor(values: Array, name: str) -> Tensor:
    given = (values.detach() if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))).cpu().double()
    if not bool(given.isfinite().all()):
        raise DataError(
            f"{name}: {int((~given.isfinite()).sum())} of {given.numel()} are NaN or infinite; look for what made them"
        )
    return given
