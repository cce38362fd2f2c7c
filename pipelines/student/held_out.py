"""Held-out images of a run, labelled by the teacher, and agreement with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from synthkd.data.sources import RealImages
from synthkd.distillation.evaluation import CHUNK, HeldOut
from synthkd.distillation.teachers import TeacherTeam
from synthkd.metrics.untested import agreement_logits
from synthkd.metrics.utility import Proportion, accuracy, predict
from synthkd.models import Classifier
from synthkd.passes import in_chunks, sample_in_chunks
from synthkd.rng import Rows, stream
from synthkd.taps import evaluating
from synthkd.training.measuring import Watch
from synthkd.types import Batch, InBlocks, balanced_labels, to_float

FRESH_IMAGES = 500
"""Fresh samples on which the agreement of student and teacher is measured without real test data."""
LEAST_FRESH = 20
"""Smallest number of them if the time for measurements is used up."""


@dataclass(frozen=True)
class Agreement:
    """Agreement of the student with its teacher.

    Attributes:
        rate: share of images with the same predicted class, with its interval.
        on: what the images are, in words.
        logits: of the agreement on all of them and on the surer half, as `agreement_logits` has them; None where the
            images are not those of a generator.
    """

    rate: Proportion
    on: str
    logits: tuple[float, float] | None = None


@dataclass(frozen=True)
class Labelling:
    """Labels held-out images with the teacher.

    Attributes:
        team: the teachers, or None without a teacher.
        device: of the labelled images.
        count: largest number of images of an evaluation.
        batch_size: largest number of images of a pass.
        most_asked: largest number of held-out real images that are asked about; None: an answer costs no query.
    """

    team: TeacherTeam | None
    device: torch.device
    count: int
    batch_size: int = CHUNK
    most_asked: int | None = None

    @property
    def is_paid(self) -> bool:
        """Whether each image that is labelled costs a query."""
        return self.most_asked is not None

    @property
    def held_out_count(self) -> int:
        """Largest number of held-out real images of an evaluation."""
        return self.count if self.most_asked is None else min(self.count, self.most_asked)

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
        """At most `held_out_count` held-out real images, chosen by the run's seed; None for none.

        Args:
            holdout: the real images that nothing learns from.
            seed: the run's seed.
        """
        if not len(holdout) or not self.held_out_count:
            return None
        rows = torch.randperm(len(holdout), generator=stream(seed, "look"))[: self.held_out_count]
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

    def on_held_out(
        self, networks: Sequence[Classifier], held_out: HeldOut | None, on: str, watch: Watch
    ) -> list[Agreement]:
        """The agreement of each network with the teacher on held-out images; none without their logits.

        Args:
            networks: the finished student and others.
            held_out: the images.
            on: what they are, in words.
            watch: of the measurement.
        """
        if held_out is None or held_out.teacher_logits is None:
            return []
        return self.on_images(networks, held_out.images, held_out.teacher_logits.argmax(1).cpu(), on, watch)

    def on_images(
        self, networks: Sequence[Classifier], images: InBlocks, targets: Tensor, on: str, watch: Watch
    ) -> list[Agreement]:
        """The agreement of each network with the classes int64 `[N]` that the teacher predicts of N images."""
        agreed = []
        for network in networks:
            tick = watch(f"agreement on {on}", len(images))
            predicted = predict(network, images, self.device, self.batch_size, tick=tick)
            agreed.append(Agreement(accuracy(predicted, targets), on))
        return agreed

    def on_samples(
        self,
        networks: Sequence[Classifier],
        sample: Callable[[Tensor, Rows], Tensor],
        rng: Rows,
        watch: Watch,
        repeats: bool,
    ) -> list[Agreement]:
        """The agreement of each network on samples of a generator, on fewer if the time for measurements is used up.

        None without a teacher, or if each answer costs a query.

        Args:
            networks: the finished student and others.
            sample: of the generator, takes labels and the random rows of their images.
            rng: of the samples.
            watch: of the measurement.
            repeats: whether samples are images of earlier rounds, of which the student has learned.
        """
        team = self.team
        if team is None or self.is_paid:
            return []

        def answers(labels: Tensor, rng: Rows) -> Tensor:
            images = sample(labels, rng)
            with torch.no_grad():
                return torch.stack([team.consensus(images).float(), *(one(images).float() for one in networks)], dim=1)

        labels = balanced_labels(FRESH_IMAGES, 0, team.spec.classes)
        on = "images of the generator's earlier rounds" if repeats else "fresh synthetic samples"
        tick = watch(f"agreement on {on}", FRESH_IMAGES, LEAST_FRESH)
        theirs, *every = sample_in_chunks(answers, self.batch_size, labels, rng, tick).cpu().unbind(1)
        return [
            Agreement(accuracy(ours.argmax(1), theirs.argmax(1)), on, agreement_logits(theirs, ours)) for ours in every
        ]

    def on_learned(self, student: Classifier, learned: HeldOut) -> tuple[float, float] | None:
        """Logits of the agreement on images that the student learned from, as `agreement_logits` has them.

        None without a teacher, or of fewer than two images.

        Args:
            student: the finished student.
            learned: the images with the teacher's logits.
        """
        if learned.teacher_logits is None or len(learned.images) < 2:
            return None
        with torch.no_grad(), evaluating(student):
            ours = in_chunks(lambda chunk: student(chunk).float(), self.batch_size, learned.images)
        return agreement_logits(learned.teacher_logits.cpu(), ours.cpu())

    def _logits(self, images: Tensor) -> Tensor | None:
        if self.team is None:
            return None
        return in_chunks(self.team.consensus, self.batch_size, images)
