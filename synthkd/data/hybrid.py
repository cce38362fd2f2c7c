"""One batch for the student from up to three places: the memory bank, the live generator, real images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

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
    """Real images that may be mixed in: uint8 `[N, C, H, W]`, int64 labels `[N]`."""

    images: Tensor
    labels: Tensor


class HybridSource:
    """Mixes bank, live and real images at scheduled shares; a function of (seed, step) and the bank's content.

    Rows come in the order real, live, bank. Stored images are mixed, flipped and shifted by the settings, then every
    image is augmented by the difficulty of the moment. With `logits: fresh` the teacher labels exactly those images;
    with `logits: stored` the bank's logits are used (real images are labelled once, when first needed).

    Args:
        mix: the shares and variations.
        batch_size: images of a batch over all processes.
        total: steps over which scheduled shares move.
        bank: the memory bank.
        teacher: labels images; never trained.
        difficulty: the difficulty of the moment in [0, 1]; below 0.5 it changes no image.
        seed: the run's seed.
        live: makes fresh samples; needed when `mix.live` is not 0.
        real: real images; needed when `mix.real` is not 0.
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
        teacher: Labeller,
        difficulty: Callable[[], float],
        seed: int,
        live: LiveSampler | None = None,
        real: RealImages | None = None,
        device: torch.device | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if mix.real != 0.0 and real is None:
            raise ConfigError("mix.real needs real images: set data, or mix.real to 0")
        if mix.live != 0.0 and live is None:
            raise ConfigError("mix.live needs a generator that can sample: set mix.live to 0")
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
        self._real_logits: Tensor | None = None
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
            parts.append(self._vary(self._bank.draw(stored, step, "bank"), step))
        batch = _concatenate(parts)
        if self._world > 1:
            batch = batch.map(lambda value: value[self._rank :: self._world])
        batch = batch.to(self._device)
        difficulty = self._difficulty()
        # rows differ between processes, so each draws its own augmentation
        rng = stream(self._seed, f"augment/{self._rank}", step)
        images = augment.by_difficulty(batch.images, difficulty, rng)
        if self._mix.logits == "stored" and batch.teacher_logits is not None:
            return replace(batch, images=images)
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
        rows = torch.from_numpy(numpy_stream(self._seed, "real", step).integers(0, len(self._real.labels), count))
        self.real_rows.update(rows.tolist())
        logits = None
        if self._mix.logits == "stored":
            if self._real_logits is None:
                chunks = self._real.images.split(512)
                self._real_logits = torch.cat(
                    [self._teacher(to_float(c).to(self._device)).logits.cpu() for c in chunks]
                )
            logits = self._real_logits[rows]
        return Batch(to_float(self._real.images[rows]), self._real.labels[rows], logits)

    def _vary(self, batch: Batch, step: int) -> Batch:
        mix, images = self._mix, batch.images
        if not (mix.flip or mix.shift or mix.mixup or mix.cutmix):
            return batch
        rng = stream(self._seed, "vary", step)
        if mix.flip:
            images = augment.flip(images, rng)
        if mix.shift:
            images = augment.shift(images, mix.shift, rng)
        mixed, pasted = round(mix.mixup * len(images)), round(mix.cutmix * len(images))
        slots, labels = batch.slots, batch.labels.clone()
        if mixed:
            images = augment.mixup(images, mixed / len(images), rng)
        if pasted:
            images = torch.cat([images[:-pasted], augment.cutmix(images[-pasted:], 1.0, rng)])
        # a mixture is no longer the image of its slot, and has the label that the teacher will give it
        changed = torch.zeros(len(images), dtype=torch.bool)
        changed[:mixed] = True
        changed[len(images) - pasted :] = True
        labels[changed] = -1
        return replace(
            batch, images=images, labels=labels, slots=None if slots is None else torch.where(changed, -1, slots)
        )


def _concatenate(parts: list[Batch]) -> Batch:
    """One batch of several; stored logits survive only where every part has them."""
    if len(parts) == 1:
        return parts[0]
    logits = [p.teacher_logits for p in parts]
    has_weights = any(p.weights is not None for p in parts)
    return Batch(
        images=torch.cat([p.images for p in parts]),
        labels=torch.cat([p.labels for p in parts]),
        teacher_logits=torch.cat([x for x in logits if x is not None]) if all(x is not None for x in logits) else None,
        weights=torch.cat([torch.ones(len(p)) if p.weights is None else p.weights for p in parts])
        if has_weights
        else None,
        slots=torch.cat([torch.full((len(p),), -1) if p.slots is None else p.slots for p in parts]),
    )
