"""Squared Euclidean distances: exact ones in float64, and bounds from float32 products, which are much faster."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_COORDINATES = 1 << 17  # number of coordinates converted to float64 at a time, so that they fit the processor's cache
_TINY = 1e-30  # generous bound of the underflow in a float32 product of numbers below 1


@dataclass(frozen=True)
class Cloud:
    """A point cloud in a frame, with the values that bound its distances.

    Attributes:
        points: `[N, D]`, unchanged.
        small: float32 `[N, D]`, the points centred and scaled.
        below: float32 `[N]`, squared norm of each point minus its share of the error.
        room: float64 `[N]`, its share of the difference between upper and lower bound.
        scale: factor of `small`.
    """

    points: Tensor
    small: Tensor
    below: Tensor
    room: Tensor
    scale: float

    def __getitem__(self, part: slice) -> Cloud:
        """The points of a slice."""
        return Cloud(self.points[part], self.small[part], self.below[part], self.room[part], self.scale)

    def lower(self, other: Cloud) -> Tensor:
        """Lower bounds `[N, M]` of the squared distances to other points, in the scale of `small`."""
        return torch.addmm(other.below, self.small, other.small.T, alpha=-2).add_(self.below[:, None])

    def scaled(self, squared: Tensor) -> Tensor:
        """Squared distances converted to the scale of the bounds."""
        return squared * self.scale * self.scale


class Frame:
    """Coordinate frame (centre and scale) of all points of a search, and the error of float32 distances in it.

    With `x` and `y` centred and `|x|^2` from float64, the error of `|x|^2 + |y|^2 - 2 x.y` is at most
    `error * (|x|^2 + |y|^2)`. In units of rounding, a sum of D products contributes at most D in any order (Higham
    2002, Accuracy and Stability of Numerical Algorithms, section 3.1); rounding of the rows, the norms and the limits
    that bounds are compared with contributes a few more, covered by the 32. The scale, a power of two that brings
    coordinates below 1, prevents the overflow of squares.
    """

    def __init__(self, base: Tensor, queries: Tensor) -> None:
        parts = slices(len(base), _COORDINATES // base.shape[1])
        self.centre = torch.stack([base[part].double().sum(dim=0) for part in parts]).sum(dim=0) / len(base)
        low, high = torch.stack([torch.stack(side.aminmax()).double() for side in (base, queries)], dim=1)
        reach = float(high.max() - low.min())
        self.scale = math.ldexp(1.0, -max(-1000, min(1000, math.frexp(reach)[1])))
        self.dtype = torch.float32 if _float32_is_kept() else torch.float64
        self.error = (base.shape[1] + 32) * torch.finfo(self.dtype).eps

    def cloud(self, values: Tensor) -> Cloud:
        """Points `[N, D]`, centred and scaled block by block."""
        small = torch.empty(values.shape, dtype=self.dtype)
        norms = torch.empty(len(values), dtype=torch.float64)
        for part in slices(len(values), _COORDINATES // values.shape[1]):
            moved = (values[part].double() - self.centre).mul_(self.scale)
            small[part] = moved
            norms[part] = moved.square_().sum(dim=1)
        below = ((1 - self.error) * norms - _TINY).to(self.dtype)
        return Cloud(values, small, below, 2 * self.error * norms + 2 * _TINY, self.scale)


def squared_distances(queries: Tensor, base: Tensor, query: Tensor, index: Tensor) -> Tensor:
    """`sum((queries[query] - base[index])**2)`, float64 `[P]`, for pairs of int64 `[P]` row numbers."""
    result = torch.empty(len(query), dtype=torch.float64)
    for part in slices(len(query), _COORDINATES // base.shape[1]):
        difference = queries[query[part]].double() - base[index[part]].double()
        result[part] = difference.square_().sum(dim=1)
    return result


def slices(count: int, step: int, start: int = 0) -> Iterator[slice]:
    """Slices of `step` elements, at least 1, that cover `start` to `count`."""
    step = max(1, step)
    return (slice(first, min(first + step, count)) for first in range(start, count, step))


def _float32_is_kept() -> bool:
    """False if float32 products are computed in a shorter format, by a setting of torch or under autocast."""
    precision = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    return precision in ("none", "ieee") and not torch.is_autocast_enabled("cpu")
