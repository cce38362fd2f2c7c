"""Sources of a hybrid dataset: generated images (from the memory bank, or fresh samples), and real images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import signature
from operator import itemgetter
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from synthkd.data.ahead import Ahead
from synthkd.data.bank import MemoryBank
from synthkd.data.number_set import NumberSet
from synthkd.data.read.on_disk import DiskImages, Pixels, part_of, read_rows, where_kept
from synthkd.data.replay import ClassBalancedReplay
from synthkd.passes import in_chunks
from synthkd.processes import ONE_PROCESS, Processes
from synthkd.rng import numpy_stream
from synthkd.types import WHOLE, Batch, Outputs, Part, Stateful, to_float

Labeller = Callable[[Tensor], Outputs]
"""Teacher without gradient: images `[N, C, H, W]` -> logits `[N, K]` and features."""

LiveSampler = Callable[[int, int], Batch]
"""(count, step) -> so many fresh samples of a generator, a function of both; an argument `part` as in `PartSource`."""


class Source(Stateful, Protocol):
    """Images that batches are drawn from.

    Of several processes each draws all images of a step, and keeps its part. A `PartSource` makes the part alone.

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
            Batches with `count` images together.
        """
        ...


class PartSource(Source, Protocol):
    """A source that makes the images of one process alone, as a source does whose `draw` has an argument `part`."""

    def draw(self, count: int, step: int, part: Part = WHOLE) -> list[Batch]:
        """As `Source.draw`, for one of several processes.

        Args:
            count: number of images of all processes, > 0.
            step: of the student.
            part: the images of this process. It may have none of them; the batches have the same fields nevertheless.

        Returns:
            Batches with this process's images.
        """
        ...


def takes_part(draw: Callable[..., object]) -> bool:
    """Whether a function has an argument `part`."""
    return "part" in signature(draw).parameters


def own_rows(batches: Sequence[Batch], part: Part) -> list[Batch]:
    """The part of one process of batches that lie one after the other."""
    if part == WHOLE:
        return list(batches)
    own = []
    for batch in batches:
        own.append(batch.map(itemgetter(part.of(len(batch)))))
        part = part.after(len(batch))
    return own


@dataclass(frozen=True)
class RealImages:
    """Real images with their labels.

    Attributes:
        images: uint8 `[N, C, H, W]`, in memory or on disk.
        labels: int64 `[N]`; -1 for an image without annotation.
        first: number of the first image; the others follow. In a stream each image thus keeps its number while older
            ones leave and newer ones arrive.
    """

    images: Pixels
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


@dataclass(frozen=True)
class GeneratedSource:
    """Images of the memory bank, and fresh samples of the generator.

    Attributes:
        bank: the memory bank.
        live: generates fresh samples, or None.
        live_count: step -> largest number of fresh samples in a batch; the rest is drawn from the bank.
        annotated: False, since no person labelled these images.
    """

    bank: MemoryBank
    live: LiveSampler | None = None
    live_count: Callable[[int], int] = lambda _: 0
    annotated = False

    def draw(self, count: int, step: int, part: Part = WHOLE) -> list[Batch]:
        """Fresh samples first, then images of the bank with their slots, stored logits and importance weights."""
        fresh = 0 if self.live is None else min(count, self.live_count(step))
        batches = self._fresh(self.live, fresh, step, part) if self.live is not None and fresh else []
        # A batch of fresh samples alone needs no bank, which may be empty.
        return [*batches, self.bank.draw(count - fresh, step, "bank", part.after(fresh))] if count > fresh else batches

    def _fresh(self, live: LiveSampler, count: int, step: int, part: Part) -> list[Batch]:
        if takes_part(live):
            return [cast("Callable[..., Batch]", live)(count, step, part=part)]
        return own_rows([live(count, step)], part)

    def state_dict(self) -> dict[str, Any]:
        """Empty: the bank has an entry of its own in a checkpoint."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Do nothing, since there is no state."""


