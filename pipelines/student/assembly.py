"""The parts of a distillation, built from its configuration and wired, nothing run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from synthkd.data.bank import MemoryBank
from synthkd.data.hybrid import HybridDataset, RealImages
from synthkd.data.read.real import RealData, load_splits
from synthkd.data.stream import ImageStream
from synthkd.data.written.stored import StoredDataset, read_stored
from synthkd.distillation import phases
from synthkd.distillation.adaptation import Adaptation, Probe
from synthkd.distillation.step import DistillStep
from synthkd.distillation.student import Pupil
from synthkd.distillation.synthesis import Synthesis
from synthkd.distillation.team import TeacherTeam
from synthkd.errors import ConfigError
from synthkd.generators.build import build_generator
from synthkd.generators.files import real_images_seen
from synthkd.generators.settings import DatasetSettings, MerfSettings, NoGenerator
from synthkd.generators.stored import StoredImages
from synthkd.models import Classifier, TeacherContract, inherit, is_fresh, probe
from synthkd.models.slimmable import Slimmable
from synthkd.pipelines.config import DistillConfig
from synthkd.pipelines.run.images import keep_data
from synthkd.pipelines.student.networks import (
    Probed,
    Subject,
    adapt,
    build_pupils,
    label_by,
    subject_of,
    teacher_name,
    untrained_student,
)
from synthkd.rng import Rows, stream
from synthkd.schedules import DifficultyScheduler
from synthkd.settings import StreamData
from synthkd.training.learner import Learner
from synthkd.training.memory import fitting_batch_size, training_step
from synthkd.types import Batch, ImageSpec, balanced_labels, to_uint8

REHEARSED = 16
"""Images of the batch that terms are tried on, at most."""


@dataclass(frozen=True)
class Parts:
    """Everything a distillation is made of.

    Attributes:
        subject: what is learned.
        contract, teacher: None where there is no teacher.
        pupils: the student, then its peers.
        generator: None where there are real images alone.
        arriving: real images that come while the student learns, or None.
        adaptation: looks at the pupils, and what follows.
        probe: images that no pupil learns from, or None while there are none.
        inherited: how many of the student's parameters start from the teacher's values.
        shown: real images that the generator has learned from; None where nobody can say.
    """

    subject: Subject
    contract: TeacherContract | None
    teacher: TeacherTeam | None
    pupils: tuple[Pupil, ...]
    generator: Any
    bank: MemoryBank
    difficulty: DifficultyScheduler
    source: HybridDataset
    arriving: ImageStream | None
    synthesis: Synthesis
    learn: DistillStep
    adaptation: Adaptation
    probe: Callable[[], Probe | None]
    inherited: int
    shown: int | None

    @property
    def learner(self) -> Learner:
        """The student's."""
        return self.pupils[0].learner

    @property
    def real_images_used(self) -> int | None:
        """Real images that the generator or the student has seen; None where nobody can say."""
        return None if self.shown is None else max(self.shown, len(self.source.real_rows))


