"""The memory of a training: what its tensors take, and the largest batch that fits, found by trial."""

from __future__ import annotations

import copy
import ctypes
import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from synthkd.errors import CheckpointError
from synthkd.system.resources import out_of_memory
from synthkd.types import Stateful

TRIED = (2, 4)
"""Images of the trials from which the memory of larger batches is told; BatchNorm refuses one image alone."""


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
        with _collected():
            fits = _fits(attempt, size)
        # Later attempts, and the run's own steps, need the memory of this one in blocks of other sizes.
        clear_device_cache()
        trim_heap()
        if fits:
            return size
        size = int(size * 0.9)
    raise CheckpointError("adapt_batch_size: not even one image fits the memory; make the models smaller")


def _fits(attempt: Callable[[int], object], size: int) -> bool:
    # A function of its own: the traceback of the error, which ends with it, refers to the tensors of the attempt.
    try:
        attempt(size)
    except Exception as error:
        if not should_reduce_batch_size(error) and not out_of_memory(error):
            raise
        return False
    return True


class TensorBytes(TorchDispatchMode):
    """Context manager that counts the bytes of the tensors which are made inside it, while they live.

    Views, and results that are written into tensors from outside, take none. What an operation needs for itself only,
    such as the workspace of a convolution, is not seen.

    Args:
        device: tensors on other kinds of devices are not counted.

    Attributes:
        live: bytes at present.
        timeline: bytes after each operation so far.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live, self.timeline = 0, [0]
        self._kind = device.type
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: object, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and count what it made."""
        result = func(*args, **(kwargs or {}))
        # Most operations make nothing new: their arguments need no look.
        new = {key: storage for key, storage in self._storages(result) if key not in self._known}
        given = {key for key, _ in self._storages((args, kwargs))} if new else set()
        for key, storage in new.items():
            if key not in given:
                self._count(key, storage)
        self.timeline.append(self.live)
        return result

    def _storages(self, values: object) -> Iterator[tuple[int, torch.UntypedStorage]]:
        for value in tree_leaves(values):
            if isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == self._kind:
                storage = value.untyped_storage()
                yield storage._cdata, storage

    def _count(self, key: int, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()

        def forget(_: object) -> None:
            self._known.pop(key, None)
            self.live -= size

        # torch keeps the object of a storage as long as any tensor, also one that autograd saved, uses it.
        self._known[key] = weakref.ref(storage, forget)
        self.live += size


@dataclass(frozen=True)
class Need:
    """Bytes that a part of a training needs.

    Attributes:
        lasting: when it is done, such as the moments of an optimizer.
        peak: at most, `lasting` included.
    """

    lasting: int
    peak: int


def need_of(prepare: Callable[[int], Callable[[], object]], batch_size: int, device: torch.device) -> Need:
    """The bytes of the tensors that a part of a training makes, from trials on 2 and on 4 images.

    The bytes after each operation are a line in the number of images, and the highest of these lines counts. If the
    trials are not of the same operations, the peaks alone make the line.

    Args:
        prepare: gives the part for so many images, each time from the same state; what it makes itself is not counted.
        batch_size: images of the training.
        device: of the tensors.
    """
    timelines, lasting = [], []
    for count in TRIED:
        run = prepare(count)
        with TensorBytes(device) as tensors, _collected():
            run()
        timelines.append(tensors.timeline)
        lasting.append(tensors.live)
    if len({len(timeline) for timeline in timelines}) > 1:
        timelines = [[max(timeline)] for timeline in timelines]
    few, many = TRIED

    def at(first: int, second: int) -> int:
        return first + (second - first) * (batch_size - few) // (many - few)

    left = at(*lasting)
    return Need(left, max(left, *(at(*pair) for pair in zip(*timelines, strict=True))))


@contextmanager
def _collected() -> Iterator[None]:
    """Context manager that collects the garbage which was made inside it, without a look at all older objects."""
    gc.freeze()
    try:
        yield
        gc.collect()
    finally:
        gc.unfreeze()


def trim_heap() -> None:
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
