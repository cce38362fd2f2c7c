"""What a number was measured on: hardware, versions, and the time a model takes."""

from __future__ import annotations

import os
import platform
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from synthkd.types import ImageSpec


def describe(device: torch.device) -> dict[str, Any]:
    """Processor, cores, threads, accelerator and versions, as JSON-able values."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def peak_memory_bytes() -> int:
    """Largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


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


def _cpu_name() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
