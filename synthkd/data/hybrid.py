"""The hybrid dataset: batches for the student from several sources, at scheduled shares."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset, get_worker_info

from synthkd.data import augment
from synthkd.data.own import AnySource, DatasetSource, as_labeller, as_source
from synthkd.data.sources import Labeller, PartSource
from synthkd.errors import ConfigError
from synthkd.rng import derive, stream
from synthkd.schedules import value_at
from synthkd.settings import MixSettings, Schedule
from synthkd.types import Batch, Outputs, Part

REST = None
"""The share of the one source that fills the rest of each batch."""
UNCHANGED = MixSettings(mixup=0.0)
"""Images as the sources give them."""


class HybridDataset(IterableDataset[Batch]):
    """Mixes images of several sources at scheduled shares; a batch is a function of (seed, step) and of the sources.

    A loop of one's own iterates over it, or over `DataLoader(hybrid, batch_size=None)`, since it makes whole batches.
    A pass has `total` steps, and the next pass goes on with the steps after them. It must run in the main process: a
    worker of a DataLoader has a copy of the memory bank, in which no new image arrives. So only what takes time by
    itself, the decoding of a dataset's images, is done ahead in `workers` processes, and the rest of a batch is drawn
    when the batch is asked for.

    The rows of several sources are shuffled, so that mixup and CutMix mix real with generated images. All images are
    cropped, flipped, shifted and mixed by the settings, then augmented by the present difficulty. With `logits: fresh`
    the teacher labels exactly these images. With `logits: stored` an image keeps the logits of the image that it was
    made from, and the logits of a mixture are mixed like its images. A real image without a label gets the teacher's
    prediction as label, and does not count as annotated.

    All processes choose the images of a batch alike, and each makes the images of its part alone. It shuffles, varies
    and mixes them among themselves, by random numbers of its own.

    Args:
        sources: the sources of the images. Besides a `Source` each may be a memory bank, a map-style dataset of real
            images (see `DatasetSource`), or a function that generates as many images as it is told to, alone or with
            their labels.
        shares: the share of each source, a number or a curve; exactly one of them is `REST`, which is None.
        mix: variations of the images, and whether logits are fresh or stored.
        batch_size: images of a batch over all processes.
        total: steps of a pass, over which scheduled shares move.
        teacher: labels images and is never trained; None: stored logits or annotated labels are used alone.
        difficulty: returns the present difficulty in [0, 1]; below 0.5 it changes no image. None: it is 0.
        seed: the run's seed.
        device: of the batches; None: that of a teacher that is a module, else the CPU.
        rank: number of this process, from 0.
        world: number of processes; each gets an equal part of the images of every source, up to one.
        workers: number of processes that decode the images of a dataset while somebody iterates.
        mix_probabilities: mixup mixes the probabilities of stored logits, as it mixes labels, in place of the logits.

    Raises:
        ValueError: not one share per source, or not exactly one `REST`.
        DataError: something that is no source.
    """

    def __init__(
        self,
        sources: Sequence[AnySource],
        shares: Sequence[Schedule | None],
        mix: MixSettings = UNCHANGED,
        batch_size: int = 64,
        total: int = 1000,
        teacher: Labeller | nn.Module | None = None,
        difficulty: Callable[[], float] | None = None,
        seed: int = 0,
        device: torch.device | None = None,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        mix_probabilities: bool = False,
    ) -> None:
        if len(sources) != len(shares) or sum(share is REST for share in shares) != 1:
            raise ValueError(
                f"{len(sources)} sources need a share each, exactly one of them REST, got shares {list(shares)}"
            )
        self._sources = tuple(
            as_source(source, derive(seed, "source", number), workers) for number, source in enumerate(sources)
        )
        self._shares = tuple(shares)
        self._mix = mix
        self._batch_size = batch_size
        self._total = total
        self._teacher = as_labeller(teacher)
        self._difficulty = difficulty or (lambda: 0.0)
        self._seed = seed
        self._device = device or _device_of(teacher)
        self._rank = rank
        self._world = world
        self._mix_probabilities = mix_probabilities
        self._passes = 0

    def __len__(self) -> int:
        return self._total

    def __iter__(self) -> Iterator[Batch]:
        """The labelled batches of the next pass, see `batch`.

        Raises:
            ConfigError: this is a worker of a DataLoader.
        """
        if get_worker_info() is not None:
            raise ConfigError(
                "a HybridDataset is drawn from in the main process, where new images arrive: leave num_workers of the "
                "DataLoader at 0, and set workers of the HybridDataset"
            )
        steps = range(self._passes * self._total, (self._passes + 1) * self._total)
        self._passes += 1
        sources = [
            source.ahead(self._requests(number, steps)) if isinstance(source, DatasetSource) else source
            for number, source in enumerate(self._sources)
        ]
        return (self.label(self._draw(sources, step)) for step in steps)

    def _requests(self, number: int, steps: range) -> Iterator[tuple[int, int, Part]]:
        """How many images of a source each step takes, the step, and this process's part of them."""
        for step in steps:
            count, part = self._counts_and_parts(step)[number]
            yield count, step, part

    def _counts_and_parts(self, step: int) -> dict[int, tuple[int, Part]]:
        """Number of a source -> its images in the batch of a step, and this process's part; in the order of rows."""
        # Scheduled shares come first and the rest last: the rest changes with every share, and would move the rows of
        # the sources after it.
        order = sorted(range(len(self._sources)), key=lambda number: self._shares[number] is REST)
        counts, part, shared = self.counts(step), Part(self._rank, self._world), {}
        for number in order:
            shared[number] = counts[number], part
            part = part.after(counts[number])
        return shared

    def counts(self, step: int) -> tuple[int, ...]:
        """Number of images of each source in the batch of a step; they add up to the batch size."""
        # In order, so that shares that add up to more than 1 fill the batch with the first sources.
        left, counts = self._batch_size, []
        for share in self._shares:
            count = 0 if share is REST else min(left, round(value_at(share, step, self._total) * self._batch_size))
            counts.append(count)
            left -= count
        return tuple(left if share is REST else count for share, count in zip(self._shares, counts, strict=True))

    def batch(self, step: int) -> Batch:
        """The labelled batch of a step: images float32 in [0, 1], labels, logits, slots, importance weights."""
        return self.label(self.draw(step))

    def draw(self, step: int) -> Batch:
        """This process's augmented images of a step on the device, with hard labels, and logits if they are stored."""
        return self._draw(self._sources, step)

    def _draw(self, sources: Sequence[PartSource], step: int) -> Batch:
        batches: list[Batch] = []
        for number, (count, part) in self._counts_and_parts(step).items():
            batches += sources[number].draw(count, step, part) if count else []
        batch = _concatenate(batches)
        if batch.annotated is None and any(source.annotated for source in sources):
            # The share of annotated images is 0 at this step. No label may count as a hard one then, while in a run
            # without annotated images all of them do.
            batch = replace(batch, annotated=torch.zeros(len(batch), dtype=torch.bool))
        batch = self._vary(batch, step, shuffled=len(batches) > 1).to(self._device)
        # Rows differ between processes, so each process draws its own augmentation.
        rng = stream(self._seed, f"augment/{self._rank}", step)
        images = augment.by_difficulty(batch.images, self._difficulty(), rng)
        is_fresh = self._mix.logits != "stored" and self._teacher is not None
        return replace(batch, images=images, teacher_logits=None if is_fresh else batch.teacher_logits)

    def label(self, batch: Batch) -> Batch:
        """The batch with the teacher's logits and features; its predictions replace missing labels (-1)."""
        if self._mix.logits == "stored" and batch.teacher_logits is not None:
            outputs = Outputs(batch.teacher_logits)
        elif self._teacher is None:
            return batch
        else:
            outputs = self._teacher(batch.images)
        labels = torch.where(batch.labels < 0, outputs.logits.argmax(1), batch.labels)
        return replace(batch, labels=labels, teacher_logits=outputs.logits, teacher_features=outputs.features)

    def state_dict(self) -> dict[str, Any]:
        """The states of the sources by number, and how many passes have begun. Batches follow from the step."""
        sources = {str(number): source.state_dict() for number, source in enumerate(self._sources)}
        return {**sources, "passes": self._passes}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned, with the pass after those that had begun."""
        for number, source in enumerate(self._sources):
            source.load_state_dict(state[str(number)])
        self._passes = state.get("passes", 0)  # states of earlier versions do not tell

    def _vary(self, batch: Batch, step: int, shuffled: bool) -> Batch:
        """Shuffle, crop, flip, shift and mix the images, and mark the mixtures as such."""
        mix = self._mix
        if not (mix.flip or mix.shift or mix.mixup or mix.cutmix or mix.crop < 1.0):
            return batch
        rng = stream(self._seed, "vary" if self._world == 1 else f"vary/{self._rank}", step)
        if shuffled:
            order = torch.randperm(len(batch), generator=rng)
            batch = batch.map(lambda value: value[order])
        images, logits = batch.images, batch.teacher_logits
        if mix.crop < 1.0:
            images = augment.crop(images, mix.crop, rng)
        if mix.flip:
            images = augment.flip(images, rng)
        if mix.shift:
            images = augment.shift(images, mix.shift, rng)
        mixed, pasted = round(mix.mixup * len(images)), round(mix.cutmix * len(images))
        if mixed:
            again = torch.Generator()
            again.set_state(rng.get_state())
            images = augment.mixup(images, mixed / len(images), rng)
            if logits is not None:  # by the same random draws, whose number depends on the number of rows only
                values = logits.log_softmax(1).exp() if self._mix_probabilities else logits
                values = augment.mixup(values[:, :, None, None], mixed / len(logits), again)[:, :, 0, 0]
                logits = values.log() if self._mix_probabilities else values
        if pasted:
            images = torch.cat([images[:-pasted], augment.cutmix(images[-pasted:], 1.0, rng)])
        # A mixture is no longer the image of its slot or row, and its label is the teacher's prediction.
        whole = torch.ones(len(images), dtype=torch.bool)
        whole[:mixed] = False
        whole[len(images) - pasted :] = False
        return replace(
            batch,
            images=images,
            labels=torch.where(whole, batch.labels, -1),
            teacher_logits=logits,
            slots=None if batch.slots is None else torch.where(whole, batch.slots, -1),
            rows=None if batch.rows is None else torch.where(whole, batch.rows, -1),
            annotated=None if batch.annotated is None else batch.annotated & whole,
        )


def _device_of(teacher: Labeller | nn.Module | None) -> torch.device:
    weight = next(teacher.parameters(), None) if isinstance(teacher, nn.Module) else None
    return torch.device("cpu") if weight is None else weight.device


def _concatenate(batches: list[Batch]) -> Batch:
    """Several batches as one; it has stored logits only if each part has them."""
    if len(batches) == 1:
        return batches[0]
    logits = [batch.teacher_logits for batch in batches]
    return Batch(
        images=torch.cat([batch.images for batch in batches]),
        labels=torch.cat([batch.labels for batch in batches]),
        teacher_logits=torch.cat([x for x in logits if x is not None]) if all(x is not None for x in logits) else None,
        weights=_filled([batch.weights for batch in batches], batches, 1.0),
        slots=_filled([batch.slots for batch in batches], batches, -1),
        rows=_filled([batch.rows for batch in batches], batches, -1),
        annotated=_filled([batch.annotated for batch in batches], batches, False),
    )


def _filled(values: list[Tensor | None], batches: list[Batch], absent: float | bool) -> Tensor | None:
    """One field of all batches, with a constant for batches without it; None if no batch has it."""
    if all(value is None for value in values):
        return None
    return torch.cat(
        [
            torch.full((len(batch),), absent) if value is None else value
            for value, batch in zip(values, batches, strict=True)
        ]
    )
