"""The parts of a distillation, built from its configuration; nothing is run.

Teachers -> subject -> networks -> auxiliary layers -> teacher team -> students -> generator -> batch size -> transfer
set -> evaluation -> step: each part is built from those before it, and is not changed afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from accelerate import Accelerator

from synthkd.data.read.decode import some
from synthkd.data.read.real import load_splits
from synthkd.data.read.splits import RealData
from synthkd.data.read.unlabelled import read_unlabelled
from synthkd.data.written.soft_labelled import read_soft_labelled
from synthkd.distillation import phases
from synthkd.distillation.control.controllers import Controllers
from synthkd.distillation.evaluation import PeriodicEvaluation
from synthkd.distillation.step import DistillStep
from synthkd.distillation.student import Student
from synthkd.distillation.teachers import TeacherTeam
from synthkd.errors import ConfigError
from synthkd.generators.build import build_generator
from synthkd.generators.files import facts_of
from synthkd.models import Classifier, TeacherContract, probe
from synthkd.models.black_box import BlackBox, black_box_of
from synthkd.pipelines.config import DistillConfig
from synthkd.pipelines.run.batch_size import BatchSize, choose_batch_size
from synthkd.pipelines.run.images import fitted, fitted_dataset, fitted_splits, keep_data
from synthkd.pipelines.run.several import require_shareable
from synthkd.pipelines.run.tested import training_data
from synthkd.pipelines.scores.running import RunningScores, build_scores
from synthkd.pipelines.student.chosen import with_generator, with_hint
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
from synthkd.pipelines.student.start import Start, start_of
from synthkd.pipelines.student.teacher_warnings import teacher_warnings
from synthkd.pipelines.student.transfer_set import TransferSet
from synthkd.pipelines.student.transfer_set_builder import (
    Images,
    TransferSetBuilder,
    build_bank,
    is_private,
    rounds_at_once,
)
from synthkd.pipelines.student.trial import Trial, noise_dataset
from synthkd.settings import StreamData, UnlabelledData
from synthkd.training.learner import Learner
from synthkd.types import Stateful, TrainableGenerator

REHEARSED = 16
"""Largest number of images of the batch on which loss terms are tried before the training."""


@dataclass(frozen=True)
class Assembly:
    """All parts of a distillation.

    Attributes:
        config: of the run, with the generator and the weight of hints that the networks have chosen.
        chosen: why the networks chose the generator, or no hints, a line each.
        subject: images and classes.
        contract: measured properties of the first teacher; None without a teacher, or of a black box.
        team: all teachers, which label images; None without a teacher.
        students: the student, then its peers.
        transfer_set: the images that they learn from.
        step: one training step of all students.
        evaluation: periodic evaluation, and the controllers that follow it.
        start: of the student.
        scores: measures generated images while the run goes, or None.
        batch: images of a batch over all processes.
        warnings: what is odd about the teachers, a line each.
        trial: takes steps on noise with these parts.
        given: the student that was given in memory, as it was; None if the configuration names one.
        class_names: of the subject; if it has none, those of the images that are learned from, in its order.
    """

    config: DistillConfig
    chosen: tuple[str, ...]
    subject: Subject
    contract: TeacherContract | None
    team: TeacherTeam | None
    students: tuple[Student, ...]
    transfer_set: TransferSet
    step: DistillStep
    evaluation: PeriodicEvaluation
    start: Start
    scores: RunningScores | None
    batch: BatchSize
    warnings: tuple[str, ...]
    trial: Trial
    given: Classifier | None
    class_names: tuple[str, ...]

    def fitted_test(self, test: RealData | None) -> RealData | None:
        """The test images with labels as numbers of the teacher's classes.

        Raises:
            DataError: they are of another size, or of classes that the teacher does not have.
        """
        return None if test is None else fitted("test", test, self.subject.spec, self.class_names, lacks_classes=True)

    @property
    def learner(self) -> Learner:
        """The learner of the student."""
        return self.students[0].learner

    @property
    def black_box(self) -> BlackBox | None:
        """The teacher, if it is a black box."""
        return None if self.team is None else black_box_of(self.team.model)

    @property
    def state(self) -> dict[str, Stateful]:
        """The parts whose state goes into checkpoints, by name."""
        students = {student.name: student for student in self.students}
        state = {**students, **self.transfer_set.state, "adaptation": self.evaluation}
        return state if self.black_box is None else {**state, "black box": self.black_box}


def assemble(
    config: DistillConfig,
    teachers: Sequence[Classifier],
    accelerator: Accelerator,
    directory: Path | None,
    student: Classifier | None = None,
) -> Assembly:
    """Build all parts, check that they fit together, and try the loss terms on noise.

    Args:
        config: the configuration; the networks choose what it leaves open (`with_generator`, `with_hint`).
        teachers: the teacher and further ones; empty without a teacher. They are moved to the device and frozen.
        accelerator: device, precision, processes.
        directory: the run directory, for files of the parts; None for a dry run, which writes none.
        student: that was given in memory, which is copied; None if the configuration names one.

    Raises:
        SynthkdError: see the classes in `synthkd.errors`.
    """
    config, why_this_generator = with_generator(config, teachers[0] if teachers else None)
    facts = None if config.generated is None else facts_of(config.generated.named)
    contracts = _probed(config, teachers, config.needs_gradients or (facts is not None and facts.moves_samples))
    warnings = teacher_warnings(config.every_teacher, teachers, contracts, config.distill.batch_size)
    teacher = teachers[0] if teachers else None
    images = _read(config, accelerator, directory, teacher)
    subject = subject_of(teacher, images.stored, images.splits)
    _require_possible(config, accelerator)
    _require_one_order(subject, teachers)
    images = _fitted(config, images, subject)
    module = untrained_student(config, subject, student)
    config, why_no_hints = with_hint(config, teacher, module)
    start = start_of(config, module, teacher)
    wanted, total = config.distill.batch_size, phases.student_steps(config.phases)
    networks = build_networks(config, module, subject, teacher)
    controllers = build_controllers(config)
    team = build_team(config, teachers, networks, accelerator, controllers.selection)
    bank = build_bank(config, facts, subject.spec, accelerator, directory, images.stored)
    students = build_students(config, networks, total, accelerator, team, bank, controllers)
    generator = _generator(config, teacher, accelerator, images, directory)
    # After everything that takes memory beside a step, and before the batches.
    trial = Trial(
        config,
        subject.spec,
        accelerator,
        students,
        team,
        controllers,
        bank=bank,
        generator=generator,
        splits=images.splits,
    )
    batch = choose_batch_size(config, wanted, accelerator, directory, trial.parts, trial)
    transfer_set = TransferSetBuilder(
        config, facts, accelerator, subject, images, generator, team, students[0].learner, bank, batch.images, total
    ).build()
    _require_evaluations(config, controllers, transfer_set)
    evaluation = PeriodicEvaluation(
        config.distill.adapt.every,
        lambda: [student.learner.evaluated for student in students],
        transfer_set.held_out,
        controllers,
        team if controllers.selection is not None else None,
        batch.of_process,
    )
    prioritized = next((one for one in transfer_set.banks if one.settings.policy == "prioritized"), None)
    step = DistillStep(students, transfer_set.dataset, accelerator, prioritized, lambda: controllers.teaching)
    # A term that fails should fail now, not hours later when its weight is first above 0.
    step.rehearse(noise_dataset(config, subject.spec, team, accelerator.device, min(REHEARSED, batch.images)).batch(0))
    scores = _scores(config, images, teacher, accelerator, batch)
    contract = contracts[0] if contracts else None
    parts = contract, team, students, transfer_set, step, evaluation, start, scores, batch, warnings, trial, student
    return Assembly(config, why_this_generator + why_no_hints, subject, *parts, _class_names(subject, images))


def _class_names(subject: Subject, images: Images) -> tuple[str, ...]:
    return subject.class_names if images.splits is None else images.splits.train.class_names


def _generator(
    config: DistillConfig, teacher: Classifier | None, accelerator: Accelerator, images: Images, directory: Path | None
) -> TrainableGenerator | None:
    if config.generated is None or teacher is None:
        return None
    settings, at_once = config.generated.named, rounds_at_once(config, accelerator.num_processes)
    rounds = phases.generator_rounds(config.phases_and_extensions)
    return build_generator(settings, teacher, config.seed, accelerator, images.splits, directory, at_once, rounds)


def _probed(config: DistillConfig, teachers: Sequence[Classifier], gradients: bool) -> list[TeacherContract]:
    """The contracts of the teachers; not that of a black box, whose check would cost queries."""
    return [
        probe(teacher, teacher_name(number), number == 0 and gradients, config.distill.batch_size)
        for number, teacher in enumerate(teachers)
        if black_box_of(teacher) is None
    ]


def _scores(
    config: DistillConfig, images: Images, teacher: Classifier | None, accelerator: Accelerator, batch: BatchSize
) -> RunningScores | None:
    """What measures generated images while the run goes, if the configuration asks for it."""
    if config.score is None or teacher is None or config.generated is None:
        return None
    settings, device, size = config.generated.named, accelerator.device, batch.of_process
    trained = training_data(config)
    return build_scores(config.score, teacher, settings, images.splits, device, config.seed, trained, size)


def _read(
    config: DistillConfig, accelerator: Accelerator, directory: Path | None, teacher: Classifier | None
) -> Images:
    """Read the images of the sources. A generator learns from its own real images, else from the real source's."""
    stored = None if config.stored is None else read_soft_labelled(config.stored.path)
    real = None if config.real is None else config.real.data
    arriving = real if isinstance(real, StreamData) else None
    fixed = None if isinstance(real, StreamData | UnlabelledData) else real
    generated = config.generated
    if generated is not None and generated.data is not None:
        fixed = generated.data
    splits = None if fixed is None else load_splits(fixed)
    unlabelled = None
    if isinstance(real, UnlabelledData) and teacher is not None:
        unlabelled = read_unlabelled(real, teacher.spec, tuple(teacher.class_names))
    bound = splits or unlabelled
    if bound is not None and directory is not None:
        keep_data(directory, bound, accelerator, is_private(config))
    return Images(stored, splits, arriving, unlabelled)


