"""Builds the transfer set of a run from its configuration."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator

from synthkd.data.bank import MemoryBank
from synthkd.data.hybrid import HybridDataset
from synthkd.data.read.on_disk import part_of
from synthkd.data.read.pictures import read_pictures
from synthkd.data.read.splits import Splits
from synthkd.data.sources import GeneratedSource, Labeller, RealImages, RealSource, RealSupply
from synthkd.data.stream import ImageStream
from synthkd.data.written.stored import StoredDataset
from synthkd.data.written.stored_images import StoredImages
from synthkd.distillation import phases
from synthkd.distillation.synthesis import Synthesis
from synthkd.distillation.teachers import TeacherTeam
from synthkd.errors import ConfigError
from synthkd.generators.collage import Collage, album_of
from synthkd.generators.drawn_album import DrawnPictures
from synthkd.generators.files import GeneratorFacts
from synthkd.generators.own_rounds import OwnRounds, averages
from synthkd.generators.settings import MerfSettings, SavedSettings
from synthkd.models.black_box import BlackBox, black_box_of
from synthkd.pipelines.config import AnySet, CollageSet, DistillConfig, GeneratedSet, PicturesSet, StoredSet
from synthkd.pipelines.run.device import rows_of_process
from synthkd.pipelines.student.collages import CollageImages, Pictured
from synthkd.pipelines.student.held_out import Labelling
from synthkd.pipelines.student.image_alarms import ImageAlarms, advice_for
from synthkd.pipelines.student.networks import Subject
from synthkd.pipelines.student.real_images import RealTransferImages
from synthkd.pipelines.student.sources import GeneratedImages, StoredDatasetImages, TransferSource
from synthkd.pipelines.student.transfer_set import TransferSet
from synthkd.pipelines.student.unlabelled import UnlabelledImages
from synthkd.processes import Processes
from synthkd.rng import Rows, stream
from synthkd.schedules import DifficultyScheduler, value_at
from synthkd.settings import BankSettings, StreamData
from synthkd.training.learner import Learner
from synthkd.types import WHOLE, Batch, ImageSpec, Part, Rounds, TrainableGenerator, balanced_labels, takes_labels

OF_TRIAL = 10_000
"""Largest bank, in images, that stands for one on disk where there is no run directory."""
HELD_OUT_PART = 10
"""At most this part of a black box's budget is spent on held-out images: a tenth."""


@dataclass(frozen=True)
class Images:
    """The images that a configuration names, as they were read.

    Attributes:
        stored: a dataset that `synthkd generate` wrote, or None.
        splits: the real dataset that the student or the generator learns from, or None.
        arriving: the settings of a stream of real images, or None.
        unlabelled: real images that the teacher labels, or None.
    """

    stored: StoredDataset | None
    splits: Splits | None
    arriving: StreamData | None
    unlabelled: Splits | None = None


def is_private(config: DistillConfig) -> bool:
    """Whether the real images are private: the generator learns from them with noise, and nothing else may use them.

    Noise covers the training images only. The held-out ones are not used either, because evaluations would release
    something of them without noise.
    """
    return config.generated is not None and isinstance(config.generated.generator, MerfSettings)


def rounds_at_once(config: DistillConfig, processes: int) -> int:
    """Rounds of the generator that start from one state: one of each process, or 1 where all share a round."""
    generated = config.generated
    own = config.sync == "fast" and generated is not None and averages(generated.named)
    return processes if own else 1


