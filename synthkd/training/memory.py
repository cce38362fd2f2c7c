"""The largest batch that fits the memory, found by trial."""

from __future__ import annotations

import copy
import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from synthkd.errors import CheckpointError
from synthkd.system.resources import out_of_memory
from synthkd.types import Stateful


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
            # The run's own steps need the memory of the attempts, in blocks of other sizes.
            _trim_heap()
            return size
        except Exception as error:
            if not should_reduce_batch_size(error) and not out_of_memory(error):
                raise
        # After the except clause: inside it the traceback of the error still refers to the tensors of the attempt.
        clear_device_cache(garbage_collection=True)
        _trim_heap()
        size = int(size * 0.9)
    raise CheckpointError("adapt_batch_size: not even one image fits the memory; make the models smaller")


def _trim_heap() -> None:
    """Give freed memory back to the system, where the C library can: glibc keeps what a failed attempt freed.

    Without this, oneDNN, which maps memory of its own, fails at every smaller size as well.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@contextmanager
def restored(parts: Sequence[Stateful]) -> Iterator[None]:
    """Context manager for a trial: at its end the parts, and torch's random numbers, are as they were before it.

    Args:
        parts: everything that the trial trains or fills.
    """
    # Copies, because a state dict refers to the tensors that the trial changes.
    states = [copy.deepcopy(part.state_dict()) for part in parts]
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            for part, state in zip(parts, states, strict=True):
                part.load_state_dict(state)
