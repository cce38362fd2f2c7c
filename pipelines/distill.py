"""Distill a student from a teacher, without its data or with a little of it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from synthkd.data.read.real import RealData, load_splits
from synthkd.distillation import phases
from synthkd.generators.files import INSIDE_A_RUN, save_generator
from synthkd.metrics.utility import accuracy, predict
from synthkd.models import Classifier, save
from synthkd.models.weights import finite_state
from synthkd.pipelines.config import DistillConfig
from synthkd.pipelines.run.directory import Plan, Result, trusting
from synthkd.pipelines.run.job import Job, make_accelerator, open_job
from synthkd.pipelines.student.assembly import Parts, assemble, require_fit
from synthkd.pipelines.student.networks import finished
from synthkd.pipelines.student.results import measured
from synthkd.pipelines.student.teachers import ReadyTeacher, is_taught, ready_teacher, untrained_teacher
from synthkd.pipelines.student.text import plan, summary
from synthkd.reports.grids import MOST_CLASSES, ROWS, save_grid
from synthkd.reports.results import DistillResult, result_values
from synthkd.rng import Rows
from synthkd.taps import evaluating
from synthkd.training.loop import Action, Loop, Progress
from synthkd.types import balanced_labels

STUDENT, PEERS = "student", "peers"


@trusting
def distill(config: DistillConfig, *, dry_run: bool = False) -> Result[DistillResult] | Plan:
    """Distill the configured student and save it to `<run>/student`, and its generator to `<run>/generator`.

    With a teacher of `kind: train` that teacher is trained first, in `<run>/teach`. Afterwards no real image is opened
    unless `data` is set; `test` is opened for evaluation only, and never selects anything.

    Args:
        config: teacher, student, generator and phases.
        dry_run: build everything, check the teacher's contract, write nothing, and return the plan.

    Raises:
        SynthkdError: see the classes in `synthkd.errors`.
    """
    if dry_run:
        parts = assemble(config, _untrained(config), make_accelerator(config), None)
        require_fit("test", _test(config), parts.subject)
        return Plan(plan(config, parts))
    with open_job("distill", config) as job:
        if isinstance(job.finished, DistillResult):
            return Result(job.directory, job.finished, summary(job, result_values(job.finished), already=True))
        test = _test(config)
        ready = _teachers(config, job)
        parts = assemble(config, [teacher.model for teacher in ready], job.accelerator, job.directory)
        require_fit("test", test, parts.subject)
        progress = _run(config, job, parts, test)
        student = _finished_student(config, job, parts)
        taught = sum(teacher.seconds for teacher in ready)
        content = job.finish(measured(config, job, parts, student, test, taught, progress))
        return Result(job.directory, content, summary(job, result_values(content)))


def _teachers(config: DistillConfig, job: Job) -> list[ReadyTeacher]:
    asked = config.every_teacher
    if not all(is_taught(settings, job.directory, number) for number, settings in enumerate(asked)):
        assemble(config, _untrained(config), job.accelerator, None)  # to fail now rather than after the teachers
    return [ready_teacher(settings, config, job, number) for number, settings in enumerate(asked)]


def _untrained(config: DistillConfig) -> list[Classifier]:
    return [untrained_teacher(settings, config) for settings in config.every_teacher]


def _test(config: DistillConfig) -> RealData | None:
    """The test split, read before anything expensive; it is only ever reported on."""
    return None if config.test is None else load_splits(config.test).test


def _run(config: DistillConfig, job: Job, parts: Parts, test: RealData | None) -> Progress:
    def evaluate(_: int) -> dict[str, Tensor | float]:
        if test is None:
            return {}
        student = parts.learner.evaluated
        finite_state(student, "student")
        with evaluating(student):
            return {"test/accuracy": accuracy(predict(student, test.images, job.device), test.labels).value}

    def draw(step: int) -> dict[str, Tensor | float]:
        if job.accelerator.is_main_process and parts.generator is not None:
            _grid(config, job, parts, step + 1)
        return {}

    def look(number: int, step: int) -> dict[str, Tensor | float]:
        before = parts.adaptation.teaching
        values = parts.adaptation(number)
        now = parts.adaptation.teaching
        if now is not None and now != before:
            who = parts.pupils[now].learner.name
            job.monitor.event(step, f"role swap: {who} teaches from here on", kind="swap", teaching=who)
        return values

    def publish(_: int) -> dict[str, Tensor | float]:
        if job.accelerator.is_main_process:
            with evaluating(parts.learner.evaluated):
                save(finished(parts.pupils[0]), job.directory / STUDENT, _notes(config, parts))
        return {}

    watch = [Action("evaluate", evaluate, every=config.evaluate_every, after=True)]
    if config.publish_every is not None:
        watch.append(Action("publish", publish, every=config.publish_every, after=True))
    stages = phases.build(
        config.phases,
        parts.synthesis.alone,
        parts.synthesis.beside_student,
        parts.learn,
        look,
        parts.adaptation.every,
        watch,
        draw,
        config.grid_every,
    )
    loop = Loop(
        job.accelerator,
        {
            **{pupil.learner.name: pupil for pupil in parts.pupils},
            **({} if parts.generator is None else {"generator": parts.generator}),
            "bank": parts.bank,
            "difficulty": parts.difficulty,
            "source": parts.source,
            **({} if parts.arriving is None else {"stream": parts.arriving}),
            "adaptation": parts.adaptation,
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
    columns = min(parts.subject.spec.classes, MOST_CLASSES)
    labels = balanced_labels(columns * ROWS, 0, columns)
    images = parts.generator.sample(labels, config.difficulty.start, Rows(config.seed, "grid"))
    names = parts.subject.class_names[:columns] or tuple(map(str, range(columns)))
    save_grid(images.cpu(), columns, job.directory / "samples" / f"step_{step:06d}.png", names)


def _finished_student(config: DistillConfig, job: Job, parts: Parts) -> Classifier:
    """Save what the run ends with: always the last weights (or their average), never a best checkpoint."""
    student = finished(parts.pupils[0]).eval()
    if job.accelerator.is_main_process:
        notes = _notes(config, parts)
        save(student, job.directory / STUDENT, notes)
        for number, peer in enumerate(parts.pupils[1:], start=1):
            save(finished(peer).eval(), job.directory / PEERS / str(number), notes)
        folder, subject = job.directory / INSIDE_A_RUN, parts.subject
        save_generator(
            parts.generator, config.generator, folder, subject.spec, subject.class_names, config.seed, parts.shown
        )
    job.accelerator.wait_for_everyone()
    return student


def _notes(config: DistillConfig, parts: Parts) -> dict[str, Any]:
    """What a saved student says of its making."""
    return {"seed": config.seed, "real_images_used": parts.real_images_used}
