"""Moments of the inputs of BatchNorm layers, averaged over the rounds of a generator (FastDFKD, NAYER)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from synthkd.types import BatchNormStatistics


class MovingMoments:
    """Averages the moments of a round with those of earlier rounds: no single small batch has the stored ones.

    Args:
        memory: weight of the earlier rounds, from 0 to below 1.
        device: of the moments.
    """

    def __init__(self, memory: float, device: torch.device) -> None:
        self._memory, self._device = memory, device
        self._earlier: dict[str, tuple[Tensor, Tensor]] = {}

    def averaged(self, statistics: Mapping[str, BatchNormStatistics]) -> dict[str, BatchNormStatistics]:
        """The statistics with averaged moments, through which gradients pass; as they are in the first round."""
        if not self._earlier:
            return dict(statistics)
        memory, averaged = self._memory, {}
        for path, one in statistics.items():
            old_mean, old_var = self._earlier[path]
            mean, var = memory * old_mean + (1 - memory) * one.mean, memory * old_var + (1 - memory) * one.var
            averaged[path] = replace(one, mean=mean, var=var)
        return averaged

    def keep(self, averaged: Mapping[str, BatchNormStatistics]) -> None:
        """Keep what a round ended with for the next one, without gradient."""
        if self._memory:
            self._earlier = {path: (one.mean.detach(), one.var.detach()) for path, one in averaged.items()}

    def state_dict(self) -> dict[str, Any]:
        """Path of a layer -> mean and biased variance, float32 `[C]` each."""
        return {path: list(pair) for path, pair in self._earlier.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._earlier = {path: (mean.to(self._device), var.to(self._device)) for path, (mean, var) in state.items()}
