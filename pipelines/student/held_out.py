"""Held-out images of a run, labelled by the teacher, and agreement with it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from synthkd.data.sources import RealImages
from synthkd.distillation.evaluation import CHUNK, HeldOut
from synthkd.distillation.teachers import TeacherTeam
from synthkd.metrics.utility import Proportion
from synthkd.rng import stream
from synthkd.types import Batch, to_float


@dataclass(frozen=True)
class Agreement:
    """Agreement of the student with its teacher.

    Attributes:
        rate: share of images with the same predicted class, with its interval.
        on: what the images are, in words.
    """

    rate: Proportion
    on: str


@dataclass(frozen=True)
class Labelling:
    """Labels held-out images with the teacher.

    Attributes:
        team: the teachers, or None without a teacher.
        device: of the labelled images.
        count: largest number of images of an evaluation.
        is_paid: whether each image that is labelled costs a query.
    """

    team: TeacherTeam | None
    device: torch.device
    count: int
    is_paid: bool = False

    def of_real(self, images: Tensor, labels: Tensor) -> HeldOut:
        """Real images with the teacher's logits.

        Args:
            images: uint8 `[N, C, H, W]`.
            labels: int64 `[N]`; they are used if all of them are annotated (not -1).
        """
        inputs = to_float(images).to(self.device)
        annotated = labels.to(self.device) if bool((labels >= 0).all()) else None
        return HeldOut(inputs, annotated, self._logits(inputs))

    def of_holdout(self, holdout: RealImages, seed: int) -> HeldOut | None:
        """At most `count` held-out real images, chosen by the run's seed; None for none.

        Args:
            holdout: the real images that nothing learns from.
            seed: the run's seed.
        """
        if not len(holdout) or not self.count:
            return None
        rows = torch.randperm(len(holdout), generator=stream(seed, "look"))[: self.count]
        return self.of_real(holdout.images[rows], holdout.labels[rows])

    def of_stored(self, batch: Batch, fresh: bool) -> HeldOut:
        """The last `count` images of a batch with the teacher's logits.

        Args:
            batch: images with stored logits.
            fresh: let the teacher label the images again, if there is one, instead of using stored logits.
        """
        batch = batch.map(lambda value: value[-self.count :]).to(self.device)
        logits = self._logits(batch.images) if fresh else None
        return HeldOut(batch.images, None, batch.teacher_logits if logits is None else logits)

    def _logits(self, images: Tensor) -> Tensor | None:
        if self.team is None:
            return None
        return torch.cat([self.team.consensus(chunk) for chunk in images.split(CHUNK)])
