"""Unlabelled real images as a source of a transfer set."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from synthkd.data.sources import RealImages, RealSource
from synthkd.distillation.alarms import Alarm, class_imbalance
from synthkd.pipelines.student import image_alarms
from synthkd.pipelines.student.held_out import Labelling
from synthkd.pipelines.student.real_images import RealTransferImages
from synthkd.training.measuring import Watch, unwatched


class UnlabelledImages(RealTransferImages):
    """Real images without labels: the teacher's logits are the targets, and no label counts as a hard one.

    Args:
        source: draws from `train`.
        train: the images that the student learns from.
        holdout: images that no student learns from; may be empty.
        labelling: labels images; it has a teacher.
        seed: as of `RealTransferImages`.
        name: of the set.
    """

    def __init__(
        self,
        source: RealSource,
        train: RealImages,
        holdout: RealImages,
        labelling: Labelling,
        seed: int,
        name: str,
    ) -> None:
        super().__init__(source, holdout, None, labelling, seed)
        self._train, self._count, self._name = train, len(train) + len(holdout), name

    @functools.cached_property
    def _logits(self) -> Tensor:
        """The teacher's logits of images that stand for all: at most `image_alarms.IMAGES`, evenly spaced."""
        count = min(len(self._train), image_alarms.IMAGES)
        rows = torch.arange(count) * len(self._train) // count
        logits = self._labelling.of_real(self._train.images[rows], self._train.labels[rows]).teacher_logits
        assert logits is not None
        return logits.cpu()

    @property
    def labelled(self) -> str:
        """How many images the teacher labels, and how many of each class it finds, in the words of the plan.

        A black box is not asked for these words.
        """
        if self._labelling.is_paid:
            held = min(self._count - len(self._train), self._labelling.held_out_count)
            return f"{len(self._train) + held:,} of {self._name} ({held:,} held out), labelled by the black box"
        counts = self._logits.argmax(1).bincount(minlength=self._logits.shape[1])
        present = counts[counts > 0]
        which = f"among {len(self._logits):,} of them" if len(self._logits) < len(self._train) else "of each"
        return (
            f"{self._count:,} of {self._name} ({self._count - len(self._train):,} held out), labelled by the teacher: "
            f"{len(present)} of {len(counts)} classes, {int(present.min()):,} to {int(present.max()):,} images {which}"
        )

    def alarms(self, watch: Watch = unwatched) -> list[Alarm | None]:
        """Whether the teacher finds a class much less often than the others."""
        return [class_imbalance(self._logits, "add pictures of it, or leave them if the task is like that")]
