"""The sources of a transfer set: generated images and a stored dataset; `real_images` has real ones."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import ClassVar

from torch import Tensor

from synthkd.data.bank import MemoryBank
from synthkd.data.sources import GeneratedSource, RealImages, Source
from synthkd.data.written.stored_images import StoredImages
from synthkd.distillation.alarms import Alarm
from synthkd.distillation.evaluation import HeldOut
from synthkd.distillation.synthesis import Synthesis
from synthkd.generators.method_settings import NoisyLabelSettings
from synthkd.generators.own_rounds import OwnRounds
from synthkd.generators.settings import FROM_REAL, InversionSettings, PixelSettings
from synthkd.metrics.untested import BY_FOUR, BY_LEARNED, Calibration
from synthkd.metrics.utility import predict
from synthkd.models import Classifier
from synthkd.passes import Tick, go_on, sample_in_chunks
from synthkd.pipelines.config import GeneratedSet
from synthkd.pipelines.student.held_out import Agreement, Labelling
from synthkd.pipelines.student.image_alarms import IMAGES, ImageAlarms, images_within
from synthkd.rng import Rows
from synthkd.schedules import DifficultyScheduler
from synthkd.training.measuring import Watch, unwatched
from synthkd.types import Batch, Stateful, TrainableGenerator, repeats


class TransferSource(ABC):
    """One source of a transfer set. A method returns None if the source has no such thing.

    Attributes:
        source: batches draw from it.
        state: its parts whose state goes into checkpoints, by name.
        held_out_rank: held-out images are taken from the source with the lowest rank that has some.
        without_teacher: what labels its images in a run without a teacher, in the words of the plan.
    """

    source: Source
    state: Mapping[str, Stateful]
    held_out_rank: ClassVar[int]
    without_teacher: ClassVar[str]

    @property
    def shown(self) -> str:
        """What its images are, in words."""
        return "real images"

    @property
    def bank(self) -> MemoryBank | None:
        """The memory bank that keeps its images, or None."""
        return None

    @property
    def real_images_used(self) -> int | None:
        """Number of real images that the student has used so far, or that the source's images come from; None if it is
        unknown."""
        return 0

    @property
    def augmentation(self) -> float:
        """The difficulty in [0, 1] by which the images of a batch are augmented at present."""
        return 0.0

    @property
    @abstractmethod
    def can_hold_out(self) -> bool:
        """Whether there are, or will be, held-out images."""

    @abstractmethod
    def held_out(self) -> HeldOut | None:
        """The images on which the students are evaluated at present, or None while there are none."""

    @abstractmethod
    def agreements(self, networks: Sequence[Classifier], watch: Watch = unwatched) -> list[Agreement]:
        """Agreement of each network with the teacher on images that no student learned from; none if not measurable."""

    def alarms(self, watch: Watch = unwatched) -> list[Alarm | None]:
        """Signs of a failing distillation in its images."""
        return []

    def label_ahead(self) -> None:  # noqa: B027, most sources have no such images
        """Let the teacher label the images that are known before the first step, and that it labels once."""

    def newest(self) -> Batch | None:
        """Its newest images with their labels, for the alarms; None without a memory bank."""
        return None

    def uses(self, alone: bool) -> list[str]:
        """What real images are used for, in the words of the plan.

        Args:
            alone: whether this is the only source.
        """
        return []


class BankedImages(TransferSource):
    """Images with logits in a memory bank.

    Args:
        bank: the memory bank.
        real_images_used: number of real images that its images come from; None if it is unknown.
        labelling: labels held-out images.
        judge: raises the alarms about its images.
    """

    def __init__(
        self, bank: MemoryBank, real_images_used: int | None, labelling: Labelling, judge: ImageAlarms
    ) -> None:
        self._bank, self._real_images_used, self._labelling = bank, real_images_used, labelling
        self._image_alarms = judge

    @property
    def shown(self) -> str:
        """What its images are, in words."""
        return "generated images"

    @property
    def bank(self) -> MemoryBank:
        """The memory bank of its images."""
        return self._bank

    @property
    def real_images_used(self) -> int | None:
        """Number of real images that its images come from; None if it is unknown."""
        return self._real_images_used

    def newest(self) -> Batch | None:
        """The newest images of the bank, as many as alarms are computed on; None while it is empty."""
        spec = self.bank.spec
        count = images_within(IMAGES, math.prod(spec.shape))
        return self.bank.newest(count) if len(self.bank) else None

    def alarms(self, watch: Watch = unwatched) -> list[Alarm | None]:
        """Alarms about the newest images: by the teacher's features, or about class balance alone by stored logits."""
        newest = self.newest()
        return [] if newest is None else self._image_alarms(newest, watch)


