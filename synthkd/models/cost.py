"""What a model costs: parameters, bytes and multiplications to the number; time and energy as measured here."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from synthkd.errors import ConfigError
from synthkd.models.classifier import Classifier, parameters
from synthkd.rng import stream
from synthkd.taps import evaluating
from synthkd.types import ImageSpec

POWERCAP = Path("/sys/class/powercap")
"""Where Linux shows the energy counters of Intel and AMD processors."""

_WARM_UP = 10


@dataclass(frozen=True)
class Latency:
    """How long a batch takes, over repeated calls after a warm-up.

    Attributes:
        median_ms: median, milliseconds for the whole batch.
        low_ms: first quartile.
        high_ms: third quartile.
        batch_size: images in the batch.
        threads: threads that one call may use on the processor.
        device: "cpu", or the name of the accelerator.
        calls: how many were timed.
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


@dataclass(frozen=True)
class Energy:
    """What one image takes.

    Attributes:
        joules: for one image, or None where nothing counts it.
        source: what was counted, or "not measured: " and the reason.
    """

    joules: float | None
    source: str

    def __str__(self) -> str:
        return self.source if self.joules is None else f"{self.joules:.3g} J for an image ({self.source})"


@dataclass(frozen=True)
class Cost:
    """What a model costs to keep and to run.

    Attributes:
        parameters: each counted once however often it is shared.
        bytes: of the state dict as it is saved.
        macs: multiply-accumulate operations for one image in convolutions, linear layers and attention; activations,
            norms and biases are not counted.
        latency: of a batch.
        energy: of one image in such a batch.
    """

    parameters: int
    bytes: int
    macs: int
    latency: Latency
    energy: Energy


def cost(
    model: Classifier,
    device: torch.device,
    batch_size: int = 1,
    threads: int | None = None,
    calls: int = 50,
    energy_seconds: float = 2.0,
) -> Cost:
    """Count and measure a model in eval mode on random images; the model itself is left as it is.

    Args:
        model: on any device, in any mode.
        device: where to measure; a copy of the model goes there.
        batch_size: images at once, for latency and energy.
        threads: of torch while it measures; None: as many as it has now.
        calls: how many to time.
        energy_seconds: how long to run for the energy counter, which is coarse.

    Raises:
        ConfigError: batch_size, threads or calls below 1.
    """
    for name, value in (("batch_size", batch_size), ("threads", threads), ("calls", calls)):
        if value is not None and value < 1:
            raise ConfigError(f"cost: {name} must be at least 1, got {value}")
    measured = copy.deepcopy(model).to(device).eval()
    images = random_images(model.spec, batch_size).to(device)

    def call() -> None:
        measured(images)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    with _torch_threads(threads) as used, torch.no_grad():
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        latency = time_calls(call, batch_size, used, name, calls)
        spent = energy(call, batch_size, device, energy_seconds)
    return Cost(
        parameters=parameters(model),
        bytes=sum(t.numel() * t.element_size() for t in model.state_dict().values()),
        macs=macs(measured),
        latency=latency,
        energy=spent,
    )


def macs(model: Classifier) -> int:
    """Multiply-accumulate operations of one image: half of the operations that torch's flop counter counts.

    The model's train/eval mode is put back.
    """
    image = torch.zeros(1, *model.spec.shape, device=model.normalize.mean.device)
    # Fused attention is one operation, which not every version of the counter knows: take it apart into products.
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            evaluating(model),
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False) as counter,
        ):
            model(image)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops()) // 2


def time_calls(
    call: Callable[[], object], batch_size: int, threads: int, device: str = "cpu", calls: int = 50
) -> Latency:
    """Median and quartiles of the time that `call` takes, after a warm-up of 10 calls.

    Args:
        call: does all of its work before it returns.
        batch_size: images it handles; only noted.
        threads: how many it may use; only noted.
        device: where it runs; only noted.
        calls: how many to time, at least 1.
    """
    for _ in range(_WARM_UP):
        call()
    milliseconds: list[float] = []
    for _ in range(calls):
        started = time.perf_counter()
        call()
        milliseconds.append(1000.0 * (time.perf_counter() - started))
    low, median, high = statistics.quantiles(milliseconds, n=4, method="inclusive") if calls > 1 else 3 * milliseconds
    return Latency(median, low, high, batch_size, threads, device, calls)