def _fitted(config: DistillConfig, images: Images, subject: Subject) -> Images:
    """The images with labels as numbers of the teacher's classes."""
    stored, splits = images.stored, images.splits
    if stored is not None:
        stored = fitted_dataset("transfer_set.path", stored, subject.class_names)
    if splits is not None:
        source = config.generated if config.generated is not None and config.generated.data is not None else config.real
        assert source is not None  # that the splits were read for
        splits = fitted_splits(f"{config.key_of(source)}.data", splits, subject.spec, subject.class_names)
    return replace(images, stored=stored, splits=splits)


def _require_one_order(subject: Subject, teachers: Sequence[Classifier]) -> None:
    """Refuse teachers that number the same classes in another order: their logits are averaged column by column."""
    for number, teacher in enumerate(teachers):
        ours, theirs = tuple(teacher.class_names), subject.class_names
        if ours and theirs and ours != theirs and sorted(ours) == sorted(theirs):
            raise ConfigError(
                f"teachers: {teacher_name(number)} numbers its classes {some(ours, 5)}, the teacher {some(theirs, 5)}; "
                "take teachers with one order"
            )


def _require_possible(config: DistillConfig, accelerator: Accelerator) -> None:
    """Refuse settings that do not fit the phases or several processes."""
    require_shareable(config, accelerator.num_processes)
    generated, real = config.generated, config.real
    has_bank_images = generated is not None and generated.live != 1.0 and (real is None or real.share != 1.0)
    phases.check(config.phases, needs_bank=has_bank_images)


def _require_evaluations(config: DistillConfig, controllers: Controllers, transfer_set: TransferSet) -> None:
    """Refuse controllers without held-out images to follow."""
    if not controllers.keys:
        return
    key = controllers.keys[0]
    if not transfer_set.can_hold_out:
        read = next((one for one in (config.real, config.generated) if one is not None and one.data is not None), None)
        remedy = "" if read is None else f": set {config.key_of(read)}.data.holdout above 0"
        raise ConfigError(f"{key} goes by images that are held out, or a bank{remedy}")