class GeneratedImages(BankedImages):
    """Images of a generator, kept in a memory bank, at a difficulty that follows the student.

    Args:
        generator: generates the images.
        settings: of this source.
        source: draws from the bank, and fresh samples.
        difficulty: follows the student.
        rounds: of the generator.
        labelling: labels held-out images.
        judge: raises the alarms about its images.
        seed: the run's seed.
        real_images_used: number of real images that the generator learns from; None if it is unknown.
        makes_images: whether the phases have rounds of the generator.
        holdout: held-out images of the dataset that the generator learns from; None if there are none, or they are
            private.

    Attributes:
        generator, rounds, difficulty: as given.
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
        judge: ImageAlarms,
        seed: int,
        real_images_used: int | None,
        makes_images: bool,
        holdout: RealImages | None = None,
    ) -> None:
        super().__init__(source.bank, real_images_used, labelling, judge)
        self.generator, self.rounds, self.difficulty = generator, rounds, difficulty
        self.source = source
        self.state = {"generator": generator, "bank": source.bank, "difficulty": difficulty}
        if isinstance(rounds.generator, OwnRounds):
            self.state["rounds"] = rounds.generator
        self._settings, self._seed, self._makes_images = settings, seed, makes_images
        self._holdout = holdout

    @cached_property
    def _held_out(self) -> HeldOut | None:
        # On first use, since it may cost queries, of which a dry run makes none.
        return None if self._holdout is None else self._labelling.of_holdout(self._holdout, self._seed)

    @property
    def augmentation(self) -> float:
        """The difficulty in [0, 1] by which the images of a batch are augmented at present."""
        return self.difficulty.value if self._settings.difficulty.augment else 0.0

    @property
    def can_hold_out(self) -> bool:
        """Whether there are held-out real images, or there will be images in the bank."""
        return bool(self._holdout and self._labelling.held_out_count) or self._makes_images

    def label_ahead(self) -> None:
        """Label the held-out real images."""
        self._held_out  # noqa: B018, it is kept

    def held_out(self) -> HeldOut | None:
        """Held-out real images, else the newest images of the bank, though the student has drawn most of them before.

        The bank has the logits of the first teacher, so several teachers label its images again.
        """
        if self._held_out is not None:
            return self._held_out
        if not len(self.bank):
            return None
        newest = self.bank.newest(self._labelling.count)
        return self._labelling.of_stored(newest, fresh=self._has_several_teachers)

    @property
    def _has_several_teachers(self) -> bool:
        team = self._labelling.team
        return team is not None and len(team.models) > 1

    def agreements(self, networks: Sequence[Classifier], watch: Watch = unwatched) -> list[Agreement]:
        """On the same samples, and on fewer if the time for measurements is used up."""
        rows, is_old = Rows(self._seed, "fresh"), repeats(self.generator)
        return self._labelling.on_samples(networks, self._sample, rows, watch, is_old)

    @property
    def learns_from_another(self) -> bool:
        """Whether the generator learns from the real images of another source."""
        return self._settings.data is None and isinstance(self._settings.named, FROM_REAL)

    @property
    def calibration(self) -> Calibration | None:
        """How the student's agreement on the task is estimated; None for images that are not of the teacher alone."""
        match self._settings.named:
            case InversionSettings() | PixelSettings():
                return BY_FOUR
            case NoisyLabelSettings(batch_norm=weight) if weight:
                return BY_LEARNED
            case _:
                return None

    def agreement_on_learned(self, student: Classifier) -> tuple[float, float] | None:
        """Logits of the agreement on images of the whole bank, see `Labelling.on_learned`; None while it is empty."""
        if not len(self.bank):
            return None
        batch = self.bank.spread(self._labelling.count)
        return self._labelling.on_learned(student, self._labelling.of_stored(batch, fresh=self._has_several_teachers))

    def uses(self, alone: bool) -> list[str]:
        """The generator, if it learns from real images."""
        return [f"learned from by the {self._settings.generator.kind} generator"] if self.real_images_used else []

    def grid(self, labels: Tensor, tick: Tick = go_on) -> Tensor:
        """Samples of the same random rows at every call, for the grid of generated images.

        Args:
            labels: int64 `[N]`.
            tick: called after each chunk.

        Returns:
            float32 `[N, C, H, W]` in [0, 1], or those of the first labels if `tick` ended the chunks.
        """
        return sample_in_chunks(self._sample, self._labelling.batch_size, labels, Rows(self._seed, "grid"), tick)

    def _sample(self, labels: Tensor, rng: Rows) -> Tensor:
        return self.generator.sample(labels, self._settings.difficulty.start, rng)


class StoredDatasetImages(BankedImages):
    """Images of a dataset that `synthkd generate` wrote. All but the held-out ones are in a memory bank.

    Args:
        images: the dataset.
        bank: is filled with its images.
        labelling: labels held-out images.
        judge: raises the alarms about its images.
        fresh: whether the teacher labels the images; else their stored logits are used.
        real_images_used: number of real images that the dataset was generated from; None if it is unknown.
    """

    held_out_rank = 1
    without_teacher = "none; soft labels stored with the dataset"

    def __init__(
        self,
        images: StoredImages,
        bank: MemoryBank,
        labelling: Labelling,
        judge: ImageAlarms,
        fresh: bool,
        real_images_used: int | None,
    ) -> None:
        super().__init__(bank, real_images_used, labelling, judge)
        images.fill(bank)
        self.source = GeneratedSource(bank)
        self.state = {"bank": bank}
        self._images = images
        self._held_out = labelling.of_stored(images.held_out, fresh=fresh)

    @property
    def can_hold_out(self) -> bool:
        """True: a dataset always has held-out images."""
        return True

    def held_out(self) -> HeldOut | None:
        """The same images at every evaluation."""
        return self._held_out

    def agreements(self, networks: Sequence[Classifier], watch: Watch = unwatched) -> list[Agreement]:
        """On all held-out images, with the teacher of the run, else with the stored logits.

        The teacher of the run may be another than the one that labelled the dataset.
        """
        held_out, labelling, size = self._images.held_out, self._labelling, self._labelling.batch_size
        device, team = labelling.device, labelling.team
        if team is not None and not labelling.is_paid:
            tick = watch("held-out images, the teacher", len(held_out))
            targets = predict(team.consensus, held_out.images, device, size, tick=tick)
        elif held_out.teacher_logits is not None:
            targets = held_out.teacher_logits.argmax(1)
        else:
            return []
        return labelling.on_images(networks, held_out.images, targets, "held-out images of the dataset", watch)
