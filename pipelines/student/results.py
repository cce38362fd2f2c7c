"""The result of a distillation: accuracy, agreement, size and speed, cost, alarms."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from synthkd.compression.capacity import TeacherQuality, compare_teachers
from synthkd.data.read.real import RealData
from synthkd.distillation import alarms
from synthkd.distillation.team import TeacherTeam
from synthkd.generators.stored import StoredImages
from synthkd.metrics.utility import Proportion, accuracy, predict, proportion
from synthkd.models import Classifier, parameters
from synthkd.models.cost import latency_ms
from synthkd.models.layout import head
from synthkd.pipelines.config import DistillConfig
from synthkd.pipelines.run.job import Job, describe_model
from synthkd.pipelines.student.assembly import Parts
from synthkd.pipelines.student.networks import finished
from synthkd.reports.results import (
    Agreement,
    DataDescription,
    DistillResult,
    Evaluations,
    ModelDescription,
    ModelResult,
    QualityResult,
    RaisedAlarm,
    Ratio,
    RunCost,
    StudentResult,
    TeamTeacher,
    from_json,
)
from synthkd.rng import Rows
from synthkd.taps import INPUT, evaluating, observe
from synthkd.training.loop import Progress
from synthkd.types import balanced_labels, to_uint8

ALARM_IMAGES = 1024
FRESH_IMAGES = 500
QUALITY_IMAGES = 200


def measured(
    config: DistillConfig,
    job: Job,
    parts: Parts,
    student: Classifier,
    test: RealData | None,
    teacher_seconds: float,
    progress: Progress,
) -> DistillResult:
    """Measure what a finished distillation comes to: accuracy, agreement, size and speed, cost, alarms.

    Args:
        config: of the run.
        job: the open run.
        parts: what was run.
        student: as it was saved.
        test: real test data, or None.
        teacher_seconds: how long the teacher's training took.
        progress: of the loop.
    """
    started = time.perf_counter()
    device, taught = job.device, parts.teacher
    agreement = _agreement(config, parts, student)
    raised = [*_one_class(parts, student, test, device), *_alarms(job, parts)]
    teacher_score = student_score = None
    peer_scores: list[Proportion | None] = [None for _ in parts.pupils[1:]]
    if test is not None:
        answers = predict(student, test.images, device, who="the student")
        student_score = accuracy(answers, test.labels)
        peer_scores = [_score(peer.learner.evaluated, test, device) for peer in parts.pupils[1:]]
        if taught is not None:
            teacher_answers = predict(taught.consensus, test.images, device)
            teacher_score = accuracy(teacher_answers, test.labels)
            agreement = Agreement.on(accuracy(answers, teacher_answers), "test")
    seconds = {
        "teacher": teacher_seconds,
        "distill": progress.seconds,
        "evaluate": progress.watching + time.perf_counter() - started,
    }
    # Latencies come after the clock of the evaluation has stopped: they are no part of it.
    teacher = None if taught is None else _model(taught.model, teacher_score, device)
    inherited, outcome = parts.inherited, parts.adaptation.outcome(_names(parts), job.monitor.rows())
    return DistillResult(
        seconds=round(sum(seconds.values()), 3),
        real_images_used=parts.real_images_used,
        teacher=teacher,
        student=StudentResult.of_student(student_score, agreement, _description(student, device), inherited),
        data=DataDescription(parts.subject.class_names, str(parts.subject.spec)),
        cost=RunCost(
            {stage: round(value, 3) for stage, value in seconds.items()}, parts.learner.total, parts.bank.added
        ),
        alarms=tuple(RaisedAlarm(**vars(alarm)) for alarm in raised),
        evaluations=from_json(Evaluations, outcome),
        teachers=None if taught is None or len(taught.models) < 2 else _team(config, parts, taught, test, device),
        peers=tuple(
            _model(finished(peer), score, device) for peer, score in zip(parts.pupils[1:], peer_scores, strict=True)
        )
        or None,
        ratio=None if taught is None else _ratio(student, taught.model, student_score, teacher_score),
    )


def _names(parts: Parts) -> list[str]:
    return [pupil.learner.name for pupil in parts.pupils]


def _description(model: Classifier, device: torch.device) -> ModelDescription:
    return describe_model(model, latency_ms(model, model.spec, device))


def _model(model: Classifier, score: Proportion | None, device: torch.device) -> ModelResult:
    return ModelResult.tested(score, _description(model, device))


def _score(model: nn.Module, test: RealData, device: torch.device) -> Proportion:
    with evaluating(model):
        return accuracy(predict(model, test.images, device), test.labels)


def _ratio(student: Classifier, teacher: Classifier, ours: Proportion | None, theirs: Proportion | None) -> Ratio:
    """Student over teacher in parameters and, where both were tested and the teacher is ever right, in accuracy."""
    share = None
    if ours is not None and theirs is not None and theirs.value > 0:
        share = ours.value / theirs.value
    return Ratio(parameters(student) / parameters(teacher), share)


def _team(
    config: DistillConfig, parts: Parts, team: TeacherTeam, test: RealData | None, device: torch.device
) -> tuple[TeamTeacher, ...]:
    """Each of several teachers, with its quality among them on held-out images."""
    models = {f"teacher {number}": model for number, model in enumerate(team.models, start=1)}
    probe = parts.probe()
    quality: Sequence[TeacherQuality | None] = [None] * len(models)
    if probe is not None:
        quality = compare_teachers(models, to_uint8(probe.images[:QUALITY_IMAGES]).cpu(), config.seed)
    counts: Sequence[int | None] = parts.adaptation.selected or [None] * len(models)
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


def _agreement(config: DistillConfig, parts: Parts, student: Classifier) -> Agreement:
    """Agreement of the finished student with its teacher on images that no student trained on."""
    device = next(student.parameters()).device
    if parts.generator is None:
        probe = parts.probe()
        if probe is None or probe.teacher_logits is None:
            return Agreement()
        answers = probe.teacher_logits.argmax(1).cpu()
        return Agreement.on(accuracy(predict(student, probe.images, device), answers), "held-out images")
    if isinstance(parts.generator, StoredImages):
        held_out = parts.generator.held_out
        assert held_out.teacher_logits is not None
        answers = held_out.teacher_logits.argmax(1)
        if parts.teacher is not None:  # it may be another than the one that labelled the dataset
            answers = predict(parts.teacher.consensus, held_out.images, device)
        share = accuracy(predict(student, held_out.images, device), answers)
        return Agreement.on(share, "held-out images of the dataset")
    assert parts.teacher is not None
    hits, chunk = 0, 100
    for first in range(0, FRESH_IMAGES, chunk):
        labels = balanced_labels(chunk, first, parts.subject.spec.classes)
        images = parts.generator.sample(labels, config.difficulty.start, Rows(config.seed, "fresh", first))
        with torch.no_grad():
            hits += int((student(images).argmax(1) == parts.teacher.consensus(images).argmax(1)).sum())
    return Agreement.on(proportion(hits, FRESH_IMAGES), "fresh synthetic samples")


def _one_class(parts: Parts, student: Classifier, test: RealData | None, device: torch.device) -> list[alarms.Alarm]:
    """The alarms about students that give one answer: on test images, else on the newest images of the run."""
    images, labels, on = _judged(parts, test)
    students = {"the student": student}
    students |= {f"peer {number}": finished(peer) for number, peer in enumerate(parts.pupils[1:], start=1)}
    raised = []
    for who, model in students.items():
        name = alarms.ONE_CLASS if model is student else f"{alarms.ONE_CLASS}, {who}"
        with evaluating(model):
            answers = predict(model, images, device, who=who)
        raised.append(alarms.one_class(answers, labels, who, on, parts.subject.class_names, name))
    return [alarm for alarm in raised if alarm is not None]


def _judged(parts: Parts, test: RealData | None) -> tuple[Tensor, Tensor, str]:
    """Images `[N, C, H, W]` to judge the students on, their labels int64 `[N]` on the CPU, and what they are."""
    newest = parts.bank.newest(ALARM_IMAGES)
    if test is not None:
        return test.images, test.labels.cpu(), "test images"
    if len(newest):
        return newest.images, newest.labels.cpu(), "of the newest images"
    batch = parts.probe() or parts.source.batch(parts.learner.total - 1)
    labels = batch.labels
    if labels is None or bool((labels < 0).any()):  # not annotated: the teacher's answers stand for the labels
        assert batch.teacher_logits is not None
        labels = batch.teacher_logits.argmax(1)
    return batch.images, labels.cpu(), "real images"


def _alarms(job: Job, parts: Parts) -> list[alarms.Alarm]:
    """The alarms that need no data, on the newest images and on the log of the whole run."""
    newest = parts.bank.newest(ALARM_IMAGES)
    raised: list[alarms.Alarm | None] = []
    if parts.generator is None:
        return []
    if parts.teacher is None:
        assert newest.teacher_logits is not None
        raised = [alarms.class_imbalance(newest.teacher_logits)]
    elif len(newest):
        model = parts.teacher.model
        penultimate = head(model) + INPUT
        with evaluating(model), torch.no_grad():
            outputs = observe(model, newest.images.to(job.device), features=[penultimate], statistics=True)
        raised = [
            alarms.class_imbalance(outputs.logits.cpu()),
            alarms.collapse(outputs.features[penultimate].flatten(1).cpu(), newest.labels),
            alarms.statistics_gap(outputs.statistics),
        ]
    if job.accelerator.is_main_process:
        raised.append(alarms.stale_student(job.monitor.series("fresh/agreement")[1]))
    return [alarm for alarm in raised if alarm is not None]
