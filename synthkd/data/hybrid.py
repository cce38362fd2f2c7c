"""One batch for the student from up to three places: the memory bank, the live generator, real images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from synthkd.data import augment
from synthkd.data.bank import MemoryBank
from synthkd.errors import ConfigError
from synthkd.rng import numpy_stream, stream
from synthkd.schedules import value_at
from synthkd.settings import MixSettings
from synthkd.types import Batch, Outputs, to_float

Labeller = Callable[[Tensor], Outputs]
"""Teacher without gradient: images `[N, C, H, W]` -> logits `[N, K]` and the features that were asked of it."""

LiveSampler = Callable[[int, int], Batch]
"""(count, step) -> that many fresh generator samples, made for this step."""


@dataclass(frozen=True)
class RealImages:
    """Real images that may be mixed in.

    Attributes:
        images: uint8 `[N, C, H, W]`.
        labels: int64 `[N]`; -1 where none was annotated.
        first: number of the first of them, by which they are known when others come and go; the rest are numbered on.
    """

    images: Tensor
    labels: Tensor
    first: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, _: int) -> RealImages:
        """These images at every step."""
        return self


class RealSource(Protocol):
    """Real images as they are at a step: `RealImages`, or a stream, which drops the oldest and adds new ones behind."""

    def at(self, step: int, /) -> RealImages: ...


class HybridDataset:
    """Mixes bank, live and real images at scheduled shares; a function of (seed, step) and of what is there to draw.

    Rows from several places are shuffled, so that real and generated images mix with each other. All are flipped,
    shifted and mixed by the settings, then augmented by the difficulty of the moment. With `logits: fresh` the teacher
    labels exactly those images; with `logits: stored` they keep the logits of the images they were made of (real images
    are labelled once, when first needed), those of a mixture mixed alike. A real image without a label is one that the
    teacher labels, and is not annotated.

    Args:
        mix: the shares and variations.
        batch_size: images of a batch over all processes.
        total: steps over which scheduled shares move.
        bank: the memory bank.
        teacher: labels images; never trained. None where stored logits are all there is, or annotated labels.
        difficulty: the difficulty of the moment in [0, 1]; below 0.5 it changes no image.
        seed: the run's seed.
        live: makes fresh samples; needed when `mix.live` is not 0.
        real: real images, fixed or arriving; needed when `mix.real` is not 0.
        device: where batches go.
        rank: this process's number; it gets rows `rank::world` of the one batch that all processes agree on.
        world: number of processes.
    """

    def __init__(
        self,
        mix: MixSettings,
        batch_size: int,
        total: int,
        bank: MemoryBank,
        teacher: Labeller | None,
        difficulty: Callable[[], float],
        seed: int,
        live: LiveSampler | None = None,
        real: RealSource | None = None,
        device: torch.device | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if mix.real != 0.0 and real is None:
            raise ConfigError("mix.real needs real images: set data, or mix.real to 0")
        if mix.live != 0.0 and live is None:
            raise ConfigError("mix.live needs a generator that can sample: set mix.live to 0")
        labelled = mix.logits == "stored" and mix.real == 0.0
        annotated = mix.real == 1.0 and not (mix.mixup or mix.cutmix)
        if teacher is None and not (labelled or annotated):
            raise ConfigError(
                "without a teacher nobody labels images: set mix.logits to stored and mix.real to 0, or take real "
                "images alone and unmixed (mix.real 1, mix.mixup and mix.cutmix 0)"
            )
        self._mix = mix
        self._batch_size = batch_size
        self._total = total
        self._bank = bank
        self._teacher = teacher
        self._difficulty = difficulty
        self._seed = seed
        self._live = live
        self._real = real
        self._device = device or torch.device("cpu")
        self._rank = rank
        self._world = world
        self._real_logits = 0, torch.empty(0)  # number of the first, and `[N, K]` once there are any
        self.real_rows: set[int] = set()

    def counts(self, step: int) -> tuple[int, int, int]:
        """How many of a batch are (real, live, from the bank) at this step."""
        n = self._batch_size
        real = round(value_at(self._mix.real, step, self._total) * n)
        live = min(n - real, round(value_at(self._mix.live, step, self._total) * n))
        return real, live, n - real - live

    def batch(self, step: int) -> Batch:
        """The batch of this step: images float32 in [0, 1], labels, teacher logits, slots, importance weights."""
        real, live, stored = self.counts(step)
        parts: list[Batch] = []
        if real:
            parts.append(self._draw_real(real, step))
        if live and self._live is not None:
            parts.append(self._live(live, step))
        if stored:
            parts.append(self._bank.draw(stored, step, "bank"))
        batch = _concatenate(parts)
        if self._mix.real != 0.0 and batch.annotated is None:  # a step of a curve at which no real image is drawn
            batch = replace(batch, annotated=torch.zeros(len(batch), dtype=torch.bool))
        batch = self._vary(batch, step, shuffled=len(parts) > 1)
        if self._world > 1:
            batch = batch.map(lambda value: value[self._rank :: self._world])
        batch = batch.to(self._device)
        # rows differ between processes, so each draws its own augmentation
        rng = stream(self._seed, f"augment/{self._rank}", step)
        images = augment.by_difficulty(batch.images, self._difficulty(), rng)
        if self._mix.logits == "stored" and batch.teacher_logits is not None:
            seen = Outputs(batch.teacher_logits)
        elif self._teacher is None:
            return replace(batch, images=images)
        else:
            seen = self._teacher(images)
        labels = torch.where(batch.labels < 0, seen.logits.argmax(1), batch.labels)
        return replace(batch, images=images, labels=labels, teacher_logits=seen.logits, teacher_features=seen.features)

    def state_dict(self) -> dict[str, Any]:
        """Which real images were used so far; the batches themselves are a function of the step."""
        return {"real_rows": sorted(self.real_rows)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.real_rows = set(state["real_rows"])

    def _draw_real(self, count: int, step: int) -> Batch:
        assert self._real is not None
        real = self._real.at(step)
        rows = torch.from_numpy(numpy_stream(self._seed, "real", step).integers(0, len(real), count))
        self.real_rows.update((real.first + rows).tolist())
        logits = self._logits_of(real)[rows] if self._mix.logits == "stored" else None
        labels = real.labels[rows]
        return Batch(to_float(real.images[rows]), labels, logits, rows=real.first + rows, annotated=labels >= 0)

    def _logits_of(self, real: RealImages) -> Tensor:
        """The teacher's logits of real images, made once for each of them."""
        assert self._teacher is not None
        first, logits = self._real_logits
        logits = logits[real.first - first :]
        if len(unknown := real.images[len(logits) :]):
            made = [self._teacher(to_float(c).to(self._device)).logits.cpu() for c in unknown.split(512)]
            logits = torch.cat([logits, *made])
        self._real_logits = real.first, logits
        return logits

    def _vary(self, batch: Batch, step: int, shuffled: bool) -> Batch:
        mix = self._mix
        if not (mix.flip or mix.shift or mix.mixup or mix.cutmix):
            return batch
        rng = stream(self._seed, "vary", step)
        if shuffled:
            order = torch.randperm(len(batch), generator=rng)
            batch = batch.map(lambda value: value[order])
        images, logits = batch.images, batch.teacher_logits
        if mix.flip:
            images = augment.flip(images, rng)
        if mix.shift:
            images = augment.shift(images, mix.shift, rng)
        mixed, pasted = round(mix.mixup * len(images)), round(mix.cutmix * len(images))
        if mixed:
            again = torch.Generator()
            again.set_state(rng.get_state())
            images = augment.mixup(images, mixed / len(images), rng)
            if logits is not None:  # by the same draws, which depend on the number of rows alone
                logits = augment.mixup(logits[:, :, None, None], mixed / len(logits), again)[:, :, 0, 0]
        if pasted:
            images = torch.cat([images[:-pasted], augment.cutmix(images[-pasted:], 1.0, rng)])
        # a mixture is no longer the image of its slot or row, and has the label that the teacher gives it
        kept = torch.ones(len(images), dtype=torch.bool)
        kept[:mixed] = False
        kept[len(images) - pasted :] = False
        return replace(
            batch,
            images=images,
            labels=torch.where(kept, batch.labels, -1),
            teacher_logits=logits,
            slots=None if batch.slots is None else torch.where(kept, batch.slots, -1),
            rows=None if batch.rows is None else torch.where(kept, batch.rows, -1),
            annotated=None if batch.annotated is None else batch.annotated & kept,
        )


def _concatenate(parts: list[Batch]) -> Batch:
    """One batch of several; stored logits survive only where every part has them."""
    if len(parts) == 1:
        return parts[0]
    logits = [p.teacher_logits for p in parts]
    return Batch(
        images=torch.cat([p.images for p in parts]),
        labels=torch.cat([p.labels for p in parts]),
        teacher_logits=torch.cat([x for x in logits if x is not None]) if all(x is not None for x in logits) else None,
        weights=_filled([p.weights for p in parts], parts, 1.0),
        slots=_filled([p.slots for p in parts], parts, -1),
        rows=_filled([p.rows for p in parts], parts, -1),
        annotated=_filled([p.annotated for p in parts], parts, False),
    )


def _filled(values: list[Tensor | None], parts: list[Batch], absent: float | bool) -> Tensor | None:
    """One column of all parts, with a constant for the parts that lack it; None where all do."""
    if all(value is None for value in values):
        return None
    return torch.cat([torch.full((len(p),), absent) if v is None else v for v, p in zip(values, parts, strict=True)])
