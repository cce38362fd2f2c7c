"""The largest batch that fits the memory, found by trying."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from accelerate.utils import find_executable_batch_size
from torch import nn

from synthkd.types import ImageSpec


def fitting_batch_size(start: int, attempt: Callable[[int], object]) -> int:
    """`start`, or what is left of it after as many reductions as `attempt` needs to stop running out of memory.

    Args:
        start: batch size to try first.
        attempt: does with a batch of that size what training will do; raises torch's out-of-memory error if it must.

    Raises:
        RuntimeError: when not even one image fits.
    """

    def run(batch_size: int) -> int:
        attempt(batch_size)
        return batch_size

    size: int = find_executable_batch_size(run, starting_batch_size=start)()
    return size


def training_step(student: nn.Module, spec: ImageSpec, device: torch.device) -> Callable[[int], None]:
    """A forward and backward pass of a copy of `student` on so many blank images; the student stays as it is."""

    def attempt(batch_size: int) -> None:
        model = copy.deepcopy(student).to(device).train()
        model(torch.zeros(batch_size, *spec.shape, device=device)).sum().backward()

    return attempt
