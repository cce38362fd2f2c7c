"""Mean and covariance of features that arrive batch by batch, in memory that does not grow with their number.

Kept are the count, the mean and the centred scatter, all in float64, joined by the pairwise formula of Chan, Golub and
LeVeque (1979). Sums of raw squares would be shorter, but they lose the covariance in rounding where the mean is large.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor

from synthkd.errors import DataError
from synthkd.metrics.arrays import Array, rows, same_width


class FeatureStatistics:
    """Count, mean and covariance of features; parts made apart (shards, classes, processes) merge into the whole.

    The width D is that of the first batch. An empty one has width 0 and takes any.
    """

    def __init__(self) -> None:
        self._n = 0
        self._mean = torch.zeros(0, dtype=torch.float64)
        self._scatter = torch.zeros(0, 0, dtype=torch.float64)

    def update(self, batch: Array) -> Self:
        """Take in a batch `[N, D]` of any real dtype, N >= 0; returns itself.

        Raises:
            DataError: not `[N, D]`, another D than before, or a value that is not finite; nothing is taken in then.
        """
        values = rows(batch, "batch", least=0)
        if len(values) == 0:
            return self
        mean = values.mean(dim=0)
        centred = (values - mean).numpy()
        # numpy, unlike torch, sees that both sides are one and makes half of the product
        self._take(len(values), mean, torch.from_numpy(centred.T @ centred))
        return self

    def merge(self, other: FeatureStatistics) -> Self:
        """Take in everything `other` has seen; returns itself and leaves `other` as it was.

        Raises:
            DataError: when both have seen features, of different widths.
        """
        if other._n:
            self._take(other._n, other._mean, other._scatter)
        return self

    def without(self, other: FeatureStatistics) -> FeatureStatistics:
        """What `merge` with `other` would bring back to this: statistics of the rows that `other` has not seen.

        Rounding is that of the whole, so take away half of the rows at most.

        Args:
            other: of some of the rows that this has seen.

        Raises:
            DataError: `other` has seen more rows than this, or rows of another width.
        """
        if other._n > self._n:
            raise DataError(
                f"statistics: {other._n} samples cannot be taken from {self._n}; give some of the same rows"
            )
        rest = FeatureStatistics()
        if other._n == self._n:
            return rest
        rest._n, rest._mean, rest._scatter = self._n - other._n, self._mean.clone(), self._scatter.clone()
        if other._n:
            same_width(self._mean[None], other._mean[None], "statistics and what is taken away")
            gap = self._mean - other._mean
            rest._mean += gap * (other._n / rest._n)
            rest._scatter -= other._scatter
            rest._scatter.addr_(gap, gap, alpha=-other._n * self._n / rest._n)
        return rest

    def _take(self, n: int, mean: Tensor, scatter: Tensor) -> None:
        if self._n == 0:
            # the scatter is later added to in place, and this one may be another's
            self._n, self._mean, self._scatter = n, mean, scatter.clone()
            return
        same_width(self._mean[None], mean[None], "statistics so far and what is added")
        total = self._n + n
        gap = mean - self._mean
        self._scatter += scatter
        self._scatter.addr_(gap, gap, alpha=self._n * n / total)
        self._mean = self._mean + gap * (n / total)
        self._n = total

    @property
    def n(self) -> int:
        """Number of rows seen."""
        return self._n

    @property
    def mean(self) -> Tensor:
        """float64 `[D]`.

        Raises:
            DataError: when nothing has been seen.
        """
        if self._n == 0:
            raise DataError("statistics: a mean needs at least 1 sample, got 0; call update first")
        return self._mean.clone()

    @property
    def covariance(self) -> Tensor:
        """float64 `[D, D]`, unbiased (divided by n - 1).

        Raises:
            DataError: when fewer than two rows have been seen.
        """
        if self._n < 2:
            raise DataError(f"statistics: a covariance needs at least 2 samples, got {self._n}; call update with more")
        return self._scatter / (self._n - 1)

    def state_dict(self) -> dict[str, Any]:
        """`n`, `mean` float64 `[D]` and `scatter` float64 `[D, D]`: all that is needed to go on or to merge."""
        return {"n": self._n, "mean": self._mean.clone(), "scatter": self._scatter.clone()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """Statistics as `state_dict` gave them.

        Raises:
            DataError: keys missing, shapes that do not fit, values that are not finite, or a scatter that is none.
        """
        missing = sorted({"n", "mean", "scatter"} - set(state))
        if missing:
            raise DataError(f"statistics: the state lacks {', '.join(missing)}; save it with state_dict()")
        n = int(state["n"])
        mean, scatter = (torch.as_tensor(state[key]).to("cpu", torch.float64, copy=True) for key in ("mean", "scatter"))
        if mean.dim() != 1 or scatter.shape != (len(mean), len(mean)) or n < 0 or (n == 0) != (len(mean) == 0):
            raise DataError(
                f"statistics: n {n}, mean {list(mean.shape)} and scatter {list(scatter.shape)} do not fit together; "
                "they must be n, [D] and [D, D]; save them with state_dict()"
            )
        finite = bool(torch.isfinite(mean).all()) and bool(torch.isfinite(scatter).all())
        if not finite or bool((scatter.diagonal() < 0).any()):
            raise DataError("statistics: the state holds NaN, infinity or a negative variance; make it anew")
        result = cls()
        result._n, result._mean, result._scatter = n, mean, scatter
        return result
