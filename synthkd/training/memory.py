"""The largest batch that fits the memory, found by trial."""

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
    """The first batch size that fits the memory among `start`, 0.9 `start`, ..., each 0.9 times the last, rounded down.

    Args:
        start: largest batch size.
        attempt: needs as much memory for a batch of this size as the training will.

    Raises:
        CheckpointError: not even one image fits.
    """
    size = start
    while size:
        try:
            attempt(size)
            return size
        except Exception as error:
            if not should_reduce_batch_size(error) and not out_of_memory(error):
                raise
        # After the except clause: inside it the traceback of the error still refers to the tensors of the attempt.
        clear_device_cache(garbage_collection=True)
        size = int(size * 0.9)
    raise CheckpointError("adapt_batch_size: not even one image fits the memory; make the model smaller")


def training_step(student: nn.Module, spec: ImageSpec, device: torch.device) -> Callable[[int], None]:
    """A function that runs a forward and backward pass of a copy of `student` on a number of black images."""

    def attempt(batch_size: int) -> None:
        # A copy, so that neither gradients nor BatchNorm moments of the black images reach the student.
        model = copy.deepcopy(student).to(device).train()
        model(torch.zeros(batch_size, *spec.shape, device=device)).sum().backward()

    return attempt
