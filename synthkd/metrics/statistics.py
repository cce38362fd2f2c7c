"""Mean and covariance of features that arrive batch by batch; memory does not grow with their number.

The state is the count, the mean and the scatter (the sum of outer products of centred rows), all in float64. Batches
are added by the pairwise formula of Chan, Golub and LeVeque (1979). Sums of raw squares would need less code, but where
the mean is large they lose the covariance to rounding.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from synthkd.errors import DataError
from synthkd.metrics.arrays import Array, rows, same_width
from synthkd.system.shares import Shares


class FeatureStatistics:
    """Count, mean and covariance of features.

    The first batch decides the width D. Empty statistics have width 0.
    """

    def __init__(self) -> None:
        self._n = 0
        self._mean = torch.zeros(0, dtype=torch.float64)
        self._scatter = torch.zeros(0, 0, dtype=torch.float64)

    def update(self, batch: Array) -> Self:
        """Add a batch and return self.

        Args:
            batch: `[N, D]`, any real dtype, N >= 0.

        Raises:
            DataError: not `[N, D]`, another D than before, or a value that is not finite; then nothing was added.
        """
        values = rows(batch, "batch", least=0)
        n = len(values)
        if n == 0:
            return self
        mean = values.mean(dim=0)
        centred = (values - mean).numpy()
        # numpy, unlike torch, notices that both factors are the same array and computes half of the product
        return self._add(n, mean, torch.from_numpy(centred.T @ centred))

    def add(self, other: FeatureStatistics) -> Self:
        """Add the rows of other statistics and return self.

        Args:
            other: of other rows; it is left as it is.

        Raises:
            DataError: rows of another width; then nothing was added.
        """
        return self._add(other._n, other._mean, other._scatter.clone()) if other._n else self

    def _add(self, n: int, mean: Tensor, scatter: Tensor) -> Self:
        if self._n == 0:
            self._n, self._mean, self._scatter = n, mean, scatter
            return self
        same_width(self._mean[None], mean[None], "statistics and the ones to add")
        # scatter of the union = both scatters + n_a n_b / (n_a + n_b) times the outer product of the gap of the means
        total = self._n + n
        gap = mean - self._mean
        self._scatter += scatter
        self._scatter.addr_(gap, gap, alpha=self._n * n / total)
        self._mean = self._mean + gap * (n / total)
        self._n = total
        return self

    @classmethod
    def shared(cls, values: Tensor, shares: Shares) -> Self:
        """Statistics of rows that all processes have, each of which adds up its share of them.

        Args:
            values: float64 `[N, D]` from `arrays.rows`, N >= 1.
            shares: the processes.

        Returns:
            The same in every process, and the same as of one process up to rounding.
        """
        mine = cls().update(values[shares.span(len(values))])
        if shares.world == 1:
            return mine
        width, whole = values.shape[1], cls()
        if mine._n == 0:
            mine._mean, mine._scatter = values.new_zeros(width), values.new_zeros(width, width)
        # The formula of `_add` for any number of parts: each scatter moves from its own mean to that of all rows.
        whole._n = len(values)
        whole._mean = shares.sum(mine._mean * (mine._n / whole._n))
        gap = mine._mean - whole._mean
        whole._scatter = shares.sum(mine._scatter.addr(gap, gap, alpha=mine._n))
        return whole

    def without(self, other: FeatureStatistics) -> FeatureStatistics:
        """New statistics of the rows that are not in `other`.

        The rounding error is that of the whole, so remove half of the rows at most.

        Args:
            other: statistics of some of these rows.

        Raises:
            DataError: `other` holds more rows, or rows of another width.
        """
        if other._n > self._n:
            raise DataError(f"statistics: {other._n} samples cannot be removed from {self._n}; give some of these rows")
        rest = FeatureStatistics()
        if other._n == self._n:
            return rest
        rest._n, rest._mean, rest._scatter = self._n - other._n, self._mean.clone(), self._scatter.clone()
        if other._n:
            same_width(self._mean[None], other._mean[None], "statistics and the ones to remove")
            # the formula of `update`, solved for the part that is not `other`
            gap = self._mean - other._mean
            rest._mean += gap * (other._n / rest._n)
            rest._scatter -= other._scatter
            rest._scatter.addr_(gap, gap, alpha=-other._n * self._n / rest._n)
        return rest

    @classmethod
    def of_moments(cls, n: int, mean: Tensor, scatter: Tensor) -> Self:
        """Statistics that were stored.

        Args:
            n: number of rows, at least 1.
            mean: float64 `[D]`.
            scatter: float64 `[D, D]`, as `scatter` gives it.

        Raises:
            ValueError: numbers that are no moments.
        """
        shapes = mean.dim() == 1 and scatter.shape == (len(mean), len(mean)) and n >= 1
        if not shapes or {mean.dtype, scatter.dtype} != {torch.float64} or not bool(scatter.isfinite().all()):
            raise ValueError("no moments")
        restored = cls()
        restored._n, restored._mean, restored._scatter = n, mean, scatter
        return restored

    @property
    def scatter(self) -> Tensor:
        """Sum of the outer products of the rows less their mean, float64 `[D, D]`."""
        return self._scatter.clone()

    @property
    def n(self) -> int:
        """Number of rows."""
        return self._n

    @property
    def mean(self) -> Tensor:
        """Mean of the rows, float64 `[D]`.

        Raises:
            DataError: there are no rows.
        """
        if self._n == 0:
            raise DataError("statistics: a mean needs at least 1 sample, got 0; call update first")
        return self._mean.clone()

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance of the columns (divided by n - 1), float64 `[D, D]`.

        Raises:
            DataError: there are fewer than two rows.
        """
        if self._n < 2:
            raise DataError(f"statistics: a covariance needs at least 2 samples, got {self._n}; call update with more")
        return self._scatter / (self._n - 1)


@dataclass(frozen=True)
class Whole:
    """All the rows of which a set of features is a uniform sample.

    Attributes:
        moments: of all rows.
        keys: int64 `[R]`, random numbers of the rows of the sample, ascending. No other row has a smaller number than
            the last of them.
        parts: digests of the sets that were joined.
    """

    moments: FeatureStatistics
    keys: Tensor
    parts: tuple[str, ...]

    @property
    def limit(self) -> int:
        """Largest number of rows of a sample of these and other rows: beyond its own rows a sample knows none."""
        return len(self.keys) if len(self.keys) < self.moments.n else sys.maxsize
