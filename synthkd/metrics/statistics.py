"""Mean and covariance of features that arrive batch by batch; memory does not grow with their number.

The state is the count, the mean and the scatter (the sum of outer products of centred rows), all in float64. Two states
are merged by the pairwise formula of Chan, Golub and LeVeque (1979). Sums of raw squares would need less code, but
where the mean is large they lose the covariance to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor

from synthkd.errors import DataError
from synthkd.metrics.arrays import Array, rows, same_width


class FeatureStatistics:
    """Count, mean and covariance of features; statistics of parts (shards, classes, processes) can be merged.

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
        if len(values) == 0:
            return self
        mean = values.mean(dim=0)
        centred = (values - mean).numpy()
        # numpy, unlike torch, notices that both factors are the same array and computes half of the product
        self._add(len(values), mean, torch.from_numpy(centred.T @ centred))
        return self

    def merge(self, other: FeatureStatistics) -> Self:
        """Add all rows of other statistics, which stay as they are, and return self.

        Raises:
            DataError: both hold features, of different widths.
        """
        if other._n:
            self._add(other._n, other._mean, other._scatter)
        return self

    def without(self, other: FeatureStatistics) -> FeatureStatistics:
        """New statistics of the rows that are not in `other`, so that merging `other` gives these again.

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
            # the formula of `_add`, solved for the part that is not `other`
            gap = self._mean - other._mean
            rest._mean += gap * (other._n / rest._n)
            rest._scatter -= other._scatter
            rest._scatter.addr_(gap, gap, alpha=-other._n * self._n / rest._n)
        return rest

    def _add(self, n: int, mean: Tensor, scatter: Tensor) -> None:
        if self._n == 0:
            # later batches are added to the scatter in place, and this tensor may belong to other statistics
            self._n, self._mean, self._scatter = n, mean, scatter.clone()
            return
        same_width(self._mean[None], mean[None], "statistics and the ones to add")
        # scatter of the union = both scatters + n_a n_b / (n_a + n_b) times the outer product of the gap of the means
        total = self._n + n
        gap = mean - self._mean
        self._scatter += scatter
        self._scatter.addr_(gap, gap, alpha=self._n * n / total)
        self._mean = self._mean + gap * (n / total)
        self._n = total

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

    def state_dict(self) -> dict[str, int | Tensor]:
        """The state: `n`, `mean` float64 `[D]` and `scatter` float64 `[D, D]`."""
        return {"n": self._n, "mean": self._mean.clone(), "scatter": self._scatter.clone()}

    @classmethod
    def from_state(cls, state: Mapping[str, int | Tensor]) -> Self:
        """Statistics with the state that `state_dict` returned.

        Raises:
            DataError: missing keys, shapes that do not fit, a value that is not finite, or a negative variance.
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
            raise DataError("statistics: the state holds NaN, infinity or a negative variance; compute it again")
        result = cls()
        result._n, result._mean, result._scatter = n, mean, scatter
        return result
