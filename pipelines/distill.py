"""Distill a student from a teacher, without its data or with a little of it."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from synthkd.data.bank import MemoryBank
from synthkd.data.hybrid import HybridSource, RealImages
from synthkd.data.real import RealData, load_splits
from synthkd.distillation import alarms, phases
from synthkd.distillation.hints import Hints
from synthkd.distillation.step import DistillStep
from synthkd.distillation.synthesis import Synthesis
from synthkd.distillation.teachers import FrozenTeacher
from synthkd.errors import ConfigError
from synthkd.generators.build import build_generator
from synthkd.grids import MOST_CLASSES, ROWS, save_grid
from synthkd.hardware import latency_ms
from synthkd.metrics.utility import Proportion, accuracy, predict, proportion
from synthkd.models import (
    Classifier,
    TeacherContract,
    build_model,
    inherit,
    is_fresh,
    load_model,
    parameters,
    probe,
    save,
)
from synthkd.models.layout import head
from synthkd.pipelines.config import DistillConfig, TeachConfig
from synthkd.pipelines.job import (
    Job,
    describe_model,
    disk_line,
    make_accelerator,
    open_job,
    scored,
    training_bytes,
)
from synthkd.pipelines.run import Plan, Result
from synthkd.pipelines.teach import build as build_taught
from synthkd.pipelines.teach import load_taught, teach
from synthkd.rng import Rows, derive
from synthkd.schedules import DifficultyController
from synthkd.settings import DataSettings, TrainedTeacher
from synthkd.taps import INPUT, evaluating, observe
from synthkd.training.learner import Learner
from synthkd.training.loop import Action, Loop, Progress
from synthkd.training.memory import fitting_batch_size, training_step
from synthkd.types import Batch, ImageSpec

ALARM_IMAGES = 1024
FRESH_IMAGES = 500


@dataclass(frozen=True)
class Parts:
    """Everything a distillation is made of, built and wired, nothing run.

    `inherited` counts the student's parameters that start from the teacher's values.
    """

    contract: TeacherContract
    teacher: FrozenTeacher
    learner: Learner
    generator: Any
    bank: MemoryBank
    difficulty: DifficultyController
    source: HybridSource
    synthesis: Synthesis
    learn: DistillStep
    inherited: int


def distill(config: DistillConfig, *, dry_run: bool = False) -> Result | Plan:
    """Distill the configured student and save it to `<run>/student`.

    With a teacher of `kind: train` that teacher is trained first, in `<run>/teach`. Afterwards no real image is opened
    unless `data` is set; `test` is opened for evaluation only, and never selects anything.

    Args:
        config: teacher, student, generator and phases.
        dry_run: build everything, check the teacher's contract, write nothing, and return the plan.

    Raises:
        SynthkdError: see the classes in `synthkd.errors`.
    """
    if dry_run:
        teacher = _dry_teacher(config)
        _require_fit("test", _test(config), teacher.spec)
        return Plan(_plan(config, assemble(config, teacher, make_accelerator(config), None)))
    with open_job("distill", config) as job:
        if job.finished is not None:
            return Result(job.directory, job.finished, _summary(job, dict(job.finished), already=True))
        test = _test(config)
        if isinstance(config.teacher, TrainedTeacher) and not (job.directory / "teach" / "result.json").exists():
            assemble(config, _dry_teacher(config), job.accelerator, None)  # to fail now rather than after the teacher
        teacher, teacher_seconds = _teacher(config, job)
        _require_fit("test", test, teacher.spec)
        parts = assemble(config, teacher, job.accelerator, job.directory)
        progress = _run(config, job, parts, test)
        student = _finished_student(config, job, parts)
        values = job.finish(_evaluate(config, job, parts, student, test, teacher_seconds, progress))
        return Result(job.directory, values, _summary(job, values))


def assemble(config: DistillConfig, teacher: Classifier, accelerator: Accelerator, directory: Path | None) -> Parts:
    """Build and wire every part for a teacher.

    Args:
        config: the configuration.
        teacher: the teacher, untouched but for eval mode.
        accelerator: device, precision, processes.
        directory: run directory, for a bank on disk; None for a dry run, which keeps the bank in memory.
    """
    contract = probe(teacher)
    spec = teacher.spec
    torch.manual_seed(derive(config.seed, "student/init"))
    mean, std = (v.flatten().tolist() for v in (teacher.normalize.mean, teacher.normalize.std))
    student = build_model(config.student, spec, mean, std, teacher.class_names)
    if student.spec != spec:
        raise ConfigError(f"student: it takes {student.spec}, its teacher {spec}; they must be the same")
    inherited = inherit(student, teacher) if config.inherit and is_fresh(config.student) else 0
    total = phases.student_steps(config.phases)
    phases.check(config.phases, needs_bank=config.mix.real != 1.0 and config.mix.live != 1.0)
    if config.distill.batch_size % accelerator.num_processes:
        raise ConfigError(
            f"distill.batch_size: {config.distill.batch_size} images cannot be shared out evenly among "
            f"{accelerator.num_processes} processes; choose a multiple"
        )
    hints = None if config.distill.hint == 0.0 else Hints(teacher, student)
    batch_size = config.distill.batch_size
    if config.adapt_batch_size:
        batch_size = fitting_batch_size(batch_size, training_step(student, spec, accelerator.device))
    frozen = FrozenTeacher(teacher, accelerator, [] if hints is None else [p.teacher for p in hints.pairs])
    learner = Learner("student", student, config.distill.optimizer, total, accelerator, hints)
    generator = build_generator(config.generator, teacher, config.seed, accelerator)
    settings = config.bank
    if directory is None and settings.storage == "disk":
        settings = settings.model_copy(update={"storage": "ram"})
    made = getattr(config.generator, "batch_size", 0)
    if made > settings.capacity:
        raise ConfigError(f"bank.capacity: a round of {made} images does not fit {settings.capacity}; make it larger")
    files = None if directory is None else directory / "bank" / f"process{accelerator.process_index}"
    bank = MemoryBank(spec, settings, config.seed, files)
    difficulty = DifficultyController(config.difficulty)

    def live(count: int, step: int) -> Batch:
        first = step * batch_size
        labels = (torch.arange(count) + first) % spec.classes
        images = generator.sample(labels, difficulty.value, Rows(config.seed, "live", first))
        logits = frozen.logits(images).cpu() if config.mix.logits == "stored" else None
        return Batch(images.cpu(), labels, logits)

    source = HybridSource(
        config.mix,
        batch_size,
        total,
        bank,
        frozen,
        difficulty=lambda: difficulty.value if config.difficulty.augment else 0.0,
        seed=config.seed,
        live=live,
        real=None if config.data is None else _real(config.data, spec),
        device=accelerator.device,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )
    synthesis = Synthesis(generator, bank, difficulty, learner.synchronise)
    prioritized = config.bank.policy == "prioritized"
    places = () if hints is None else [pair.student for pair in hints.pairs]
    learn = DistillStep(learner, source, config.distill, accelerator, bank if prioritized else None, places)
    return Parts(contract, frozen, learner, generator, bank, difficulty, source, synthesis, learn, inherited)


def _test(config: DistillConfig) -> RealData | None:
    """The test split, read before anything expensive; it is only ever reported on."""
    return None if config.test is None else load_splits(config.test).test


def _real(settings: DataSettings, spec: ImageSpec) -> RealImages:
    train = load_splits(settings).train
    _require_fit("data", train, spec)
    return RealImages(train.images, train.labels)


def _require_fit(key: str, data: RealData | None, spec: ImageSpec) -> None:
    if data is not None and data.spec != spec:
        raise ConfigError(f"{key}: {data.name} has {data.spec}, the teacher takes {spec}; they must be the same")


def _teacher(config: DistillConfig, job: Job) -> tuple[Classifier, float]:
    if isinstance(config.teacher, TrainedTeacher):
        result = teach(_teach_config(config, str(job.directory / "teach")))
        assert isinstance(result, Result)
        return load_taught(result), float(result.values["seconds"])
    return load_model(config.teacher), 0.0


def _teach_config(config: DistillConfig, out: str | None) -> TeachConfig:
    assert isinstance(config.teacher, TrainedTeacher)
    shared = {
        key: getattr(config, key) for key in ("seed", "device", "precision", "threads", "log_every", "adapt_batch_size")
    }
    return TeachConfig(
        name=f"{config.name}-teacher",
        out=out,
        data=config.teacher.data,
        model=config.teacher.model,
        training=config.teacher.training,
        checkpoint_every=config.checkpoint_every,
        **shared,
    )


def _dry_teacher(config: DistillConfig) -> Classifier:
    if isinstance(config.teacher, TrainedTeacher):
        teaching = _teach_config(config, None)
        return build_taught(teaching, load_splits(teaching.data)).eval()
    return load_model(config.teacher)


def _run(config: DistillConfig, job: Job, parts: Parts, test: RealData | None) -> Progress:
    def evaluate(_: int) -> dict[str, Tensor | float]:
        if test is None:
            return {}
        student = parts.learner.evaluated
        with evaluating(student):
            return {"test/accuracy": accuracy(predict(student, test.images, job.device), test.labels).value}

    def draw(step: int) -> dict[str, Tensor | float]:
        if job.accelerator.is_main_process:
            _grid(config, job, parts, step + 1)
        return {}

    stages = phases.build(
        config.phases,
        parts.synthesis.alone,
        parts.synthesis.beside_student,
        parts.learn,
        Action("evaluate", evaluate, every=config.evaluate_every, after=True),
        draw,
        config.grid_every,
    )
    loop = Loop(
        job.accelerator,
        {
            "student": parts.learner,
            "generator": parts.generator,
            "bank": parts.bank,
            "difficulty": parts.difficulty,
            "source": parts.source,
        },
        job.store,
        job.monitor,
        config.seed,
        config.log_every,
        config.checkpoint_every,
        shown=("student/loss", "fresh/agreement", "difficulty", "test/accuracy"),
    )
    return loop.run(stages, f"distill {config.name}")


def _grid(config: DistillConfig, job: Job, parts: Parts, step: int) -> None:
    """The same latent vectors every time, one column for each class."""
    spec = parts.teacher.spec
    columns = min(spec.classes, MOST_CLASSES)
    labels = torch.arange(columns).repeat(ROWS)
    images = parts.generator.sample(labels, config.difficulty.start, Rows(config.seed, "grid"))
    names = parts.teacher.model.class_names[:columns] or tuple(map(str, range(columns)))
    save_grid(images.cpu(), columns, job.directory / "samples" / f"step_{step:06d}.png", names)


def _finished_student(config: DistillConfig, job: Job, parts: Parts) -> Classifier:
    """The student that the run ends with: always the last weights (or their average), never a best checkpoint."""
    student = parts.learner.evaluated
    assert isinstance(student, Classifier)
    student.eval()
    if job.accelerator.is_main_process:
        save(student, job.directory / "student", {"seed": config.seed, "real_images_used": len(parts.source.real_rows)})
    job.accelerator.wait_for_everyone()
    return student


def _evaluate(
    config: DistillConfig,
    job: Job,
    parts: Parts,
    student: Classifier,
    test: RealData | None,
    teacher_seconds: float,
    progress: Progress,
) -> dict[str, Any]:
    started = time.perf_counter()
    teacher = parts.teacher
    device = job.device
    teacher_score: Proportion | None = None
    student_score: Proportion | None = None
    if test is not None:
        taught, learned = predict(teacher.logits, test.images, device), predict(student, test.images, device)
        teacher_score, student_score = accuracy(taught, test.labels), accuracy(learned, test.labels)
        agreement, agreement_on = accuracy(learned, taught), "test"
    else:
        agreement, agreement_on = _fresh_agreement(config, parts, student), "fresh synthetic samples"
    raised = _alarms(job, parts)
    spec = teacher.spec
    seconds = {
        "teacher": teacher_seconds,
        "distill": progress.seconds,
        "evaluate": progress.watching + time.perf_counter() - started,
    }
    values: dict[str, Any] = {
        "seconds": round(sum(seconds.values()), 3),
        "real_images_used": len(parts.source.real_rows),
        "teacher": {**scored(teacher_score), **describe_model(teacher.model, latency_ms(teacher.model, spec, device))},
        "student": {
            **scored(student_score),
            "agreement": agreement.value,
            "agreement_interval": [agreement.low, agreement.high],
            "agreement_n": agreement.n,
            "agreement_on": agreement_on,
            **describe_model(student, latency_ms(student, spec, device)),
            "inherited_parameters": parts.inherited,
        },
        "data": {"class_names": list(teacher.model.class_names), "spec": str(spec)},
        "cost": {
            "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
            "steps": parts.learner.total,
            "images_generated": parts.bank.added,
        },
        "alarms": [asdict(alarm) for alarm in raised],
    }
    ratio = {"parameters": values["student"]["parameters"] / values["teacher"]["parameters"]}
    if teacher_score is not None and student_score is not None and teacher_score.value > 0:
        ratio["accuracy"] = student_score.value / teacher_score.value
    return values | {"ratio": ratio}


def _fresh_agreement(config: DistillConfig, parts: Parts, student: Classifier) -> Proportion:
    """Agreement of the finished student with its teacher on images that were made for this question alone."""
    hits, chunk = 0, 100
    for first in range(0, FRESH_IMAGES, chunk):
        labels = torch.arange(first, first + chunk) % parts.teacher.spec.classes
        images = parts.generator.sample(labels, config.difficulty.start, Rows(config.seed, "fresh", first))
        with torch.no_grad():
            hits += int((student(images).argmax(1) == parts.teacher.logits(images).argmax(1)).sum())
    return proportion(hits, FRESH_IMAGES)


def _alarms(job: Job, parts: Parts) -> list[alarms.Alarm]:
    """The tests that need no data, on the newest images and on the whole run's log."""
    newest = parts.bank.newest(ALARM_IMAGES)
    raised: list[alarms.Alarm | None] = []
    if len(newest):
        model = parts.teacher.model
        penultimate = head(model) + INPUT
        with evaluating(model), torch.no_grad():
            seen = observe(model, newest.images.to(job.device), features=[penultimate], statistics=True)
        raised = [
            alarms.class_imbalance(seen.logits.cpu()),
            alarms.collapse(seen.features[penultimate].flatten(1).cpu(), newest.labels),
            alarms.statistics_gap(seen.statistics),
        ]
    if job.accelerator.is_main_process:
        raised.append(alarms.stale_student(job.monitor.series("fresh/agreement")[1]))
    return [alarm for alarm in raised if alarm is not None]


