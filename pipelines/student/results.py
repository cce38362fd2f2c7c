"""What a distillation comes to: the numbers of its result."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from synthkd.compression.capacity import TeacherQuality, compare_teachers
from synthkd.data.read.real import RealData
from synthkd.distillation import alarms
from synthkd.distillation.team import TeacherTeam
from synthkd.generators.stored import StoredImages
from synthkd.metrics.utility import Proportion, accuracy, predict, proportion
from synthkd.models import Classifier
from synthkd.models.layout import head
from synthkd.pipelines.config import DistillConfig
from synthkd.pipelines.run.job import Job, describe_model, scored
from synthkd.pipelines.student.assembly import Parts
from synthkd.pipelines.student.networks import finished
from synthkd.reports.run import ONE_CLASS
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
) -> dict[str, Any]:
    """The content of result.json: accuracy, agreement, size and speed, cost, alarms.

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
    teacher, spec, device = parts.teacher, parts.subject.spec, job.device
    teacher_score: Proportion | None = None
    student_score: Proportion | None = None
    peer_scores: list[Proportion | None] = [None for _ in parts.pupils[1:]]
    compared = _agreement(config, parts, student)
    raised = [*_one_class(parts, student, test, device), *_alarms(job, parts)]
    if test is not None:
        learned = predict(student, test.images, device, who="the student")
        student_score = accuracy(learned, test.labels)
        for number, peer in enumerate(parts.pupils[1:]):
            with evaluating(peer.learner.evaluated):
                peer_scores[number] = accuracy(predict(peer.learner.evaluated, test.images, device), test.labels)
        if teacher is not None:
            taught = predict(teacher.consensus, test.images, device)
            teacher_score = accuracy(taught, test.labels)
            compared = accuracy(learned, taught), "test"
    seconds = {
        "teacher": teacher_seconds,
        "distill": progress.seconds,
        "evaluate": progress.watching + time.perf_counter() - started,
    }
    values: dict[str, Any] = {
        "seconds": round(sum(seconds.values()), 3),
        "real_images_used": parts.real_images_used,
        "teacher": None if teacher is None else {**scored(teacher_score), **describe_model(teacher.model, device)},
        "student": {
            **scored(student_score),
            **_compared(compared),
            **describe_model(student, device),
            "inherited_parameters": parts.inherited,
        },
        "data": {"class_names": list(parts.subject.class_names), "spec": str(spec)},
        "cost": {
            "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
            "steps": parts.learner.total,
            "images_generated": parts.bank.added,
        },
        "alarms": [asdict(alarm) for alarm in raised],
        "evaluations": parts.adaptation.outcome([pupil.learner.name for pupil in parts.pupils], job.monitor.rows()),
    }
    if teacher is not None and len(teacher.models) > 1:
        values["teachers"] = _team(config, parts, teacher, test, device)
    if peer_scores:
        values["peers"] = [
            {**scored(score), **describe_model(finished(peer), device)}
            for score, peer in zip(peer_scores, parts.pupils[1:], strict=True)
        ]
    if teacher is None:
        return values
    ratio = {"parameters": values["student"]["parameters"] / values["teacher"]["parameters"]}
    if teacher_score is not None and student_score is not None and teacher_score.value > 0:
        ratio["accuracy"] = student_score.value / teacher_score.value
    return values | {"ratio": ratio}


def _team(
    config: DistillConfig, parts: Parts, team: TeacherTeam, test: RealData | None, device: torch.device
) -> list[dict[str, Any]]:
    """Each of several teachers: what it is, and its quality among them on the images looked at."""
    models = {f"teacher {number}": model for number, model in enumerate(team.models, start=1)}
    seen = parts.probe()
    quality: Sequence[TeacherQuality | None] = [None] * len(models)
    if seen is not None:
        quality = compare_teachers(models, to_uint8(seen.images[:QUALITY_IMAGES]).cpu(), config.seed)
    counts: Sequence[int | None] = parts.adaptation.selected or [None] * len(models)
    return [
        {
            "name": name,
            **scored(None if test is None else accuracy(predict(model, test.images, device), test.labels)),
            **describe_model(model, device),
            "quality": None if found is None else _quality(found),
            "selected": count,
        }
        for (name, model), found, count in zip(models.items(), quality, counts, strict=True)
    ]


