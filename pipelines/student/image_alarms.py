"""Alarms about the images of a memory bank, with remedies that name the keys of the generator in use."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from synthkd.data.sources import RealImages
from synthkd.distillation import alarms
from synthkd.distillation.alarms import Alarm
from synthkd.errors import ModelError
from synthkd.generators.method_settings import BatchwiseSettings, ContinuousSettings, PixelInversionSettings
from synthkd.generators.settings import (
    CGANSettings,
    DiffusionSettings,
    InversionSettings,
    MerfSettings,
    PixelSettings,
    ProceduralSettings,
)
from synthkd.losses.alignment import pooled
from synthkd.models import Classifier
from synthkd.models.layout import head
from synthkd.passes import Tick, observe_in_chunks
from synthkd.pipelines.config import GeneratedSet, StoredSet
from synthkd.taps import INPUT
from synthkd.training.measuring import Watch, unwatched
from synthkd.types import Batch, Outputs, to_float

IMAGES = 1024
"""Largest number of images, generated or real, that the alarms are computed on."""
LEAST_IMAGES = 100
"""Smallest number, where there are as many, if the time for measurements is used up."""
LARGEST_BYTES = 128 * 2**20
"""Of float32 images that are in memory at once for the alarms."""


@dataclass(frozen=True)
class Advice:
    """The remedy of each alarm about generated images.

    Attributes:
        imbalance: a class is rare.
        collapse: the images of a class are near copies.
        statistics: the images are far from the teacher's BatchNorm statistics.
    """

    imbalance: str
    collapse: str
    statistics: str


def images_within(count: int, values: int) -> int:
    """At most `count` images of so many values each, and no more than LARGEST_BYTES hold."""
    return max(1, min(count, LARGEST_BYTES // (4 * values)))


def advice_for(source: GeneratedSet | StoredSet, key: str) -> Advice:
    """The advice for one source.

    Args:
        source: its settings.
        key: of the source in the configuration, e.g. "transfer_set" or "transfer_set.0".
    """
    if isinstance(source, StoredSet):
        again = "generate the dataset again, with a longer training or another generator"
        return Advice(f"use {key}.bank.policy=class_balanced, or {again}", again, again)
    advice, own = _advice_for(source, key), f"{key}.generator"
    if not source.is_chosen:
        return advice
    # Keys of a generator without its kind are those of another one, with other defaults.
    texts = (advice.imbalance, advice.collapse, advice.statistics)
    return Advice(*(re.sub(rf"{re.escape(own)}\.\w+", rf"\g<0> (with {own}.kind=auto)", text) for text in texts))


def _advice_for(source: GeneratedSet, key: str) -> Advice:
    own, balanced = f"{key}.generator", f"use {key}.bank.policy=class_balanced"
    rounds = "give the generator more rounds"
    match source.named:
        case InversionSettings() | ContinuousSettings() | BatchwiseSettings():
            apart = "competition" if isinstance(source.named, PixelInversionSettings) else "adversarial"
            return Advice(
                f"raise {own}.one_hot, or {balanced}",
                f"{rounds}, or raise {own}.{apart}",
                f"raise {own}.batch_norm or the number of rounds",
            )
        case PixelSettings():
            return Advice(f"{balanced}, or {rounds}", f"{rounds}, or raise {own}.adversarial", rounds)
        case ProceduralSettings():
            other = "take real images of the task"
            return Advice(f"{balanced}, or {other}", other, other)
        case CGANSettings():
            augment = f"set {own}.augment to 0.5 if there are few real images"
            return Advice(f"{rounds}, or {balanced}", f"{augment}, or {rounds}", rounds)
        case DiffusionSettings():
            guidance = f"lower {own}.guidance"
            return Advice(
                f"raise {own}.guidance, or {balanced}", f"{guidance}, or {rounds}", f"{rounds}, or {guidance}"
            )
        case MerfSettings():
            return Advice(balanced, f"{rounds}, or raise {own}.grain", f"{rounds}, or raise {own}.features")
        case _:
            other = f"take another generator ({own}.kind)"
            return Advice(f"{balanced}, or {other}", other, other)


@dataclass(frozen=True)
class ImageAlarms:
    """Judges generated images by the teacher.

    Attributes:
        teacher: the first teacher; None: images are judged by their stored logits alone.
        device: of the teacher.
        advice: the remedies.
        real: real images to compare with; None if there are none, or they are private.
        batch_size: largest number of images of a pass.
    """

    teacher: Classifier | None
    device: torch.device
    advice: Advice
    real: RealImages | None = None
    batch_size: int = 256

    def __call__(self, newest: Batch, watch: Watch = unwatched) -> list[Alarm | None]:
        """The alarms about the newest images; None for a test that passed.

        Args:
            newest: images with labels, and with logits if there is no teacher.
            watch: shows and limits the passes of the teacher.
        """
        if self.teacher is None:
            logits = newest.teacher_logits
            return [] if logits is None else [alarms.class_imbalance(logits, self.advice.imbalance)]
        tick = watch("generated images, for alarms", len(newest), LEAST_IMAGES)
        outputs, features = self._observe(self.teacher, newest.images, tick)
        raised = [alarms.class_imbalance(outputs.logits.cpu(), self.advice.imbalance)]
        if features is not None:
            labels, real = newest.labels[: len(features)], self._real_similarity(self.teacher, watch)
            raised.append(alarms.collapse(features, labels, self.advice.collapse, real))
        return [*raised, alarms.statistics_gap(outputs.statistics, self.advice.statistics)]

    def _real_similarity(self, teacher: Classifier, watch: Watch) -> float | None:
        """The largest similarity within a class of the real images; None without two images of a class."""
        if self.real is None:
            return None
        count = images_within(IMAGES, self.real.images.shape[1:].numel())
        tick = watch("real images, for alarms", min(count, len(self.real)), LEAST_IMAGES)
        _, features = self._observe(teacher, to_float(self.real.images[:count]), tick)
        return None if features is None else alarms.largest_similarity(features, self.real.labels[: len(features)])

    def _observe(self, teacher: Classifier, images: Tensor, tick: Tick) -> tuple[Outputs, Tensor | None]:
        """What the teacher makes of images, and its penultimate features `[N, D]`, both on the CPU.

        There are none of a network without a last layer that is found, runs, and takes one row for each image.
        """
        observe = partial(observe_in_chunks, teacher, images, self.batch_size, self.device, statistics=True, tick=tick)
        try:
            penultimate = head(teacher) + INPUT
            outputs = observe(features=[penultimate])
        except ModelError:
            return observe(), None
        features = pooled(outputs.features[penultimate])
        return outputs, features if len(features) == len(outputs.logits) else None