def _plan(config: DistillConfig, parts: Parts) -> tuple[str, ...]:
    spec, contract = parts.teacher.spec, parts.contract
    teacher, student = contract.parameters, parameters(parts.learner.module)
    rounds = phases.generator_rounds(config.phases)
    batch = getattr(config.generator, "batch_size", None)
    made = "" if batch is None else f", {rounds * batch:,} images"
    inherited = f"{parts.inherited:,} of them start from its weights" if parts.inherited else "freshly initialised"
    on_disk = parts.bank.nbytes if config.bank.storage == "disk" else 0
    trained = ", trained first" if isinstance(config.teacher, TrainedTeacher) else ""
    return (
        f"distill {config.name}: {spec}",
        f"  teacher: {teacher:,} parameters, {contract.batch_norm_layers} BatchNorm layers{trained}",
        f"  student: {student:,} parameters ({student / teacher:.1%} of the teacher's), {inherited}",
        f"  real images: {'none' if config.data is None else 'mixed in from ' + config.data.kind}",
        f"  phases: {', '.join(phases.describe(phase) for phase in config.phases)}",
        f"  student steps: {parts.learner.total:,} of {config.distill.batch_size} images",
        f"  generator rounds: {rounds:,}{made}",
        disk_line(config, parts.bank.nbytes + training_bytes(student), on_disk),
    )


def _summary(job: Job, values: dict[str, Any], already: bool = False) -> tuple[str, ...]:
    teacher, student = values["teacher"], values["student"]
    lines = [f"{job.directory} was complete already; nothing was run"] if already else []
    if student.get("accuracy") is not None:
        lines.append(
            f"student: {student['accuracy']:.2%} of {student['n']:,} test images right, its teacher "
            f"{teacher['accuracy']:.2%}: {values['ratio']['accuracy']:.1%} of the accuracy at "
            f"{values['ratio']['parameters']:.1%} of the parameters"
        )
    else:
        lines.append(f"student: {values['ratio']['parameters']:.1%} of the teacher's parameters; no real test data")
    lines.append(f"         agrees with its teacher on {student['agreement']:.2%} of {student['agreement_on']}")
    lines.append(f"real images used in distillation: {values['real_images_used']}")
    lines += [f"alarm:   {alarm['name']}: {alarm['message']}" for alarm in values.get("alarms", [])]
    return (*lines, f"report:  {job.directory / 'report.html'}", f"student: {job.directory / 'student'}")
