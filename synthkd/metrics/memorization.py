"""Measures of copying: are generated samples nearer to the training data than fresh real samples are?

Every measure starts from the training sample nearest to a generated one, since a copy is close to its original. The
yardstick is a holdout set: real samples that were not trained on and cannot be copies. Distances are those of the
features, so use features in which near copies stay close.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from synthkd.metrics.arrays import Array, same_width, subsample
from synthkd.metrics.neighbours import Neighbours, nearest, nearest_others, points
from synthkd.metrics.utility import Proportion, proportion
from synthkd.rng import stream
from synthkd.system.shares import ALONE, Shares


@dataclass(frozen=True)
class NeighbourRatios:
    """Distances of generated samples to the training set, divided by those to a holdout set of equal size.

    A ratio near 1 means that a generated sample is as close to training samples as to other real samples; copies have
    ratios below 1.

    Attributes:
        ratios: float64 `[M]`, distance to the nearest training sample over that to the nearest holdout sample; 1 if
            both are 0, infinite if only the second is.
        median: median of the ratios; lower means closer to the training set.
        nearer_to_train: share of generated samples that are strictly nearer to a training sample: about 0.5 without
            copying (less if many are equally near to both), 1 for copies. The interval is 1.96 standard deviations
            either way, of the share where training and holdout samples are exchanged at random. It is wider than
            Wilson's interval, since all generated samples around one real sample change sides together.
        n_each: samples of each set, after the larger one was subsampled.
    """

    ratios: Tensor
    median: float
    nearer_to_train: Proportion
    n_each: int


@dataclass(frozen=True)
class Copying:
    """The three measures of copying.

    Attributes:
        authenticity: see the function `authenticity`.
        authenticity_of_holdout: the same of the holdout set, the value that fresh real samples have.
        statistic: see `copying_statistic`.
        ratios: see `nearest_neighbour_ratios`.
    """

    authenticity: Proportion
    authenticity_of_holdout: Proportion
    statistic: float
    ratios: NeighbourRatios


def copying(train: Array, holdout: Array, generated: Array, seed: int = 0, shares: Shares = ALONE) -> Copying:
    """All three measures, with one search of the training set for the generated samples.

    Args:
        train: `[N, D]` features, at least 2.
        holdout: `[H, D]` features of real samples that were not trained on.
        generated: `[M, D]` features of the same extractor.
        seed: see `nearest_neighbour_ratios`.
        shares: the processes, all of which have all features; each searches for some of the rows.

    Raises:
        DataError: features that `arrays.rows` refuses, or different D.
    """
    train, holdout, generated = three_sets(train, holdout, generated, 2)
    # The searches take nearly all of the time, and each serves several measures.
    closest, closest_to_holdout = nearest(generated, train, 1, shares), nearest(holdout, train, 1, shares)
    of_generated, of_holdout = _authenticities(train, closest, closest_to_holdout, shares=shares)
    return Copying(
        authenticity=of_generated,
        authenticity_of_holdout=of_holdout,
        statistic=_statistic(closest.squared[:, 0], closest_to_holdout.squared[:, 0]),
        ratios=_ratios(train, holdout, generated, closest, seed, shares),
    )


def authenticity(train: Array, generated: Array) -> Proportion:
    """Share of authentic generated samples (Alaa et al. 2022); low values mean copies.

    A generated sample is authentic if its nearest training sample has another training sample strictly nearer to it.
    An exact copy never is, not even of a training image that occurs twice. Fresh samples of the training distribution
    do not reach 1 either: of uniform samples on a line 1 in 3 is authentic, of normal samples in 30 dimensions about 7
    in 10. So compare with the value of a holdout set, which `copying` also returns. Samples far from the training
    distribution come close to 1, so read it together with precision.

    Args:
        train: `[N, D]` features, at least 2.
        generated: `[M, D]` features of the same extractor.

    Raises:
        DataError: features that `arrays.rows` refuses, or different D.
    """
    train, generated = points(train, "train", 2), points(generated, "generated")
    same_width(train, generated, "train and generated")
    return _authenticities(train, nearest(generated, train, 1))[0]


def copying_statistic(train: Array, holdout: Array, generated: Array) -> float:
    """C_T with one cell (Meehan, Chaudhuri and Dasgupta 2020): below about -3 the generator copies.

    The z-score of the Mann-Whitney U of distances to the nearest training sample, generated against holdout: the number
    of pairs (generated, holdout) whose generated sample is farther away, minus its expectation, over its standard
    deviation. It is standard normal if generated samples are as far from the training set as holdout samples, negative
    if they are nearer, positive if they are farther (underfitting). Ties get mid-ranks, and the variance is corrected
    for them. The score grows with the square root of the numbers of samples. It means nothing if the holdout set has
    another distribution than the training set, or overlaps it.

    Args:
        train: `[N, D]` features.
        holdout: `[H, D]` features of real samples that were not trained on.
        generated: `[M, D]` features.

    Returns:
        The z-score; 0 if all distances are equal.

    Raises:
        DataError: features that `arrays.rows` refuses, or different D.
    """
    train, holdout, generated = three_sets(train, holdout, generated)
    return _statistic(*(nearest(side, train, 1).squared[:, 0] for side in (generated, holdout)))


def nearest_neighbour_ratios(train: Array, holdout: Array, generated: Array, seed: int = 0) -> NeighbourRatios:
    """Compare the distances to the nearest training sample and to the nearest holdout sample.

    The larger of the two real sets is subsampled to the size of the smaller one, since the nearest sample of a larger
    set is closer by size alone. The ratios then miss copies of training samples that were left out: nine of ten if the
    holdout set is a tenth of the training set. `synthkd.privacy.copies.copy_test` also gives the closest pairs, which
    miss none.

    Args:
        train: `[N, D]` features.
        holdout: `[H, D]` features of real samples that were not trained on.
        generated: `[M, D]` features.
        seed: of the subsampling.

    Raises:
        DataError: features that `arrays.rows` refuses, or different D.
    """
    train, holdout, generated = three_sets(train, holdout, generated)
    return _ratios(train, holdout, generated, nearest(generated, train, 1), seed, ALONE)


def _authenticities(train: Tensor, *closest: Neighbours, shares: Shares = ALONE) -> list[Proportion]:
    """Authenticity of each set of samples, from its nearest training samples."""
    # Many samples share their nearest training sample, so the neighbour of each of these is searched for only once.
    originals, place = torch.cat([near.indices[:, 0] for near in closest]).unique(return_inverse=True)
    gaps = nearest_others(train, 1, originals, shares).squared[place, 0].split([len(near.squared) for near in closest])
    return [
        proportion(int((gap < near.squared[:, 0]).sum()), len(gap)) for gap, near in zip(gaps, closest, strict=True)
    ]


def _statistic(generated: Tensor, holdout: Tensor) -> float:
    """z-score of the Mann-Whitney U of distances `[M]` against distances `[H]`."""
    from scipy.stats import rankdata

    m, n = len(generated), len(holdout)
    distances = torch.cat([generated, holdout]).numpy()
    # U from the rank sum: pairs whose generated sample is farther away, where a tie counts half
    farther = float(rankdata(distances)[:m].sum()) - m * (m + 1) / 2
    # float64: the cube of the number of ties overflows 64-bit integers from two million on
    ties = np.unique(distances, return_counts=True)[1].astype(np.float64)
    total = n + m
    variance = n * m / 12 * (total + 1 - float((ties**3 - ties).sum()) / (total * (total - 1)))
    return (farther - n * m / 2) / math.sqrt(variance) if variance > 0 else 0.0


def _ratios(
    train: Tensor, holdout: Tensor, generated: Tensor, closest: Neighbours, seed: int, shares: Shares
) -> NeighbourRatios:
    n_each, rng = min(len(train), len(holdout)), stream(seed, "nearest neighbour ratios")
    to_train = closest if len(train) == n_each else nearest(generated, subsample(train, n_each, rng), 1, shares)
    to_holdout = nearest(generated, subsample(holdout, n_each, rng), 1, shares)
    numerator, denominator = to_train.squared[:, 0], to_holdout.squared[:, 0]
    # 0 / 0 would be NaN, but equal distances have the ratio 1.
    ratios = (numerator / denominator).sqrt().where(numerator != denominator, 1.0)
    return NeighbourRatios(ratios, float(np.median(ratios.numpy())), _share(to_train, to_holdout, n_each), n_each)


def _share(to_train: Neighbours, to_holdout: Neighbours, n_each: int) -> Proportion:
    """Share of samples nearer to train, with the interval that `NeighbourRatios` describes."""
    train, holdout = to_train.squared[:, 0], to_holdout.squared[:, 0]
    nearer = [to_train.indices[train < holdout, 0], to_holdout.indices[holdout < train, 0] + n_each]
    # The weight of a real sample is the share of generated samples that have it as their nearest. If training and
    # holdout samples are exchanged at random, the share is the sum of the weights of n out of 2 n real samples, drawn
    # without replacement, whose variance is n^2 / (2 n - 1) times that of the weights.
    weights = torch.cat(nearer).bincount(minlength=2 * n_each).double() / len(train)
    spread = 1.96 * math.sqrt(float(weights.var(correction=0)) * n_each * n_each / (2 * n_each - 1))
    share = len(nearer[0]) / len(train)
    return Proportion(share, len(train), max(0.0, share - spread), min(1.0, share + spread))


def three_sets(train: Array, holdout: Array, generated: Array, least: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """The three sets as points, see `synthkd.metrics.neighbours.points`, after a check that their widths are equal.

    Args:
        train: `[N, D]`, at least `least` rows.
        holdout: `[H, D]`.
        generated: `[M, D]`.
        least: see `train`.

    Raises:
        DataError: features that `arrays.rows` refuses, or different D.
    """
    train, holdout = points(train, "train", least), points(holdout, "holdout")
    generated = points(generated, "generated")
    same_width(train, holdout, "train and holdout")
    same_width(train, generated, "train and generated")
    return train, holdout, generated
