"""Does a synthetic set hold copies of training images? A copy detector, and not privacy evidence.

Real images that nobody trained on are the yardstick: if the generator knows neither set, the names "training" and
"holdout" could be exchanged between any two real images. What is found is a reason to look at the pairs. Finding
nothing shows nothing about privacy: what is remembered can leak without a near copy, a few copies stay below what the
tests see, and the features may not see a copy for one. `synthkd.metrics.copying` gives more numbers of the same kind
and the same standing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import binom
from torch import Tensor

from synthkd.errors import ConfigError
from synthkd.metrics.arrays import Array, same_width, subsample
from synthkd.metrics.neighbours import nearest, points
from synthkd.rng import numpy_stream, stream

NOT_EVIDENCE = "a copy detector, not privacy evidence"


@dataclass(frozen=True)
class NearCopies:
    """Synthetic images that are nearer to a real one than 99 of 100 fresh images come to the training set.

    Attributes:
        radius: the 1st percentile of the distances of holdout images to their nearest training image; what is no
            farther than this is a near copy.
        of_train: synthetic images whose nearest real image is a training image within the radius.
        of_holdout: the same for holdout images; about as many where nothing was copied.
        train_images: different training images among those nearest.
        holdout_images: different holdout images.
        p_value: one-sided binomial test of `train_images` against `holdout_images`. It counts real images, since
            hundreds of synthetic images around one real image are one accident. So many copies of a single image do
            not lower it: look at `of_train` and the closest pairs.
    """

    radius: float
    of_train: int
    of_holdout: int
    train_images: int
    holdout_images: int
    p_value: float


@dataclass(frozen=True)
class CopyTest:
    """Where a synthetic set lies between training and holdout images; a copy detector, not privacy evidence.

    Attributes:
        nearer_to_train: share of synthetic images whose nearest real image is a training image; about 0.5 without
            copying, 1 for copies.
        p_value: probability of that share or a larger one where the names of the real images are exchanged at random;
            at least 1 / (permutations + 1).
        permutations: how often they were.
        n_generated: synthetic images.
        n_each: real images of each side, after the larger one was thinned.
        near_copies: the count of near copies of either side.
        closest_generated: int64 `[P]`, rows of the synthetic images nearest to any training image, nearest first.
        closest_train: int64 `[P]`, row of that training image; all of the training set is searched.
        closest_distances: float64 `[P]`.
    """

    nearer_to_train: float
    p_value: float
    permutations: int
    n_generated: int
    n_each: int
    near_copies: NearCopies
    closest_generated: Tensor
    closest_train: Tensor
    closest_distances: Tensor


def copy_test(
    train: Array, holdout: Array, generated: Array, seed: int = 0, permutations: int = 2000, pairs: int = 20
) -> CopyTest:
    """Compare the distances of synthetic images to training and to holdout images.

    The larger of the two real sets is thinned at random to the size of the smaller, since a larger set alone has nearer
    neighbours; copies of training images that fall out are missed by both tests, not by the closest pairs. Synthetic
    images share neighbours, so they are no independent trials: the first test keeps each synthetic image with its
    nearest real one and exchanges the names of the real images.

    Args:
        train: `[N, D]` features or pixels, at least 1 row.
        holdout: `[H, D]`, the same of real images that were not trained on, drawn as the training images were.
        generated: `[M, D]`, of synthetic images.
        seed: of the thinning, of ties between a training and a holdout image, and of the permutations.
        permutations: how many, at least 1.
        pairs: how many closest pairs to name, at most M.

    Raises:
        ConfigError: no permutations, or a negative number of pairs.
        DataError: features that `synthkd.metrics.arrays.rows` refuses, or different D.
    """
    if permutations < 1 or pairs < 0:
        raise ConfigError(
            f"a copy test needs 1 permutation or more and 0 pairs or more, got {permutations} and {pairs}"
        )
    train, holdout, generated = points(train, "train"), points(holdout, "holdout"), points(generated, "generated")
    same_width(train, holdout, "train and holdout")
    same_width(train, generated, "train and generated")
    n_each, rng = min(len(train), len(holdout)), stream(seed, "copy test")
    few_train, few_holdout = subsample(train, n_each, rng), subsample(holdout, n_each, rng)

    closest = nearest(generated, train, 1)
    to_train = closest if len(train) == n_each else nearest(generated, few_train, 1)
    to_holdout = nearest(generated, few_holdout, 1)
    by_lot = torch.rand(len(generated), generator=rng) < 0.5
    ours, theirs = to_train.squared[:, 0], to_holdout.squared[:, 0]
    of_train = (ours < theirs) | ((ours == theirs) & by_lot)
    winner = torch.where(of_train, to_train.indices[:, 0], to_holdout.indices[:, 0] + n_each)

    fresh = nearest(few_holdout, few_train, 1).squared[:, 0]
    order = closest.squared[:, 0].argsort(stable=True)[:pairs]
    return CopyTest(
        nearer_to_train=float(of_train.double().mean()),
        p_value=_permuted(winner, n_each, permutations, seed),
        permutations=permutations,
        n_generated=len(generated),
        n_each=n_each,
        near_copies=_near_copies(winner, torch.minimum(ours, theirs).sqrt(), fresh.sqrt(), n_each),
        closest_generated=order,
        closest_train=closest.indices[order, 0],
        closest_distances=closest.squared[order, 0].sqrt(),
    )


def _permuted(winner: Tensor, n_each: int, permutations: int, seed: int) -> float:
    """p-value of how many have a training image (below `n_each`) as the nearest of `2 * n_each` real ones."""
    weights = winner.bincount(minlength=2 * n_each).numpy()
    seen, rng = int(weights[:n_each].sum()), numpy_stream(seed, "copy test permutations")
    as_many = sum(int(rng.permutation(weights)[:n_each].sum()) >= seen for _ in range(permutations))
    return (1 + as_many) / (1 + permutations)


def _near_copies(winner: Tensor, distances: Tensor, fresh: Tensor, n_each: int) -> NearCopies:
    radius = float(np.quantile(fresh.numpy(), 0.01))
    near = winner[distances <= radius]
    of_train, reached = int((near < n_each).sum()), near.unique()
    train_images = int((reached < n_each).sum())
    return NearCopies(
        radius=radius,
        of_train=of_train,
        of_holdout=len(near) - of_train,
        train_images=train_images,
        holdout_images=len(reached) - train_images,
        p_value=float(binom.sf(train_images - 1, len(reached), 0.5)),
    )