class RealSource:
    """Real images, drawn with replacement.

    Args:
        supply: the images, fixed or arriving.
        seed: the run's seed.
        teacher: labels each image once, for stored logits; None: batches have no logits yet.
        device: of the teacher; None: the CPU.
        batch_size: largest number of images that the teacher labels in a pass.
        processes: that all draw the same images; each decodes a part of those on disk.
        balanced: the classes that the teacher names are equally likely; for fixed images in memory.

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
        batch_size: int = 512,
        processes: Processes = ONE_PROCESS,
        balanced: bool = False,
    ) -> None:
        self.used = NumberSet()
        self._supply = supply
        self._seed = seed
        self._teacher = teacher
        self._device = device or torch.device("cpu")
        self._batch_size = batch_size
        self._processes = processes
        self._balanced = balanced
        self._by_class: ClassBalancedReplay | None = None
        self._ahead: Ahead | None = None
        self._last: list[tuple[int, Part]] = []  # images of the last batch
        # The logits `[N, K]` of the present images so far, and the number of the first of them.
        self._first, self._logits = 0, torch.empty(0)

    def draw(self, count: int, step: int, part: Part = WHOLE) -> list[Batch]:
        """One batch on the CPU: images, annotated labels or -1, stored logits if any, and numbers as `rows`."""
        real = self._supply.at(step)
        rows = self._rows(real, count, step)
        self._wait(real, count, part, step)
        # For the result of the run, which says how many different real images the student has seen in all processes.
        self.used.update(real.first + rows)
        rows = rows[part.of(count)]
        labels = real.labels[rows]
        logits = None if self._teacher is None else self._logits_of(real, self._teacher)[rows]
        images = to_float(read_rows(real.images, rows, self._processes))
        return [Batch(images, labels, logits, rows=real.first + rows, annotated=labels >= 0)]

    def _rows(self, real: RealImages, count: int, step: int) -> Tensor:
        """Rows of the images of a step."""
        if not self._balanced or self._teacher is None:
            return _drawn(self._seed, len(real), count, step)
        if self._by_class is None:
            answers = self._logits_of(real, self._teacher)
            self._by_class = ClassBalancedReplay(*answers.shape)
            self._by_class.replace(np.arange(len(real)), answers.argmax(1).numpy(), None)
        rows, _ = self._by_class.draw(count, len(real), numpy_stream(self._seed, "real", step))
        return torch.from_numpy(rows)

    def label_ahead(self) -> None:
        """Label the images of the first step, if the teacher labels each image once."""
        if self._teacher is not None:
            self._logits_of(self._supply.at(0), self._teacher)

    @property
    def fixed(self) -> Pixels | None:
        """All images, or None if they arrive while the student learns."""
        return self._supply.images if isinstance(self._supply, RealImages) else None

    @property
    def kept(self) -> str:
        """Where images that are not in memory are, as the end of a line; empty for images in memory."""
        return "" if self.fixed is None else where_kept(self.fixed)

    def _wait(self, real: RealImages, count: int, part: Part, step: int) -> None:
        """Have images on disk decoded ahead; how many a later step draws is not known, so it is taken for as many."""
        if isinstance(real.images, DiskImages):
            if self._ahead is None:
                self._ahead = Ahead(real.images, partial(_decoded, self._seed, len(real), self._last, self._processes))
            self._last[:] = [(count, part)]
            self._ahead.wait(step)

    def state_dict(self) -> dict[str, Any]:
        """The numbers of the images drawn so far, as `real_rows`. Batches need no state; they follow from the step."""
        return {"real_rows": self.used.state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.used = NumberSet(state["real_rows"])

    def _logits_of(self, real: RealImages, teacher: Labeller) -> Tensor:
        """The teacher's logits `[N, K]` of real images; each image is labelled once, when it appears."""
        # Images leave at the front and arrive at the end, so the stored logits belong to the first images that remain.
        # They are no part of the state: a resumed run labels the images again.
        logits = self._logits[real.first - self._first :]
        if len(real) > len(logits):
            unlabelled = part_of(real.images, torch.arange(len(logits), len(real)))
            new = in_chunks(
                lambda chunk: teacher(to_float(chunk).to(self._device)).logits.cpu(), self._batch_size, unlabelled
            )
            logits = torch.cat([logits, new])
        self._first, self._logits = real.first, logits
        return logits


def _drawn(seed: int, n: int, count: int, step: int) -> Tensor:
    """Rows of the images of a step."""
    return torch.from_numpy(numpy_stream(seed, "real", step).integers(0, n, count))


def _decoded(seed: int, n: int, last: Sequence[tuple[int, Part]], processes: Processes, step: int) -> Tensor:
    """Rows of the images of a step that this process decodes, if the step draws as many as the last one."""
    count, part = last[-1]
    own = _drawn(seed, n, count, step)[part.of(count)]
    return own[processes.share(len(own))]