def assemble(
    config: DistillConfig, teachers: Sequence[Classifier], accelerator: Accelerator, directory: Path | None
) -> Parts:
    """Build and wire every part.

    Args:
        config: the configuration.
        teachers: the teacher and those that label beside it, untouched but for eval mode; empty where there is none.
        accelerator: device, precision, processes.
        directory: run directory, for a bank on disk; None for a dry run, which keeps the bank in memory.
    """
    contracts = [probe(teacher, teacher_name(number)) for number, teacher in enumerate(teachers)]
    teacher, contract = (teachers[0], contracts[0]) if teachers else (None, None)
    dataset = read_stored(config.generator.path) if isinstance(config.generator, DatasetSettings) else None
    streamed = config.data if isinstance(config.data, StreamData) else None
    splits = None if config.data is None or isinstance(config.data, StreamData) else load_splits(config.data)
    if splits is not None and directory is not None:
        keep_data(directory, splits, accelerator, isinstance(config.generator, MerfSettings))
    subject = subject_of(teacher, dataset, splits)
    if streamed is not None and accelerator.num_processes > 1:
        raise ConfigError("data.kind: a stream is read in one process only; leave torchrun out, or take another kind")
    arriving = None if streamed is None else ImageStream(streamed, subject.spec)
    if splits is not None:
        require_fit("data", splits.train, subject)
    phases.check(config.phases, dataset is None and config.mix.real != 1.0 and config.mix.live != 1.0)
    student = untrained_student(config, subject)
    if isinstance(student, Slimmable) and accelerator.num_processes > 1:
        raise ConfigError("width: the width of a student changes in one process only; leave torchrun out, or width")
    inherited = 0
    if isinstance(student, Classifier) and teacher is not None and config.inherit and is_fresh(config.student):
        inherited = inherit(student, teacher)
    batch_size = _batch_size(config, student, accelerator)
    total = phases.student_steps(config.phases)
    bank = _bank(config, subject.spec, accelerator, directory, dataset)
    pupils = build_pupils(config, student, subject, teacher, total, accelerator, bank)
    frozen = label_by(config, teachers, pupils, accelerator)
    generator: Any = None
    if dataset is not None:
        generator = StoredImages(dataset)
        generator.fill(bank)
    elif not isinstance(config.generator, NoGenerator):
        assert teacher is not None
        generator = build_generator(config.generator, teacher, config.seed, accelerator, splits, directory)
    difficulty = DifficultyScheduler(config.difficulty)

    def live(count: int, step: int) -> Batch:
        first = step * batch_size
        labels = balanced_labels(count, first, subject.spec.classes)
        images = generator.sample(labels, difficulty.value, Rows(config.seed, "live", first))
        logits = None if frozen is None or config.mix.logits == "fresh" else frozen.logits(images).cpu()
        return Batch(images.cpu(), labels, logits)

    source = HybridDataset(
        config.mix,
        batch_size,
        total,
        bank,
        frozen,
        difficulty=lambda: difficulty.value if config.difficulty.augment else 0.0,
        seed=config.seed,
        live=live,
        real=arriving if splits is None else RealImages(splits.train.images, splits.train.labels),
        device=accelerator.device,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )
    synthesis = Synthesis(generator, bank, difficulty, pupils[0].learner.synchronise)
    asked = Probed(config, splits, arriving, generator, bank, frozen, accelerator.device)
    adaptation = adapt(config, pupils, frozen, asked, accelerator)
    for pupil in pupils:
        pupil.teacher = frozen
    pupils[0].adaptation = adaptation
    prioritized = bank if config.bank.policy == "prioritized" else None
    learn = DistillStep(pupils, source, accelerator, prioritized, adaptation.roles)
    learn.rehearse(_of_noise(config, subject.spec, frozen, accelerator.device))
    if dataset is None:
        shown = real_images_seen(config.generator, 0 if splits is None else len(splits.train))
    else:
        shown = dataset.about["real_images_used"]
    return Parts(
        subject=subject,
        contract=contract,
        teacher=frozen,
        pupils=pupils,
        generator=generator,
        bank=bank,
        difficulty=difficulty,
        source=source,
        arriving=arriving,
        synthesis=synthesis,
        learn=learn,
        adaptation=adaptation,
        probe=asked,
        inherited=inherited,
        shown=shown,
    )


def _of_noise(config: DistillConfig, spec: ImageSpec, frozen: TeacherTeam | None, device: torch.device) -> Batch:
    """A batch of the kind that the run will draw, of images that show nothing."""
    count = min(REHEARSED, config.distill.batch_size)
    rng = stream(config.seed, "rehearsal")
    images, logits = torch.rand(count, *spec.shape, generator=rng), torch.randn(count, spec.classes, generator=rng)
    drawn = Batch(images, balanced_labels(count, 0, spec.classes), logits)
    bank = MemoryBank(spec, config.bank.model_copy(update={"capacity": count, "storage": "ram"}), config.seed)
    bank.add(drawn.images, drawn.labels, logits)
    source = HybridDataset(
        config.mix,
        count,
        1,
        bank,
        frozen,
        difficulty=lambda: 0.0,
        seed=config.seed,
        live=lambda wanted, _: drawn.map(lambda value: value[:wanted]),
        real=RealImages(to_uint8(images), drawn.labels),
        device=device,
    )
    return source.batch(0)


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
    dataset: StoredDataset | None,
) -> MemoryBank:
    settings = config.bank
    if dataset is not None:  # it is drawn from for ever, so all of it stays
        settings = settings.model_copy(update={"capacity": max(1, len(dataset))})
    if directory is None and settings.storage == "disk":
        settings = settings.model_copy(update={"storage": "ram"})
    made = getattr(config.generator, "batch_size", 0)
    if made > settings.capacity:
        raise ConfigError(f"bank.capacity: a round of {made} images does not fit {settings.capacity}; make it larger")
    files = None if directory is None else directory / "bank" / f"process{accelerator.process_index}"
    return MemoryBank(spec, settings, config.seed, files)
