"""The audit of one model: all attacks on it, its lower bounds of epsilon, and the checks without which it is invalid.

In an audit of a pipeline, a coin decided for each canary whether it is in the training data; each half of the canaries
is attacked and has a rigorous bound. For a finished model only lists of members and non-members are given; an audit of
them shows the average case, without a bound.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from synthkd.taps import evaluating
from synthkd.types import InBlocks

NATURAL, MISLABELLED = "natural", "mislabelled"
GROUPS = (NATURAL, MISLABELLED)
"""The halves of the canaries: the average case, and the worst case."""
PIPELINE, GIVEN = "pipeline", "given lists"
"""The kinds of audit. An audit of given lists has one group of images, named after the kind."""
AVERAGE_CASE = "average-case, heuristic: not a bound"
"""Label of every number of an audit of given lists."""
CONFIDENCE = 0.95
"""Confidence of each interval, and of all one-run bounds of an audit together."""
CONTROL_CONFIDENCE = 0.99
"""Confidence of each control: a valid audit fails it in 1 of 100 runs."""
BLOCK = 512
"""Images that are in memory at a time."""
DRAWS = 2000
"""Random lists that `classes_check` compares with the given ones."""
WHOS = ("teacher", "student")
"""The models of an audit, as results and reports call them."""


@dataclass(frozen=True)
class GroupAudit:
    """The audit of one model on one group of images: a half of the canaries, or the given lists.

    Attributes:
        attacks: results of all attacks; their bounds and intervals hold together.
        headline: name of the strongest attack.
        one_run: the rigorous lower bound; None for given lists, whose members were not drawn by a coin.
    """

    attacks: tuple[Attack, ...]
    headline: str
    one_run: OneRun | None


def audit_model(
    canaries: Canaries, answers: Answers, population: Answers | None, guesses: int | None, delta: float, models: int = 1
) -> dict[str, GroupAudit]:
    """Attack one model by its logits for the canaries.

    Args:
        canaries: which are included, and with which label.
        answers: logits for the canaries, in their order, with the labels they are trained with.
        population: logits for images in no other role, or None.
        guesses: of the one-run bound, in each half; None: a fifth.
        delta: of all bounds.
        models: number of audited models; the one-run bounds of all their halves hold together.

    Returns:
        Half of the canaries -> its audit. The one-run bound is that of LiRA's score, or of the log-odds without
        references.
    """
    scores = attacks(answers, population)
    # The score of the bound is fixed before any result is known: the largest of several bounds would not hold.
    declared = scores.get("LiRA", scores["log-odds"])
    # Bonferroni over the halves and the models, whose bounds are reported together.
    confidence = 1 - (1 - CONFIDENCE) / (len(GROUPS) * models)
    groups = {}
    for group, member in zip(GROUPS, (~canaries.mislabelled, canaries.mislabelled), strict=True):
        coins = canaries.included[member]
        half = {name: values[member] for name, values in scores.items()}
        results = _results(half, canaries.labels[member], coins, delta)
        bound = one_run_epsilon(declared[member], coins, guesses, delta, confidence)
        groups[group] = GroupAudit(results, headline(results).name, bound)
    return groups


def audit_lists(
    answers: Answers, members: Tensor, population: Answers | None = None, delta: float = 1e-5
) -> GroupAudit:
    """Attack one model by its logits for given members and non-members.

    Args:
        answers: logits for both lists together.
        members: bool `[N]`, True for members.
        population: logits for images in no other role, or None.
        delta: of the estimates of epsilon.

    Returns:
        The audit, without a one-run bound; see `AVERAGE_CASE`.
    """
    results = _results(attacks(answers, population), torch.as_tensor(answers.labels), members, delta)
    return GroupAudit(results, headline(results).name, None)


def count_duplicates(images: InBlocks, others: Mapping[str, InBlocks]) -> dict[str, int]:
    """The number of images in each other set that equal one of these images pixel by pixel.

    Args:
        images: uint8 `[N, C, H, W]`.
        others: role -> uint8 `[M, C, H, W]`.
    """
    own = set(_digests(images))
    return {role: sum(digest in own for digest in _digests(other)) for role, other in others.items()}


def rows_without_copy(images: InBlocks, others: Iterable[InBlocks] = ()) -> Tensor:
    """Rows, int64 and ascending, of the images that equal no other image pixel by pixel.

    Args:
        images: uint8 `[N, C, H, W]`.
        others: further sets, uint8 `[M, C, H, W]`.
    """
    digests = [*_digests(images)]
    counts = Counter(digests)
    for other in others:
        counts.update(_digests(other))
    return torch.tensor([row for row, digest in enumerate(digests) if counts[digest] == 1], dtype=torch.int64)


def _digests(images: InBlocks) -> Iterator[bytes]:
    """SHA-256 of the pixels of each image, which takes less memory than the image."""
    return (hashlib.sha256(image.numpy().tobytes()).digest() for block in images.split(BLOCK) for image in block.cpu())


def roles_check(sets: Mapping[str, InBlocks]) -> Check:
    """No image, pixel by pixel, is in two of these sets.

    Args:
        sets: role -> uint8 `[N, C, H, W]`.
    """
    digests = {role: [*_digests(images)] for role, images in sets.items()}
    distinct = {role: set(each) for role, each in digests.items()}
    counts = {
        (one, other): sum(digest in distinct[one] for digest in digests[other]) for one, other in combinations(sets, 2)
    }
    twice = [f"{count} of the {other} are among the {one}" for (one, other), count in counts.items() if count]
    evidence = f"{', '.join(twice)}, pixel by pixel" if twice else "each image stands on one list only"
    return Check("no image in two roles", not twice, evidence)


def blind_check(inside: InBlocks, outside: InBlocks, seed: int = 0) -> Check:
    """Members cannot be told from non-members by their pixels; see `blind_baseline`.

    Args:
        inside: uint8 `[N, C, H, W]`, members.
        outside: uint8 `[M, C, H, W]`, non-members.
        seed: of the folds.
    """
    area = blind_baseline(inside, outside, seed, CONTROL_CONFIDENCE)
    evidence = f"without any model members are told from non-members with an AUC of {area}"
    return Check("blind baseline", not area.excludes_chance, evidence)


def classes_check(inside: Tensor, outside: Tensor, seed: int = 0) -> Check:
    """Members cannot be told from non-members by their labels.

    Args:
        inside: int64 `[N]`, labels of members.
        outside: int64 `[M]`, labels of non-members.
        seed: of the draws.
    """
    # A model is more confident about some classes, so lists with unlike classes can be told apart however little the
    # model memorised. The chi-square statistic of the members' class counts is compared with that of lists drawn at
    # random from both lists together, which is valid for classes with few images too.
    both = torch.cat([inside, outside]).bincount()
    expected = (both * len(inside) / (len(inside) + len(outside))).clamp_min(1e-12).numpy()
    draws = numpy_stream(seed, "classes of lists").multivariate_hypergeometric(both.numpy(), len(inside), DRAWS)
    counts = inside.bincount(minlength=len(both)).numpy()
    of_draws, statistic = (((each - expected) ** 2 / expected).sum(-1) for each in (draws, counts))
    # The lists themselves count as one of the draws, so that the p-value is valid and never 0.
    p_value = (1 + int((of_draws >= statistic - 1e-9).sum())) / (1 + DRAWS)
    evidence = f"lists drawn from both at random are as unlike in their classes in {p_value:.2%} of cases"
    return Check("blind baseline of labels", p_value >= 1 - CONTROL_CONFIDENCE, evidence)


def labels_check(logits: Mapping[str, Tensor], labels: Tensor) -> Check:
    """An audited model predicts the given labels of members more often than a guess would.

    Args:
        logits: teacher, student -> `[N, K]` for the members.
        labels: int64 `[N]`.
    """
    # Otherwise these are not the labels it was trained with, for example because classes are numbered differently. Then
    # attacks, which use the log-odds of the label, would find nothing whatever the model memorised.
    correct = {who: int((each.argmax(1) == labels).sum()) for who, each in logits.items()}
    classes = next(iter(logits.values())).shape[1]
    passed = lower_limit(max(correct.values()), len(labels), 1 - CONTROL_CONFIDENCE) > 1 / classes
    shares = " and ".join(f"{count / len(labels):.1%} by the {who}" for who, count in correct.items())
    evidence = f"members are given the label they carry: {shares}"
    return Check("labels", passed, evidence if passed else f"{evidence}, as guesses would be")


def negative_check(references: Sequence[Tensor], labels: Tensor, members: Tensor) -> Check:
    """No reference tells the lists apart.

    Args:
        references: logits `[N, K]` of each reference, one or more, for both lists together.
        labels: int64 `[N]`.
        members: bool `[N]`.
    """
    # A reference that tells them apart was trained on one of the lists, or one list is easier by itself. The level is
    # Bonferroni's: more references must not make a false alarm more likely.
    level = 1 - (1 - CONTROL_CONFIDENCE) / len(references)
    areas = [auc(*_sides(log_odds(logits, labels), members), level) for logits in references]
    most = max(areas, key=lambda area: abs(area.value - 0.5))
    evidence = f"references that saw neither list tell members from non-members with an AUC of {most} at most"
    return Check("negative control", not any(area.excludes_chance for area in areas), evidence)


def logits_of(
    model: torch.nn.Module, images: InBlocks, device: torch.device, batch_size: int = BLOCK, who: str = "the model"
) -> Tensor:
    """Logits float32 `[N, K]` on the CPU, computed batch by batch.

    Args:
        model: on the device; it is evaluated in eval mode.
        images: `[N, C, H, W]`, uint8, or float32 in [0, 1].
        device: of the model.
        batch_size: images at a time.
        who: name of the model in errors.

    Raises:
        ModelError: a logit is not finite.
    """
    return _logits_of_each({who: model}, {who: device}, images, batch_size)[0]


def _logits_of_each(
    models: Mapping[str, torch.nn.Module], places: Mapping[str, torch.device], images: InBlocks, batch_size: int
) -> list[Tensor]:
    """The logits of each model, in one pass over the images."""
    logits: dict[str, list[Tensor]] = {who: [] for who in models}
    for chunk in images.split(batch_size):
        pixels = chunk.float() / (255.0 if chunk.dtype == torch.uint8 else 1.0)
        for who, model in models.items():
            with evaluating(model), torch.no_grad():
                logits[who].append(model(pixels.to(places[who])).float().cpu())
    return [finite_logits(torch.cat(parts), who) for who, parts in logits.items()]


def answers_of(
    models: Mapping[str, torch.nn.Module], images: InBlocks, labels: Tensor, device: torch.device | None = None
) -> Answers:
    """Logits of an audited model and its references.

    Args:
        models: name for errors -> model, which is moved to the device if there is one; the audited model comes first.
        images: `[N, C, H, W]`, uint8, or float32 in [0, 1].
        labels: int64 `[N]`.
        device: where the models run; None: each where it is.

    Raises:
        ModelError: a logit is not finite.
    """
    logits = torch.stack(logits_of_each(models, images, device))
    return Answers(logits[0], logits[1:], labels)


def logits_of_each(
    models: Mapping[str, torch.nn.Module], images: InBlocks, device: torch.device | None = None
) -> list[Tensor]:
    """Logits float32 `[N, K]` of each model on the CPU, in one pass over the images; arguments as in `answers_of`.

    Raises:
        ModelError: a logit is not finite.
    """
    places = {who: _device_of(model) if device is None else device for who, model in models.items()}
    moved = {who: model.to(places[who]) for who, model in models.items()}
    return _logits_of_each(moved, places, images, BLOCK)


def _device_of(model: torch.nn.Module) -> torch.device:
    return next((weight.device for weight in model.parameters()), torch.device("cpu"))


def _results(scores: Mapping[str, Tensor], labels: Tensor, members: Tensor, delta: float) -> tuple[Attack, ...]:
    """Results of attacks on the same points, whose bounds hold together."""
    return tuple(
        attack(name, *_sides(values, members), *_sides(labels, members), delta, CONFIDENCE, len(scores))
        for name, values in scores.items()
    )


def _sides(values: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
    """The values of members, and those of non-members."""
    return values[members], values[~members]
