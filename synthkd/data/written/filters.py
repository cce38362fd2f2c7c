"""Filters of generated images: the teacher's confidence, near duplicates, and copies of real images.

An image is judged by itself and by the accepted images of its class with lower numbers. The result is thus a function
of the images alone, however they are divided into parts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from synthkd.data.read.on_disk import CHUNK, Pixels
from synthkd.data.written.unfinished import Part
from synthkd.metrics.neighbours import nearest, points

_LEVELS = 255.0  # scale of uint8 pixels, for limits on pixels in [0, 1]


def nearest_real(images: Tensor, real: Pixels) -> Tensor:
    """Distance of each image to the nearest real one: root mean square of the differences of their pixels.

    Args:
        images: uint8 `[N, C, H, W]`.
        real: uint8 `[M, C, H, W]`, in memory or on disk; a block of them is float32 at a time. Or `as_points` of them.

    Returns:
        float32 `[N]` in [0, 1]; 0 for an exact copy.
    """
    rows = as_points(images)
    blocks = real.split(CHUNK)
    squared = torch.stack([nearest(rows, as_points(block), 1).squared[:, 0] for block in blocks]).amin(0)
    return (squared / rows.shape[1]).sqrt().div(_LEVELS).float()


def as_points(images: Tensor) -> Tensor:
    """uint8 images `[N, C, H, W]` as float32 rows `[N, C * H * W]` of their levels 0 to 255."""
    return points(images.flatten(1).float(), "images")


class Sieve:
    """Accepts the first images of each class that pass every filter, until the class is full.

    Args:
        wanted: number of images of each class.
        confidence: smallest probability that the teacher gives the label; None: no limit.
        near_duplicates: an image is rejected when its root mean square difference (of pixels in [0, 1]) to an accepted
            image of its class is at most this; 0 rejects exact duplicates; None rejects none.
        copies: the same to any real image, for which every part needs `real_distance`; None rejects none.

    Attributes:
        tried: int64 `[K]`, the images of each class that were judged.
        passed: int64 `[K]`, the accepted ones.
        rejected: name of a filter -> number of images that it rejected. Each image counts once, for the first filter
            that rejects it in the order confidence, copies, near_duplicates.
    """

    def __init__(
        self,
        wanted: Sequence[int],
        confidence: float | None = None,
        near_duplicates: float | None = None,
        copies: float | None = None,
    ) -> None:
        self._wanted = torch.tensor(wanted)
        self._confidence = confidence
        self._near_duplicates = near_duplicates
        self._copies = copies
        self._accepted: dict[int, list[Tensor]] = {}  # class -> its accepted images, part by part
        self.tried = torch.zeros_like(self._wanted)
        self.passed = torch.zeros_like(self._wanted)
        self.rejected: Counter[str] = Counter()

    @property
    def lacking(self) -> Tensor:
        """int64 `[K]`: the images of each class that are still missing."""
        return (self._wanted - self.passed).clamp_min(0)

    @property
    def reasons(self) -> Mapping[str, int]:
        """Number of rejected images by filter, sorted by the filter's name."""
        return dict(sorted(self.rejected.items()))

    def keep(self, part: Part) -> Tensor:
        """Which images of a part stay, bool `[N]`; parts come in the order of their numbers, each once.

        Images of a class that is full do not stay, and count neither as tried nor as rejected.
        """
        good = torch.ones(len(part), dtype=torch.bool)
        if self._confidence is not None:
            shares = part.logits.double().softmax(1)[torch.arange(len(part)), part.labels]
            good &= shares >= self._confidence
        unsure = ~good
        if self._copies is not None:
            assert part.real_distance is not None, "a sieve for copies needs the distance to real images"
            good &= part.real_distance > self._copies
        stays = torch.zeros(len(part), dtype=torch.bool)
        for label in part.labels.unique().tolist():
            rows = (part.labels == label).nonzero().flatten()
            for row, passes in zip(rows.tolist(), self._unlike(label, part.images[rows], good[rows]), strict=True):
                if self.passed[label] >= self._wanted[label]:
                    break
                self.tried[label] += 1
                if passes:
                    stays[row] = True
                    self.passed[label] += 1
                    continue
                self.rejected["confidence" if unsure[row] else "near_duplicates" if good[row] else "copies"] += 1
            if self._near_duplicates is not None and (accepted := rows[stays[rows]]).numel():
                self._accepted.setdefault(label, []).append(part.images[accepted])
        return stays

    def _unlike(self, label: int, images: Tensor, good: Tensor) -> list[bool]:
        """Which of the `good` images of a class lie farther than the limit from every accepted one before them."""
        if self._near_duplicates is None:
            return good.tolist()
        # Products of 8-bit levels are whole numbers, and their sums exact in float64, in any order: the result depends
        # neither on the kernel of the matrix product nor on the borders of the parts.
        flat = images.flatten(1).double()
        limit = (self._near_duplicates * _LEVELS) ** 2 * flat.shape[1]
        good = good.clone()
        for block in self._accepted.get(label, ()):
            good &= (_squared(flat, block.flatten(1).double()) > limit).all(1)
        # One after another, because an image that is rejected rejects no later one.
        among = _squared(flat, flat)
        passes: list[bool] = []
        for row in range(len(flat)):
            earlier = [other for other in range(row) if passes[other]]
            passes.append(bool(good[row]) and bool((among[row, earlier] > limit).all()))
        return passes


def _squared(first: Tensor, second: Tensor) -> Tensor:
    """Squared distances `[N, M]` of rows of whole numbers."""
    products = first @ second.T
    return first.square().sum(1, keepdim=True) + second.square().sum(1) - 2.0 * products
