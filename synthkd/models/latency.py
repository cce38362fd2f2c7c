"""The time of a batch through a classifier, or through anything else that can be called, such as an exported file."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from synthkd.models.classifier import Classifier
from synthkd.rng import stream
from synthkd.taps import evaluating
from synthkd.types import ImageSpec

WARM_UP = 10
"""Calls before the first that is timed."""
LEAST_CALLS = 3
"""Calls that are timed however long they take."""


@dataclass(frozen=True)
class Latency:
    """Time of one batch, over repeated calls after a warm-up.

    Attributes:
        median_ms: median, milliseconds for the whole batch.
        low_ms: first quartile.
        high_ms: third quartile.
        batch_size: images in the batch.
        threads: threads that one call may use on the processor.
        device: "cpu", or the name of the accelerator.
        calls: number of timed calls.
    """

    median_ms: float
    low_ms: float
    high_ms: float
    batch_size: int
    threads: int
    device: str
    calls: int

    def __str__(self) -> str:
        return (
            f"{self.median_ms:.3f} ms [{self.low_ms:.3f}, {self.high_ms:.3f}] for a batch of {self.batch_size} on "
            f"{self.device}, threads: {self.threads}"
        )


def measure_latency(
    model: Classifier,
    device: torch.device,
    batch_size: int = 1,
    threads: int | None = None,
    calls: int = 50,
    seconds: float = math.inf,
) -> Latency:
    """Time of random images through a classifier in eval mode, without gradient.

    Args:
        model: on `device`; its train/eval modes are restored.
        device: device of the model.
        batch_size: images in one call.
        threads: torch's threads during the measurement; None: as many as it uses now.
        calls, seconds: see `time_calls`.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    with torch_threads(threads) as count, evaluating(model), torch.no_grad():
        return time_calls(forward_pass(model, device, batch_size), batch_size, count, name, calls, seconds)


def time_calls(
    call: Callable[[], object],
    batch_size: int,
    threads: int,
    device: str = "cpu",
    calls: int = 50,
    seconds: float = math.inf,
) -> Latency:
    """Median and quartiles of the time of `call`, after a warm-up of 10 calls.

    Args:
        call: completes all of its work before it returns.
        batch_size, threads, device: as in `Latency`; copied into the result.
        calls: number of timed calls, at least 1.
        seconds: after so long the warm-up ends, and so do the timed calls from the third on.
    """
    # The first calls allocate memory and choose kernels, which would count as time of the model.
    began = time.perf_counter()
    for _ in range(WARM_UP):
        call()
        if time.perf_counter() - began > seconds:
            break
    milliseconds: list[float] = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        milliseconds.append(1000.0 * (time.perf_counter() - start))
        if len(milliseconds) >= LEAST_CALLS and sum(milliseconds) > 1000.0 * seconds:
            break
    calls = len(milliseconds)
    low, median, high = statistics.quantiles(milliseconds, n=4, method="inclusive") if calls > 1 else 3 * milliseconds
    return Latency(median, low, high, batch_size, threads, device, calls)


def forward_pass(model: Classifier, device: torch.device, batch_size: int) -> Callable[[], None]:
    """A function that runs a model on the same random batch and returns when the device has finished."""
    images = random_images(model.spec, batch_size).to(device)

    def call() -> None:
        model(images)
        # A GPU runs asynchronously: without waiting for it only the launch of the work would be timed.
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return call


def random_images(spec: ImageSpec, count: int) -> Tensor:
    """float32 `[count, C, H, W]`, uniform in `[0, 1)`; the same values in every call."""
    return torch.rand((count, *spec.shape), generator=stream(0, "images to measure time with"))


@contextmanager
def torch_threads(threads: int | None) -> Iterator[int]:
    """Context manager in which torch uses `threads` threads (None: as many as now); yields their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield threads or before
    finally:
        torch.set_num_threads(before)
