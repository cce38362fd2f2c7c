"""The memory that a run needs at its peak, as the line of a plan, told from trials on a few images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from synthkd.errors import TrainingError
from synthkd.generators.settings import GeneratorSettings
from synthkd.system.hardware import memory_bytes, resident_bytes
from synthkd.system.resources import size
from synthkd.training.memory import Need, TensorBytes, need_of, trim_heap

WORKSPACE = 1.4
"""Factor on the tensors of a pass: workspaces of convolutions, and what lies between freed blocks."""
NOTHING = Need(0, 0)
STEPS = 2
"""Steps of a generator's round in a trial; further ones need no more memory."""


@dataclass(frozen=True)
class Memory:
    """The planned memory of a run, in bytes.

    Attributes:
        total: at its peak.
        available: of the place, as far as this process may use it.
        place: "the machine" or "the GPU".
        remedy: what makes it smaller.
    """

    total: int
    available: int
    place: str
    remedy: str

    @property
    def lines(self) -> tuple[str, ...]:
        """The lines of a plan."""
        line = f"  memory: about {size(self.total)} at its peak; {self.place} has {size(self.available)}"
        if self.total <= self.available:
            return (line,)
        return (line, f"  warning: the run does not fit the memory; {self.remedy}")


def memory_lines(planned: Callable[[], Memory]) -> tuple[str, ...]:
    """The lines of a plan about the memory of a run.

    Args:
        planned: makes the trials; its `TrainingError` is told in place of a number, since in a dry run a teacher may be
            untrained.
    """
    try:
        return planned().lines
    except TrainingError as error:
        return (f"  memory: not measured: {error}",)


def taken_bytes(device: torch.device) -> int:
    """Bytes that this process has now, on the device of its tensors."""
    trim_heap()
    return int(torch.cuda.memory_allocated(device)) if device.type == "cuda" else resident_bytes()


def memory_of(
    device: torch.device, taken: int, parts: Sequence[tuple[str, Need]], held: Mapping[str, int] | None = None
) -> Memory:
    """The memory of a run whose parts run one after another.

    Args:
        device: of the tensors.
        taken: bytes that were there before the trials (`taken_bytes`).
        parts: of each part the setting that makes it smaller, and what it needs.
        held: setting -> bytes of what it makes the run keep beside all parts.
    """
    held = held or {}
    free = [need.peak - need.lasting for _, need in parts]
    passes = max(free)
    key = parts[free.index(passes)][0]
    for name, count in held.items():
        if count > passes:
            key = name
    total = taken + sum(need.lasting for _, need in parts) + sum(held.values()) + int(WORKSPACE * passes)
    place = "the GPU" if device.type == "cuda" else "the machine"
    return Memory(total, memory_bytes(device), place, f"make {key} smaller")


def with_few_images(settings: GeneratorSettings, count: int) -> GeneratorSettings:
    """Settings of a generator of the same kind, for rounds of `count` images and few steps.

    Settings that do not tell the images of a round stay as they are.
    """
    wanted = getattr(settings, "batch_size", 0)
    if not wanted:
        return settings
    few = {"batch_size": count}
    if hasattr(settings, "real_batch"):  # in proportion
        few["real_batch"] = max(2, round(count * settings.real_batch / wanted))
    for key in ("steps", "sample_steps"):
        if hasattr(settings, key):
            few[key] = min(STEPS, getattr(settings, key))
    return settings.model_copy(update=few)


def round_need(
    settings: GeneratorSettings, round_of: Callable[[GeneratorSettings], Callable[[], object]], device: torch.device
) -> Need:
    """What a round of a generator needs, told from rounds of generators of its kind with small batches.

    Args:
        settings: of the generator. If they do not tell the images of a round, a round of themselves is taken.
        round_of: builds a generator of these settings, and gives its round.
        device: of the tensors.
    """
    wanted = getattr(settings, "batch_size", 0)
    if not wanted:
        once = round_of(settings)
        with TensorBytes(device) as tensors:
            once()
        return Need(0, max(tensors.timeline))
    return need_of(lambda count: round_of(with_few_images(settings, count)), wanted, device)
