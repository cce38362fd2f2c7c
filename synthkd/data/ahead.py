"""Worker processes that decode the images of coming steps, so that a training does not wait for them."""

from __future__ import annotations

import gc
import itertools
import logging
import multiprocessing
import signal
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from synthkd.data.read.decode import in_a_line
from synthkd.data.read.on_disk import DiskImages, Pixels
from synthkd.rng import stream
from synthkd.system.stopping import pending_signal

LOG = logging.getLogger(__name__)


class Ahead:
    """Decodes images into their cache before they are drawn; it changes no image and no order.

    The workers of a DataLoader follow the steps a little ahead of the training. They hand nothing over: what a step
    draws comes from the cache, or is decoded there and then if a worker did not get to it. Nothing is started for
    images in memory, with 0 workers, and where every image is decoded already; the workers end when all are.

    Args:
        images: that are drawn from.
        rows: step -> rows of the images that it will probably draw, int64 `[n]`. It should not refer to the object that
            holds this one, so that the workers end as soon as nobody needs them.
    """

    def __init__(self, images: Pixels, rows: Callable[[int], Tensor]) -> None:
        self._images = images if isinstance(images, DiskImages) and images.files.workers and _can_fork() else None
        self._rows = rows
        self._steps: Iterator[int] | None = None
        self._end: Callable[[], object] = lambda: None
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
        self._next = step + 1
        try:
            lacked = next(self._steps)
        except RuntimeError as error:  # a worker was killed, perhaps for lack of memory
            if not pending_signal():  # else the same signal as this process got
                LOG.warning("images are decoded without workers from here on: %s", in_a_line(error))
            lacked, self._decoded_already = 0, len(self._images)
        else:
            self._decoded_already = 0 if lacked else self._decoded_already + len(self._rows(step))
        if self._decoded_already >= len(self._images):
            self.close()
            self._images = None

    def close(self) -> None:
        """End the workers."""
        self._end()
        self._steps = None

    def _start(self, images: DiskImages, first: int) -> Iterator[int]:
        wanted = self._rows  # the loader must not refer to this object, which would then be freed late
        rows = (wanted(step).tolist() for step in itertools.count(first))
        loader = DataLoader(
            _Decoder(images),
            sampler=cast(Any, rows),
            batch_size=None,
            num_workers=images.files.workers,
            multiprocessing_context="fork",  # files of an archive have readers that cannot be sent
            worker_init_fn=_prepare,
            generator=stream(0, "workers"),  # without it the loader draws from the caller's random state
        )
        handler, before = signal.getsignal(signal.SIGCHLD), multiprocessing.active_children()
        steps = iter(loader)
        self._end = weakref.finalize(
            self, _end, [one for one in multiprocessing.active_children() if one not in before]
        )
        if threading.current_thread() is threading.main_thread():
            # Where a worker is killed, torch would raise in the midst of anything. `wait` notices it as well.
            signal.signal(signal.SIGCHLD, handler)
        return steps


def _end(workers: Sequence[BaseProcess]) -> None:
    """Stop workers wherever they are: an image that is half written counts as absent."""
    in_main = threading.current_thread() is threading.main_thread()
    # A DataLoader of the caller may have set torch's handler, which raises for every worker that was stopped.
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if in_main else None
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.join()
    if in_main:
        signal.signal(signal.SIGCHLD, handler)


class _Decoder(Dataset[int]):
    """Rows of a step -> how many of them the worker had to decode."""

    def __init__(self, images: DiskImages) -> None:
        self._images = images

    def __getitem__(self, rows: list[int]) -> int:
        return self._images.decode(torch.tensor(rows, dtype=torch.int64))


def _prepare(_: int) -> None:
    gc.freeze()  # a collection would write to all objects, and so copy the memory that is shared with the main process
    # Ctrl-C reaches the whole group of processes, and the main process finishes its step first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _can_fork() -> bool:
    return "fork" in multiprocessing.get_all_start_methods() and get_worker_info() is None
