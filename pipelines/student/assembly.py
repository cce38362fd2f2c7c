"""The parts of a distillation, built from its configuration in one direction; nothing is run.

Teachers -> subject -> networks -> auxiliary layers -> teacher team -> students -> transfer set -> evaluation -> step:
each part is built from those before it and never changed afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from synthkd.data.bank import MemoryBank
from synthkd.data.hybrid import HybridDataset
from synthkd.data.read.real import RealData, load_splits
from synthkd.data.read.splits import Splits
from synthkd.data.sources import GeneratedSource, RealImages, RealSource
from synthkd.data.stream import ImageStream
from synthkd.data.written.stored import StoredDataset, read_stored
from synthkd.data.written.stored_images import StoredImages
from synthkd.distillation import phases
from synthkd.distillation.control.controllers import Controllers
from synthkd.distillation.evaluation import PeriodicEvaluation
from synthkd.distillation.step import DistillStep
from synthkd.distillation.student import Student
from synthkd.distillation.synthesis import Synthesis
from synthkd.distillation.teachers import TeacherTeam
from synthkd.errors import ConfigError
from synthkd.generators.build import build_generator
from synthkd.generators.files import real_images_seen
from synthkd.generators.settings import MerfSettings
from synthkd.models import Classifier, TeacherContract, inherit, is_fresh, probe
from synthkd.models.slimmable import Slimmable
from synthkd.pipelines.config import DistillConfig, GeneratedSet, RealSet, StoredSet
from synthkd.pipelines.run.directory import keep_data
from synthkd.pipelines.student.networks import (
    Subject,
    build_controllers,
    build_networks,
    build_students,
    build_team,
    subject_of,
    teacher_name,
    untrained_student,
)
from synthkd.pipelines.student.sources import (
    GeneratedImages,
    Labelling,
    RealTransferImages,
    StoredDatasetImages,
    TransferSource,
)
from synthkd.pipelines.student.transfer_set import TransferSet
from synthkd.rng import Rows, stream
from synthkd.schedules import DifficultyScheduler, value_at
from synthkd.settings import BankSettings, StreamData
from synthkd.training.learner import Learner
from synthkd.training.memory import fitting_batch_size, training_step
from synthkd.types import Batch, ImageSpec, Stateful, balanced_labels, to_uint8

REHEARSED = 16
"""Images of the batch that terms are tried on, at most."""


@dataclass(frozen=True)
class Assembly:
    """Everything a distillation is made of.

    Attributes:
        subject: images and classes.
        contract, team: of the teachers; None where there is none.
        students: the student, then its peers.
        transfer_set: what they learn from.
        step: one step of all students.
        evaluation: periodic evaluation, and the controllers that follow it.
        inherited: how many of the student's parameters start from the teacher's values.
    """

    subject: Subject
    contract: TeacherContract | None
    team: TeacherTeam | None
    students: tuple[Student, ...]
    transfer_set: TransferSet
    step: DistillStep
    evaluation: PeriodicEvaluation
    inherited: int

    @property
    def learner(self) -> Learner:
        """The student's."""
        return self.students[0].learner

    @property
    def state(self) -> dict[str, Stateful]:
        """All that goes into checkpoints, by name."""
        students = {student.name: student for student in self.students}
        return {**students, **self.transfer_set.state, "adaptation": self.evaluation}


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


def assemble(
    config: DistillConfig, teachers: Sequence[Classifier], accelerator: Accelerator, directory: Path | None
) -> Assembly:
    """Build and wire every part.

    Args:
        config: the configuration.
        teachers: the teacher and those that label beside it, untouched but for eval mode; empty where there is none.
        accelerator: device, precision, processes.
        directory: run directory, for a bank on disk; None for a dry run, which keeps the bank in memory.
    """
    contracts = [probe(teacher, teacher_name(number)) for number, teacher in enumerate(teachers)]
    teacher = teachers[0] if teachers else None
    images = _read(config, accelerator, directory)
    subject = subject_of(teacher, images.stored, images.splits)
    _require_possible(config, accelerator, images, subject)
    module = untrained_student(config, subject)
    inherited = 0
    if isinstance(module, Classifier) and teacher is not None and config.inherits and is_fresh(config.student):
        inherited = inherit(module, teacher)
    batch_size, total = _batch_size(config, module, accelerator), phases.student_steps(config.phases)
    networks = build_networks(config, module, subject, teacher)
    controllers = build_controllers(config)
    team = build_team(config, teachers, networks, accelerator, controllers.selection)
    bank = _bank(config, subject.spec, accelerator, directory, images.stored)
    students = build_students(config, networks, total, accelerator, team, bank, controllers)
    wiring = _Wiring(config, accelerator, subject, images, team, batch_size, total)
    transfer_set = _transfer_set(wiring, teacher, students[0].learner, bank, directory)
    _require_evaluations(controllers, transfer_set, accelerator)
    evaluation = PeriodicEvaluation(
        config.distill.adapt.every,
        lambda: [student.learner.evaluated for student in students],
        transfer_set.held_out,
        controllers,
        team if controllers.selection is not None else None,
    )
    prioritized = next((one for one in transfer_set.banks if one.settings.policy == "prioritized"), None)
    step = DistillStep(students, transfer_set.dataset, accelerator, prioritized, lambda: controllers.teaching)
    step.rehearse(_noise_batch(config, subject.spec, team, accelerator.device))
    contract = contracts[0] if contracts else None
    return Assembly(subject, contract, team, students, transfer_set, step, evaluation, inherited)


