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
    """How often the student agrees with its teacher.

    Attributes:
        rate: share of images with the same predicted class.
        on: what the images are.
    """

    rate: Proportion
    on: str


@dataclass(frozen=True)
class Labelling:
    """Labels held-out images with the teacher.

    Attributes:
        team: the teacher, or None where there is none.
        device: where images go.
        count: held-out images of one evaluation, at most.
    """

    team: TeacherTeam | None
    device: torch.device
    count: int

    def of_real(self, images: Tensor, labels: Tensor) -> HeldOut:
        """Real images uint8 `[N, C, H, W]`; their labels count where all of them are annotated (not -1)."""
        inputs = to_float(images).to(self.device)
        annotated = labels.to(self.device) if bool((labels >= 0).all()) else None
        return HeldOut(inputs, annotated, self._logits(inputs))

    def of_holdout(self, holdout: RealImages, seed: int) -> HeldOut | None:
        """`count` of the real images that nobody learns from, chosen by the run's seed; None where there are none."""
        if not len(holdout):
            return None
        rows = torch.randperm(len(holdout), generator=stream(seed, "look"))[: self.count]
        return self.of_real(holdout.images[rows], holdout.labels[rows])

    def of_stored(self, batch: Batch, fresh: bool) -> HeldOut:
        """The last images of a batch, with `fresh` logits where there is a teacher, else with those stored."""
        rows = slice(-self.count, None)
        images, logits = batch.images[rows].to(self.device), batch.teacher_logits
        assert logits is not None
        answers = self._logits(images) if fresh else None
        return HeldOut(images, None, logits[rows].to(self.device) if answers is None else answers)

    def _logits(self, images: Tensor) -> Tensor | None:
        if self.team is None:
            return None
        return torch.cat([self.team.consensus(chunk) for chunk in images.split(CHUNK)])