def energy(
    call: Callable[[], object],
    images: int,
    device: torch.device,
    seconds: float = 2.0,
    powercap: Path = POWERCAP,
) -> Energy:
    """Joules for one image, from the counter of the hardware while `call` is repeated.

    On a GPU it is NVML's counter of the board, on a processor the RAPL counters of its packages and memory. They count
    everything that the hardware does meanwhile, idle power included: measure on a quiet machine.

    Args:
        call: handles `images` images and returns when they are done.
        images: number of them.
        device: where it runs.
        seconds: for how long to repeat, at least once.
        powercap: folder of the processor's counters.
    """
    counter = _counter(device, powercap)
    if isinstance(counter, str):
        return Energy(None, f"not measured: {counter}")
    call()
    calls, before = 0, counter.read()
    stop = time.perf_counter() + seconds
    while calls == 0 or time.perf_counter() < stop:
        call()
        calls += 1
    after = counter.read()
    # A counter that reached its span has started again from 0.
    microjoules = sum((b - a) % span for a, b, span in zip(before, after, counter.spans, strict=True))
    if microjoules == 0:
        return Energy(None, f"not measured: {counter.source} did not move in {seconds:g} s")
    return Energy(microjoules * 1e-6 / (calls * images), counter.source)


def random_images(spec: ImageSpec, count: int) -> torch.Tensor:
    """float32 `[count, C, H, W]`, uniform in `[0, 1)`, always the same: something to measure time with."""
    return torch.rand((count, *spec.shape), generator=stream(0, "images to measure time with"))


@dataclass(frozen=True)
class _Counter:
    """Microjoules since some time, of each of several parts; the value of a part stays below its span."""

    source: str
    read: Callable[[], tuple[int, ...]]
    spans: tuple[int, ...]


def _counter(device: torch.device, powercap: Path) -> _Counter | str:
    """What counts the energy of a device, or the reason why nothing does."""
    if device.type == "cuda":
        return _nvml(device)
    if device.type == "cpu":
        return _rapl(powercap)
    return f"no energy counter is known for {device.type}"


def _rapl(folder: Path) -> _Counter | str:
    if not folder.is_dir():
        return f"{folder} does not exist (not Linux, or a virtual machine)"
    try:
        # The other zones are parts of a package (core, uncore), or hold the packages themselves (psys).
        zones = [
            zone
            for zone in sorted(folder.glob("intel-rapl:*"))
            if (name := (zone / "name").read_text().strip()).startswith("package") or name == "dram"
        ]
        if not zones:
            return f"{folder} has no counter of a processor package"
        spans = tuple(int((zone / "max_energy_range_uj").read_text()) for zone in zones)

        def read() -> tuple[int, ...]:
            return tuple(int((zone / "energy_uj").read_text()) for zone in zones)

        read()
    except OSError as error:
        return f"{error.filename} cannot be read ({error.strerror}); make it readable, or measure as root"
    except ValueError as error:
        return f"a counter in {folder} is not a number ({error})"
    names = ", ".join((zone / "name").read_text().strip() for zone in zones)
    return _Counter(f"RAPL counter of {names}, idle power included", read, spans)


def _nvml(device: torch.device) -> _Counter | str:
    try:
        import pynvml
    except ImportError:
        return "the package 'pynvml' is not installed: pip install nvidia-ml-py"
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")

        def read() -> tuple[int, ...]:
            return (1000 * int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)),)

        read()
    except pynvml.NVMLError as error:
        return f"NVML has no energy counter for this GPU ({error})"
    return _Counter("NVML counter of the GPU board, idle power included", read, (2**63,))


@contextmanager
def _torch_threads(threads: int | None) -> Iterator[int]:
    """Let torch use so many threads, or as many as it does; gives the number, and puts back what it found."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield threads or before
    finally:
        torch.set_num_threads(before)


def latency_ms(model: nn.Module, spec: ImageSpec, device: torch.device, repeats: int = 30) -> float:
    """Median milliseconds of one image through the model in eval mode, after a warm-up."""
    image = torch.zeros(1, *spec.shape, device=device)
    seconds: list[float] = []
    with torch.no_grad():
        for repeat in range(repeats + 5):
            started = time.perf_counter()
            model(image)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if repeat >= 5:
                seconds.append(time.perf_counter() - started)
    return 1000.0 * statistics.median(seconds)
