"""The energy of one image, from the counters of the hardware: NVML on a GPU, RAPL on a processor."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

POWERCAP = Path("/sys/class/powercap")
"""Folder of Linux with the energy counters of Intel and AMD processors."""


@dataclass(frozen=True)
class Energy:
    """Energy for one image.

    Attributes:
        joules: for one image, or None without a counter.
        source: the counter, or "not measured: " and the reason.
    """

    joules: float | None
    source: str

    def __str__(self) -> str:
        return self.source if self.joules is None else f"{self.joules:.3g} J for an image ({self.source})"


def measure_energy(
    call: Callable[[], object], images: int, device: torch.device, seconds: float = 2.0, powercap: Path = POWERCAP
) -> Energy:
    """Joules for one image, from the hardware's counter while `call` is repeated.

    A GPU's counter is that of NVML for the whole board; a processor's are those of RAPL for its packages and memory.
    They include everything else that the hardware does in that time, and idle power: measure on an idle machine.

    Args:
        call: handles `images` images and returns when they are done.
        images: number of images.
        device: device of the call.
        seconds: time to repeat the call; it runs at least once.
        powercap: folder of the processor's counters.

    Returns:
        Joules, or None with the reason where there is no counter, it cannot be read, or it did not move.
    """
    counter = _counter(device, powercap)
    if isinstance(counter, str):
        return Energy(None, f"not measured: {counter}")
    call()  # the first call allocates memory and chooses kernels
    calls, before = 0, counter.read()
    stop = time.perf_counter() + seconds
    while calls == 0 or time.perf_counter() < stop:
        call()
        calls += 1
    after = counter.read()
    # A counter that has reached its span starts again from 0.
    microjoules = sum((b - a) % span for a, b, span in zip(before, after, counter.spans, strict=True))
    if microjoules == 0:
        return Energy(None, f"not measured: {counter.source} did not move in {seconds:g} s")
    return Energy(microjoules * 1e-6 / (calls * images), counter.source)


@dataclass(frozen=True)
class _Counter:
    """Energy counters of several parts, in microjoules; each stays below its span."""

    source: str
    read: Callable[[], tuple[int, ...]]
    spans: tuple[int, ...]


def _counter(device: torch.device, powercap: Path) -> _Counter | str:
    """The energy counter of a device, or the reason why there is none."""
    if device.type == "cuda":
        return _nvml(device)
    if device.type == "cpu":
        return _rapl(powercap)
    return f"no energy counter is known for {device.type}"


def _rapl(folder: Path) -> _Counter | str:
    if not folder.is_dir():
        return f"{folder} does not exist (not Linux, or a virtual machine)"
    try:
        names = {zone: (zone / "name").read_text().strip() for zone in sorted(folder.glob("intel-rapl:*"))}
        # Other zones are a part of a package (core, uncore) or contain the packages (psys): they would count twice.
        zones = [zone for zone, name in names.items() if name.startswith("package") or name == "dram"]
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
    parts = ", ".join(names[zone] for zone in zones)
    return _Counter(f"RAPL counter of {parts}, idle power included", read, spans)


def _nvml(device: torch.device) -> _Counter | str:
    try:
        import pynvml
    except ImportError:
        return "the package 'pynvml' is not installed: pip install nvidia-ml-py"
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")

        def read() -> tuple[int, ...]:
            # NVML counts millijoules.
            return (1000 * int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)),)

        read()
    except pynvml.NVMLError as error:
        return f"NVML has no energy counter for this GPU ({error})"
    return _Counter("NVML counter of the GPU board, idle power included", read, (2**63,))
