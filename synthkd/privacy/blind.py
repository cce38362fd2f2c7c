"""The blind baseline: can members be told from non-members by their pixels, without a model?"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from synthkd.errors import DataError
from synthkd.privacy.intervals import Area, auc
from synthkd.rng import derive
from synthkd.types import InBlocks, to_float

_FOLDS = 5
_FEWEST = 4 * _FOLDS  # images of each side
_SIDE = 16  # pixels: larger images are averaged down to this before the linear model


def blind_baseline(images_in: InBlocks, images_out: InBlocks, seed: int = 0, confidence: float = 0.95) -> Area:
    """The AUC of a logistic regression of the pixels, by 5-fold cross-validation (Das, Zhang and Tramèr 2024).

    Images of more than 16 pixels a side are averaged down to 16 first.

    Args:
        images_in: uint8 `[N, C, H, W]`, members, N at least 20.
        images_out: uint8 `[M, C, H, W]`, non-members, M at least 20.
        seed: of the folds.
        confidence: of the interval, in (0, 1).

    Returns:
        The AUC on images that the model was not fitted to, with an interval. Where the interval excludes 0.5, the two
        sets differ by themselves, so attacks on them say nothing.

    Raises:
        DataError: too few images, not uint8, or of different shapes.
    """
    from scipy.stats import rankdata
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    _check_images(images_in, images_out)
    pixels = torch.cat([_reduced(images) for images in (images_in, images_out)]).flatten(1).double().numpy()
    member = np.arange(len(pixels)) < len(images_in)
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=derive(seed, "blind baseline") % 2**32)
    scores = np.empty(len(pixels))
    for train, test in folds.split(pixels, member):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300))
        decisions = model.fit(pixels[train], member[train]).decision_function(pixels[test])
        # Scores of different folds come from different models and cannot be compared; ranks within a fold can.
        scores[test] = rankdata(decisions) / (len(test) + 1)
    area = auc(scores[member], scores[~member], confidence)
    if area.standard_error == 0:
        return area
    # The folds share training images, which DeLong's error ignores: without a correction one interval in five would
    # exclude 0.5 for sets that are alike. With it the variance of the mean over folds is 1 / folds plus the ratio of
    # test to training images, times that of a fold (Nadeau and Bengio 2003).
    error = area.standard_error * math.sqrt(1 + _FOLDS / (_FOLDS - 1))
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * error
    return Area(area.value, error, max(0.0, area.value - half), min(1.0, area.value + half))


def _check_images(images_in: InBlocks, images_out: InBlocks) -> None:
    shapes = []
    for images, what in ((images_in, "members"), (images_out, "non-members")):
        first = next(iter(images.split(1)), torch.empty(0))
        if first.dtype != torch.uint8 or first.dim() != 4 or len(images) < _FEWEST:
            raise DataError(
                f"a blind baseline needs {_FEWEST} {what} or more, uint8 [N, C, H, W], got {first.dtype} "
                f"{[len(images), *first.shape[1:]]}"
            )
        shapes.append(list(first.shape[1:]))
    if shapes[0] != shapes[1]:
        raise DataError(f"members are {shapes[0]} and non-members {shapes[1]}; take both from one dataset")


def _reduced(images: InBlocks) -> Tensor:
    """uint8 `[N, C, H, W]` as float32 with sides of at most `_SIDE` pixels, in blocks that bound the memory."""
    return torch.cat([_small(block) for block in images.split(512)])


def _small(images: Tensor) -> Tensor:
    height, width = (min(_SIDE, side) for side in images.shape[2:])
    return functional.adaptive_avg_pool2d(to_float(images), (height, width))
