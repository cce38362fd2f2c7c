"""Whether generated samples are copies of the training data.

Every measure looks from a generated sample to its nearest training sample, the direction in which a copy is found, and
is judged against what samples that nobody could have copied would show. They see copies that the features see: take
features in which near copies stay near.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from synthkd.metrics.arrays import Array, same_width, thinned
from synthkd.metrics.neighbours import Neighbours, nearest, nearest_others, points
from synthkd.metrics.utility import Proportion, proportion
from synthkd.rng import stream


@dataclass(frozen=True)
class NeighbourRatios:
    """Distances of generated samples to the training set over those to a holdout set of equal size.

    Around 1 the generated samples are no nearer to what was trained on than to what was not; below 1 they are nearer to
    the training set, which copying explains.

    Attributes:
        ratios: float64 `[M]`, distance to the nearest training sample over that to the nearest holdout sample; 1 where
            both are 0, infinite where only the second is.
        median: of the ratios; lower means closer to the training set.
        nearer_to_train: share of generated samples that are strictly nearer to a training sample, about 0.5 without
            copying (less where many are equally near to both), 1 for copies. The interval is 1.96 standard deviations
            either way that the share would have if real samples were called training or holdout by lot: wider than
            Wilson's, since the generated samples around one real sample count for or against copying together.
        n_each: samples of each set, after the larger one was thinned.
        closest_generated: int64 `[P]`, the generated samples nearest to any training sample, nearest first.
        closest_train: int64 `[P]`, that training sample; all of the training set is searched.
        closest_distances: float64 `[P]`.
    """

    ratios: Tensor
    median: float
    nearer_to_train: Proportion
    n_each: int
    closest_generated: Tensor
    closest_train: Tensor
    closest_distances: Tensor


@dataclass(frozen=True)
class Copying:
    """The three measures of copying; see the function of each.

    Attributes:
        authenticity: of `authenticity`.
        authenticity_of_holdout: the same for the holdout set in place of the generated one: what fresh samples reach.
        statistic: of `copying_statistic`.
        ratios: of `nearest_neighbour_ratios`.
    """

    authenticity: Proportion
    authenticity_of_holdout: Proportion
    statistic: float
    ratios: NeighbourRatios


def copying(train: Array, holdout: Array, generated: Array, seed: int = 0, pairs: int = 16) -> Copying:
    """All three measures, with one search of the training set for the generated samples.

    Args:
        train: `[N, D]` features, at least 2.
        holdout: `[H, D]` features of real samples that were not trained on.
        generated: `[M, D]` features of the same extractor.
        seed: of `nearest_neighbour_ratios`.
        pairs: of `nearest_neighbour_ratios`.

    Raises:
        DataError: features that `rows` refuses, or different D.
    """
    train, holdout, generated = _three(train, holdout, generated, 2)
    closest, closest_to_holdout = nearest(generated, train, 1), nearest(holdout, train, 1)
    of_generated, of_holdout = _authenticities(train, closest, closest_to_holdout)
    return Copying(
        authenticity=of_generated,
        authenticity_of_holdout=of_holdout,
        statistic=_statistic(closest.squared[:, 0], closest_to_holdout.squared[:, 0]),
        ratios=_ratios(train, holdout, generated, closest, seed, pairs),
    )


def authenticity(train: Array, generated: Array) -> Proportion:
    """Share of generated samples that are no copy of a training sample (Alaa et al. 2022); higher is better.

    A generated sample is authentic when its nearest training sample has another training sample strictly nearer to it.
    So an exact copy never is, not even one of a training image that occurs twice. Fresh draws of the training
    distribution do not reach 1: one is authentic when its nearest point has a nearer one, which is so for 1 in 3 on a
    line and for about 7 in 10 normal draws in 30 dimensions. So compare with the value for a holdout set, which
    `copying` gives along. Samples off the training distribution come close to 1: read it with precision.

    Args:
        train: `[N, D]` features, at least 2.
        generated: `[M, D]` features of the same extractor.

    Raises:
        DataError: features that `rows` refuses, or different D.
    """
    train, generated = points(train, "train", 2), points(generated, "generated")
    same_width(train, generated, "train and generated")
    return _authenticities(train, nearest(generated, train, 1))[0]


def copying_statistic(train: Array, holdout: Array, generated: Array) -> float:
    """C_T with one cell (Meehan, Chaudhuri and Dasgupta 2020): below about -3 the generator copies.

    The Mann-Whitney U of the distances to the nearest training sample, of generated against holdout samples, as a
    z-score: of all pairs (generated, holdout), how many have the generated one farther away, less what is expected,
    over the standard deviation. Standard normal when generated samples are as far from the training set as holdout
    samples are; negative when nearer; positive when farther (underfitting). Ties share mid-ranks and the variance is
    corrected for them. The score grows with the square root of the numbers of samples, and says nothing when the
    holdout set is not of the training distribution or overlaps the training set.

    Args:
        train: `[N, D]` features.
        holdout: `[H, D]` features of real samples that were not trained on.
        generated: `[M, D]` features.

    Returns:
        The z-score; 0 when all distances are equal.

    Raises:
        DataError: features that `rows` refuses, or different D.
    """
    train, holdout, generated = _three(train, holdout, generated)
    return _statistic(*(nearest(side, train, 1).squared[:, 0] for side in (generated, holdout)))


def nearest_neighbour_ratios(
    train: Array, holdout: Array, generated: Array, seed: int = 0, pairs: int = 16
) -> NeighbourRatios:
    """Is the nearest training sample nearer than the nearest holdout sample, from sets of equal size?

    The larger of the two real sets is thinned at random to the size of the smaller, since a larger set alone has nearer
    neighbours. Copies of training samples that fall out are then missed by the ratios (not by the closest pairs): with
    a holdout set of a tenth, nine of ten.

    Args:
        train: `[N, D]` features.
        holdout: `[H, D]` features of real samples that were not trained on.
        generated: `[M, D]` features.
        seed: of the thinning.
        pairs: how many closest pairs to name, at most M.

    Raises:
        DataError: features that `rows` refuses, or different D.
    """
    train, holdout, generated = _three(train, holdout, generated)
    return _ratios(train, holdout, generated, nearest(generated, train, 1), seed, pairs)


def _authenticities(train: Tensor, *closest: Neighbours) -> list[Proportion]:
    """Of each set of samples whose nearest training samples are given; no training sample is searched from twice."""
    asked, place = torch.cat([found.indices[:, 0] for found in closest]).unique(return_inverse=True)
    gaps = nearest_others(train, 1, asked).squared[place, 0].split([len(found.squared) for found in closest])
    return [
        proportion(int((gap < found.squared[:, 0]).sum()), len(gap)) for gap, found in zip(gaps, closest, strict=True)
    ]


def _statistic(generated: Tensor, holdout: Tensor) -> float:
    """z-score of the Mann-Whitney U of distances `[M]` against distances `[H]`."""
    m, n = len(generated), len(holdout)
    distances = torch.cat([generated, holdout]).numpy()
    farther = float(rankdata(distances)[:m].sum()) - m * (m + 1) / 2
    ties = np.unique(distances, return_counts=True)[1].astype(np.float64)
    total = n + m
    variance = n * m / 12 * (total + 1 - float((ties**3 - ties).sum()) / (total * (total - 1)))
    return (farther - n * m / 2) / math.sqrt(variance) if variance > 0 else 0.0


def _ratios(
    train: Tensor, holdout: Tensor, generated: Tensor, closest: Neighbours, seed: int, pairs: int
) -> NeighbourRatios:
    n_each, rng = min(len(train), len(holdout)), stream(seed, "nearest neighbour ratios")
    to_train = closest if len(train) == n_each else nearest(generated, thinned(train, n_each, rng), 1)
    to_holdout = nearest(generated, thinned(holdout, n_each, rng), 1)
    numerator, denominator = to_train.squared[:, 0], to_holdout.squared[:, 0]
    ratios = (numerator / denominator).sqrt().where(numerator != denominator, 1.0)

    order = closest.squared[:, 0].argsort(stable=True)[:pairs]
    return NeighbourRatios(
        ratios=ratios,
        median=float(np.median(ratios.numpy())),
        nearer_to_train=_share(to_train, to_holdout, n_each),
        n_each=n_each,
        closest_generated=order,
        closest_train=closest.indices[order, 0],
        closest_distances=closest.squared[order, 0].sqrt(),
    )


def _share(to_train: Neighbours, to_holdout: Neighbours, n_each: int) -> Proportion:
    """Share of samples nearer to train, and what it would spread by if the names of real samples were drawn by lot.

    Each of the 2 n real samples weighs as many generated samples as have it nearest. The share is then the weight of n
    of them drawn without replacement.
    """
    train, holdout = to_train.squared[:, 0], to_holdout.squared[:, 0]
    winners = [to_train.indices[train < holdout, 0], to_holdout.indices[holdout < train, 0] + n_each]
    weights = torch.cat(winners).bincount(minlength=2 * n_each).double() / len(train)
    spread = 1.96 * math.sqrt(float(weights.var(correction=0)) * n_each * n_each / (2 * n_each - 1))
    share = len(winners[0]) / len(train)
    return Proportion(share, len(train), max(0.0, share - spread), min(1.0, share + spread))


def _three(train: Array, holdout: Array, generated: Array, least: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    train, holdout, generated = (
        points(train, "train", least),
        points(holdout, "holdout"),
        points(generated, "generated"),
    )
    same_width(train, holdout, "train and holdout")
    same_width(train, generated, "train and generated")
    return train, holdout, generated
