"""Copies of training images among synthetic ones, pixel by pixel and in the features of a public network."""

from __future__ import annotations

import torch
from torch import Tensor

from synthkd.errors import MissingExtraError
from synthkd.metrics.arrays import subsample
from synthkd.metrics.features import build_extractor, extract
from synthkd.privacy.copies import CopyTest, copy_test
from synthkd.rng import stream
from synthkd.settings import EfficientNetExtractor
from synthkd.types import to_float

PIXELS, FEATURES = "pixels in [0, 1], Euclidean", "features of EfficientNet-Lite0 (ImageNet), Euclidean"
"""What is compared, as reports name it."""
MOST = 5000
"""Real images of each kind whose features are taken, at about two milliseconds each."""


def look_for_copies(
    train: Tensor, holdout: Tensor, generated: Tensor, seed: int, device: torch.device
) -> dict[str, CopyTest]:
    """The copy test in pixels, and in features where the package with their network is installed.

    Args:
        train: uint8 `[N, C, H, W]`, images that were trained on.
        holdout: uint8 `[M, C, H, W]`, others like them.
        generated: uint8 `[G, C, H, W]`.
        seed: of what is drawn.
        device: of the network.

    Returns:
        What was compared -> what was found.
    """
    ours, others, made = (to_float(images).flatten(1) for images in (train, holdout, generated))
    found = {PIXELS: copy_test(ours, others, made, seed)}
    try:
        network = build_extractor(EfficientNetExtractor(kind="efficientnet_lite0"), device)
    except MissingExtraError:
        return found
    few = (subsample(images, min(MOST, len(images)), stream(seed, "copies")) for images in (train, holdout))
    features = [extract([images], network).values for images in (*few, generated)]
    return found | {FEATURES: copy_test(features[0], features[1], features[2], seed)}
