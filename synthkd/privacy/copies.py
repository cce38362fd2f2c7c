"""Tests for copies of training images in a synthetic set: a copy detector, not privacy evidence.

Real images that were not trained on (the holdout) are the yardstick: for a generator that depends on neither set, the
names "training" and "holdout" of any two real images could be exchanged. A positive result is a reason to look at the
closest pairs. A negative result shows nothing about privacy: a model can leak what it memorised without a near copy,
the tests miss a few copies, and features may hide a copy. The scores of `synthkd.metrics.memorization` are of the same
kind and prove as little.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from synthkd.errors import ConfigError, MissingExtraError
from synthkd.metrics.arrays import Array, subsample
from synthkd.metrics.features import build_extractor, extract
from synthkd.metrics.memorization import three_sets
from synthkd.metrics.neighbours import Neighbours, nearest
from synthkd.rng import numpy_stream, stream
from synthkd.settings import EfficientNetExtractor
from synthkd.types import InBlocks, to_float

NOT_EVIDENCE = "a copy detector, not privacy evidence"
PIXELS, FEATURES = "pixels in [0, 1], Euclidean", "features of EfficientNet-Lite0 (ImageNet), Euclidean"
"""Spaces in which images are compared, as reports call them."""
BLOCK = 1 << 25
"""Values of each side that are compared at a time, as float32: 223 colour images of 224 pixels."""
EXTRACTED_TOGETHER = 128
"""Images that the feature network gets at a time."""
MOST_EXTRACTED = 5000
"""Most real images of each kind whose features are computed, at about two milliseconds each."""


@dataclass(frozen=True)
class NearCopies:
    """Synthetic images that are nearer to a real image than 99 of 100 holdout images are to the training set.

    Attributes:
        radius: the 1st percentile of the distances of holdout images to their nearest training image; a synthetic image
            within this distance of a real one is a near copy.
        of_train: synthetic images whose nearest real image is a training image within the radius.
        of_holdout: the same for holdout images; about as many where nothing was copied.
        train_images: different training images among those nearest.
        holdout_images: different holdout images among those nearest.
        p_value: one-sided binomial test of `train_images` against `holdout_images`. It counts real images, so many
            copies of a single image do not lower it: look at `of_train` and the closest pairs.
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
        p_value: probability of that share or a larger one if the names of the real images are exchanged at random; at
            least 1 / (permutations + 1).
        permutations: number of random exchanges.
        n_generated: synthetic images.
        n_each: real images on each side, after the larger side was subsampled.
        near_copies: counts of near copies on both sides.
        closest_generated: int64 `[P]`, rows of the synthetic images nearest to any training image, nearest first.
        closest_train: int64 `[P]`, row of that training image, found in the whole training set.
        closest_distances: float64 `[P]`, their distances.
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

    The larger real set is subsampled to the size of the smaller. Both tests miss copies of training images that are
    left out; the closest pairs do not.

    Args:
        train: `[N, D]` features or pixels, N at least 1.
        holdout: `[H, D]`, of real images that were not trained on, drawn as the training images were.
        generated: `[M, D]`, of synthetic images.
        seed: of the subsampling, of ties between a training and a holdout image, and of the permutations.
        permutations: number of random exchanges, at least 1.
        pairs: number of closest pairs to report, at least 0; at most M are.

    Raises:
        ConfigError: `permutations` or `pairs` out of range.
        DataError: features that `synthkd.metrics.arrays.rows` refuses, or different D.
    """
    if permutations < 1 or pairs < 0:
        raise ConfigError(
            f"a copy test needs 1 permutation or more and 0 pairs or more, got {permutations} and {pairs}"
        )
    return _copy_test(*three_sets(train, holdout, generated), seed, permutations, pairs)


def _copy_test(
    train: InBlocks, holdout: InBlocks, generated: InBlocks, seed: int, permutations: int = 2000, pairs: int = 20
) -> CopyTest:
    """The copy test of rows or of images, block by block; arguments as of `copy_test`."""
    # A larger set has nearer neighbours by its size alone.
    n_each, rng = min(len(train), len(holdout)), stream(seed, "copy test")
    few_train, few_holdout = _thinned(train, n_each, rng), _thinned(holdout, n_each, rng)

    closest = _nearest(generated, train)
    to_train = closest if len(train) == n_each else _nearest(generated, few_train)
    to_holdout = _nearest(generated, few_holdout)
    # A coin decides ties, as of an image that is in both real sets; always counting them for one side would be a bias.
    coin = torch.rand(len(generated), generator=rng) < 0.5
    train_squared, holdout_squared = to_train.squared[:, 0], to_holdout.squared[:, 0]
    of_train = (train_squared < holdout_squared) | ((train_squared == holdout_squared) & coin)
    # nearest real image of each synthetic image: 0 to n_each - 1 are training images, the rest holdout images
    winner = torch.where(of_train, to_train.indices[:, 0], to_holdout.indices[:, 0] + n_each)

    holdout_distances = _nearest(few_holdout, few_train).squared[:, 0].sqrt()
    order = closest.squared[:, 0].argsort(stable=True)[:pairs]
    return CopyTest(
        nearer_to_train=float(of_train.double().mean()),
        p_value=_permutation_p_value(winner, n_each, permutations, seed),
        permutations=permutations,
        n_generated=len(generated),
        n_each=n_each,
        near_copies=_near_copies(
            winner, torch.minimum(train_squared, holdout_squared).sqrt(), holdout_distances, n_each
        ),
        closest_generated=order,
        closest_train=closest.indices[order, 0],
        closest_distances=closest.squared[order, 0].sqrt(),
    )


def copy_tests(
    train: InBlocks, holdout: InBlocks, generated: InBlocks, seed: int, device: torch.device
) -> dict[str, CopyTest]:
    """The copy test in pixels and, where the package with the network is installed, in features.

    Args:
        train: uint8 `[N, C, H, W]`, training images.
        holdout: uint8 `[M, C, H, W]`, real images that were not trained on.
        generated: uint8 `[G, C, H, W]`, synthetic images.
        seed: of the thinning and the tests.
        device: of the network.

    Returns:
        The space, `PIXELS` or `FEATURES` -> its copy test.
    """
    tests = {PIXELS: _copy_test(train, holdout, generated, seed)}
    # Features may find copies that are far apart in pixels, such as shifted ones.
    try:
        network = build_extractor(EfficientNetExtractor(kind="efficientnet_lite0"), device)
    except MissingExtraError:
        return tests
    real = [_thinned(images, min(MOST_EXTRACTED, len(images)), stream(seed, "copies")) for images in (train, holdout)]
    features = [extract(images.split(EXTRACTED_TOGETHER), network).values for images in (*real, generated)]
    return tests | {FEATURES: copy_test(features[0], features[1], features[2], seed)}


@dataclass(frozen=True)
class _Some:
    """Some of the images or rows of a set, gone through in blocks.

    Attributes:
        all: the set.
        wanted: bool `[N]`, which of them.
    """

    all: InBlocks
    wanted: Tensor

    def __len__(self) -> int:
        return int(self.wanted.sum())

    def split(self, count: int, /) -> Iterator[Tensor]:
        """Those of each block of the set, so at most `count` of them, in order."""
        first = 0
        for block in self.all.split(count):
            rows = block[self.wanted[first : first + len(block)]]
            first += len(block)
            if len(rows):
                yield rows


def _thinned(images: InBlocks, count: int, rng: torch.Generator) -> InBlocks:
    """What `subsample` of the images in memory would be."""
    wanted = torch.zeros(len(images), dtype=torch.bool)
    wanted[subsample(torch.arange(len(images)), count, rng)] = True
    return images if count == len(images) else _Some(images, wanted)


def _nearest(queries: InBlocks, base: InBlocks) -> Neighbours:
    """The nearest of the base to each query, as `nearest` finds it, with no more than a block of each in memory."""
    parts = []
    for block in _points(queries):
        squared = torch.full((len(block), 1), torch.inf, dtype=torch.float64)
        indices, first = torch.zeros((len(block), 1), dtype=torch.int64), 0
        for others in _points(base):
            best = nearest(block, others, 1)
            # The first of equals stays, as within a block.
            nearer = best.squared < squared
            squared = torch.where(nearer, best.squared, squared)
            indices = torch.where(nearer, best.indices + first, indices)
            first += len(others)
        parts.append(Neighbours(squared, indices))
    return Neighbours(torch.cat([one.squared for one in parts]), torch.cat([one.indices for one in parts]))


def _points(images: InBlocks) -> Iterator[Tensor]:
    """Blocks `[n, D]` of at most about `BLOCK` values; pixels in [0, 1]."""
    width = next(iter(images.split(1))).numel()
    for block in images.split(max(1, BLOCK // width)):
        yield (to_float(block) if block.dtype == torch.uint8 else block).flatten(1)


def _permutation_p_value(winner: Tensor, n_each: int, permutations: int, seed: int) -> float:
    """p-value of how many synthetic images have a training image (below `n_each`) as their nearest real image.

    Args:
        winner: int64 `[M]`, nearest real image of each synthetic image, of `2 * n_each`.
        n_each: real images on each side.
        permutations: number of random exchanges.
        seed: of the exchanges.
    """
    # Synthetic images around one real image are not independent. So the names of the real images are exchanged, each
    # with all synthetic images that are nearest to it.
    weights = winner.bincount(minlength=2 * n_each).numpy()
    count, rng = int(weights[:n_each].sum()), numpy_stream(seed, "copy test permutations")
    as_many = sum(int(rng.permutation(weights)[:n_each].sum()) >= count for _ in range(permutations))
    return (1 + as_many) / (1 + permutations)


def _near_copies(winner: Tensor, distances: Tensor, holdout_distances: Tensor, n_each: int) -> NearCopies:
    """Counts of synthetic images within the radius of their nearest real image, `distances` `[M]` away."""
    from scipy.stats import binom

    radius = float(np.quantile(holdout_distances.numpy(), 0.01))
    near = winner[distances <= radius]
    # Different real images are counted, since hundreds of synthetic images around one of them are one event.
    of_train, nearest_real = int((near < n_each).sum()), near.unique()
    train_images = int((nearest_real < n_each).sum())
    return NearCopies(
        radius=radius,
        of_train=of_train,
        of_holdout=len(near) - of_train,
        train_images=train_images,
        holdout_images=len(nearest_real) - train_images,
        p_value=float(binom.sf(train_images - 1, len(nearest_real), 0.5)),
    )
