"""The largest batch that fits the memory, found by trying."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import nn

from synthkd.errors import CheckpointError
from synthkd.system.resources import out_of_memory
from synthkd.types import ImageSpec


def fitting_batch_size(start: int, attempt: Callable[[int], object]) -> int:
    """`start`, or what is left of it after as many reductions as `attempt` needs to stop running out of memory.

    Args:
        start: batch size to try first.
        attempt: does with a batch of that size what training will do; raises torch's out-of-memory error if it must.

    Raises:
        CheckpointError: when not even one image fits.
    """
    size = start
    while size:
        try:
            attempt(size)
            return size
        except Exception as error:
            if not should_reduce_batch_size(error) and not out_of_memory(error):
                raise
        clear_device_cache(garbage_collection=True)
        size = int(size * 0.9)
    raise CheckpointError("adapt_batch_size: not even one image fits the memory; make the model smaller")


def training_step(student: nn.Module, spec: ImageSpec, device: torch.device) -> Callable[[int], None]:
    """A forward and backward pass of a copy of `student` on so many blank images; the student stays as it is."""

    def attempt(batch_size: int) -> None:
        model = copy.deepcopy(student).to(device).train()
        model(torch.zeros(batch_size, *spec.shape, device=device)).sum().backward()

    return attempt
