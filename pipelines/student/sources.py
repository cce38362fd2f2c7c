"""The sources of a transfer set: generated images, a stored dataset, real images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from synthkd.data.bank import MemoryBank
from synthkd.data.sources import GeneratedSource, RealImages, RealSource, Source
from synthkd.data.stream import ImageStream
from synthkd.data.written.stored_images import StoredImages
from synthkd.distillation import alarms
from synthkd.distillation.alarms import Alarm
from synthkd.distillation.evaluation import HeldOut
from synthkd.distillation.synthesis import Synthesis
from synthkd.metrics.utility import accuracy, predict, proportion
from synthkd.models import Classifier
from synthkd.models.layout import head
from synthkd.pipelines.config import GeneratedSet
from synthkd.pipelines.student.held_out import Agreement, Labelling
from synthkd.rng import Rows
from synthkd.schedules import DifficultyScheduler
from synthkd.taps import INPUT, evaluating, observe
from synthkd.types import Batch, Stateful, TrainableGenerator, balanced_labels

ALARM_IMAGES = 1024
"""Newest images that the alarms are computed on."""
FRESH_IMAGES = 500
"""Fresh samples on which the agreement of student and teacher is measured without real test data."""


class TransferSource:
    """One source of a transfer set; what a source cannot give is None.

    Attributes:
        source: what batches draw from.
        state: what of it goes into checkpoints, by name.
        held_out_rank: held-out images of the source with the lowest rank are taken.
        without_teacher: what labels its images in a run without a teacher, for the plan.
    """

    source: Source
    state: Mapping[str, Stateful]
    held_out_rank: ClassVar[int]
    without_teacher: ClassVar[str]

    @property
    def bank(self) -> MemoryBank | None:
        """The memory bank that keeps its images, or None."""
        return None

    @property
    def real_images_used(self) -> int | None:
        """Real images that the student has seen so far, or that its images were made from; None: nobody can say."""
        return 0

    @property
    def can_hold_out(self) -> bool:
        """Whether there are, or will be, held-out images."""
        raise NotImplementedError

    def held_out(self) -> HeldOut | None:
        """Images that the students are evaluated on at present, or None while there are none."""
        raise NotImplementedError

    def agreement(self, student: Classifier) -> Agreement | None:
        """Agreement of the finished student with its teacher on images that no student learned from."""
        raise NotImplementedError

    def alarms(self) -> list[Alarm | None]:
        """Signs of a failing distillation in its images."""
        return []

    def newest(self) -> Batch | None:
        """Its newest images with their labels, for the alarms; None where it keeps none."""
        return None

    def uses(self, alone: bool) -> list[str]:
        """What real images are used for, for the plan; `alone` where it is the only source."""
        return []


class GeneratedImages(TransferSource):
    """Images of a generator, kept in a memory bank, at a difficulty that follows the student.

    Args:
        generator: makes the images.
        settings: of this source.
        source: draws from the bank, and fresh samples.
        difficulty: follows the student.
        rounds: of the generator.
        labelling: labels held-out images.
        seed: the run's seed.
        real_images_used: real images that the generator learns from; None where nobody can say.
        makes_images: whether the phases have rounds of the generator.
        holdout: real images that the generator of this source does not learn from, though it learns from others like
            them; None where there are none, or where they may not be looked at.
    """

    held_out_rank = 2
    without_teacher = "none"

    def __init__(
        self,
        generator: TrainableGenerator,
        settings: GeneratedSet,
        source: GeneratedSource,
        difficulty: DifficultyScheduler,
        rounds: Synthesis,
        labelling: Labelling,
        seed: int,
        real_images_used: int | None,
        makes_images: bool,
        holdout: RealImages | None = None,
    ) -> None:
        self.generator, self.rounds, self.difficulty = generator, rounds, difficulty
        self.source = source
        self.state = {"generator": generator, "bank": source.bank, "difficulty": difficulty}
        self._bank, self._real_images_used = source.bank, real_images_used
        self._settings, self._seed, self._labelling = settings, seed, labelling
        self._makes_images = makes_images
        self._held_out = None if holdout is None else labelling.of_holdout(holdout, seed)

    @property
    def augmentation(self) -> float:
        """Difficulty in [0, 1] by which the images of a batch are augmented at present."""
        return self.difficulty.value if self._settings.difficulty.augment else 0.0

    @property
    def bank(self) -> MemoryBank:
        """The memory bank of its images."""
        return self._bank

    @property
    def real_images_used(self) -> int | None:
        """Real images that the generator learns from; None where nobody can say."""
        return self._real_images_used

    @property
    def can_hold_out(self) -> bool:
        """Without real ones the newest images of the bank, though the student has drawn most of them by then."""
        return self._held_out is not None or self._makes_images

    def held_out(self) -> HeldOut | None:
        """Real images that are held out, else the newest images of the bank.

        Several teachers label images of the bank afresh, since it has logits of one.
        """
        if self._held_out is not None:
            return self._held_out
        if not len(self.bank):
            return None
        team = self._labelling.team
        several = team is not None and len(team.models) > 1
        return self._labelling.of_stored(self.bank.newest(self._labelling.count), fresh=several)

    def agreement(self, student: Classifier) -> Agreement | None:
        """On fresh samples."""
        team, chunk, hits = self._labelling.team, 100, 0
        assert team is not None
        for first in range(0, FRESH_IMAGES, chunk):
            labels = balanced_labels(chunk, first, team.spec.classes)
            images = self.generator.sample(labels, self._settings.difficulty.start, Rows(self._seed, "fresh", first))
            with torch.no_grad():
                hits += int((student(images).argmax(1) == team.consensus(images).argmax(1)).sum())
        return Agreement(proportion(hits, FRESH_IMAGES), "fresh synthetic samples")

    def alarms(self) -> list[Alarm | None]:
        """Class balance, variety and BatchNorm statistics of the newest images."""
        return _image_alarms(self.newest(), self._labelling)

    def newest(self) -> Batch | None:
        """The newest images of the bank, `ALARM_IMAGES` at most."""
        return self.bank.newest(ALARM_IMAGES) if len(self.bank) else None

    def uses(self, alone: bool) -> list[str]:
        """Some generators learn from real images."""
        return [f"learned from by the {self._settings.generator.kind} generator"] if self.real_images_used else []

    def grid(self, labels: Tensor) -> Tensor:
        """Images `[N, C, H, W]` of the same latent vectors at every call, for the grid of samples."""
        return self.generator.sample(labels, self._settings.difficulty.start, Rows(self._seed, "grid"))


class StoredDatasetImages(TransferSource):
    """Images of a dataset that `synthkd generate` wrote, all of them in a memory bank but the held-out ones.

    Args:
        images: the dataset.
        bank: is filled with its images.
        labelling: labels held-out images.
        fresh: whether the teacher labels images; else their stored logits count.
        real_images_used: real images that the dataset was made from; None where nobody can say.
    """

    held_out_rank = 1
    without_teacher = "none; soft labels stored with the dataset"

    def __init__(
        self, images: StoredImages, bank: MemoryBank, labelling: Labelling, fresh: bool, real_images_used: int | None
    ) -> None:
        images.fill(bank)
        self.source = GeneratedSource(bank)
        self.state = {"bank": bank}
        self._bank, self._real_images_used = bank, real_images_used
        self._images, self._labelling = images, labelling
        self._held_out = labelling.of_stored(images.held_out, fresh=fresh)

    @property
    def bank(self) -> MemoryBank:
        """The memory bank that holds the dataset."""
        return self._bank

    @property
    def real_images_used(self) -> int | None:
        """Real images that the dataset was made from; None where nobody can say."""
        return self._real_images_used

    @property
    def can_hold_out(self) -> bool:
        """A dataset always holds some images out."""
        return True

    def held_out(self) -> HeldOut | None:
        """The same images at every evaluation."""
        return self._held_out

    def agreement(self, student: Classifier) -> Agreement | None:
        """On all held-out images; a teacher may be another than the one that labelled the dataset."""
        held_out, device, team = self._images.held_out, self._labelling.device, self._labelling.team
        assert held_out.teacher_logits is not None
        taught = held_out.teacher_logits.argmax(1) if team is None else predict(team.consensus, held_out.images, device)
        rate = accuracy(predict(student, held_out.images, device), taught)
        return Agreement(rate, "held-out images of the dataset")

    def alarms(self) -> list[Alarm | None]:
        """As for generated images; without a teacher the class balance by the stored logits."""
        return _image_alarms(self.newest(), self._labelling)

    def newest(self) -> Batch | None:
        """The newest images of the bank, `ALARM_IMAGES` at most."""
        return self._bank.newest(ALARM_IMAGES)


class RealTransferImages(TransferSource):
    """Real images: those of a dataset, or a stream of them that arrives while the student learns.

    Args:
        source: draws from them.
        holdout: real images that no student learns from, or None where they may not be looked at.
        stream: the stream, where they arrive; its newest held-out images take the place of `holdout`.
        labelling: labels held-out images.
        seed: of the held-out images that are chosen where there are more than one evaluation takes.
    """

    held_out_rank = 0
    without_teacher = "none; labels of the real images"

    def __init__(
        self,
        source: RealSource,
        holdout: RealImages | None,
        stream: ImageStream | None,
        labelling: Labelling,
        seed: int,
    ) -> None:
        self.source = self._images = source
        self.state = {"source": source} | ({} if stream is None else {"stream": stream})
        self._stream = stream if stream is not None and stream.holds_out else None
        self._labelling = labelling
        self._held_out = None if holdout is None else labelling.of_holdout(holdout, seed)

    @property
    def real_images_used(self) -> int:
        """Real images that batches have drawn so far."""
        return len(self._images.used)

    @property
    def can_hold_out(self) -> bool:
        """A dataset without a holdout has none, and a stream may still get some."""
        return self._held_out is not None or self._stream is not None

    def held_out(self) -> HeldOut | None:
        """The same images at every evaluation; of a stream the newest that are held out."""
        if self._stream is not None and len(self._stream.holdout):
            images, count = self._stream.holdout, self._labelling.count
            return self._labelling.of_real(images.images[-count:], images.labels[-count:])
        return self._held_out

    def agreement(self, student: Classifier) -> Agreement | None:
        """On the held-out images."""
        held_out = self.held_out()
        if held_out is None or held_out.teacher_logits is None:
            return None
        predicted = predict(student, held_out.images, self._labelling.device)
        return Agreement(accuracy(predicted, held_out.teacher_logits.argmax(1).cpu()), "held-out images")

    def uses(self, alone: bool) -> list[str]:
        """The student learns from them, alone or mixed with others."""
        return ["learned from" if alone else "mixed in"]


def _image_alarms(newest: Batch | None, labelling: Labelling) -> list[Alarm | None]:
    """Class balance, variety and BatchNorm statistics of images, as the teacher or their stored logits see them."""
    team = labelling.team
    if newest is None:
        return []
    if team is None:
        assert newest.teacher_logits is not None
        return [alarms.class_imbalance(newest.teacher_logits)]
    penultimate = head(team.model) + INPUT
    with evaluating(team.model), torch.no_grad():
        outputs = observe(team.model, newest.images.to(labelling.device), features=[penultimate], statistics=True)
    return [
        alarms.class_imbalance(outputs.logits.cpu()),
        alarms.collapse(outputs.features[penultimate].flatten(1).cpu(), newest.labels),
        alarms.statistics_gap(outputs.statistics),
    ]