def _quality(found: TeacherQuality) -> dict[str, float]:
    return {
        "fisher_trace": found.report.fisher_trace,
        "feature_dimension": found.report.feature_dimension,
        "relative_trace": found.relative_trace,
        "relative_dimension": found.relative_dimension,
        "score": found.score,
    }


def _compared(found: tuple[Proportion, str] | None) -> dict[str, Any]:
    """The agreement as it stands in result.json; null where there is no teacher to agree with."""
    if found is None:
        return {"agreement": None}
    agreement, on = found
    return {
        "agreement": agreement.value,
        "agreement_interval": [agreement.low, agreement.high],
        "agreement_n": agreement.n,
        "agreement_on": on,
    }


def _agreement(config: DistillConfig, parts: Parts, student: Classifier) -> tuple[Proportion, str] | None:
    """Agreement of the finished student with its teacher on images that no student trained on, and what they are."""
    if parts.generator is None:
        seen = parts.probe()
        if seen is None or seen.teacher_logits is None:
            return None
        device = next(student.parameters()).device
        return accuracy(predict(student, seen.images, device), seen.teacher_logits.argmax(1).cpu()), "held-out images"
    if isinstance(parts.generator, StoredImages):
        held_out, device = parts.generator.held_out, next(student.parameters()).device
        assert held_out.teacher_logits is not None
        taught = held_out.teacher_logits.argmax(1)
        if parts.teacher is not None:  # it may be another than the one that labelled the dataset
            taught = predict(parts.teacher.consensus, held_out.images, device)
        return accuracy(predict(student, held_out.images, device), taught), "held-out images of the dataset"
    assert parts.teacher is not None
    hits, chunk = 0, 100
    for first in range(0, FRESH_IMAGES, chunk):
        labels = balanced_labels(chunk, first, parts.subject.spec.classes)
        images = parts.generator.sample(labels, config.difficulty.start, Rows(config.seed, "fresh", first))
        with torch.no_grad():
            hits += int((student(images).argmax(1) == parts.teacher.consensus(images).argmax(1)).sum())
    return proportion(hits, FRESH_IMAGES), "fresh synthetic samples"


def _one_class(parts: Parts, student: Classifier, test: RealData | None, device: torch.device) -> list[alarms.Alarm]:
    """The alarms about students that give one answer: on test images, else on the newest that there are."""
    newest = parts.bank.newest(ALARM_IMAGES)
    asked: Tensor | None
    if test is not None:
        images, asked, on = test.images, test.labels, "test images"
    elif len(newest):
        images, asked, on = newest.images, newest.labels, "of the newest images"
    else:
        seen = parts.probe() or parts.source.batch(parts.learner.total - 1)
        images, asked, on = seen.images, seen.labels, "real images"
        if asked is None or bool((asked < 0).any()):
            assert seen.teacher_logits is not None
            asked = seen.teacher_logits.argmax(1)
    names, asked = parts.subject.class_names, asked.cpu()
    students = {"the student": student}
    students |= {f"peer {number}": finished(peer) for number, peer in enumerate(parts.pupils[1:], start=1)}
    raised = []
    for who, model in students.items():
        name = ONE_CLASS if model is student else f"{ONE_CLASS}, {who}"
        with evaluating(model):
            answers = predict(model, images, device, who=who)
        raised.append(alarms.one_class(answers, asked, who, on, names, name))
    return [alarm for alarm in raised if alarm is not None]


def _alarms(job: Job, parts: Parts) -> list[alarms.Alarm]:
    """The tests that need no data, on the newest images and on the whole run's log."""
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
            seen = observe(model, newest.images.to(job.device), features=[penultimate], statistics=True)
        raised = [
            alarms.class_imbalance(seen.logits.cpu()),
            alarms.collapse(seen.features[penultimate].flatten(1).cpu(), newest.labels),
            alarms.statistics_gap(seen.statistics),
        ]
    if job.accelerator.is_main_process:
        raised.append(alarms.stale_student(job.monitor.series("fresh/agreement")[1]))
    return [alarm for alarm in raised if alarm is not None]