@dataclass(frozen=True)
class TransferSetBuilder:
    """Builds the transfer set from the parts of the run that exist before it.

    Attributes:
        config: of the run.
        facts: of the generator of the generated source, or None.
        accelerator: device and processes.
        subject: images and classes.
        images: the stored and the real images, as they were read.
        generator: of the generated source, or None.
        team: all teachers, which label images, or None.
        learner: of the student; rounds of the generator use its present weights.
        bank: the memory bank of the generated or the stored images, or None.
        batch_size: images of a batch over all processes.
        total: steps of the student.
    """

    config: DistillConfig
    facts: GeneratorFacts | None
    accelerator: Accelerator
    subject: Subject
    images: Images
    generator: TrainableGenerator | None
    team: TeacherTeam | None
    learner: Learner
    bank: MemoryBank | None
    batch_size: int
    total: int

    def build(self) -> TransferSet:
        """The sources in the order of the configuration, and the dataset that mixes them."""
        config, accelerator = self.config, self.accelerator
        part = rows_of_process(self._processes, accelerator)
        sources = [self._source(settings) for settings in config.sources]
        dataset = HybridDataset(
            [source.source for source in sources],
            [settings.share for settings in config.sources],
            config.labelled_mix,
            self.batch_size,
            self.total,
            self._labeller,
            difficulty=lambda: max(source.augmentation for source in sources),
            seed=config.seed,
            device=accelerator.device,
            rank=part.first,
            world=part.every,
            # A label is a probability of 1: a mean of logits would name one of two labels, where mixup names both.
            mix_probabilities=self._black_box is not None,
        )
        return TransferSet(sources, dataset)

    @property
    def _labeller(self) -> Labeller | None:
        """The teachers; processes share their passes, unless their weights follow from the whole batch."""
        if self.team is None or self.config.team.weighting == "confidence":
            return self.team
        return partial(self._processes.outputs, self.team)

    @property
    def _black_box(self) -> BlackBox | None:
        return None if self.team is None else black_box_of(self.team.model)

    @property
    def _processes(self) -> Processes:
        """That share the passes of whole batches."""
        return self.learner.processes

    @property
    def _labelling(self) -> Labelling:
        count, black_box = self.config.distill.adapt.images, self._black_box
        most_asked = None if black_box is None else black_box.settings.queries // HELD_OUT_PART
        return Labelling(self.team, self.accelerator.device, count, self._pass, most_asked)

    @property
    def _pass(self) -> int:
        """Largest number of images of a pass in this process."""
        return max(1, self.batch_size // int(self.accelerator.num_processes))

    def _source(self, settings: AnySet) -> TransferSource:
        """One source; a checked configuration has the teacher, the bank and the images that it needs."""
        images = self.images
        if isinstance(settings, GeneratedSet):
            assert self.generator is not None
            assert self.bank is not None
            return self._generated(settings, self.generator, self.bank)
        if isinstance(settings, StoredSet):
            assert images.stored is not None
            assert self.bank is not None
            fresh, used = self.config.logits == "fresh", images.stored.about["real_images_used"]
            stored, judge = StoredImages(images.stored), self._judge(settings)
            return StoredDatasetImages(stored, self.bank, self._labelling, judge, fresh, used)
        if isinstance(settings, CollageSet):
            return self._collages(settings)
        if images.arriving is not None:
            stream = ImageStream(images.arriving, self.subject.spec)
            return RealTransferImages(self._real(stream), None, stream, self._labelling, self.config.seed)
        splits = images.splits if images.unlabelled is None else images.unlabelled
        assert splits is not None
        train, holdout = (RealImages(part.images, part.labels) for part in (splits.train, splits.holdout))
        labelling, seed, is_unlabelled = self._labelling, self.config.seed, images.unlabelled is not None
        visible = holdout if is_unlabelled or not is_private(self.config) else None
        if self._black_box is not None:
            held_out = 0 if visible is None else min(len(visible), labelling.held_out_count)
            train = self._affordable(train, self._black_box.settings.queries - held_out - self._kept_for_rounds)
        if is_unlabelled:
            return UnlabelledImages(self._real(train), train, holdout, labelling, seed, splits.train.name)
        return RealTransferImages(self._real(train), visible, None, labelling, seed)

    def _collages(self, settings: CollageSet) -> CollageImages:
        """Fresh pictures at every step; with stored logits a pool of them, which the teacher labels once."""
        spec, seed, labelling, box = self.subject.spec, self.config.seed, self._labelling, self._black_box
        if box is not None:  # each source has the queries of its share of a batch
            queries = max(1, int(box.settings.queries * self._part(settings)))
            labelling = replace(labelling, most_asked=queries // HELD_OUT_PART)
        collage: Pictured
        if isinstance(settings, PicturesSet):
            pictures = read_pictures(settings.root, spec.channels)
            count, collage = len(pictures.images), Collage(album_of(pictures.images), spec)
            kind, words = "pictures", f"crops of {count:,} of {pictures.name}"
        else:
            count, collage = 0, DrawnPictures.of_seed(spec, seed)
            kind, words = "procedural", "drawn by rule"
        pool = None
        if self.config.logits == "stored":
            pool = settings.pool if box is None else min(settings.pool, queries - labelling.held_out_count)
        pooled = partial(self._real, balanced=settings.balanced)
        return CollageImages(kind, collage, pool, pooled, labelling, seed, words, count)

    def _part(self, settings: AnySet | CollageSet) -> float:
        """The share of a source in a batch in the middle of the run, however many steps that has."""
        if settings.share is not None:
            return value_at(settings.share, 1, 3)
        return 1.0 - sum(self._part(other) for other in self.config.sources if other.share is not None)

    @property
    def _kept_for_rounds(self) -> int:
        """Queries that real images leave to the rounds of a generator: at most half, and those of a round at least."""
        generated, rounds = self.config.generated, phases.generator_rounds(self.config.phases)
        assert self._black_box is not None
        if generated is None or self.facts is None or not rounds:
            return 0
        of_round = self.facts.images_of_round or 1
        return max(of_round, min(rounds * of_round, self._black_box.settings.queries // 2))

    def _affordable(self, images: RealImages, count: int) -> RealImages:
        """At most `count` of the images, chosen by the run's seed, in their order."""
        if len(images) <= count:
            return images
        chosen = torch.randperm(len(images), generator=stream(self.config.seed, "asked"))[:count].sort().values
        return RealImages(part_of(images.images, chosen), images.labels[chosen])

    def _generated(self, settings: GeneratedSet, generator: TrainableGenerator, bank: MemoryBank) -> GeneratedImages:
        config, splits, team, batch_size = self.config, self.images.splits, self.team, self.batch_size
        difficulty = DifficultyScheduler(settings.difficulty)
        facts = self.facts
        assert facts is not None  # of the generator that is there
        for_labels = takes_labels(generator)

        def live(count: int, step: int, part: Part = WHOLE) -> Batch:
            wanted, start = part.size(count), part.of(count).start
            first = step * batch_size + start  # a random row for each sample
            # In turn over the steps. One at least is made, since a process may have fewer images than others.
            labels = balanced_labels(max(1, wanted), step * count + start, self.subject.spec.classes)
            images = self._processes.samples(
                lambda some, place: generator.sample(some, difficulty.value, Rows(config.seed, "live", first + place)),
                labels,
            )
            logits = None if team is None or config.logits == "fresh" else team.logits(images).cpu()
            if not for_labels:
                labels = torch.full_like(labels, -1)  # the teacher's predictions take their place
            return Batch(images.cpu(), labels, logits).map(lambda value: value[:wanted])

        def live_count(step: int) -> int:
            return round(value_at(settings.live, step, self.total) * batch_size)

        rounds: Rounds = generator
        if rounds_at_once(config, self.accelerator.num_processes) > 1:
            rounds = OwnRounds(generator, Processes.of(self.accelerator))
        # The generator's own real images are held out for evaluations as well, unless they are private.
        own = None if splits is None or settings.data is None or is_private(config) else splits.holdout
        return GeneratedImages(
            generator,
            settings,
            GeneratedSource(bank, live, live_count),
            difficulty,
            Synthesis(rounds, bank, difficulty, self.learner.synchronise, self._black_box, facts.images_of_round),
            self._labelling,
            self._judge(settings),
            config.seed,
            facts.seen(0 if splits is None else len(splits.train)),
            makes_images=phases.generator_rounds(config.phases) > 0,
            holdout=None if own is None else RealImages(own.images, own.labels),
        )

    def _judge(self, settings: GeneratedSet | StoredSet) -> ImageAlarms:
        """The alarms about the images of a source, beside real images that are not private."""
        splits, real = self.images.splits, None
        if splits is not None and not is_private(self.config):
            real = RealImages(splits.train.images, splits.train.labels)
        teacher = None if self.team is None or self._black_box is not None else self.team.model
        advice = advice_for(settings, self.config.key_of(settings))
        return ImageAlarms(teacher, self.accelerator.device, advice, real, self._pass)

    def _real(self, supply: RealSupply, balanced: bool = False) -> RealSource:
        # With stored logits the teacher labels each real image once; else it labels the images of each batch.
        labeller = self.team if self.config.logits == "stored" else None
        device, processes = self.accelerator.device, self._processes
        return RealSource(supply, self.config.seed, labeller, device, self._pass, processes, balanced)


def build_bank(
    config: DistillConfig,
    facts: GeneratorFacts | None,
    spec: ImageSpec,
    accelerator: Accelerator,
    directory: Path | None,
    stored: StoredDataset | None,
) -> MemoryBank | None:
    """The memory bank of the generated or the stored images; None if all images are real.

    Args:
        config: of the run.
        facts: of the generator, or None.
        spec: sizes of the images and number of classes.
        accelerator: the process; each has its own files.
        directory: the run directory; None for a dry run, in which a bank on disk is a small one in memory.
        stored: the stored dataset, or None.

    Raises:
        ConfigError: a round of the generator does not fit the bank.
    """
    generated = config.generated
    if stored is not None and config.stored is not None:  # no image of the dataset may be overwritten
        settings = BankSettings(**config.stored.bank.model_dump(), capacity=max(1, len(stored)))
        key = config.key_of(config.stored)
    elif generated is not None and facts is not None:
        settings, images, key = generated.bank, facts.images_of_round or 0, config.key_of(generated)
        if config.black_box is not None:
            queries, least = config.black_box.queries, 0 if config.real is None else 1
            held_out = queries // HELD_OUT_PART if config.real_images else 0
            if images + held_out + least > queries:
                beside = " beside real images" if config.real_images else ""
                is_saved = isinstance(generated.generator, SavedSettings)
                lower = "" if is_saved else f", or lower {generated.generator_key('batch_size', key)}"
                raise ConfigError(
                    f"teacher.queries: {queries:,} do not cover a round of {images} images{beside}; raise it{lower}"
                )
        if images > settings.capacity:
            raise ConfigError(
                f"{key}.bank.capacity: a round of {images} images does not fit {settings.capacity}; make it larger"
            )
        if directory is None and settings.storage == "disk":
            few = min(settings.capacity, max(OF_TRIAL, images))
            settings = settings.model_copy(update={"storage": "ram", "capacity": few})
    else:
        return None
    files = None if directory is None else directory / "bank" / f"process{accelerator.process_index}"
    return MemoryBank(spec, settings, config.seed, files, f"{key}.bank")
