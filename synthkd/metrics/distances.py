"""Squared Euclidean distances in float64, and bounds of them from float32 products, which are much faster."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_COORDINATES = 1 << 17  # coordinates converted to float64 at a time, 1 MiB, so that they stay in the processor's cache
_TINY = 1e-30  # generous bound of the underflow in a float32 product of numbers below 1


@dataclass(frozen=True)
class Cloud:
    """A point cloud in a `Frame`, with the values that bound its distances.

    Attributes:
        points: `[N, D]`, unchanged.
        coordinates: float32 `[N, D]`, the points centred and scaled.
        reduced_norms: float32 `[N]`, squared norm of each point's coordinates, less the point's share of the error.
        slack: float64 `[N]`, each point's share of the difference between the upper and the lower bound.
        scale: factor of the coordinates.
    """

    points: Tensor
    coordinates: Tensor
    reduced_norms: Tensor
    slack: Tensor
    scale: float

    def __getitem__(self, part: slice) -> Cloud:
        """The points of a slice."""
        return Cloud(self.points[part], self.coordinates[part], self.reduced_norms[part], self.slack[part], self.scale)

    def lower(self, other: Cloud) -> Tensor:
        """Lower bounds `[N, M]` of the squared distances to other points, in the scale of the coordinates."""
        # |x|^2 + |y|^2 - 2 x.y in one matrix product; the norms are reduced by the largest error of that product.
        bounds = torch.addmm(other.reduced_norms, self.coordinates, other.coordinates.T, alpha=-2)
        return bounds.add_(self.reduced_norms[:, None])

    def scaled(self, squared: Tensor) -> Tensor:
        """Squared distances converted to the scale of the bounds."""
        return squared * self.scale * self.scale


class Frame:
    """Coordinate frame (centre and scale) of all points of a search, and the error of float32 distances in it.

    With `x` and `y` centred and `|x|^2` from float64, the error of `|x|^2 + |y|^2 - 2 x.y` is at most
    `error * (|x|^2 + |y|^2)`.
    """

    def __init__(self, base: Tensor, queries: Tensor) -> None:
        # The error grows with the norms, so the origin is moved to the mean of the base.
        parts = slices(len(base), _COORDINATES // base.shape[1])
        self.centre = torch.stack([base[part].double().sum(dim=0) for part in parts]).sum(dim=0) / len(base)
        # The scale brings coordinates below 1, so that no square overflows. It is a power of two, which rounds nothing.
        low, high = torch.stack([torch.stack(side.aminmax()).double() for side in (base, queries)], dim=1)
        reach = float(high.max() - low.min())
        self.scale = math.ldexp(1.0, -max(-1000, min(1000, math.frexp(reach)[1])))
        self.dtype = torch.float32 if _float32_is_kept() else torch.float64
        # In units of rounding, a sum of D products is off by at most D, in any order (Higham 2002, Accuracy and
        # Stability of Numerical Algorithms, section 3.1). Rounding of the rows, of the norms and of the limits that
        # bounds are compared with adds a few more, which the 32 covers.
        self.error = (base.shape[1] + 32) * torch.finfo(self.dtype).eps

    def cloud(self, values: Tensor) -> Cloud:
        """The cloud of points `[N, D]`."""
        coordinates = torch.empty(values.shape, dtype=self.dtype)
        norms = torch.empty(len(values), dtype=torch.float64)
        for part in slices(len(values), _COORDINATES // values.shape[1]):
            # Centred in float64: the difference of two large float32 numbers would keep few digits.
            moved = (values[part].double() - self.centre).mul_(self.scale)
            coordinates[part] = moved
            norms[part] = moved.square_().sum(dim=1)
        reduced_norms = ((1 - self.error) * norms - _TINY).to(self.dtype)
        return Cloud(values, coordinates, reduced_norms, 2 * self.error * norms + 2 * _TINY, self.scale)


def squared_distances(queries: Tensor, base: Tensor, query: Tensor, index: Tensor) -> Tensor:
    """`sum((queries[query] - base[index])**2)`, float64 `[P]`, for pairs of int64 `[P]` row numbers."""
    # The difference before the square: equal rows are exactly 0 apart, and equal pairs have equal distances.
    result = torch.empty(len(query), dtype=torch.float64)
    for part in slices(len(query), _COORDINATES // base.shape[1]):
        difference = queries[query[part]].double() - base[index[part]].double()
        result[part] = difference.square_().sum(dim=1)
    return result


def slices(count: int, step: int, start: int = 0) -> Iterator[slice]:
    """Slices of `step` elements (of 1 where `step` is less) that cover `start` to `count`."""
    step = max(1, step)
    return (slice(first, min(first + step, count)) for first in range(start, count, step))


def _float32_is_kept() -> bool:
    """False if float32 products are computed in a shorter format, by a setting of torch or under autocast."""
    precision = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    return precision in ("none", "ieee") and not torch.is_autocast_enabled("cpu")
