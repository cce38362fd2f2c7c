"""Sources of a hybrid dataset: images of the memory bank and fresh samples, and real images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from synthkd.data.bank import MemoryBank
from synthkd.rng import numpy_stream
from synthkd.types import Batch, Outputs, Stateful, to_float

Labeller = Callable[[Tensor], Outputs]
"""Teacher without gradient: images `[N, C, H, W]` -> logits `[N, K]` and features."""

LiveSampler = Callable[[int, int], Batch]
"""(count, step) -> that many fresh samples of a generator, a function of both."""


class Source(Stateful, Protocol):
    """Images that batches are drawn from.

    Attributes:
        annotated: whether its labels are annotated by people. In a mixed batch only such labels are hard labels.
    """

    annotated: bool

    def draw(self, count: int, step: int) -> list[Batch]:
        """Images for a step, a function of the source's seed and of the step.

        Args:
            count: number of images, > 0.
            step: of the student.

        Returns:
            One batch or several that have `count` images together.
        """
        ...


@dataclass(frozen=True)
class RealImages:
    """Real images with their labels.

    Attributes:
        images: uint8 `[N, C, H, W]`.
        labels: int64 `[N]`; -1 for an image without annotation.
        first: number of the first image; the others follow. In a stream each image thus keeps its number while others
            come and go.
    """

    images: Tensor
    labels: Tensor
    first: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, _: int) -> RealImages:
        """These images at every step."""
        return self


class RealSupply(Protocol):
    """A supply of real images: `RealImages`, or a stream, which drops the oldest images and appends new ones."""

    def at(self, step: int, /) -> RealImages:
        """The images that a batch of a step draws from."""
        ...


class GeneratedSource:
    """Images of the memory bank, and fresh samples of the generator.

    Args:
        bank: the memory bank.
        live: generates fresh samples, or None.
        live_count: step -> largest number of fresh samples in a batch; the rest is drawn from the bank.

    Attributes:
        bank: as given.
    """

    annotated = False

    def __init__(
        self, bank: MemoryBank, live: LiveSampler | None = None, live_count: Callable[[int], int] = lambda _: 0
    ) -> None:
        self.bank = bank
        self._live = live
        self._live_count = live_count

    def draw(self, count: int, step: int) -> list[Batch]:
        """Fresh samples first, then images of the bank with their slots, stored logits and importance weights."""
        fresh = 0 if self._live is None else min(count, self._live_count(step))
        batches = [self._live(fresh, step)] if self._live is not None and fresh else []
        return [*batches, self.bank.draw(count - fresh, step, "bank")] if count > fresh else batches

    def state_dict(self) -> dict[str, Any]:
        """Empty, because the state of the bank is saved by itself."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Do nothing: there is no state."""


class RealSource:
    """Real images, drawn with replacement.

    Args:
        supply: the images, fixed or arriving.
        seed: the run's seed.
        teacher: labels each image once, for stored logits; None: the images have no logits.
        device: of the teacher; None: the CPU.

    Attributes:
        used: numbers of the images that were drawn so far.
    """

    annotated = True

    def __init__(
        self,
        supply: RealSupply,
        seed: int,
        teacher: Labeller | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.used: set[int] = set()
        self._supply = supply
        self._seed = seed
        self._teacher = teacher
        self._device = device or torch.device("cpu")
        self._first, self._logits = 0, torch.empty(0)  # number of the first image with logits, and `[N, K]`

    def draw(self, count: int, step: int) -> list[Batch]:
        """One batch on the CPU: images, annotated labels or -1, stored logits if any, and numbers as `rows`."""
        real = self._supply.at(step)
        rows = torch.from_numpy(numpy_stream(self._seed, "real", step).integers(0, len(real), count))
        numbers, labels = real.first + rows, real.labels[rows]
        self.used.update(numbers.tolist())
        logits = None if self._teacher is None else self._logits_of(real, self._teacher)[rows]
        return [Batch(to_float(real.images[rows]), labels, logits, rows=numbers, annotated=labels >= 0)]

    def state_dict(self) -> dict[str, Any]:
        """The numbers of the images drawn so far, as `real_rows`. Batches need no state; they follow from the step."""
        return {"real_rows": sorted(self.used)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.used = set(state["real_rows"])

    def _logits_of(self, real: RealImages, teacher: Labeller) -> Tensor:
        """The teacher's logits `[N, K]` of real images; each image is labelled once, when it appears."""
        # Images leave at the front and arrive at the end, so the known logits belong to the first images that remain.
        logits = self._logits[real.first - self._first :]
        if len(unlabelled := real.images[len(logits) :]):
            new = [teacher(to_float(chunk).to(self._device)).logits.cpu() for chunk in unlabelled.split(512)]
            logits = torch.cat([logits, *new])
        self._first, self._logits = real.first, logits
        return logits
