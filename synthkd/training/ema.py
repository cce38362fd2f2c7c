"""Exponential moving average of a module's weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from synthkd.models.weights import finite_state


class WeightAverage:
    """Average of weights: `a <- d_n a + (1 - d_n) w` at update n > 0, `d_n = min(decay, (1 + n) / (10 + n))`.

    Update 0 copies the weights. The decay grows, so that the average soon forgets the first weights. Buffers (BatchNorm
    moments) are averaged too.

    Args:
        module: the module that is trained; the average starts as a copy of it.
        decay: limit of the decay, in [0, 1).
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        def average(averaged: tuple[Tensor, ...] | list[Tensor], current: Any, count: Tensor | int) -> None:
            n = int(count)
            # torch counts the copy of update 0, so n is 1 at the first average.
            weight = 1.0 - min(decay, (1 + n) / (10 + n))
            # torch passes tensors of one dtype at a time; integer buffers (batch counters) cannot be averaged.
            if averaged[0].is_floating_point():
                torch._foreach_lerp_(list(averaged), list(current), weight)
            else:
                torch._foreach_copy_(list(averaged), list(current))

        self._average = AveragedModel(module, multi_avg_fn=average, use_buffers=True)

    @property
    def module(self) -> nn.Module:
        """The module with the averaged weights."""
        module: nn.Module = self._average.module
        return module

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Include the module's present weights in the average."""
        self._average.update_parameters(module)

    def state_dict(self) -> dict[str, Any]:
        """The averaged weights and the number of updates; `TrainingError` if a weight is not finite."""
        return finite_state(self._average, "the average of the weights")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._average.load_state_dict(state)
