"""Which generated images may stay: sure of their class, unlike each other, no copies of real images.

An image is judged by itself and by the images of its class that were kept before it, in the order of their numbers. So
what is kept is a function of the images alone, however they were cut into parts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from synthkd.data.written.unfinished import Part
from synthkd.metrics.neighbours import nearest, points

_LEVELS = 255.0


def nearest_real(images: Tensor, real: Tensor) -> Tensor:
    """Distance of each image to the nearest real one: root mean square of the differences of their pixels.

    Args:
        images: uint8 `[N, C, H, W]`.
        real: what `as_points` made of the real images.

    Returns:
        float32 `[N]` in [0, 1]; 0 for an exact copy.
    """
    squared = nearest(as_points(images), real, 1).squared[:, 0]
    return (squared / real.shape[1]).sqrt().div(_LEVELS).float()


def as_points(images: Tensor) -> Tensor:
    """uint8 images `[N, C, H, W]` as float32 rows `[N, C * H * W]` of their levels 0 to 255."""
    return points(images.flatten(1).float(), "images")


class Sieve:
    """Keeps the first images of each class that pass every filter, until the class has as many as are wanted.

    Args:
        wanted: how many images of each class.
        confidence: least probability that the teacher gives the asked label; None asks for none.
        near_duplicates: an image is rejected when its root mean square difference (of pixels in [0, 1]) to a kept image
            of its class is at most this; 0 rejects exact duplicates; None rejects none.
        copies: the same to any real image, for which every part needs `real_distance`; None rejects none.
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
        self._kept: dict[int, list[Tensor]] = {}
        self.tried = torch.zeros_like(self._wanted)
        self.passed = torch.zeros_like(self._wanted)
        self.rejected: Counter[str] = Counter()

    @property
    def lacking(self) -> Tensor:
        """int64 `[K]`: images of each class that are still wanted."""
        return (self._wanted - self.passed).clamp_min(0)

    @property
    def reasons(self) -> Mapping[str, int]:
        """Images rejected, by the first filter that rejected them."""
        return dict(sorted(self.rejected.items()))

    def keep(self, part: Part) -> Tensor:
        """Which images of a part stay, bool `[N]`; parts are offered in order, each once.

        An image that passes but comes when its class is full does not stay; it counts as neither rejected nor tried.
        """
        good = torch.ones(len(part), dtype=torch.bool)
        if self._confidence is not None:
            shares = part.logits.double().softmax(1)[torch.arange(len(part)), part.labels]
            good &= shares >= self._confidence
        unsure = ~good
        if self._copies is not None:
            assert part.real_distance is not None, "a sieve for copies needs the distance to real images"
            good &= part.real_distance > self._copies
        kept = torch.zeros(len(part), dtype=torch.bool)
        for label in part.labels.unique().tolist():
            rows = (part.labels == label).nonzero().flatten()
            for row, fresh in zip(rows.tolist(), self._unlike(label, part.images[rows], good[rows]), strict=True):
                if self.passed[label] >= self._wanted[label]:
                    break
                self.tried[label] += 1
                if fresh:
                    kept[row] = True
                    self.passed[label] += 1
                    continue
                self.rejected["confidence" if unsure[row] else "near_duplicates" if good[row] else "copies"] += 1
            if self._near_duplicates is not None and (chosen := rows[kept[rows]]).numel():
                self._kept.setdefault(label, []).append(part.images[chosen])
        return kept

    def _unlike(self, label: int, images: Tensor, good: Tensor) -> list[bool]:
        """Which of the good images of a class lie farther than the limit from every one kept before them.

        Squared differences of 8-bit levels are whole numbers, and a float64 product of them is exact in any order.
        """
        if self._near_duplicates is None:
            return good.tolist()
        flat = images.flatten(1).double()
        limit = (self._near_duplicates * _LEVELS) ** 2 * flat.shape[1]
        good = good.clone()
        for block in self._kept.get(label, ()):
            good &= (_squared(flat, block.flatten(1).double()) > limit).all(1)
        among = _squared(flat, flat)
        verdicts: list[bool] = []
        for row in range(len(flat)):
            earlier = [other for other in range(row) if verdicts[other]]
            verdicts.append(bool(good[row]) and bool((among[row, earlier] > limit).all()))
        return verdicts


def _squared(first: Tensor, second: Tensor) -> Tensor:
    """Squared distances `[N, M]` of rows of whole numbers."""
    products = first @ second.T
    return first.square().sum(1, keepdim=True) + second.square().sum(1) - 2.0 * products
