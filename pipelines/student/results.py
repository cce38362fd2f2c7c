"""The result of a distillation: accuracy, agreement, size and speed, cost, alarms."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import nn

from synthkd.compression.capacity import TeacherQuality, compare_teachers
from synthkd.data.read.real import RealData
from synthkd.distillation import alarms
from synthkd.distillation.teachers import TeacherTeam
from synthkd.metrics.utility import Proportion, accuracy, predict
from synthkd.models import Classifier, parameters
from synthkd.models.black_box import black_box_of
from synthkd.pipelines.config import DistillConfig
from synthkd.pipelines.run.extension import earlier_results
from synthkd.pipelines.run.job import Job, describe_model
from synthkd.pipelines.student.assembly import Assembly
from synthkd.pipelines.student.networks import finished
from synthkd.pipelines.student.teacher_warnings import WARNING
from synthkd.reports.results import (
    Agreement,
    DataDescription,
    DistillResult,
    Evaluations,
    ModelDescription,
    ModelResult,
    QualityResult,
    Queries,
    RaisedAlarm,
    Ratio,
    RunCost,
    StudentResult,
    TeamTeacher,
    from_json,
)
from synthkd.settings import TrainedTeacher
from synthkd.taps import evaluating
from synthkd.training.loop import Progress
from synthkd.types import to_uint8

QUALITY_IMAGES = 200


def measured(
    config: DistillConfig,
    job: Job,
    assembly: Assembly,
    student: Classifier,
    test: RealData | None,
    teacher_seconds: float,
    progress: Progress,
) -> DistillResult:
    """Measure what a finished distillation comes to: accuracy, agreement, size and speed, cost, alarms.

    Args:
        config: of the run.
        job: the open run.
        assembly: what was run.
        student: as it was saved.
        test: real test data, or None.
        teacher_seconds: how long the teacher's training took.
        progress: of the loop.
    """
    started = time.perf_counter()
    device, team, peers, box = job.device, assembly.team, assembly.students[1:], assembly.black_box
    agreed = assembly.transfer_set.agreement(student)
    agreement = Agreement() if agreed is None else Agreement.on(agreed.rate, agreed.on)
    raised = [*_one_class(assembly, student, test, device), *_alarms(job, assembly)]
    teacher_score = student_score = None
    peer_scores: list[Proportion | None] = [None for _ in peers]
    if test is not None:
        answers = predict(student, test.images, device, who="the student")
        student_score = accuracy(answers, test.labels)
        peer_scores = [_score(peer.learner.evaluated, test, device) for peer in peers]
        if team is not None and (box is None or box.covers(test.images)):
            teacher_answers = predict(team.consensus, test.images, device)
            teacher_score = accuracy(teacher_answers, test.labels)
            raised += _near_chance(config, team, teacher_score)
            agreement = Agreement.on(accuracy(answers, teacher_answers), "test")
    seconds = {
        "teacher": teacher_seconds,
        "distill": progress.seconds,
        "evaluate": progress.evaluation_seconds + time.perf_counter() - started,
    }
    # Latencies come after the clock of the evaluation has stopped: they are no part of it.
    return DistillResult(
        seconds=round(sum(seconds.values()), 3),
        real_images_used=assembly.transfer_set.real_images_used,
        teacher=None if team is None else _teacher(team.model, teacher_score, device),
        student=StudentResult.of_student(student_score, agreement, describe_model(student, device), assembly.inherited),
        data=DataDescription(assembly.subject.class_names, str(assembly.subject.spec)),
        cost=RunCost(
            {stage: round(value, 3) for stage, value in seconds.items()},
            assembly.learner.steps,
            assembly.transfer_set.images_generated,
            batch_size=assembly.batch.images,
        ),
        alarms=(
            *(RaisedAlarm(**vars(alarm)) for alarm in raised),
            *(RaisedAlarm(WARNING, warning) for warning in assembly.warnings),
        ),
        evaluations=from_json(
            Evaluations,
            assembly.evaluation.outcome([one.name for one in assembly.students], job.monitor.rows()),
        ),
        teachers=None if team is None or len(team.models) < 2 else _team(config, assembly, team, test, device),
        peers=tuple(_model(finished(peer), score, device) for peer, score in zip(peers, peer_scores, strict=True))
        or None,
        ratio=None if team is None else _ratio(student, team.model, student_score, teacher_score),
        scores=None if assembly.scores is None else assembly.scores.result(job.monitor.rows()),
        before=earlier_results(config, job.directory),
        queries=None if box is None else Queries(box.used, box.settings.queries, box.settings.answers),
    )


def _teacher(model: Classifier, score: Proportion | None, device: torch.device) -> ModelResult:
    """The first teacher; of a black box neither size nor speed is known."""
    if black_box_of(model) is not None:
        return ModelResult.tested(score, ModelDescription(arch=str(model.recipe["model"])))
    return _model(model, score, device)


def _model(model: Classifier, score: Proportion | None, device: torch.device) -> ModelResult:
    return ModelResult.tested(score, describe_model(model, device))


def _score(model: nn.Module, test: RealData, device: torch.device) -> Proportion:
    with evaluating(model):
        return accuracy(predict(model, test.images, device), test.labels)


def _ratio(student: Classifier, teacher: Classifier, ours: Proportion | None, theirs: Proportion | None) -> Ratio:
    """Student over teacher in parameters and, where both were tested and the teacher is ever right, in accuracy."""
    share = None
    if ours is not None and theirs is not None and theirs.value > 0:
        share = ours.value / theirs.value
    if black_box_of(teacher) is not None:
        return Ratio(accuracy=share)
    return Ratio(parameters(student) / parameters(teacher), share)


def _team(
    config: DistillConfig, assembly: Assembly, team: TeacherTeam, test: RealData | None, device: torch.device
) -> tuple[TeamTeacher, ...]:
    """Each of several teachers, with its quality among them on held-out images."""
    models = {f"teacher {number}": model for number, model in enumerate(team.models, start=1)}
    held_out = assembly.transfer_set.held_out()
    quality: Sequence[TeacherQuality | None] = [None] * len(models)
    if held_out is not None:
        quality = compare_teachers(models, to_uint8(held_out.images[:QUALITY_IMAGES]).cpu(), config.seed)
    counts: Sequence[int | None] = assembly.evaluation.controllers.selected or [None] * len(models)
    return tuple(
        TeamTeacher.of_team(
            name,
            _model(model, None if test is None else _score(model, test, device), device),
            None if rank is None else _quality(rank),
            count,
        )
        for (name, model), rank, count in zip(models.items(), quality, counts, strict=True)
    )


def _quality(rank: TeacherQuality) -> QualityResult:
    report = rank.report
    return QualityResult(
        report.fisher_trace, report.feature_dimension, rank.relative_trace, rank.relative_dimension, rank.score
    )


def _one_class(
    assembly: Assembly, student: Classifier, test: RealData | None, device: torch.device
) -> list[alarms.Alarm]:
    """The alarms about students that give one answer: on test images, else on the newest that there are."""
    if test is not None:
        images, labels, on = test.images, test.labels, "test images"
    else:
        images, labels, on = assembly.transfer_set.sample(assembly.learner.steps - 1)
    names, labels = assembly.subject.class_names, labels.cpu()
    students = {"the student": student}
    students |= {f"peer {number}": finished(peer) for number, peer in enumerate(assembly.students[1:], start=1)}
    raised = []
    for who, model in students.items():
        name = alarms.ONE_CLASS if model is student else f"{alarms.ONE_CLASS}, {who}"
        with evaluating(model):
            answers = predict(model, images, device, who=who)
        raised.append(alarms.one_class(answers, labels, who, on, names, name))
    return [alarm for alarm in raised if alarm is not None]


def _near_chance(config: DistillConfig, team: TeacherTeam, score: Proportion) -> list[alarms.Alarm]:
    """The alarm about teachers that are broken, and what may have broken them."""
    trained = isinstance(config.teacher, TrainedTeacher)
    if config.black_box is not None:
        remedy = "check its size, channels and the order of its classes"
        alarm = alarms.near_chance(score, team.spec.classes, "the teacher is", remedy)
        return [] if alarm is None else [alarm]
    remedy = "train it longer, or check its data" if trained else "check its mean, std, size and weights"
    who = "the teacher is" if len(team.models) == 1 else "the teachers together are"
    alarm = alarms.near_chance(score, team.spec.classes, who, remedy)
    return [] if alarm is None else [alarm]


def _alarms(job: Job, assembly: Assembly) -> list[alarms.Alarm]:
    """The tests that need no data, on the newest images and on the whole run's log."""
    raised = assembly.transfer_set.alarms()
    if job.accelerator.is_main_process:
        stale = alarms.stale_student(job.monitor.series("fresh/agreement")[1])
        raised += [] if stale is None else [stale]
    return raised
