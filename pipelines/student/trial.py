"""Steps on noise before a distillation: to find terms that fail, and the batch size that fits the memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from synthkd.data.bank import MemoryBank
from synthkd.data.hybrid import HybridDataset
from synthkd.data.read.splits import Splits
from synthkd.data.sources import GeneratedSource, Labeller, RealImages, RealSource
from synthkd.distillation import phases
from synthkd.distillation.control.controllers import Controllers
from synthkd.distillation.step import DistillStep
from synthkd.distillation.student import Student
from synthkd.distillation.teachers import TeacherTeam
from synthkd.errors import TrainingError
from synthkd.pipelines.config import CollageSet, DistillConfig, RealSet
from synthkd.pipelines.student.transfer_set_builder import is_private
from synthkd.rng import Rows, stream
from synthkd.schedules import DifficultyScheduler, value_at
from synthkd.settings import BankSettings, Joint
from synthkd.types import ImageSpec, Outputs, Stateful, TrainableGenerator, balanced_labels, to_uint8


def noise_dataset(
    config: DistillConfig, spec: ImageSpec, team: TeacherTeam | None, device: torch.device, count: int
) -> HybridDataset:
    """Batches of `count` images of random noise, labelled and with the fields that the batches of the run will have.

    Args:
        config: of the run.
        spec: images and classes.
        team: the teachers, or None.
        device: of the batches.
        count: images of a batch.
    """
    rng = stream(config.seed, "rehearsal")
    images, logits = torch.rand(count, *spec.shape, generator=rng), torch.randn(count, spec.classes, generator=rng)
    labels = balanced_labels(count, 0, spec.classes)
    bank = MemoryBank(spec, BankSettings(capacity=count), config.seed)
    bank.add(images, labels, logits)
    labeller: Labeller | None = team if config.logits == "stored" else None
    if config.black_box is not None:  # noise costs no query
        labeller = lambda images: Outputs(torch.zeros(len(images), spec.classes))  # noqa: E731
    real = RealSource(RealImages(to_uint8(images), labels), config.seed, labeller, device)
    pooled = RealSource(RealImages(to_uint8(images), torch.full_like(labels, -1)), config.seed, labeller, device)
    sources = [
        real if isinstance(settings, RealSet) else pooled if isinstance(settings, CollageSet) else GeneratedSource(bank)
        for settings in config.sources
    ]
    shares = [settings.share for settings in config.sources]
    total = phases.student_steps(config.phases)
    return HybridDataset(sources, shares, config.labelled_mix, count, total, team, lambda: 0.0, config.seed, device)


@dataclass(frozen=True)
class Trial:
    """A step of the run on noise, beside everything that the run holds in memory.

    Attributes:
        config: of the run.
        spec: images and classes.
        accelerator: device and precision.
        students: the student, then its peers.
        team: the teachers, or None.
        controllers: say which student teaches.
        bank: the memory bank, allocated, or None.
        generator: of the run, or None.
        splits: real images that a generator learns from, or None.
    """

    config: DistillConfig
    spec: ImageSpec
    accelerator: Accelerator
    students: Sequence[Student]
    team: TeacherTeam | None
    controllers: Controllers
    bank: MemoryBank | None
    generator: TrainableGenerator | None
    splits: Splits | None = None

    @property
    def parts(self) -> list[Stateful]:
        """What a trial changes."""
        return [*self.students, *(part for part in (self.bank, self.generator) if part is not None)]

    def __call__(self, count: int) -> None:
        """Take two steps of the students on `count` images, with a round of the generator between them.

        The first step makes the moments of the students' optimizers, the round those of the generator's, and the last
        step needs its memory beside all of them.

        Args:
            count: images of a batch.
        """
        self.learn(count, lambda: self.generate(count, self.generator))

    def learn(self, count: int, between: Callable[[], object] = lambda: None) -> None:
        """Take two steps of the students on `count` images.

        Args:
            count: images of a batch.
            between: called between the two.
        """
        step = self.step(count)
        # A loss that is not finite on noise after such steps says nothing about the run.
        with suppress(TrainingError):
            step(self._middle)
            between()
            step(self._middle)

    def step(self, count: int) -> DistillStep:
        """Steps of the students on `count` images of noise; the bank gets as many.

        Args:
            count: images of a batch.
        """
        dataset = noise_dataset(self.config, self.spec, self.team, self.accelerator.device, count)
        if self.bank is not None:  # negatives of a contrastive term are drawn from it
            noise = dataset.draw(0)
            first = slice(self.bank.settings.capacity)
            logits = torch.zeros(len(noise), self.spec.classes)
            self.bank.add(noise.images[first], noise.labels[first].clamp(min=0), logits[first])
        return DistillStep(self.students, dataset, self.accelerator, None, lambda: self.controllers.teaching)

    def generate(self, count: int, generator: TrainableGenerator | None) -> int:
        """One round of a generator, and the fresh samples of a batch of `count` images.

        Args:
            count: images of a batch.
            generator: that of the run or one of its kind; None does nothing.

        Returns:
            Number of images of the round, 0 without one.
        """
        config, settings = self.config, self.config.generated
        # A round of a private generator would be charged to its budget, and one for a black box to its queries.
        if settings is None or generator is None or is_private(config) or config.black_box is not None:
            return 0
        difficulty, images = DifficultyScheduler(settings.difficulty).value, 0
        if phases.generator_rounds(config.phases):
            beside = any(isinstance(phase, Joint) for phase in config.phases)
            module = self.students[0].learner.synchronise() if beside else None
            images = len(generator.round(0, difficulty, module).images)
        fresh = round(value_at(settings.live, self._middle, phases.student_steps(config.phases)) * count)
        if fresh:
            generator.sample(balanced_labels(fresh, 0, self.spec.classes), difficulty, Rows(config.seed, "trial", 0))
        return images

    @property
    def _middle(self) -> int:
        """The step halfway through the run, since the weight of a term, or a share, may be 0 at either end."""
        return phases.student_steps(self.config.phases) // 2
