"""Worker processes that decode the images of coming steps, so that a training does not wait for them."""

from __future__ import annotations

import atexit
import itertools
import logging
import multiprocessing
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from synthkd.data.read.on_disk import DiskImages, Pixels
from synthkd.rng import stream

LOG = logging.getLogger(__name__)


class Ahead:
    """Decodes images into their cache before they are drawn; it changes no image and no order.

    The workers of a DataLoader follow the steps a little ahead of the training. They hand nothing over: what a step
    draws comes from the cache, or is decoded there and then if a worker did not get to it. Nothing is started for
    images in memory, with 0 workers, and where every image is decoded already; the workers end when all are.

    Args:
        images: that are drawn from.
        rows: step -> rows of the images that it will probably draw, int64 `[n]`.
    """

    def __init__(self, images: Pixels, rows: Callable[[int], Tensor]) -> None:
        self._images = images if isinstance(images, DiskImages) and images.files.workers and _can_fork() else None
        self._rows = rows
        self._steps: Iterator[int] | None = None
        self._next = -1
        self._decoded_already = 0  # images in a row that no worker had to decode

    def wait(self, step: int) -> None:
        """Return when the images of a step are decoded, and have the next steps decoded meanwhile.

        Args:
            step: after any but the one before, the workers start anew.
        """
        if self._images is None:
            return
        if step != self._next or self._steps is None:
            self.close()
            if not self._images.lacking():
                self._images = None
                return
            self._steps = self._start(self._images, step)
            _OPEN.add(self)
        self._next = step + 1
        try:
            lacked = next(self._steps)
        except RuntimeError as error:  # a worker was killed, perhaps for lack of memory
            LOG.warning("images are decoded without workers from here on: %s", " ".join(str(error).split()))
            lacked, self._decoded_already = 0, len(self._images)
        else:
            self._decoded_already = 0 if lacked else self._decoded_already + len(self._rows(step))
        if self._decoded_already >= len(self._images):
            self.close()
            self._images = None

    def close(self) -> None:
        """End the workers."""
        self._steps = None  # the loader ends them when nobody iterates over it
        _OPEN.discard(self)

    def _start(self, images: DiskImages, first: int) -> Iterator[int]:
        rows = (self._rows(step).tolist() for step in itertools.count(first))
        loader = DataLoader(
            _Decoder(images),
            sampler=cast(Any, rows),
            batch_size=None,
            num_workers=images.files.workers,
            multiprocessing_context="fork",  # files of an archive have readers that cannot be sent
            worker_init_fn=_leave_signals_to_the_main_process,
            generator=stream(0, "workers"),  # without it the loader draws from the caller's random state
        )
        main = threading.current_thread() is threading.main_thread()
        handler = signal.getsignal(signal.SIGCHLD)
        steps = iter(loader)
        if main:  # torch would raise in the midst of anything where a worker is killed; `wait` notices it as well
            signal.signal(signal.SIGCHLD, handler)
        return steps


class _Decoder(Dataset[int]):
    """Rows of a step -> how many of them the worker had to decode."""

    def __init__(self, images: DiskImages) -> None:
        self._images = images

    def __getitem__(self, rows: list[int]) -> int:
        return self._images.decode(torch.tensor(rows, dtype=torch.int64))


def _leave_signals_to_the_main_process(_: int) -> None:
    # Ctrl-C and a scheduler's SIGTERM reach the whole group of processes, and the main process finishes its step first.
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)


def _can_fork() -> bool:
    return "fork" in multiprocessing.get_all_start_methods() and get_worker_info() is None


_OPEN: weakref.WeakSet[Ahead] = weakref.WeakSet()


# Registered after multiprocessing's own, and so run before it: that one would wait for workers, which ignore SIGTERM.
@atexit.register
def _close_all() -> None:
    for one in list(_OPEN):
        one.close()
