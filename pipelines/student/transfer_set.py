"""The transfer set of a run: the images that the student learns from, and what the run asks of them.

A transfer set (Hinton et al. 2015) is made of sources: images of a generator, images of a dataset that `synthkd
generate` wrote, and real images, fixed or arriving. The rest of a run asks the transfer set, and never which sources it
has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor

from synthkd.data.bank import MemoryBank
from synthkd.data.hybrid import HybridDataset
from synthkd.data.read.splits import Splits
from synthkd.data.sources import GeneratedSource, RealImages, RealSource
from synthkd.data.stream import ImageStream
from synthkd.data.written.stored import StoredDataset
from synthkd.data.written.stored_images import StoredImages
from synthkd.distillation import phases
from synthkd.distillation.alarms import Alarm
from synthkd.distillation.evaluation import HeldOut
from synthkd.distillation.synthesis import Synthesis
from synthkd.distillation.teachers import TeacherTeam
from synthkd.errors import ConfigError
from synthkd.generators.build import build_generator
from synthkd.generators.files import real_images_seen
from synthkd.generators.settings import MerfSettings
from synthkd.models import Classifier
from synthkd.pipelines.config import DistillConfig, GeneratedSet, RealSet, StoredSet
from synthkd.pipelines.student.held_out import Agreement, Labelling
from synthkd.pipelines.student.networks import (
    Subject,
)
from synthkd.pipelines.student.sources import GeneratedImages, RealTransferImages, StoredDatasetImages, TransferSource
from synthkd.rng import Rows
from synthkd.schedules import DifficultyScheduler, value_at
from synthkd.settings import BankSettings, StreamData
from synthkd.training.learner import Learner
from synthkd.types import Batch, ImageSpec, balanced_labels


class TransferSet:
    """The sources of a run and the batches that are drawn from them.

    Args:
        sources: at least one.
        dataset: draws batches from all of them.

    Attributes:
        sources, dataset: as given.
        generated: the source whose images are made while the student learns, or None.
        banks: the memory banks of all sources.
        state: what goes into checkpoints, by name.
    """

    def __init__(self, sources: Sequence[TransferSource], dataset: HybridDataset) -> None:
        self.sources, self.dataset = tuple(sources), dataset
        self.generated = next((source for source in sources if isinstance(source, GeneratedImages)), None)
        self.banks = tuple(source.bank for source in sources if source.bank is not None)
        self.state = {name: part for source in sources for name, part in source.state.items()}
        self._by_rank = sorted(sources, key=lambda source: source.held_out_rank)

    @property
    def real_images_used(self) -> int | None:
        """Real images that the student or its generator has seen; None where nobody can say.

        What a generator learned from and what is mixed in are images of the same dataset, so the larger number counts.
        """
        counts = [source.real_images_used for source in self.sources]
        known = [count for count in counts if count is not None]
        return max(known) if len(known) == len(counts) else None

    @property
    def images_generated(self) -> int:
        """Images that were put into memory banks so far."""
        return sum(bank.added for bank in self.banks)

    @property
    def can_hold_out(self) -> bool:
        """Whether there are, or will be, images to evaluate the students on."""
        return any(source.can_hold_out for source in self.sources)

    def held_out(self) -> HeldOut | None:
        """Images that the students are evaluated on: real ones before stored ones before the newest of a bank."""
        return next((images for source in self._by_rank if (images := source.held_out()) is not None), None)

    def agreement(self, student: Classifier) -> Agreement | None:
        """Agreement with the teacher without test data: on fresh samples before stored ones before held-out ones."""
        found = (source.agreement(student) for source in reversed(self._by_rank))
        return next((agreement for agreement in found if agreement is not None), None)

    def alarms(self) -> list[Alarm]:
        """Signs of a failing distillation in the images of any source."""
        return [alarm for source in self.sources for alarm in source.alarms() if alarm is not None]

    def sample(self, last_step: int) -> tuple[Tensor, Tensor, str]:
        """Images, labels and what they are, to see whether a student gives one answer whatever it is shown.

        The newest images of a bank, else held-out real images, else the batch of the last step.
        """
        newest = next((batch for source in self.sources if (batch := source.newest()) is not None), None)
        if newest is not None:
            return newest.images, newest.labels, "of the newest images"
        held_out = self.held_out()
        if held_out is not None:
            return held_out.images, held_out.targets, "real images"
        batch = self.dataset.batch(last_step)
        labels = batch.labels
        if bool((labels < 0).any()):
            assert batch.teacher_logits is not None
            labels = batch.teacher_logits.argmax(1)
        return batch.images, labels, "real images"

    def uses(self) -> list[str]:
        """What real images are used for, for the plan."""
        return [use for source in self.sources for use in source.uses(alone=len(self.sources) == 1)]


@dataclass(frozen=True)
class Images:
    """The images that a configuration names, as they were read.

    Attributes:
        stored: a dataset that `synthkd generate` wrote, or None.
        splits: the real dataset that the student or the generator learns from, or None.
        arriving: the settings of a stream of real images, or None.
    """

    stored: StoredDataset | None
    splits: Splits | None
    arriving: StreamData | None


def is_private(config: DistillConfig) -> bool:
    """Whether the generator learns from its real images with noise, and nothing else may look at them."""
    return config.generated is not None and isinstance(config.generated.generator, MerfSettings)


@dataclass(frozen=True)
class Wiring:
    """What every source of the transfer set is built from."""

    config: DistillConfig
    accelerator: Accelerator
    subject: Subject
    images: Images
    team: TeacherTeam | None
    batch_size: int
    total: int

    @property
    def labelling(self) -> Labelling:
        """Labels held-out images with the teacher."""
        return Labelling(self.team, self.accelerator.device, self.config.distill.adapt.images)


def build_transfer_set(
    wiring: Wiring, teacher: Classifier | None, learner: Learner, bank: MemoryBank | None, directory: Path | None
) -> TransferSet:
    """The sources in the order of the configuration, and the dataset that mixes them."""
    config, accelerator = wiring.config, wiring.accelerator
    sources: list[TransferSource] = []
    for settings in config.sources:
        match settings:
            case GeneratedSet():
                assert teacher is not None
                assert bank is not None
                sources.append(_generated(settings, wiring, teacher, learner, bank, directory))
            case StoredSet():
                stored = wiring.images.stored
                assert stored is not None
                assert bank is not None
                fresh, used = config.logits == "fresh", stored.about["real_images_used"]
                sources.append(StoredDatasetImages(StoredImages(stored), bank, wiring.labelling, fresh, used))
            case RealSet():
                sources.append(_real(wiring))
    generated = next((source for source in sources if isinstance(source, GeneratedImages)), None)
    dataset = HybridDataset(
        [source.source for source in sources],
        [settings.share for settings in config.sources],
        config.mix.model_copy(update={"logits": config.logits}),
        wiring.batch_size,
        wiring.total,
        wiring.team,
        difficulty=lambda: 0.0 if generated is None else generated.augmentation,
        seed=config.seed,
        device=accelerator.device,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )
    return TransferSet(sources, dataset)


def _generated(
    settings: GeneratedSet,
    wiring: Wiring,
    teacher: Classifier,
    learner: Learner,
    bank: MemoryBank,
    directory: Path | None,
) -> GeneratedImages:
    config, splits, team = wiring.config, wiring.images.splits, wiring.team
    generator = build_generator(settings.generator, teacher, config.seed, wiring.accelerator, splits, directory)
    difficulty = DifficultyScheduler(settings.difficulty)

    def live(count: int, step: int) -> Batch:
        first = step * wiring.batch_size
        labels = balanced_labels(count, first, wiring.subject.spec.classes)
        images = generator.sample(labels, difficulty.value, Rows(config.seed, "live", first))
        logits = None if team is None or config.logits == "fresh" else team.logits(images).cpu()
        return Batch(images.cpu(), labels, logits)

    def live_count(step: int) -> int:
        return round(value_at(settings.live, step, wiring.total) * wiring.batch_size)

    # A private generator paid for its release of the training images, and nobody for a look at the holdout.
    own = None if splits is None or settings.data is None or is_private(config) else splits.holdout
    return GeneratedImages(
        generator,
        settings,
        GeneratedSource(bank, live, live_count),
        difficulty,
        Synthesis(generator, bank, difficulty, learner.synchronise),
        wiring.labelling,
        config.seed,
        real_images_seen(settings.generator, 0 if splits is None else len(splits.train)),
        makes_images=phases.generator_rounds(config.phases) > 0,
        holdout=None if own is None else RealImages(own.images, own.labels),
    )


def _real(wiring: Wiring) -> RealTransferImages:
    config, splits, stream = wiring.config, wiring.images.splits, wiring.images.arriving
    # With stored logits the teacher labels each real image once; else it labels the images of each batch.
    labeller = wiring.team if config.logits == "stored" else None
    if stream is not None:
        arriving = ImageStream(stream, wiring.subject.spec)
        source = RealSource(arriving, config.seed, labeller, wiring.accelerator.device)
        return RealTransferImages(source, None, arriving, wiring.labelling, config.seed)
    assert splits is not None
    train, holdout = (RealImages(part.images, part.labels) for part in (splits.train, splits.holdout))
    source = RealSource(train, config.seed, labeller, wiring.accelerator.device)
    # As for a generated source: a private generator leaves the holdout unseen.
    return RealTransferImages(source, None if is_private(config) else holdout, None, wiring.labelling, config.seed)


def build_bank(
    config: DistillConfig,
    spec: ImageSpec,
    accelerator: Accelerator,
    directory: Path | None,
    stored: StoredDataset | None,
) -> MemoryBank | None:
    """The memory bank of the generated or the stored images; None where all images are real."""
    generated = config.generated
    if stored is not None and config.stored is not None:  # it is drawn from for ever, so all of it stays
        settings = BankSettings(**config.stored.bank.model_dump(), capacity=max(1, len(stored)))
    elif generated is not None:
        settings = generated.bank
        images = getattr(generated.generator, "batch_size", 0)
        if images > settings.capacity:
            raise ConfigError(
                f"bank.capacity: a round of {images} images does not fit {settings.capacity}; make it larger"
            )
    else:
        return None
    if directory is None and settings.storage == "disk":
        settings = settings.model_copy(update={"storage": "ram"})
    files = None if directory is None else directory / "bank" / f"process{accelerator.process_index}"
    return MemoryBank(spec, settings, config.seed, files)
