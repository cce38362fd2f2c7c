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
"""Teacher without gradient: images `[N, C, H, W]` -> logits `[N, K]` and the features that were asked of it."""

LiveSampler = Callable[[int, int], Batch]
"""(count, step) -> that many fresh generator samples, made for this step."""


class Source(Stateful, Protocol):
    """Images that a batch may draw from.

    Attributes:
        annotated: whether its labels come from people, so that they alone count as hard labels of a mixed batch.
    """

    annotated: bool

    def draw(self, count: int, step: int) -> list[Batch]:
        """Draw `count` images for a step, as one batch or several that add up to it; a function of seed and step."""
        ...


@dataclass(frozen=True)
class RealImages:
    """Real images that may be mixed in.

    Attributes:
        images: uint8 `[N, C, H, W]`.
        labels: int64 `[N]`; -1 where none was annotated.
        first: number of the first image. Images are numbered on from it, so that each keeps its number while others
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
    """Real images at a step: `RealImages`, or a stream, which drops the oldest images and appends new ones."""

    def at(self, step: int, /) -> RealImages:
        """The images at a step."""
        ...


class GeneratedSource:
    """Images of the memory bank, and fresh samples of the generator.

    Args:
        bank: the memory bank.
        live: makes fresh samples, or None.
        live_count: step -> how many of a batch are fresh samples, at most; the rest is drawn from the bank.
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
        """Nothing: the bank has its own state."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing, likewise."""


class RealSource:
    """Real images, drawn with replacement.

    Args:
        supply: the images, fixed or arriving.
        seed: the run's seed.
        teacher: labels each image once, for stored logits; None leaves the images without logits.
        device: of the teacher.

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
        """Images with their numbers as `rows`, annotated labels (-1 where there is none), and stored logits."""
        real = self._supply.at(step)
        rows = torch.from_numpy(numpy_stream(self._seed, "real", step).integers(0, len(real), count))
        self.used.update((real.first + rows).tolist())
        logits = None if self._teacher is None else self._logits_of(real, self._teacher)[rows]
        labels = real.labels[rows]
        numbers = real.first + rows
        return [Batch(to_float(real.images[rows]), labels, logits, rows=numbers, annotated=labels >= 0)]

    def state_dict(self) -> dict[str, Any]:
        """The numbers of the images used so far; batches themselves are a function of the step."""
        return {"real_rows": sorted(self.used)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.used = set(state["real_rows"])

    def _logits_of(self, real: RealImages, teacher: Labeller) -> Tensor:
        """The teacher's logits `[N, K]` of real images; each image is labelled once, when it is first there."""
        logits = self._logits[real.first - self._first :]
        if len(unlabelled := real.images[len(logits) :]):
            new = [teacher(to_float(chunk).to(self._device)).logits.cpu() for chunk in unlabelled.split(512)]
            logits = torch.cat([logits, *new])
        self._first, self._logits = real.first, logits
        return logits