def _read(config: DistillConfig, accelerator: Accelerator, directory: Path | None) -> Images:
    """Read the images that the sources name; a generator learns from its own, or from those of the real source."""
    stored = None if config.stored is None else read_stored(config.stored.path)
    real = None if config.real is None else config.real.data
    arriving = real if isinstance(real, StreamData) else None
    fixed = None if isinstance(real, StreamData) else real
    generated = config.generated
    if generated is not None and generated.data is not None:
        fixed = generated.data
    splits = None if fixed is None else load_splits(fixed)
    if splits is not None and directory is not None:
        keep_data(directory, splits, accelerator, _is_private(config))
    return Images(stored, splits, arriving)


def _is_private(config: DistillConfig) -> bool:
    """Whether the generator learns from its real images with noise, and nothing else may look at them."""
    return config.generated is not None and isinstance(config.generated.generator, MerfSettings)


def _require_possible(config: DistillConfig, accelerator: Accelerator, images: Images, subject: Subject) -> None:
    """Refuse what the images, the phases or several processes rule out."""
    several = accelerator.num_processes > 1
    if images.arriving is not None and several:
        raise ConfigError("data.kind: a stream is read in one process only; leave torchrun out, or take another kind")
    if config.width is not None and several:
        raise ConfigError("width: the width of a student changes in one process only; leave torchrun out, or width")
    if config.online is not None and several:
        raise ConfigError("online: peers learn together in one process only; leave torchrun out, or online")
    if images.splits is not None:
        require_fit("data", images.splits.train, subject)
    generated, real = config.generated, config.real
    has_bank_images = generated is not None and generated.live != 1.0 and (real is None or real.share != 1.0)
    phases.check(config.phases, needs_bank=has_bank_images)


def _require_evaluations(controllers: Controllers, transfer_set: TransferSet, accelerator: Accelerator) -> None:
    """Refuse controllers where there is nothing for them to follow."""
    if not controllers.keys:
        return
    key = controllers.keys[0]
    if accelerator.num_processes > 1:
        raise ConfigError(f"{key} adapts in one process only; leave torchrun out, or {key}")
    if not transfer_set.can_hold_out:
        raise ConfigError(f"{key} goes by images that are held out, or a bank: set data.holdout above 0")


@dataclass(frozen=True)
class _Wiring:
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


def _transfer_set(
    wiring: _Wiring, teacher: Classifier | None, learner: Learner, bank: MemoryBank | None, directory: Path | None
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
    wiring: _Wiring,
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
    )


def _real(wiring: _Wiring) -> RealTransferImages:
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
    # A private generator paid for its release of the training images, and nobody for a look at the holdout.
    return RealTransferImages(source, None if _is_private(config) else holdout, None, wiring.labelling, config.seed)


def _noise_batch(config: DistillConfig, spec: ImageSpec, team: TeacherTeam | None, device: torch.device) -> Batch:
    """A labelled batch of random noise, of the kinds of images that the run will draw."""
    count = min(REHEARSED, config.distill.batch_size)
    rng = stream(config.seed, "rehearsal")
    images, logits = torch.rand(count, *spec.shape, generator=rng), torch.randn(count, spec.classes, generator=rng)
    labels = balanced_labels(count, 0, spec.classes)
    bank = MemoryBank(spec, BankSettings(capacity=count), config.seed)
    bank.add(images, labels, logits)
    labeller = team if config.logits == "stored" else None
    real = RealSource(RealImages(to_uint8(images), labels), config.seed, labeller, device)
    sources = [real if isinstance(settings, RealSet) else GeneratedSource(bank) for settings in config.sources]
    shares = [settings.share for settings in config.sources]
    mix = config.mix.model_copy(update={"logits": config.logits})
    return HybridDataset(sources, shares, mix, count, 1, team, lambda: 0.0, config.seed, device).batch(0)


def require_fit(key: str, data: RealData | None, subject: Subject) -> None:
    """Raise `ConfigError` unless real data is of the teacher's images, and of its classes in its order."""
    if data is None:
        return
    if data.spec != subject.spec:
        raise ConfigError(
            f"{key}: {data.name} has {data.spec}, the teacher takes {subject.spec}; they must be the same"
        )
    ours, theirs = data.class_names, subject.class_names
    if ours != theirs and sorted(ours) == sorted(theirs):
        place = next(number for number, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
        raise ConfigError(
            f"{key}: class {place} of {data.name} is {ours[place]!r}, the teacher's is {theirs[place]!r}; number the "
            "classes alike"
        )


def _batch_size(config: DistillConfig, student: Classifier | Slimmable, accelerator: Accelerator) -> int:
    wanted = config.distill.batch_size
    if wanted % accelerator.num_processes:
        raise ConfigError(
            f"distill.batch_size: {wanted} images cannot be shared out evenly among {accelerator.num_processes} "
            "processes; choose a multiple"
        )
    if not config.adapt_batch_size:
        return wanted
    return fitting_batch_size(wanted, training_step(student, student.spec, accelerator.device))


def _bank(
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
