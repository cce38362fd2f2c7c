"""Hardware and versions behind a measured number, and the memory that the process used."""

from __future__ import annotations

import os
import platform
import resource
import sys
from pathlib import Path

import torch

CONTROL_GROUPS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Files with the limit of a container, of both versions of control groups."""
PROCESSOR = Path("/proc/cpuinfo")
"""What Linux says of the processor, a line for each key."""
BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Flags of processors, of Intel, AMD and ARM, that multiply bfloat16 numbers."""
AMPERE = (8, 0)
"""Compute capability of the first GPUs that do."""


def describe(device: torch.device) -> dict[str, str | int | None]:
    """Processor, cores, threads, accelerator and versions, for the key `hardware` of a result file.

    Args:
        device: where the run computes; names the GPU if it is one.
    """
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
    """Largest resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB, macOS in bytes


def resident_bytes() -> int:
    """Resident memory of this process now, in bytes; where the system does not say it, the largest so far."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * resource.getpagesize() if status.exists() else peak_memory_bytes()


def memory_bytes(device: torch.device) -> int:
    """Memory of a GPU, or of the machine as far as this process may use it (control groups), in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [path.read_text().strip() for path in CONTROL_GROUPS if path.exists()]
    return min([total, *(int(limit) for limit in limits if limit.isdecimal())])


def has_bfloat16_units(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 numbers faster than float32 ones; False where the system does not say.

    Args:
        device: the CPU or a GPU.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= AMPERE
    flags = _of_processor("flags") or _of_processor("Features")
    return not BFLOAT16.isdisjoint(flags.split())


def _cpu_name() -> str:
    # `platform.processor` is empty on most Linux systems.
    return _of_processor("model name") or platform.processor() or platform.machine()


def _of_processor(key: str) -> str:
    """What Linux says of the first core under a key; empty if it says nothing."""
    lines = PROCESSOR.read_text().splitlines() if PROCESSOR.exists() else []
    values = (line.split(":", 1)[1].strip() for line in lines if line.startswith(key) and ":" in line)
    return next(values, "")
